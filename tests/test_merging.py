"""Adapters in the weights while tokens are sampled, and the weights bit for bit as before afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.training import PROMPTS, generator
from t2i_gcpo.generators.janus.adapter import Janus
from t2i_gcpo.generators.merging import MergeAdapters, merged, pays
from t2i_gcpo.records import Rollout, Sampling


def adapted(choice: MergeAdapters, dtype: torch.dtype = torch.float32) -> Janus:
    """A tiny Janus whose adapters were trained: new ones add nothing."""
    policy = generator()
    policy.model.to(dtype)
    policy.merge_adapters = choice
    policy.add_lora(rank=4, alpha=8.0, seed=2)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=rng).to(dtype)
    return policy


def adapter_calls(policy: Janus) -> list[nn.Module]:
    """Grows by one with each product with an adapter's matrix."""
    calls: list[nn.Module] = []
    for name, module in policy.policy.named_modules():
        if name.endswith("lora_A.default"):
            module.register_forward_hook(lambda module, args, output: calls.append(module))
    return calls


def sampled(policy: Janus) -> Rollout:
    return policy.sample(PROMPTS[:2], Sampling(group_size=2, guidance=2.0, seed=7))


def state(policy: Janus) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in policy.model.state_dict().items()}


def test_merged_or_not_the_rollout_is_the_same_and_the_weights_are_what_they_were() -> None:
    policy, plain = adapted("on"), adapted("off")
    before, calls, plain_calls = state(policy), adapter_calls(policy), adapter_calls(plain)
    one, other = sampled(policy), sampled(plain)
    assert not calls and plain_calls, "merged, no product with an adapter is left"
    assert torch.equal(one.tokens, other.tokens)
    torch.testing.assert_close(one.logprob_behaviour, other.logprob_behaviour, atol=1e-5, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in policy.model.state_dict().items())
    with torch.no_grad():
        scores = policy.token_logprobs(one, distribution="guided")
    assert calls, "the update's forward pass goes through the adapters"
    torch.testing.assert_close(scores, one.logprob_behaviour, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_error_inside_leaves_the_weights_as_they_were(dtype: torch.dtype) -> None:
    policy = adapted("on", dtype)
    before = state(policy)
    name = "model.language_model.layers.0.self_attn.q_proj.base_layer.weight"

    def stop() -> None:
        with merged(policy.policy):
            assert not torch.equal(policy.model.state_dict()[name], before[name])
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        stop()
    assert all(torch.equal(value, before[name]) for name, value in policy.model.state_dict().items())
    policy.token_logprobs(generator_rollout(policy)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.trainable_parameters())


def generator_rollout(policy: Janus) -> Rollout:
    policy.merge_adapters = "off"
    return sampled(policy)


def test_the_reference_samples_without_adapters() -> None:
    policy = adapted("on")
    with policy.reference():
        assert torch.equal(sampled(policy).tokens, sampled(generator()).tokens)
    assert not torch.equal(sampled(policy).tokens, sampled(generator()).tokens)


@pytest.mark.parametrize(
    ("choice", "dtype", "expected"),
    [
        ("auto", torch.float32, True),
        ("auto", torch.bfloat16, False),
        ("on", torch.bfloat16, True),
        ("off", torch.float32, False),
    ],
)
def test_auto_merges_where_nothing_is_rounded_away(choice: Any, dtype: torch.dtype, expected: bool) -> None:
    assert pays(choice, dtype) is expected


def test_adapters_have_the_models_dtype_and_their_masters_are_fp32() -> None:
    from t2i_gcpo.training.master_weights import MasterWeights

    policy = adapted("off", torch.bfloat16)
    assert {parameter.dtype for parameter in policy.trainable_parameters()} == {torch.bfloat16}
    assert {value.dtype for value in MasterWeights(policy.trainable_parameters()).values()} == {torch.float32}
