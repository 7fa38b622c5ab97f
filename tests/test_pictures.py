"""Sample grids: where the pictures are, which border they have, what a caption may be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from t2i_gcpo.utils.pictures import (
    BORDER,
    FAILED,
    LINE,
    MARGIN,
    PLAIN,
    RIGHT,
    WRONG,
    before_after,
    enlargement,
    sample_grid,
    wrap,
)

#: Four pictures of one colour each, none of them a border's.
COLORS = [(255, 0, 255), (0, 255, 255), (255, 255, 0), (0, 0, 255)]
IMAGES = torch.tensor(COLORS, dtype=torch.uint8)[:, :, None, None].expand(4, 3, 8, 8)


def places(picture: Image.Image, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """left, top, width, height of the box that holds a colour."""
    rows, columns = np.nonzero((np.asarray(picture) == color).all(axis=-1))
    return int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1


def test_groups_of_a_prompt_are_rows() -> None:
    grid = sample_grid(IMAGES, ["a", "a", "b", "b"], columns=2, scale=4)
    boxes = [places(grid, color) for color in COLORS]
    assert all(box[2:] == (32, 32) for box in boxes)  # scaled, whole, nothing over it
    (x0, y0, *_), (x1, y1, *_), (x2, y2, *_), (x3, y3, *_) = boxes
    assert x0 == x2 < x1 == x3 and y0 == y1 < y2 == y3
    assert (x0, y0) == (MARGIN + BORDER, MARGIN + LINE + BORDER)


def test_single_pictures_stand_side_by_side_and_large_groups_wrap() -> None:
    tops = [places(sample_grid(IMAGES, list("abcd"), columns=3, scale=4), color)[1] for color in COLORS]
    assert tops[0] == tops[1] == tops[2] < tops[3]
    one_group = sample_grid(IMAGES, ["a"] * 4, columns=3, scale=4)
    assert [places(one_group, color)[1] for color in COLORS][2:] == [
        MARGIN + LINE + BORDER,
        places(one_group, COLORS[3])[1],
    ]
    assert places(one_group, COLORS[3])[0] == places(one_group, COLORS[0])[0]


def test_verdicts_have_borders_and_other_scores_have_none() -> None:
    def border(scores: list[float], k: int) -> tuple[int, ...]:
        grid = sample_grid(IMAGES, ["a"] * 4, columns=4, scores=scores, scale=4)
        x, y, *_ = places(grid, COLORS[k])
        return tuple(grid.getpixel((x - 1, y - 1)))  # type: ignore[arg-type]

    strict = [1.0, 0.0, math.nan, 1.0]
    assert [border(strict, k) for k in range(4)] == [RIGHT, WRONG, FAILED, RIGHT]
    assert [border([1.0, 0.0, 0.5, 1.0], k) for k in range(4)] == [PLAIN] * 4


def test_before_and_after_stand_side_by_side() -> None:
    picture = before_after(IMAGES[:2], IMAGES[2:], ["a", "b"], pairs=2, scale=4)
    left = [places(picture, COLORS[k])[0] for k in (0, 2, 1, 3)]
    assert left == sorted(left) and len({places(picture, color)[1] for color in COLORS}) == 1


def test_mistakes_are_named() -> None:
    for arguments in ({"captions": ["a"]}, {"columns": 0}, {"scores": [1.0]}):
        with pytest.raises(ValueError, match=r"captions|columns|scores"):
            sample_grid(IMAGES, **{"captions": ["a"] * 4, "columns": 2, **arguments})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="uint8"):
        sample_grid(IMAGES.float(), ["a"] * 4, columns=2)
    with pytest.raises(ValueError, match="as many"):
        before_after(IMAGES, IMAGES[:1], ["a"] * 4)


def test_wrapping() -> None:
    from t2i_gcpo.utils.pictures import font

    text = "a photo of a very long prompt with many words " * 4
    lines = wrap(text, 120)
    assert len(lines) == 3 and all(font(13).getlength(line) <= 120 for line in lines) and lines[-1].endswith("…")
    assert wrap("a red circle", 500) == ["a red circle"]
    assert wrap("w" * 100, 60)[0].endswith("…") and wrap("", 60) == [""]
    assert (enlargement(8), enlargement(96), enlargement(384)) == (20, 2, 1)


@pytest.mark.parametrize("width", range(60, 400, 20))
def test_a_percent_sign_never_begins_a_line(width: int) -> None:
    lines = wrap("share of the credit on tokens below the floor: 61 %, from image to image 12 to 80 %", width, most=20)
    assert not any(line.lstrip().startswith("%") for line in lines)
