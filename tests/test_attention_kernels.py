"""Which attention kernel torch takes for the cache of a sampling step, in the layout of a CPU and in that of a GPU.

There is no GPU here. Torch is asked for the CPU's kernels, by `torch._fused_sdp_choice`; the condition that keys stored
with their columns side by side break, a last dimension of stride 1, is one function for all devices in its sources
(`sdp_utils_cpp.h`). What else CUDA's kernels want is stated here and not asked: an additive mask whose rows have stride
1 and start at multiples of 16 bytes, and heads of a multiple of 8 numbers. With a mask CUDA takes the memory-efficient
kernel, as its flash kernel knows none. So a compiled step on CUDA goes by FlexAttention, which runs here as well.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.utils._pytree import tree_map

from helpers.training import PROMPTS, generator
from t2i_gcpo.generators.compilation import Compilation
from t2i_gcpo.generators.janus import graph_step, row_attention, sampler
from t2i_gcpo.generators.janus.adapter import Janus
from t2i_gcpo.generators.janus.kv_cache import GrowingCache
from t2i_gcpo.generators.janus.sampler import StepSampler
from t2i_gcpo.records import Rollout, Sampling

HOW = Sampling(group_size=2, guidance=3.0, seed=4, stats=("entropy", "exact_kl"))
#: Prompts of two lengths, so that rows are padded.
TEXTS = [PROMPTS[0].text, "a red circle and a blue square"]


def sampled(policy: Janus, *, fused: bool) -> Rollout:
    policy.sampler.steps.fused_attention = policy.sampler.steps.keys_in_one_piece = fused
    return policy.sample(TEXTS, HOW)


def check_same(one: Rollout, other: Rollout) -> None:
    assert torch.equal(one.tokens, other.tokens)
    for name in ("logprob_positive", "logprob_negative", "logprob_behaviour"):
        torch.testing.assert_close(vars(one)[name], vars(other)[name], atol=1e-5, rtol=0)
    for name in HOW.stats:
        torch.testing.assert_close(one.stats[name], other.stats[name], atol=1e-5, rtol=0)


def compiling() -> tuple[Janus, Rollout]:
    """Return a generator that compiles from now on, and what it sampled before."""
    policy = generator()
    plain = sampled(policy, fused=True)
    policy.compiles.choice = True
    if not policy.compiles():
        pytest.skip("torch.compile has no compiler here")
    return policy, plain


def test_both_layouts_give_the_same_numbers() -> None:
    policy = generator()
    check_same(sampled(policy, fused=True), sampled(policy, fused=False))
    assert policy.model.config.text_config._attn_implementation == "sdpa", "the training forward keeps its own"


@pytest.mark.slow
def test_both_layouts_give_the_same_numbers_compiled() -> None:
    policy, plain = compiling()
    check_same(sampled(policy, fused=True), plain)
    check_same(sampled(policy, fused=False), plain)


def test_a_cpu_samples_with_plain_products() -> None:
    assert not generator().sampler.steps.fused_attention


def test_the_step_of_a_gpu_gets_a_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = torch.nn.functional.scaled_dot_product_attention, []

    def record(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        if attn_mask is not None and attn_mask.shape[-2] == 1:  # one new column
            calls.append((torch._fused_sdp_choice(query, key, value, attn_mask), key, value, attn_mask))
        return real(query, key, value, attn_mask=attn_mask, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    policy = generator()
    sampled(policy, fused=True)
    layers = policy.model.config.text_config.num_hidden_layers
    assert len(calls) == 16 * layers, "each layer of each step"
    for choice, key, value, mask in calls:
        assert choice == SDPBackend.FLASH_ATTENTION.value, "the name of the CPU's only fused kernel"
        assert key.stride(-1) == value.stride(-1) == 1
        assert mask.stride(-1) == 1 and mask.shape[-1] % 16 == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layout_of_a_cpu_would_not(dtype: torch.dtype) -> None:
    """Sizes of Janus-Pro-1B: 16 heads of 128."""
    found = {}
    for in_one_piece in (True, False):
        cache = GrowingCache(
            1, 4, 16, 100, 128, dtype=dtype, device=torch.device("cpu"), keys_in_one_piece=in_one_piece
        )
        prefix = [torch.zeros(4, 16, 70, 128, dtype=dtype)]
        cache.start(prefix, prefix, torch.ones(4, 70, dtype=torch.bool))
        cache.open(70)
        column = torch.zeros(4, 16, 1, 128, dtype=dtype)
        keys, values = cache.update(column, column, 0)
        assert keys.shape == values.shape == (4, 16, 80, 128)
        found[in_one_piece] = torch._fused_sdp_choice(column, keys, values, cache.shown_bias)
    assert found == {True: SDPBackend.FLASH_ATTENTION.value, False: SDPBackend.MATH.value}


# -- FlexAttention -----------------------------------------------------------------------------------------------------


def test_which_attention_reads_the_cache_of_which_device() -> None:
    policy = generator()
    kernels = {}
    for name in ("cpu", "cuda", "mps"):
        steps = StepSampler(policy.model, policy.head, 16, torch.device(name))
        kernels[name] = steps.kernel(compile=True), steps.kernel(compile=False)
    assert kernels == {"cpu": ("eager", "eager"), "cuda": (row_attention.NAME, "sdpa"), "mps": ("sdpa", "sdpa")}


@pytest.mark.parametrize("newest", [70, 127, 128, 191])
@pytest.mark.parametrize("key_heads", [4, 2], ids=["a key a query", "a key for two queries"])
def test_flex_attention_is_masked_attention(newest: int, key_heads: int) -> None:
    """Rows that begin in the first, in the second and at the newest column; what lies outside is large."""
    rng = torch.Generator().manual_seed(0)
    first, columns = torch.tensor([0, 3, 65, newest]), 192
    query = torch.randn(4, 4, 1, 16, generator=rng)
    keys, values = torch.randn(2, 4, key_heads, columns, 16, generator=rng)
    at = torch.arange(columns)
    seen = (at >= first[:, None]) & (at <= newest)
    for tensor in (keys, values):
        tensor.masked_fill_(~seen[:, None, :, None], 1e4)
    mask = row_attention.block_mask(first, torch.tensor([newest]), columns)
    ours, _ = row_attention.attend(torch.nn.Module(), query, keys, values, mask, scaling=0.3)
    plain = torch.nn.functional.scaled_dot_product_attention(
        query, keys, values, attn_mask=seen[:, None, None], scale=0.3, enable_gqa=key_heads != 4
    )
    torch.testing.assert_close(ours, plain.transpose(1, 2), atol=1e-5, rtol=0)


def test_a_row_reads_the_blocks_from_its_first_to_the_newest_column() -> None:
    mask = row_attention.block_mask(torch.tensor([0, 64, 130]), torch.tensor([130]), 256)
    assert mask.kv_num_blocks.flatten().tolist() == [3, 2, 1]
    blocks = [row[:count] for row, count in zip(mask.kv_indices[:, 0, 0].tolist(), (3, 2, 1), strict=True)]
    assert blocks == [[0, 1, 2], [1, 2], [2]]


def test_the_loop_with_flex_attention_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the generator sample as on CUDA, but for the compiler."""
    policy = generator()
    plain = sampled(policy, fused=True)
    rows = torch.arange(len(plain.tokens))
    begun = plain.tokens.masked_fill(torch.arange(16) >= 6 + rows[:, None], -1)
    went_on = policy.sample_on(plain, rows, begun, rows)
    monkeypatch.setattr(StepSampler, "kernel", lambda steps, *, compile: row_attention.NAME)
    real, prefill = StepSampler._prefill, []

    def with_masks(steps: StepSampler, language: Any, *args: Any) -> Tensor:  # CUDA's prefill is not by FlexAttention
        prefill.append(language.config._attn_implementation)
        language.config._attn_implementation = "sdpa"
        last = real(steps, language, *args)
        language.config._attn_implementation = row_attention.NAME
        return last

    monkeypatch.setattr(StepSampler, "_prefill", with_masks)
    check_same(policy.sample(TEXTS, HOW), plain)
    assert torch.equal(policy.sample_on(plain, rows, begun, rows), went_on)
    assert prefill == [row_attention.NAME] * 2, "the kernel of this test was asked for"


@pytest.mark.slow
def test_the_loop_with_flex_attention_compiles_into_one_graph() -> None:
    policy, plain = compiling()
    policy.sampler.steps.row_attention = True
    for _ in range(2):  # the second one in new memory
        check_same(sampled(policy, fused=True), plain)
        policy.sampler.steps.buffers.release()


# -- CUDA graphs -------------------------------------------------------------------------------------------------------


def recorded(function: Any) -> Any:
    """Record as a graph is: results lie in memory of their own, which each replay overwrites, and none before."""
    results = tree_map(lambda tensor: tensor.clone().fill_(1), function())

    def replay() -> None:
        tree_map(lambda old, new: old.copy_(new), results, function())

    return replay, results


def test_a_recorded_step_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, made = generator(), []
    plain = sampled(policy, fused=False)
    steps = policy.sampler.steps
    monkeypatch.setattr(graph_step, "recorded", lambda function: made.append(function) or recorded(function))
    monkeypatch.setattr(sampler, "compiled", lambda function, name, **options: function)
    monkeypatch.setattr(policy.compiles, "choice", True)
    steps.row_attention = True
    check_same(policy.sample(TEXTS, HOW), plain)
    assert not made, "graphs are asked for"
    steps.graphs = True
    for _ in range(2):
        check_same(policy.sample(TEXTS, HOW), plain)
    assert len(made) == 2, "one for each batch: it holds that batch's memory"
    steps.row_attention = False  # what a growing part of the cache is shown to cannot be replayed
    check_same(policy.sample(TEXTS, HOW), plain)
    assert len(made) == 2


def test_graphs_are_cudas() -> None:
    with pytest.raises(ValueError, match="compile is graphs, which are CUDA's, and the device is cpu; say on, or auto"):
        Compilation("graphs", torch.device("cpu"))
