"""ShapeScenes: what is held out, that scenes hold what their prompt asks for, and what the pre-training computes."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from rewards.geneval import judge
from rewards.geneval.vocabulary import BACKGROUND, CLASSES, COLORS
from t2i_gcpo.data.shapes import prompts as world
from t2i_gcpo.data.shapes.scene import IMAGE_SIZE, Difficulty, Scene, SceneObject, random_scene, sample_scene
from t2i_gcpo.pretrain.janus.codes import directions, kmeans, nearest, patch_codes, patches, pictures
from t2i_gcpo.pretrain.janus.model import VQSettings
from t2i_gcpo.pretrain.verdicts import agreement, draw_cases
from t2i_gcpo.records import Prompt


def color_pairs(prompt: Prompt) -> set[tuple[str, str]]:
    return {(clause["class"], clause["color"]) for clause in prompt.metadata["include"] if clause.get("color")}


def class_pairs(prompt: Prompt) -> set[frozenset[str]]:
    clauses = prompt.metadata["include"]
    return {frozenset(c["class"] for c in clauses)} if " and " in prompt.text else set()


def triples(prompt: Prompt) -> set[tuple[str, str, str]]:
    """Both names of each relation that the prompt states, read from its words."""
    inverse = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    for relation, other in inverse.items():
        if f" {relation} " in prompt.text:
            first, second = prompt.text.removeprefix("a photo of a ").split(f" {relation} a ")
            return {(first, second, relation), (second, first, other)}
    return set()


@pytest.mark.parametrize("held_out", ["val", "test"])
@pytest.mark.parametrize("combinations", [color_pairs, class_pairs, triples])
def test_no_combination_of_a_held_out_prompt_is_in_another_split(held_out: str, combinations) -> None:  # type: ignore[no-untyped-def]
    def of(name: str) -> set:  # type: ignore[type-arg]
        return set().union(*(combinations(prompt) for prompt in world.split(name)))

    assert of(held_out)
    for other in {"train", "val", "test"} - {held_out}:
        assert not of(held_out) & of(other)


def test_the_splits_share_all_classes_and_colors() -> None:
    for name in world.SPLITS:
        pairs = world.color_split()[name]
        assert {c for c, _ in pairs} == set(CLASSES)
        assert {k for _, k in pairs} == set(COLORS)
    assert sum(len(pairs) for pairs in world.color_split().values()) == len(CLASSES) * len(COLORS)


@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_every_split_asks_for_all_four_relations_and_their_mirrors(name: str) -> None:
    asked = {t for p in world.split(name) if p.task == "position" for t in triples(p)}
    assert {relation for _, _, relation in asked} == {"left of", "right of", "above", "below"}
    assert (
        len([p for p in world.split(name) if p.task == "position"]) == len(asked) == 2 * len(world.triple_split()[name])
    )


def test_position_rows_are_those_of_geneval() -> None:
    prompt = next(p for p in world.split("train") if p.task == "position")
    target, subject = prompt.metadata["include"]
    relation, index = subject["position"]
    assert index == 0 and prompt.text == f"a photo of a {subject['class']} {relation} a {target['class']}"


def test_unknown_split_is_an_error_that_lists_them() -> None:
    with pytest.raises(ValueError, match="shapes:train, shapes:val, shapes:test"):
        world.split("dev")


def test_sampled_scenes_are_true_and_their_objects_apart() -> None:
    rng = random.Random(1)
    for prompt in rng.sample(world.split("train"), 60):
        scene = sample_scene(prompt.metadata, rng)
        assert judge([thing.detection() for thing in scene.objects], prompt.metadata).correct
        for k, a in enumerate(scene.objects):
            assert a.left % 8 == 0 and a.left + a.size <= IMAGE_SIZE and a.top + a.size <= IMAGE_SIZE
            for b in scene.objects[:k]:
                apart_x = max(a.left, b.left) - min(a.left + a.size, b.left + b.size)
                apart_y = max(a.top, b.top) - min(a.top + a.size, b.top + b.size)
                assert max(apart_x, apart_y) >= Difficulty().gap


def test_a_square_is_painted_where_it_stands() -> None:
    picture = Scene((SceneObject("square", "red", 16, 40, 24),)).render()
    expected = np.empty_like(picture)
    expected[:] = BACKGROUND
    expected[40:64, 16:40] = COLORS["red"]
    assert np.array_equal(picture, expected)


def test_edges_are_anti_aliased() -> None:
    picture = Scene((SceneObject("circle", "black", 32, 32, 32),)).render().reshape(-1, 3)
    between = (picture[:, 0] > COLORS["black"][0]) & (picture[:, 0] < BACKGROUND[0])
    assert 20 < between.sum() < 300


def test_clutter_adds_objects_of_other_classes() -> None:
    metadata = {
        "tag": "counting",
        "include": [{"class": "star", "count": 2}],
        "exclude": [{"class": "star", "count": 3}],
    }
    scenes = [sample_scene(metadata, random.Random(k), Difficulty(clutter=2)) for k in range(20)]
    assert all(sum(thing.class_name == "star" for thing in scene.objects) == 2 for scene in scenes)
    assert max(len(scene.objects) for scene in scenes) == 4


@pytest.mark.parametrize(("option", "value"), [("classes", 1), ("classes", 9), ("max_objects", 5)])
def test_impossible_difficulties_are_refused(option: str, value: int) -> None:
    with pytest.raises(ValueError, match=option):
        Difficulty(**{option: value})


def test_verdicts_agree_with_what_was_drawn_and_notice_a_scrambled_picture() -> None:
    cases = draw_cases(48, seed=3)
    assert all(share == {"true": 1.0, "false": 1.0, "all": 1.0} for share in agreement(cases).values())
    blank = agreement(cases, lambda images: torch.full_like(images, 160))
    assert all(share["true"] == 0.0 for share in blank.values())


def test_crops_start_on_the_token_grid() -> None:
    rng = random.Random(0)
    crops = pictures(rng, 8, 48)
    assert crops.shape == (8, 3, 48, 48) and crops.abs().max() <= 1
    background = torch.tensor(BACKGROUND) / 127.5 - 1
    # Every crop holds some of an object, and objects begin on multiples of 8: a cell is changed from its first pixels
    # on.
    assert ((crops - background[None, :, None, None]).abs().amax(dim=(1, 2, 3)) > 0.1).all()


def test_the_random_scene_is_that_of_its_generator() -> None:
    assert random_scene(random.Random(5)) == random_scene(random.Random(5)) != random_scene(random.Random(6))


def test_kmeans_ends_where_each_centre_is_the_mean_of_its_members() -> None:
    points = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    found, start = (kmeans(points, 6, rounds, torch.Generator().manual_seed(1)) for rounds in (100, 0))
    owner = torch.cdist(points, found).argmin(dim=1)
    assert torch.equal(nearest(points, found), owner)
    assert sorted(owner.unique().tolist()) == list(range(6))
    for k in range(6):
        assert torch.allclose(found[k], points[owner == k].mean(dim=0), atol=1e-5)
    assert torch.cdist(points, found).amin(dim=1).mean() < 0.95 * torch.cdist(points, start).amin(dim=1).mean()


def test_few_points_are_their_own_centres() -> None:
    points = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    found = kmeans(points, 7, 10, torch.Generator().manual_seed(1))
    assert found.shape == (7, 3)
    assert torch.equal(torch.unique(found, dim=0), torch.unique(points, dim=0))


def test_patches_stand_in_the_order_of_the_tokens() -> None:
    pixels = torch.zeros(2, 3, 16, 24)
    pixels[1, 2, 8:, 16:] = 1.0  # second picture, second row, third column: patch 6 + 5
    assert patches(pixels).sum(dim=1).tolist() == [0.0] * 11 + [64.0]


def test_recolouring_one_object_changes_no_code_but_its_own() -> None:
    codes = patch_codes(VQSettings(kmeans_scenes=200, codebook=400))
    scenes = [
        Scene((SceneObject("circle", colour, 16, 24, 24), SceneObject("star", "green", 56, 56, 32)))
        for colour in ("red", "blue")
    ]
    pictures_ = np.stack([scene.render() for scene in scenes])
    tokens = nearest(patches(torch.from_numpy(pictures_).permute(0, 3, 1, 2).float() / 127.5 - 1), codes).view(
        2, 12, 12
    )
    changed = {(row, column) for row, column in (tokens[0] != tokens[1]).nonzero().tolist()}
    assert changed and changed <= {(row, column) for row in (3, 4, 5) for column in (2, 3, 4)}
    assert len(torch.unique(tokens[:, :3])) == 1  # an empty patch has one name


def test_the_codebook_starts_with_unit_vectors_that_tell_the_patches_apart() -> None:
    codes = torch.unique(patch_codes(VQSettings(kmeans_scenes=200, codebook=400)), dim=0)
    entries = directions(codes, 16)
    assert torch.allclose(entries.norm(dim=1), torch.ones(len(codes)))
    assert (entries @ entries.T - torch.eye(len(codes))).max() < 0.9999
