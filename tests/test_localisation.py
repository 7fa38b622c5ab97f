"""AUROC, pointing game and share of credit: by hand, against slow loops, and at the ends of their scales."""

from __future__ import annotations

import numpy as np
import pytest

from t2i_gcpo.evaluation.localisation import auroc, cells, first_cells, pointing, share

TARGET = np.array([[False, True, True, False]])


def test_by_hand() -> None:
    # Target cells have 3 and 1, the others 2 and 0: of the four pairs (3>2, 3>0, 1<2, 1>0) three are right.
    values = np.array([[2.0, 3.0, 1.0, 0.0]])
    assert auroc(values, TARGET) == [0.75]
    assert pointing(values, TARGET) == [1.0] and pointing(values[:, ::-1], TARGET) == [1.0]
    assert share(values, TARGET) == [4 / 6]
    # Ties: 1 against 1 counts half; (3>1, 3>0, 1=1, 1>0) is 3.5 of 4. Two cells are the largest, one of them on target.
    assert auroc(np.array([[1.0, 3.0, 1.0, 0.0]]), TARGET) == [0.875]
    assert pointing(np.array([[3.0, 3.0, 1.0, 0.0]]), TARGET) == [0.5]


def test_a_perfect_map_gives_1_an_inverted_one_0_and_a_flat_one_chance() -> None:
    rng = np.random.default_rng(0)
    target = rng.random((20, 30)) < 0.3
    perfect = np.where(target, 1 + rng.random(target.shape), rng.random(target.shape))
    assert (auroc(perfect, target) == 1).all() and (pointing(perfect, target) == 1).all()
    assert (auroc(-perfect, target) == 0).all() and (pointing(-perfect, target) == 0).all()
    assert (share(target.astype(float), target) == 1).all() and (share((~target).astype(float), target) == 0).all()
    flat = np.ones(target.shape)
    np.testing.assert_allclose(auroc(flat, target), 0.5)
    np.testing.assert_allclose(pointing(flat, target), target.mean(axis=1))
    np.testing.assert_allclose(share(flat, target), target.mean(axis=1))


def test_against_slow_loops() -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(0, 6, (40, 12)).astype(float)  # many ties
    target = rng.random((40, 12)) < 0.4
    for row, mine, a, p, s in zip(
        values, target, auroc(values, target), pointing(values, target), share(values, target), strict=True
    ):
        on, off = [v for v, t in zip(row, mine, strict=True) if t], [v for v, t in zip(row, mine, strict=True) if not t]
        if not on or not off:
            assert np.isnan(a)
            continue
        wins = sum((x > y) + 0.5 * (x == y) for x in on for y in off)
        assert a == pytest.approx(wins / (len(on) * len(off)))
        tied = [k for k, v in enumerate(row) if v == max(row)]
        assert p == pytest.approx(sum(mine[k] for k in tied) / len(tied))
        assert s == pytest.approx(sum(on) / sum(row))


def test_any_increasing_function_of_a_map_has_its_auroc() -> None:
    rng = np.random.default_rng(2)
    values, target = rng.random((9, 25)), rng.random((9, 25)) < 0.5
    np.testing.assert_array_equal(auroc(values, target), auroc(np.exp(3 * values), target))
    np.testing.assert_allclose(auroc(values, target), 1 - auroc(-values, target))
    assert (share(values, target) != share(np.exp(3 * values), target)).all()


def test_an_image_without_target_or_without_the_rest_has_no_number() -> None:
    values = np.arange(8.0).reshape(2, 4)
    target = np.array([[False] * 4, [True] * 4])
    assert np.isnan(auroc(values, target)).all()
    np.testing.assert_array_equal(pointing(values, target), [np.nan, 1])
    np.testing.assert_array_equal(share(values, target), [np.nan, 1])
    for bad in (target[:, :3], target.astype(int)):
        with pytest.raises(ValueError, match="expected both"):
            auroc(values, bad)


@pytest.mark.parametrize("size", [(8, 8), (9, 10), (4, 4)])
def test_a_cell_is_the_masks_if_it_has_a_pixel_of_it(size: tuple[int, int]) -> None:
    mask = np.random.default_rng(3).random((5, *size)) < 0.05
    expected = np.zeros((5, 3, 4), dtype=bool)
    for b, y, x in np.argwhere(mask):
        expected[b, y * 3 // size[0], x * 4 // size[1]] = True
    np.testing.assert_array_equal(cells(mask, (3, 4)), expected.reshape(5, 12))
    with pytest.raises(ValueError, match="no pixel for each cell"):
        cells(mask, (3, 11))


def test_where_objects_begin() -> None:
    order = np.arange(6)
    one, other = np.array([0, 0, 1, 1, 0, 0], dtype=bool), np.array([0, 0, 0, 0, 1, 1], dtype=bool)
    assert first_cells([one, other, np.zeros(6, dtype=bool)], order).tolist() == [0, 0, 1, 0, 1, 0]
    assert first_cells([one, other], order[::-1]).tolist() == [0, 0, 0, 1, 0, 1]
    assert first_cells([one, other], order // 2).tolist() == [0, 0, 1, 1, 1, 1]  # two cells a step
    assert not first_cells([], order).any()
