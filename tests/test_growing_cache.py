"""The growing cache: shows what was written and no more, and its buffers stay where they are."""

from __future__ import annotations

import torch

from t2i_gcpo.generators.janus.kv_cache import STRIDE, Buffers, GrowingCache, rounded_up


def new_cache(rows: int = 2, columns: int = 40) -> GrowingCache:
    return GrowingCache(2, rows, 1, columns, 3, dtype=torch.float32, device=torch.device("cpu"))


def column(value: float, rows: int = 2) -> torch.Tensor:
    return torch.full((rows, 1, 1, 3), float(value))


def test_rounding_by_hand() -> None:
    assert [rounded_up(n) for n in (0, 1, STRIDE, STRIDE + 1)] == [0, STRIDE, STRIDE, 2 * STRIDE]


def test_columns_are_written_in_order_and_only_what_is_open_is_looked_at() -> None:
    cache = new_cache()
    prefix = [torch.full((2, 1, 15, 3), float(10 + layer)) for layer in range(2)]
    mask = torch.ones(2, 15, dtype=torch.bool)
    mask[1, :4] = False  # the second row's padding
    cache.start(prefix, [part + 0.5 for part in prefix], mask)
    lengths = []
    for step in range(3):
        cache.open(15 + step)
        for layer in range(2):
            keys, values = cache.update(column(100 * layer + step), column(-step), layer)
            assert keys.shape == values.shape == (2, 1, keys.shape[2], 3)
            assert (keys[:, :, :15] == 10 + layer).all() and (values[:, :, :15] == 10.5 + layer).all()
            assert keys[0, 0, 15 : 16 + step, 0].tolist() == [100 * layer + k for k in range(step + 1)]
            assert values[0, 0, 15 : 16 + step, 0].tolist() == [-k for k in range(step + 1)]
        lengths.append(keys.shape[2])
        seen = cache.shown_bias[:, 0, 0] == 0
        assert seen[0].nonzero().flatten().tolist() == list(range(16 + step))
        assert seen[1].nonzero().flatten().tolist() == list(range(4, 16 + step))
    assert lengths == [16, 32, 32], "grows by the stride when the next column needs it"


def test_starting_again_forgets_and_keeps_the_same_memory() -> None:
    cache = new_cache()
    ones = [torch.ones(2, 1, 5, 3)] * 2
    cache.start(ones, ones, torch.ones(2, 5, dtype=torch.bool))
    addresses = [buffer.data_ptr() for buffer in (*cache.keys, *cache.values, cache.bias, cache.column)]
    assert len(set(addresses)) == 6
    for _ in range(2):
        cache.start(ones, ones, torch.ones(2, 5, dtype=torch.bool))
        for step in range(30):
            cache.open(5 + step)
            cache.update(column(7.0), column(7.0), 0)
    cache.start(ones, ones, torch.tensor([[False] * 5, [True] * 5]))
    cache.open(5)
    assert (cache.shown_bias[:, 0, 0] == 0).sum(dim=1).tolist() == [1, 6]
    assert cache.shown_keys[0].shape[2] == STRIDE, "short again"
    assert addresses == [buffer.data_ptr() for buffer in (*cache.keys, *cache.values, cache.bias, cache.column)]


def of_shape(buffers: Buffers, rows: int, columns: int) -> GrowingCache:
    options = {"dtype": torch.float32, "device": torch.device("cpu")}
    return GrowingCache(2, rows, 1, columns, 3, **options, buffers=buffers)  # type: ignore[arg-type]


def fill(cache: GrowingCache, rows: int, value: float) -> set[int]:
    """Start a cache, and return where its memory begins."""
    part = [torch.full((rows, 1, 5, 3), value)] * 2
    cache.start(part, part, torch.ones(rows, 5, dtype=torch.bool))
    cache.open(5)
    assert all((keys[:, :, :5] == value).all() for keys in (*cache.keys, *cache.values))
    return {buffer.untyped_storage().data_ptr() for buffer in (*cache.keys, *cache.values)}


def test_caches_of_all_shapes_share_one_memory_of_the_largest() -> None:
    buffers = Buffers()
    small, large = of_shape(buffers, 2, 20), of_shape(buffers, 4, 40)
    assert buffers.bytes == 0, "nothing before the first rollout"
    fill(small, 2, 1.0)
    small.close()
    first = buffers.bytes
    assert first == 2 * 2 * 2 * 1 * 48 * 3 * 4, "two layers of keys and values, 2 rows of 48 columns of 3 fp32 numbers"
    where = fill(large, 4, 2.0)
    large.close()
    assert buffers.bytes == 2 * 2 * 4 * 1 * 64 * 3 * 4, "the larger one's, and not both"
    assert fill(small, 2, 3.0) == where
    small.close()
    buffers.release()
    assert buffers.bytes == 0 and not small.keys and not small.shown_values
    fill(small, 2, 4.0)
    assert buffers.bytes == first


def test_what_another_shape_left_is_not_looked_at() -> None:
    buffers = Buffers()
    other, cache = of_shape(buffers, 4, 40), of_shape(buffers, 2, 20)
    fill(other, 4, 9.0)
    other.close()
    fill(cache, 2, 1.0)
    assert (cache.shown_bias[:, 0, 0] == 0).sum(dim=1).tolist() == [6, 6]
    assert bool(cache.shown_keys[0].isfinite().all()), "weight 0 times a number that is not finite would be NaN"
