"""ShapeScenes: what is held out, that scenes hold what their prompt asks for, and what the pre-training computes."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rewards.geneval import judge
from rewards.vocabulary import BACKGROUND, CLASSES, COLORS
from t2i_gcpo.records import Prompt
from t2i_gcpo.shapes import prompts as world
from t2i_gcpo.shapes.scene import IMAGE_SIZE, Difficulty, Scene, SceneObject, random_scene, sample_scene
from t2i_gcpo.shapes.verdicts import agreement, draw_cases
from t2i_gcpo.shapes.vq import Codebook, kmeans, pictures


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
    # Every crop holds some of an object, and objects begin on multiples of 8: a cell is changed from its first pixels on.
    assert ((crops - background[None, :, None, None]).abs().amax(dim=(1, 2, 3)) > 0.1).all()


def test_the_random_scene_is_that_of_its_generator() -> None:
    assert random_scene(random.Random(5)) == random_scene(random.Random(5)) != random_scene(random.Random(6))


def test_kmeans_ends_where_each_centre_is_the_direction_of_its_members() -> None:
    generator = torch.Generator().manual_seed(0)
    points = F.normalize(torch.randn(300, 4, generator=generator), dim=1)
    found = kmeans(points, 6, 100, torch.Generator().manual_seed(1))
    start = kmeans(points, 6, 0, torch.Generator().manual_seed(1))
    owner = (points @ found.T).argmax(dim=1)
    assert sorted(owner.unique().tolist()) == list(range(6))
    for k in range(6):
        assert torch.allclose(found[k], F.normalize(points[owner == k].sum(dim=0), dim=0), atol=1e-5)
    assert (points @ found.T).amax(dim=1).mean() > (points @ start.T).amax(dim=1).mean() + 0.02


def test_the_codebook_gives_the_nearest_entry_and_follows_its_latents() -> None:
    generator = torch.Generator().manual_seed(0)
    book = Codebook(4, 2, decay=0.5)
    book.start(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]))
    latents = F.normalize(torch.tensor([[1.0, 0.5], [-0.2, 1.0], [-1.0, 0.1], [0.1, -1.0]]), dim=1)
    chosen, index = book.eval()(latents, generator)
    assert index.tolist() == [0, 1, 2, 3] and torch.equal(chosen, book.entries)
    book.train()(latents, generator)
    # decay 0.5: the new entry is the direction of (old + latent) / 2
    expected = F.normalize(torch.tensor([1.0, 0.0]) + latents[0], dim=0)
    assert torch.allclose(book.entries[0], expected, atol=1e-6)
