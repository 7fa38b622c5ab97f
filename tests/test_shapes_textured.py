"""The textured style: what it paints, that the scorer reads it, and that its codes and its recipe hold together."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rewards.geneval.detectors.shapes import nearest_colors
from rewards.geneval.vocabulary import BACKGROUND, COLORS
from t2i_gcpo.data.shapes.prompts import split
from t2i_gcpo.data.shapes.scene import IMAGE_SIZE, Difficulty, Scene, SceneObject, random_scene, sample_scene
from t2i_gcpo.data.shapes.textured import MOVED, MUTED, RESIZED, Backdrop, Shading, draw_backdrop, paint_backdrop
from t2i_gcpo.pretrain.janus.codes import as_pixels, patch_codes, patches, principal_components
from t2i_gcpo.pretrain.janus.command import saved_codes
from t2i_gcpo.pretrain.janus.layout import FILLINGS, LEAST_PIXELS, layout_features, shown_layout, split_cross_entropy
from t2i_gcpo.pretrain.janus.model import VQSettings
from t2i_gcpo.pretrain.verdicts import agreement, draw_cases

TEXTURED = Difficulty.of_style("textured")
GREY = Backdrop("gradient", BACKGROUND, BACKGROUND, 0.0, 10.0, 0)
SMALL = VQSettings(style="textured", codebook=24, background_codes=8, kmeans_scenes=12)


def test_plain_scenes_are_painted_as_they_were_before_there_was_a_second_style() -> None:
    rng = random.Random(11)
    scenes = [sample_scene(prompt.metadata, rng) for prompt in rng.sample(split("train"), 40)]
    scenes += [random_scene(rng) for _ in range(40)]
    digest = hashlib.sha256(b"".join(scene.render().tobytes() for scene in scenes)).hexdigest()
    assert digest == "b4eae6b302ffbe9448dd1f09a2c86afb28c3fd8a9d1cb7bf01c8a3e25a2b9bf6"


def test_textured_verdicts_agree_with_what_was_drawn() -> None:
    assert all(share["all"] == 1.0 for share in agreement(draw_cases(36, seed=4, style="textured")).values())


@pytest.mark.slow
def test_99_percent_of_textured_verdicts_are_right_in_every_task() -> None:
    # 400 a task: with at most one wrong, the upper 95 % bound of the share of wrong ones is 1.2 %; with none 0.75 %.
    shares = agreement(draw_cases(2400, seed=0, style="textured"))
    assert {task: share["all"] for task, share in shares.items() if share["all"] < 1 - 1 / 400} == {}


def test_a_backdrop_is_never_taken_for_a_colour_that_prompts_name() -> None:
    rng = random.Random(2)
    backdrops = [draw_backdrop(rng) for _ in range(80)]
    assert {backdrop.pattern for backdrop in backdrops} == {"gradient", "stripes", "grain", "clouds"}
    pictures = np.stack([paint_backdrop(backdrop, IMAGE_SIZE) for backdrop in backdrops])
    assert (nearest_colors(pictures) == 0).all()
    assert np.linalg.norm(pictures - np.array(BACKGROUND), axis=-1).max() < 2 * MUTED
    assert pictures.std(axis=(1, 2)).mean(axis=1).min() > 3  # every one of them has a pattern


def test_the_backdrop_is_that_of_its_seed() -> None:
    backdrop = draw_backdrop(random.Random(3))
    assert np.array_equal(paint_backdrop(backdrop, 32), paint_backdrop(backdrop, 32))
    assert not np.array_equal(paint_backdrop(backdrop, 32), paint_backdrop(replace(backdrop, seed=1), 32))


@pytest.mark.parametrize("angle", [0.0, 3.0])
def test_an_object_is_painted_inside_the_box_that_a_perfect_detector_gives(angle: float) -> None:
    thing = SceneObject("square", "red", 20.5, 33.25, 30.0, angle, Shading(0.0, 0.0))
    picture = Scene((thing,), backdrop=GREY).render().astype(float)
    empty = Scene((), backdrop=GREY).render().astype(float)
    rows, columns = np.nonzero(np.abs(picture - empty).sum(axis=-1) > 20)
    seen = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert thing.detection().box == pytest.approx(seen, abs=1.0)
    covered = np.abs(picture - empty).sum() / np.abs(np.array(COLORS["red"]) - BACKGROUND).sum()
    assert covered == pytest.approx(30.0**2, rel=0.03)  # smooth edges keep the area


def test_light_brightens_the_side_that_it_comes_from() -> None:
    thing = SceneObject("square", "blue", 30.0, 30.0, 30.0, 0.0, Shading(20.0, 0.0))
    picture = Scene((thing,), backdrop=GREY).render().astype(float)
    left, right = picture[40:50, 32:36].mean(), picture[40:50, 54:58].mean()
    assert right - left == pytest.approx(20 * 2 * 22 / 30, rel=0.1)  # 22 pixels apart, 20 units over 15 pixels


def test_sampled_objects_stand_near_places_of_the_lattice_apart_and_inside() -> None:
    rng = random.Random(5)
    scenes = [random_scene(rng, TEXTURED) for _ in range(60)]
    things = [thing for scene in scenes for thing in scene.objects]
    assert len({thing.size for thing in things}) == len({thing.left for thing in things}) == len(things)
    for thing in things:
        side = 24 if thing.size < 28 else 32
        assert abs(thing.size / side - 1) <= RESIZED
        for corner in (thing.left, thing.top):
            assert abs((corner + (thing.size - side) / 2 + 4) % 8 - 4) <= MOVED
    for scene in scenes:
        boxes = [thing.detection().box for thing in scene.objects]
        for k, (left, top, right, bottom) in enumerate(boxes):
            assert min(left, top) >= 0 and max(right, bottom) <= IMAGE_SIZE
            for other in boxes[:k]:
                across = max(left, other[0]) - min(right, other[2])
                down = max(top, other[1]) - min(bottom, other[3])
                assert max(across, down) >= TEXTURED.gap - 1e-9


def test_an_unknown_style_and_a_lattice_that_is_too_fine_are_refused() -> None:
    with pytest.raises(ValueError, match="no style 'glossy'; allowed: plain, textured"):
        Difficulty.of_style("glossy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lattice is 0; the plain style needs 1 pixels or more"):
        Difficulty(lattice=0)
    with pytest.raises(ValueError, match="lattice is 4; the textured style needs 8 pixels or more"):
        Difficulty(lattice=4, style="textured")


def test_background_codes_are_muted_and_the_others_are_not() -> None:
    codes = (patch_codes(SMALL).view(24, 3, 64) + 1) * 127.5
    distance = (codes - torch.tensor(BACKGROUND)[None, :, None]).norm(dim=1).amax(dim=1)
    assert (distance[-8:] < 2 * MUTED).all()
    assert distance[:-8].median() > 100  # most of the others show a colour that prompts name


def test_codes_are_kept_for_the_settings_that_made_them(tmp_path: Path) -> None:
    codes = saved_codes(tmp_path, SMALL)
    written = (tmp_path / "codes.pt").stat().st_mtime_ns
    assert torch.equal(saved_codes(tmp_path, SMALL), codes)
    assert (tmp_path / "codes.pt").stat().st_mtime_ns == written
    other = saved_codes(tmp_path, replace(SMALL, seed=1))
    assert not torch.equal(other, codes)
    (tmp_path / "codes.pt").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"codes\.pt is no state that this pre-training wrote"):
        saved_codes(tmp_path, SMALL)


def test_codes_that_look_alike_start_with_like_embeddings_and_logits() -> None:
    from rewards.models.torchvision_mend import mend

    mend()
    from t2i_gcpo.pretrain.janus.layout_rows import LayoutRows
    from t2i_gcpo.pretrain.janus.model import LanguageModelShape, build_janus

    codes = patch_codes(SMALL)
    codes[1] = codes[0] + 1e-3
    others = shown_layout(codes) != shown_layout(codes)[0]
    inner = build_janus(SMALL, LanguageModelShape(width=32, layers=1, heads=2, mlp=32), 0, None).model
    LayoutRows(inner, codes, seed=0).fold_into(inner)
    for vectors in (inner.generation_embeddings.weight, inner.generation_head.vision_head.weight):
        distances = torch.cdist(vectors, vectors)
        assert distances[0, 1] < 0.02 * distances[0, others].min()
    components = principal_components(codes, 4)
    assert torch.allclose(components.T @ components / len(codes), torch.eye(4), atol=1e-4)
    deviations = torch.linalg.svdvals(codes - codes.mean(0))[:4]
    for power in (0.5, 1.0):
        variance = principal_components(codes, 4, power).square().mean(0)
        assert variance.mean() == pytest.approx(1.0, abs=1e-4)
        assert torch.allclose(variance / variance[0], (deviations / deviations[0]) ** (2 * power), atol=1e-4)


def test_a_patch_shows_the_colour_of_its_object_and_a_backdrop_shows_none() -> None:
    rng, difficulty = random.Random(0), Difficulty.of_style("textured")
    right = shown = 0
    for _ in range(40):
        scene = random_scene(rng, difficulty)
        lone = replace(scene, objects=scene.objects[:1])
        full, empty = (patches(as_pixels([one.render()])) for one in (lone, replace(scene, objects=())))
        differs = (full - empty).abs().view(len(full), 3, -1).amax(dim=1) > 0.3
        layouts = shown_layout(full[differs.sum(dim=1) >= 4 * LEAST_PIXELS])  # one quarter has a fourth of them or more
        assert not shown_layout(empty).any()
        right += int(((layouts - 1) // FILLINGS == list(COLORS).index(scene.objects[0].color)).sum())
        shown += len(layouts)
    assert right >= 0.99 * shown and shown > 200


def test_a_layout_is_the_colour_of_most_pixels_and_the_quarters_that_are_filled() -> None:
    picture = torch.empty(3, 3, 8, 8)
    picture[:] = torch.tensor(BACKGROUND).view(3, 1, 1) / 127.5 - 1
    red, blue = (torch.tensor(COLORS[name]).view(3, 1, 1) / 127.5 - 1 for name in ("red", "blue"))
    picture[0, :, 0, : LEAST_PIXELS - 1] = red[..., 0]
    picture[1, :, :4, 4:] = red
    picture[2, :, 4:], picture[2, :, :4, :2] = blue, red
    layouts = shown_layout(patches(picture))
    first_red, first_blue = (FILLINGS * list(COLORS).index(name) for name in ("red", "blue"))
    assert layouts.tolist() == [0, first_red + 2, first_blue + 1 + 4 + 8]
    features = layout_features(layouts)
    assert features.shape == (3, 14) and not features[0].any()
    assert features[1].nonzero().flatten().tolist() == [list(COLORS).index("red"), 11]
    assert features[2].nonzero().flatten().tolist() == [list(COLORS).index("blue"), 10, 12, 13]


def test_cross_entropy_is_split_into_group_and_code_by_hand() -> None:
    groups = torch.tensor([0, 0, 1])
    logits = torch.tensor([0.5, 0.25, 0.25]).log().view(1, 1, 3).expand(1, 3, 3) + 7.0
    group, code = split_cross_entropy(logits, torch.tensor([[0, 1, 2]]), groups)
    assert torch.allclose(group.exp(), torch.tensor([[4 / 3, 4 / 3, 4.0]]))
    assert torch.allclose(code.exp(), torch.tensor([[1.5, 3.0, 1.0]]))


def test_no_weight_of_group_and_code_moves_where_the_loss_is_least() -> None:
    generator = torch.Generator().manual_seed(0)
    groups = torch.randint(3, (12,), generator=generator)
    truth = torch.randn(12, generator=generator)
    tokens, share = torch.arange(12)[None], truth.softmax(-1)
    for start, least in ((truth, True), (torch.randn(12, generator=generator), False)):
        for weight in (0.5, 4.0):
            logits = start.clone().requires_grad_()
            group, code = split_cross_entropy(logits.expand(1, 12, 12), tokens, groups)
            ((weight * group + code) * share).sum().backward()
            assert logits.grad is not None and bool((logits.grad.abs() < 1e-6).all()) == least
