"""`heatmap.draw`: images and weights of any model, in any shape and range; sentences where something does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from t2i_gcpo import credit, heatmap
from t2i_gcpo.heatmap import Heatmap
from t2i_gcpo.heatmap.html import payload

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (3, 48, 48), dtype=np.uint8)
BYTES[0, 0, :2] = 0, 255
"""[3, H, W]; black and white are there, so that every range can be told."""
WEIGHTS = RNG.random((24, 24)).astype(np.float32) * 2

#: The same picture, as other code has it.
PICTURES: dict[str, Callable[[], Any]] = {
    "bytes, channels first": lambda: BYTES,
    "bytes, channels last": lambda: BYTES.transpose(1, 2, 0),
    "tensor of bytes": lambda: torch.from_numpy(BYTES),
    "PIL": lambda: Image.fromarray(BYTES.transpose(1, 2, 0)),
    "PIL in a list": lambda: [Image.fromarray(BYTES.transpose(1, 2, 0))],
    "floats from 0 to 1": lambda: torch.from_numpy(BYTES) / 255,
    "floats from -1 to 1": lambda: torch.from_numpy(BYTES) / 127.5 - 1,
    "floats from 0 to 255": lambda: BYTES.astype(np.float64),
    "half floats with a gradient": lambda: (torch.from_numpy(BYTES) / 255).half().requires_grad_(),
    "bfloat16, of which a byte keeps its upper bits": lambda: torch.from_numpy(BYTES).to(torch.bfloat16),
    "integers": lambda: torch.from_numpy(BYTES).long(),
    "a batch of one": lambda: BYTES[None],
    "given black and white": lambda: torch.from_numpy(BYTES) / 255 * 5 - 2,
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_of_any_kind_is_the_same_picture(name: str) -> None:
    value_range = (-2.0, 3.0) if name.startswith("given") else None
    drawn = heatmap.draw(PICTURES[name](), WEIGHTS, grid=(24, 24), value_range=value_range)
    off = 1 if "bfloat16" in name else 0
    assert np.abs(drawn.heatmap.images[0].astype(int) - BYTES).max() <= off
    np.testing.assert_array_equal(drawn.heatmap.weights[0], WEIGHTS.reshape(-1))


def test_grey_pictures_and_overshoot() -> None:
    grey = heatmap.draw(np.linspace(0, 1, 64).reshape(8, 8), np.ones((2, 2)))
    np.testing.assert_array_equal(grey.heatmap.images[0, 0], grey.heatmap.images[0, 2])
    over = heatmap.draw(torch.linspace(-1.05, 1.08, 192).view(3, 8, 8), np.ones((2, 2))).heatmap.images
    assert over.min() == 0 and over.max() == 255


@pytest.mark.parametrize(
    "shape", [(2, 576), (2, 24, 24), (2, 1, 24, 24)], ids=["flat", "grid", "grid with a channel"]
)  # fmt: skip
def test_weights_of_any_shape(shape: tuple[int, ...]) -> None:
    images, weights = np.stack([BYTES, BYTES[::-1]]), np.stack([WEIGHTS, WEIGHTS.T])
    drawn = heatmap.draw(torch.from_numpy(images), torch.from_numpy(weights).view(shape), grid=(24, 24)).heatmap
    np.testing.assert_array_equal(drawn.weights, weights.reshape(2, 576))
    assert drawn.grid == (24, 24) and drawn.images.shape == (2, 3, 48, 48)


def test_five_lines_from_a_model_that_is_not_ours(tmp_path: Path) -> None:
    logits, others = (torch.randn(1, 576, 64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    tokens = logits.argmax(-1)
    positive, negative = (x.log_softmax(-1).gather(-1, tokens[..., None])[..., 0] for x in (logits, others))
    drawing = heatmap.draw(
        BYTES, WEIGHTS, grid=(24, 24), logprob_positive=positive, logprob_negative=negative, tokens=tokens
    )
    assert {"weight", "contrast", "kl", "surprisal"} <= set(drawing.heatmap.maps())
    assert not {"order", "advantage", "entropy"} & set(drawing.heatmap.maps()), "nothing was made up"
    for ending in ("png", "html", "npz", "pdf", "svg"):
        assert drawing.save(tmp_path / "new" / f"x.{ending}").stat().st_size > 500
    with Image.open(tmp_path / "new" / "x.png") as opened:
        assert opened.size == drawing.picture().size
    cell = heatmap.cell(heatmap.load(tmp_path / "new" / "x.npz"), 0, 1, 2)
    assert cell["token"] == int(tokens[0, 26]) and cell["weight"] == WEIGHTS[1, 2] and "step" not in cell
    assert cell["contrast"] == pytest.approx(float(positive[0, 26] - negative[0, 26]), rel=1e-6)
    assert f"{float(f'{WEIGHTS[1, 2]:.5g}')}" in drawing.html()
    with pytest.raises(ValueError, match=r"x.jpg ends in .jpg; allowed: .png \(the picture\)"):
        drawing.save(tmp_path / "x.jpg")


def test_a_heatmap_needs_images_weights_and_a_grid_alone(tmp_path: Path) -> None:
    one = Heatmap(images=BYTES[None], weights=WEIGHTS.reshape(1, 576), grid=(24, 24))
    assert list(one.maps()) == ["weight"] and one.notes() == [""] and one.draw().width > 100
    back = Heatmap.load(one.save(tmp_path / "x.npz"))
    np.testing.assert_array_equal(back.weights, one.weights)
    assert back.tokens is None and back.logprob_positive is None and back.rows([0]).commit_step is None
    assert payload(one)["images"][0]["tokens"] is None
    assert len(Heatmap.cat([one, back])) == 2
    for call, message in (
        (lambda: heatmap.reweigh(one, divergence="js"), "holds no log-probs"),
        (lambda: heatmap.overlay(one, up_to=3), "does not know the order"),
        (lambda: heatmap.against(one, None, "x"), "holds no tokens"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_without_weights_those_of_gcpo_are_drawn() -> None:
    positive, negative = -RNG.random((1, 576), dtype=np.float32), -RNG.random((1, 576), dtype=np.float32)
    drawn = heatmap.draw(BYTES, grid=(24, 24), logprob_positive=positive, logprob_negative=negative).heatmap
    expected = credit.token_weights(torch.from_numpy(positive), torch.from_numpy(negative)).numpy()
    np.testing.assert_array_equal(drawn.weights, expected)
    assert "contrast kl, normalised by rank" in drawn.title("weight")


def test_advantages_of_images_and_of_tokens() -> None:
    images, weights = np.stack([BYTES, BYTES]), np.stack([WEIGHTS, WEIGHTS])
    drawn = heatmap.draw(images, weights, advantages=[1.0, -0.5], scores=[1, 0], prompts="a  cat").heatmap
    np.testing.assert_allclose(drawn.maps()["advantage"][1], -0.5 * WEIGHTS.reshape(-1))
    assert drawn.notes() == ["score 1, A = +1.00", "score 0, A = -0.50"] and drawn.prompts.tolist() == ["a cat"] * 2
    own = heatmap.draw(BYTES, WEIGHTS, advantages=-WEIGHTS)
    assert own.kind == "advantage" and own.heatmap.notes() == [""]
    np.testing.assert_array_equal(own.heatmap.maps()["advantage"][0], -WEIGHTS.reshape(-1))


def test_the_title_does_not_claim_a_mean_that_is_not_there() -> None:
    title = heatmap.draw(BYTES, WEIGHTS / WEIGHTS.sum()).heatmap.title("weight")
    assert title == "token weight, as given"
    assert "mean 1" in heatmap.draw(BYTES, WEIGHTS / WEIGHTS.mean()).heatmap.title("weight")


@pytest.mark.parametrize(
    ("image", "weights", "options", "message"),
    [
        (BYTES, np.ones(576), {}, r"shape \[576\], which does not show the grid.*grid=\(rows, columns\)"),
        (BYTES, np.ones(575), {"grid": (24, 24)}, r"\[575\]; for 1 image on a grid of 24 x 24 it must be \[1, 576\]"),
        (np.stack([BYTES] * 2), np.ones((3, 576)), {"grid": (24, 24)}, r"for 2 images .* must be \[2, 576\]"),
        (BYTES, -WEIGHTS, {}, "weights are as low as -.*Give signed credit as advantages"),
        (BYTES, None, {}, "nothing to draw: give weights, or logprob_positive and logprob_negative"),
        (BYTES, None, {"logprob_positive": WEIGHTS}, "nothing to draw"),
        (BYTES, WEIGHTS, {"logprob_positive": WEIGHTS[:2]}, r"logprob_positive has the shape \[2, 24\]"),
        (BYTES, WEIGHTS, {"tokens": WEIGHTS}, "tokens must be whole numbers"),
        (BYTES, WEIGHTS, {"scores": [1, 2]}, r"scores has the shape \[2\] for 1 images"),
        (BYTES, WEIGHTS, {"prompts": ["a", "b"]}, "2 prompts for 1 images"),
        (BYTES, WEIGHTS, {"kind": "kl"}, "no map 'kl' here; allowed: weight"),
        (BYTES, "much", {}, "str is no tensor, array or PIL image"),
        (BYTES / 50.0 - 2, WEIGHTS, {}, r"values from -2 to 3.1, which is none of .*value_range=\(low, high\)"),
        (BYTES / 255.0, WEIGHTS, {"value_range": (0, 0.5)}, r"outside the range from 0 \(black\) to 0.5"),
        (np.array([[0.2, 2.6]]), WEIGHTS, {}, r"values from 0.2 to 2.6, which is none of"),
        (BYTES.astype(np.int64) * 9, WEIGHTS, {}, "outside the range from 0"),
        (np.full((3, 8, 8), np.nan), WEIGHTS, {}, "not finite"),
        (np.ones((5, 8, 8)), WEIGHTS, {}, r"shape \[5, 8, 8\], with no axis of 3 channels"),
        (np.ones((4, 8, 8)), WEIGHTS, {}, "4 channels; lay it on a background"),
        (np.ones(3), WEIGHTS, {}, r"shape \[3\]; expected \[H, W\]"),
        ([], WEIGHTS, {}, "there are no images"),
        ([BYTES, BYTES[:, :8]], WEIGHTS, {}, "the images have different sizes"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_a_sentence(
    image: Any, weights: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        heatmap.draw(image, weights, **options)
