"""The detector of ShapeScenes: rendered shapes, clean and spoilt in ways that a weak generator spoils them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from rewards.geneval import Detection, detectors, judge
from rewards.geneval.detectors.shapes import ShapesDetector, nearest_colors
from rewards.geneval.vocabulary import BACKGROUND, CLASSES, COLORS
from t2i_gcpo.data.shapes.prompts import split
from t2i_gcpo.data.shapes.scene import Difficulty, Scene, SceneObject, sample_scene

LEFT, TOP = 31, 26
DETECT = ShapesDetector()
EVERY = [(name, color, (24, 32)[(i + j) % 2]) for i, name in enumerate(CLASSES) for j, color in enumerate(COLORS)]

Spoil = Callable[[np.ndarray], np.ndarray]


def paint(name: str, color: str, size: int, left: int = LEFT, top: int = TOP) -> np.ndarray:
    return Scene((SceneObject(name, color, left, top, size),)).render()


def batch(pictures: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def blurred(picture: np.ndarray) -> np.ndarray:
    return np.rint(ndimage.gaussian_filter(picture.astype(np.float32), (1, 1, 0))).astype(np.uint8)


def noisy(picture: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(int(picture.sum())).normal(0, 8, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def wobbly(picture: np.ndarray) -> np.ndarray:
    """Every edge moved by half a pixel or so (standard deviation), smoothly over the picture."""
    rng = np.random.default_rng(int(picture.sum()))
    shift = np.stack([ndimage.gaussian_filter(rng.normal(0, 1, (96, 96)), 3) for _ in range(2)])
    places = np.mgrid[:96, :96] + 0.5 * shift / shift.std()
    channels = [ndimage.map_coordinates(picture[..., k].astype(np.float32), places, order=1) for k in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def top_scores(pictures: list[np.ndarray], truth: list[tuple[str, str, int]]) -> list[float]:
    """Per picture the best score of a detection with the true class and colour, 0 where there is none."""
    return [
        max((one.score for one in found if (one.class_name, one.color) == (name, color)), default=0.0)
        for found, (name, color, _) in zip(DETECT(batch(pictures)), truth, strict=True)
    ]


@pytest.mark.parametrize("size", [16, 20, 24, 32, 40])
def test_clean_shapes(size: int) -> None:
    truth = [(name, color, size) for name in CLASSES for color in COLORS]
    for found, (name, color, _) in zip(DETECT(batch([paint(*one) for one in truth])), truth, strict=True):
        assert [(one.class_name, one.color) for one in found if one.score > 0.3] == [(name, color)]
        assert found[0].score > 0.95
        # Tips narrower than half a pixel are not in the mask, so boxes may fall short by a pixel or two.
        assert np.allclose(found[0].box, (LEFT, TOP, LEFT + size, TOP + size), atol=2)


@pytest.mark.parametrize(("spoil", "least"), [(blurred, 0.95), (noisy, 0.95), (wobbly, 0.7)])
def test_slightly_spoilt_shapes_are_recognised(spoil: Spoil, least: float) -> None:
    scores = top_scores([spoil(paint(*one)) for one in EVERY], EVERY)
    assert min(scores) > least
    assert np.mean(np.array(scores) > 0.9) > 0.95


def test_mask_is_the_shape() -> None:
    """A square of 24 has 576 pixels, exactly the ones painted; a ring's hole is not in its mask."""
    square, ring = (found[0] for found in DETECT(batch([paint("square", "red", 24), paint("ring", "blue", 32)])))
    expected = np.zeros((96, 96), dtype=bool)
    expected[TOP : TOP + 24, LEFT : LEFT + 24] = True
    assert square.mask is not None and (square.mask == expected).all()
    assert square.box == (LEFT, TOP, LEFT + 24, TOP + 24)
    assert ring.mask is not None and not ring.mask[TOP + 16, LEFT + 16] and ring.mask[TOP + 16, LEFT + 3]


def test_at_the_border() -> None:
    found = DETECT(batch([paint(name, "green", 24, 96 - 24, 0) for name in CLASSES]))
    assert [objects[0].class_name for objects in found] == list(CLASSES)
    assert min(objects[0].score for objects in found) > 0.95


@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (0, 1), (1, 1)])
def test_a_shift_shifts_the_box(dx: int, dy: int) -> None:
    for name in CLASSES:
        here, there = DETECT(batch([paint(name, "blue", 24), paint(name, "blue", 24, LEFT + dx, TOP + dy)]))
        assert there[0].score == pytest.approx(here[0].score, abs=1e-9)
        assert np.subtract(there[0].box, here[0].box).tolist() == [dx, dy, dx, dy]


def test_missing_quarter() -> None:
    def bitten(name: str, color: str, size: int) -> np.ndarray:
        picture = paint(name, color, size).copy()
        picture[TOP : TOP + size // 2, LEFT : LEFT + size // 2] = BACKGROUND
        return picture

    scores = np.array(top_scores([bitten(*one) for one in EVERY], EVERY))
    assert scores.max() < 0.5
    assert np.mean(scores < 0.3) > 0.97


@pytest.mark.parametrize("axis", [0, 1])
def test_two_coloured_halves_are_no_object(axis: int) -> None:
    pictures = []
    for name, color, size in EVERY:
        picture, other = paint(name, color, size).copy(), "purple" if color != "purple" else "red"
        half = (slice(TOP + size // 2, None),) if axis == 0 else (slice(None), slice(LEFT + size // 2, None))
        picture[half] = paint(name, other, size)[half]
        pictures.append(picture)
    assert not any(one.score > 0.3 for found in DETECT(batch(pictures)) for one in found)


def test_holes_and_bumps() -> None:
    hole, bump, spot = paint("square", "red", 24), paint("circle", "red", 24), paint("circle", "red", 24)
    hole[TOP + 8 : TOP + 16, LEFT + 8 : LEFT + 16] = BACKGROUND
    bump[TOP + 8 : TOP + 16, LEFT + 22 : LEFT + 31] = COLORS["red"]
    spot[TOP + 8 : TOP + 16, LEFT + 8 : LEFT + 16] = COLORS["blue"]
    for found in DETECT(batch([hole, bump, spot])):
        assert all(one.score < 0.3 for one in found)


def test_junk() -> None:
    """Flat pictures, noise, specks, mosaics and smooth random blobs.

    Next to nothing passes, least of all for counting.
    """
    rng = np.random.default_rng(0)
    palette = np.array([BACKGROUND, *COLORS.values()], dtype=np.uint8)
    flat = [np.broadcast_to(color, (96, 96, 3)) for color in palette]
    noise = [rng.integers(0, 256, (96, 96, 3)).astype(np.uint8) for _ in range(4)]
    specks = np.broadcast_to(palette[0], (96, 96, 3)).copy()
    specks[10:18, 10:18], specks[60:70, 60:70] = COLORS["red"], COLORS["blue"]
    mosaic = [palette[rng.integers(0, 11, (12, 12)).repeat(8, 0).repeat(8, 1)] for _ in range(4)]
    assert not any(one.score > 0.3 for found in DETECT(batch([*flat, *noise, specks, *mosaic])) for one in found)

    blobs = []
    for _ in range(40):
        field = ndimage.gaussian_filter(rng.normal(0, 1, (96, 96)), 5)
        blobs.append(np.where((field > np.quantile(field, 0.85))[..., None], palette[rng.integers(1, 11)], palette[0]))
    patches = sum(ndimage.label((picture != palette[0]).any(axis=-1))[1] for picture in blobs)
    scores = np.array([one.score for found in DETECT(batch(blobs)) for one in found])
    assert patches > 100
    assert (scores > 0.3).sum() < 0.1 * patches
    assert (scores > 0.9).sum() < 0.03 * patches


@pytest.mark.parametrize("other", ["red", "blue"])
def test_neighbours_two_pixels_apart(other: str) -> None:
    scene = Scene((SceneObject("circle", "red", 20, 30, 24), SceneObject("square", other, 46, 30, 24)))
    (found,) = DETECT(batch([scene.render()]))
    assert {(one.class_name, one.color) for one in found if one.score > 0.95} == {("circle", "red"), ("square", other)}
    assert len(found) == 2


def test_a_thin_bridge_does_not_join_two_objects() -> None:
    picture = Scene((SceneObject("star", "red", 12, 30, 32), SceneObject("heart", "red", 52, 30, 32))).render()
    picture[42:44, 30:60] = COLORS["red"]
    (found,) = DETECT(batch([picture]))
    assert {one.class_name for one in found if one.score > 0.9} == {"star", "heart"} and len(found) == 2


def test_bridged_neighbours_keep_to_themselves() -> None:
    picture = Scene((SceneObject("circle", "red", 16, 30, 24), SceneObject("square", "red", 44, 30, 24))).render()
    picture[41:43, 34:50] = COLORS["red"]
    circle, square = sorted(DETECT(batch([picture]))[0], key=lambda one: one.box)
    assert (circle.class_name, square.class_name) == ("circle", "square")
    assert circle.mask is not None and square.mask is not None
    assert not circle.mask[:, 44:].any() and not square.mask[:, :40].any()


def test_between_two_classes_is_neither() -> None:
    """|x|^n + |y|^n < 1 goes from a circle (n = 2) to a square (n large)."""
    y, x = (np.abs(np.mgrid[:96, :96] - 47.5) / 16).astype(np.float64)
    pictures = [
        np.where((x**n + y**n < 1)[..., None], COLORS["red"], BACKGROUND).astype(np.uint8) for n in (2, 3.75, 8)
    ]
    circle, between, square = DETECT(batch(pictures))
    assert circle[0].class_name == "circle" and circle[0].score > 0.95
    assert square[0].class_name == "square" and square[0].score > 0.95
    assert not any(one.score > 0.3 for one in between)


@pytest.mark.parametrize("spoil", [lambda picture: picture, blurred, noisy])
def test_scenes_are_judged_correct(spoil: Spoil) -> None:
    """The verdict on a rendered scene is the verdict on what was painted, for every task, with clutter."""
    rng = random.Random(0)
    prompts = [prompt for task in range(6) for prompt in rng.choices(_of_task(task), k=10)]
    scenes = [sample_scene(prompt.metadata, rng, Difficulty(clutter=2)) for prompt in prompts]
    found = DETECT(batch([spoil(scene.render()) for scene in scenes]))
    assert [len(objects) for objects in found] == [len(scene.objects) for scene in scenes]
    verdicts = [judge(objects, prompt.metadata) for objects, prompt in zip(found, prompts, strict=True)]
    assert [verdict.reason for verdict in verdicts] == [""] * len(prompts)
    # The same pictures under one another's prompts: the verdict on the painted objects is the reference.
    wrong = [prompt.metadata for prompt in prompts[7:] + prompts[:7]]
    painted = [
        judge([thing.detection() for thing in scene.objects], row) for scene, row in zip(scenes, wrong, strict=True)
    ]
    judged = [judge(objects, row) for objects, row in zip(found, wrong, strict=True)]
    assert [one.clauses for one in judged] == [one.clauses for one in painted]
    assert sum(one.correct for one in painted) < len(prompts) / 2


def _of_task(index: int) -> list:
    tasks = sorted({prompt.task for prompt in split("train")})
    return [prompt for prompt in split("train") if prompt.task == tasks[index]]


def test_a_picture_is_judged_alone() -> None:
    pictures = [paint(name, color, 24) for name, color in zip(CLASSES, COLORS, strict=False)]
    together = DETECT(batch(pictures))
    alone = [DETECT(batch([picture]))[0] for picture in pictures]
    assert together == alone


def test_nearest_colors_is_the_plain_argmin() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.float32)
    palette = np.array([BACKGROUND, *COLORS.values()], dtype=np.float64)
    distance = ((pixels[..., None, :].astype(np.float64) - palette) ** 2).sum(axis=-1)
    assert (nearest_colors(pixels) == distance.argmin(axis=-1)).all()


def test_input_is_checked() -> None:
    with pytest.raises(ValueError, match=r"uint8 \[B, 3, H, W\]; got torch.float32"):
        DETECT(torch.zeros(1, 3, 96, 96))
    with pytest.raises(ValueError, match=r"\[1, 96, 96, 3\]"):
        DETECT(torch.zeros(1, 96, 96, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="unknown detector 'yolo'; available: .*shapes"):
        detectors.load("yolo")
    assert isinstance(detectors.load("shapes"), ShapesDetector)


def test_speed() -> None:
    """CPU time against that of drawing the same scenes on the same machine.

    About seven times as much; the bound is five times that.
    """
    rng = random.Random(0)
    scenes = [sample_scene(prompt.metadata, rng) for prompt in rng.choices(split("train"), k=64)]
    drawing = looking = float("inf")
    for _ in range(3):
        start = time.process_time()
        images = batch([scene.render() for scene in scenes])
        drawn = time.process_time()
        found: list[list[Detection]] = DETECT(images)
        drawing, looking = min(drawing, drawn - start), min(looking, time.process_time() - drawn)
    assert all(found)
    assert looking < 35 * drawing
