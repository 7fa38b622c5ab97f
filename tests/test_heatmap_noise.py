"""Noise is drawn as noise, and scales do not mislead: worked out by hand, pixel by pixel where a pixel says it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_heatmap_views import drawn

from t2i_gcpo import heatmap
from t2i_gcpo.heatmap import Heatmap, Recipe, noise
from t2i_gcpo.heatmap.html import payload
from t2i_gcpo.heatmap.kinds import KINDS
from t2i_gcpo.heatmap.paint import bar, hatched, paint
from t2i_gcpo.heatmap.scale import Scale, fit, words

GREY = np.full((1, 3, 96, 96), 160, dtype=np.uint8)


def noisy() -> Heatmap:
    """Two images of 4 x 4 tokens: of the first, three tokens depend on the prompt, and of the second fifteen.

    All others have the rounding of a log-prob as their contrast, and by rank still get weight.
    """
    positive = np.full((2, 16), -1.0, np.float32)
    negative = positive - np.float32(9.5e-07) * np.arange(1, 17, dtype=np.float32)
    negative[0, :3] = -2, -3, -4
    negative[1, 1:] = -2 - np.arange(15) / 10
    images = np.concatenate([GREY, GREY])
    return heatmap.reweigh(
        Heatmap(images=images, weights=np.ones((2, 16), np.float32), grid=(4, 4), logprob_positive=positive,
                logprob_negative=negative),
        credit="contrast",
    )  # fmt: skip


def test_the_share_of_the_credit_on_noise_is_counted_and_printed(tmp_path: Path) -> None:
    one = noisy()
    below = noise.below_floor(one)
    assert below is not None
    assert below[0].tolist() == [False] * 3 + [True] * 13 and below[1].tolist() == [True] + [False] * 15
    # Ranks 1 to 13 of 16 are noise: the sum of (k / 16)^2.1507 over them, as a share of that over all.
    power = np.log(0.2) / np.log(0.6) - 1
    ranked = (np.arange(1, 17) / 16) ** power
    expected = ranked[:13].sum() / ranked.sum()
    assert expected > 0.5, "a rank has no floor"
    shares = noise.share(one)
    assert shares is not None
    np.testing.assert_allclose(shares, [expected, ranked[0] / ranked.sum()], rtol=1e-5)
    text = noise.words(one)
    assert text == (
        "share of the credit on tokens below the floor (contrast under 0.0001 nats): "
        f"{50 * (shares[0] + shares[1]):.0f} %, from image to image {100 * shares[1]:.0f} to {100 * shares[0]:.0f} %"
    )
    assert one.head("weight") == [f"hatched: {text}"] and one.head("contrast") == [text]
    assert one.notes()[0] == f"{100 * expected:.0f} % of credit below the floor"
    assert text.replace(" %", "\u00a0%") in payload(one)["maps"][0]["scale"]  # a number and its % stay on one line
    with Image.open(heatmap.Drawing(one, "weight").save(tmp_path / "x.png")) as picture:
        assert picture.height > one.rows([0]).draw("contrast").height or picture.height > 200


def test_cells_below_the_floor_are_hatched_in_maps_of_credit_alone() -> None:
    one = noisy()
    picture = np.asarray(heatmap.overlay(one, "weight", 0, width=192))
    full = paint(np.full((3, 192, 192), 160, np.uint8), one.weights[0].reshape(4, 4), signed=False,
                 end=one.scale("weight"))  # fmt: skip
    stripes = hatched(192, 192, (4, 4))
    np.testing.assert_array_equal(picture[:48, :144], full[:48, :144])  # three tokens of the first row are no noise
    rest = np.zeros((192, 192), dtype=bool)
    rest[48:] = True
    np.testing.assert_array_equal(picture[rest & stripes], full[rest & stripes])
    assert (picture[rest & ~stripes] == 160).all(), "between the stripes the picture is bare"
    assert 0.2 < stripes.mean() < 0.5
    plain = np.asarray(heatmap.overlay(one, "contrast", 0, width=192))
    assert len({tuple(pixel) for pixel in plain[48:96, 48:96].reshape(-1, 3)}) == 1, "no stripes on a contrast"


def test_a_cell_says_its_rank_and_that_it_is_noise() -> None:
    one = noisy()
    top, low = heatmap.cell(one, 0, 0, 2), heatmap.cell(one, 0, 3, 3)
    assert (top["rank"], top["below_floor"]) == (1, False)
    assert (low["rank"], low["below_floor"]) == (4, True) and low["contrast"] < 2e-5
    assert low["weight"] > 1.5, "what the loss uses is not changed"
    assert payload(one)["images"][0]["rank"][15] == 4 and payload(one)["images"][0]["below_floor"][15] == 1
    assert noise.ranks(np.array([[1.0, 2.0, 2.0, 0.5]])).tolist() == [[3, 1, 1, 4]]


def test_credit_that_is_not_by_contrast_has_no_floor() -> None:
    one = noisy()
    for name in ("uniform", "random", "shuffled"):
        other = heatmap.reweigh(one, credit=name)
        assert (
            noise.below_floor(other) is None
            and noise.words(other) == ""
            and "below_floor" not in heatmap.cell(other, 0, 0, 0)
        )
    exact = np.full((2, 16), 1e-9, np.float32)  # d^2 / 2 of the floor is 5e-9
    exact[0, 0] = 1e-8
    full = heatmap.reweigh(replace(one, stats={"exact_kl": exact}), divergence="exact_kl")
    below = noise.below_floor(full)
    assert below is not None and not below[0, 0] and below[0, 1:].all()
    assert noise.below_floor(replace(one, recipe=Recipe(floor=1e-7))).sum() == 0  # type: ignore[union-attr]


# -- scales ------------------------------------------------------------------------------------------------------------


def test_a_heavy_tail_goes_on_logarithmically() -> None:
    values = np.full((4, 144), 0.001)
    values[0, :30], values[0, 0] = 0.03, 22.0
    scale = fit(values, KINDS["contrast"])
    assert scale == Scale(22.0, linear=0.03)
    decades = np.log10(22 / 0.03)
    small, large = scale.share(np.array([0.03, 22.0]))
    assert small == pytest.approx(1 / (1 + decades)) and small < 0.3 and large == 1, "0.03 and 22 look different"
    assert scale.share(np.array([0.015]))[0] == pytest.approx(small / 2)
    assert scale.share(np.array([-0.3]))[0] == pytest.approx(-2 * small)
    assert scale.share(np.array([99.0, np.nan])).tolist() == [1.0, 0.0]
    told = words(values, KINDS["contrast"])
    assert "linear to 0.03, logarithmic from there to 22, the largest value" in told
    both = paint(GREY[0], np.array([[0.03, 22.0]]), signed=True, end=scale).astype(int)
    assert np.abs(both[0, 0] - both[0, -1]).max() > 80
    clipped = paint(GREY[0], np.array([[0.03, 22.0]]), signed=True, end=0.03)
    assert (clipped[0, 0] == clipped[0, -1]).all(), "as the percentile alone would draw them"


def test_the_scale_of_weights_never_ends_below_their_mean() -> None:
    softmax = np.full((2, 144), 0.95, np.float32)
    softmax[:, 0] = 144 - 143 * 0.95  # mean 1: nearly all tokens weigh alike, and one has the rest
    scale = fit(softmax, KINDS["weight"])
    assert np.percentile(softmax, 98) < 1 and scale == Scale(pytest.approx(8.15), linear=pytest.approx(2.0, rel=1e-4))
    assert scale.share(np.array([0.95]))[0] < 0.4, "w near 1 is no bright end"
    flat = fit(np.ones((2, 144)), KINDS["weight"])
    assert flat == Scale(2.0) and flat.share(np.ones(1))[0] == 0.5
    assert fit(np.ones((2, 144)) / 144, KINDS["weight"]).end == pytest.approx(2 / 144), "whatever their mean is"
    assert "to 2 times the mean" in words(np.ones((2, 144)), KINDS["weight"])
    for normalization in ("rank", "softmax", "minmax", "none"):
        one = drawn(normalization=normalization)
        scale = one.scale("weight")
        assert (scale.linear or scale.end) >= one.weights.mean(), normalization


def test_the_page_has_the_same_scale() -> None:
    one = noisy()
    entry = next(entry for entry in payload(one)["maps"] if entry["kind"] == "contrast")
    scale = one.scale("contrast")
    assert entry["end"] == pytest.approx(scale.end, rel=1e-4)
    assert entry["linear"] == (None if scale.linear is None else pytest.approx(scale.linear, rel=1e-4))


# -- what is seen ------------------------------------------------------------------------------------------------------


def lab(rgb: np.ndarray) -> np.ndarray:
    """A colour of sRGB in CIELAB, where distances are as the eye sees them (about 2 is just noticeable)."""
    linear = np.asarray(rgb, dtype=float) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = matrix @ linear / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sign", [1, -1])
def test_small_credit_is_seen_on_grey(sign: int) -> None:
    for share, least in ((0.25, 8), (0.5, 20), (1.0, 40)):
        cell = paint(GREY[0], np.full((1, 1), sign * share), signed=True, end=1.0)[0, 0]
        assert np.linalg.norm(lab(cell) - lab(GREY[0, :, 0, 0])) > least, f"{sign * share} is lost on grey"


def test_the_bar_shows_what_cells_look_like() -> None:
    for signed in (True, False):
        for k in (0, 64, 200, 255):
            value = k / 127.5 - 1 if signed else k / 255
            cell = paint(GREY[0], np.full((1, 1), value), signed=signed, end=1.0)[0, 0]
            assert np.linalg.norm(lab(cell) - lab(bar(signed)[k])) < 3, (signed, k)


# -- which map, and the words around it --------------------------------------------------------------------------------


def test_a_blank_map_is_replaced_by_the_weights() -> None:
    one = drawn()
    blank = replace(one, advantages=np.zeros_like(one.weights))
    assert one.map()[0] == "advantage" and blank.map()[0] == "weight"
    assert blank.title("weight").startswith("token weight w[b,t], mean 1 over an image; every advantage is 0")
    assert payload(blank)["first"] == "weight" and "every advantage" not in one.title("weight")
    np.testing.assert_array_equal(np.asarray(blank.draw()), np.asarray(blank.draw("weight")))
    assert blank.map("advantage")[1].any() == 0, "who asks for it gets it"


def test_a_prompt_stands_once_over_its_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    from t2i_gcpo.heatmap import paint as painting

    told: list[str] = []
    real = painting.text_lines
    monkeypatch.setattr(
        painting, "text_lines", lambda draw, at, lines, **more: [told.extend(lines), real(draw, at, lines, **more)][1]
    )
    one = drawn()  # two prompts, three images each
    one.draw(columns=3)
    assert told.count("a photo of a star") == 1 and told.count("b") == 1
    told.clear()
    one.rows([0, 1, 2]).draw(columns=1)
    assert told.count("“a photo of a star”") == 1 and "a photo of a star" not in told


def test_an_image_is_told_in_numbers() -> None:
    one = noisy()
    text = noise.describe(one, "contrast", 0)
    assert (
        text.startswith("contrast of 16 tokens, from 3.81e-06 to 3; ")
        and "largest at row 0, column 2: 3; row 0, column 1" in text
    )
    assert text.endswith(f"{100 * noise.share(one)[0]:.0f} % of the credit on tokens below the floor")  # type: ignore[index]
    assert payload(one)["maps"][1]["alts"][0] == text
