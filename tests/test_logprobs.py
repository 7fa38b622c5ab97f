"""Log-probs in chunks against the plain computation: values, gradients, memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from t2i_gcpo.generators.tokens.logprobs import (
    entropy,
    selected_logprob,
    token_entropy,
    token_logprob,
    token_scores,
)
from t2i_gcpo.generators.tokens.sampling import behaviour_logits

B, T, D, V = 3, 7, 8, 31
GUIDED: dict[str, Any] = {"guidance": 3.0, "temperature": 0.8, "top_k": 9, "top_p": 0.9}


def make_head(kind: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(D, V) if kind == "linear" else nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Linear(D, V))


def make_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    conditional, unconditional = (torch.randn(B, T, D, generator=generator) * 2 for _ in range(2))
    return (
        conditional,
        unconditional,
        torch.randint(V, (B, T), generator=generator),
        torch.randn(B, T, generator=generator),
    )


def test_selected_logprob_and_entropy_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]).log()
    assert selected_logprob(logits, torch.tensor([1, 0])).tolist() == pytest.approx([math.log(0.25), 0.0])
    assert entropy(logits).tolist() == pytest.approx([1.5 * math.log(2), 0.0])


def test_selected_logprob_raises_the_chosen_logit() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log().requires_grad_()
    (2 * selected_logprob(logits, torch.tensor([1]))).sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, 2 * torch.tensor([[-0.5, 0.7, -0.2]]))


def test_bf16_logits_are_scored_in_fp32() -> None:
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = logits.double().log_softmax(-1)[:, 3]
    scored = selected_logprob(logits, torch.full((5,), 3))
    assert scored.dtype == torch.float32
    torch.testing.assert_close(scored.double(), exact, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("distribution", ["conditional", "guided", "guided_detached"])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_parity_with_the_plain_computation(kind: str, distribution: str, trained: bool, chunk: int) -> None:
    conditional, unconditional, tokens, upstream = make_inputs()
    results = []
    for chunked in (False, True):
        head = make_head(kind).requires_grad_(trained)
        leaves = conditional.clone().requires_grad_(), unconditional.clone().requires_grad_()
        second = None if distribution == "conditional" else leaves[1]
        second = second.detach() if second is not None and distribution == "guided_detached" else second
        options = {} if second is None else GUIDED
        if chunked:
            scores = token_scores(
                leaves[0], head, tokens, unconditional=second, **options, with_entropy=True, chunk=chunk
            )
            logprob, entropies = scores
        else:
            logits = behaviour_logits(head(leaves[0]), None if second is None else head(second), **options, keep=tokens)
            logprob = logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
            entropies = torch.distributions.Categorical(logits=logits.detach()).entropy()
        assert logprob.isfinite().all()
        (logprob * upstream).sum().backward()
        gradients = [leaf.grad for leaf in leaves] + [parameter.grad for parameter in head.parameters()]
        results.append([logprob, entropies, *gradients])
    plain, ours = results
    assert (plain[3] is not None) == (distribution == "guided")  # the unconditional branch's gradient
    for expected, got in zip(plain, ours, strict=True):
        assert (expected is None) == (got is None)
        if expected is not None:
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_entropy_in_chunks(chunk: int) -> None:
    hidden, head = make_inputs()[0], make_head("mlp")
    expected = torch.distributions.Categorical(logits=head(hidden)).entropy()
    found = token_entropy(hidden.requires_grad_(), head, chunk=chunk)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not found.requires_grad


def test_gradient_ahead_and_recompute_agree() -> None:
    conditional, _, tokens, upstream = make_inputs()
    head = make_head("mlp").requires_grad_(False)
    gradients = []
    for recompute in (False, True):
        hidden = conditional.clone().requires_grad_()
        (token_logprob(hidden, head, tokens, chunk=4, recompute=recompute) * upstream).sum().backward()
        gradients.append(hidden.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_no_gradient_wanted() -> None:
    conditional, unconditional, tokens, _ = make_inputs()
    with torch.no_grad():
        assert not token_logprob(conditional.requires_grad_(), make_head("linear"), tokens).requires_grad
    scores = token_scores(
        conditional.detach(), make_head("linear").requires_grad_(False), tokens, unconditional=unconditional
    )
    assert not scores.logprob.requires_grad and scores.entropy is None
    assert token_logprob(torch.zeros(0, D), make_head("linear"), torch.zeros(0, dtype=torch.int64)).shape == (0,)


class LargestTensor(TorchDispatchMode):
    """The most elements that any one operation put out."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = result if isinstance(result, tuple | list) else (result,)
        self.elements = max([self.elements, *(tensor.numel() for tensor in outputs if isinstance(tensor, Tensor))])
        return result


@pytest.mark.parametrize("trained", [False, True])
def test_all_logits_never_exist_at_once(trained: bool) -> None:
    hidden, tokens = torch.randn(2, 50, 4, requires_grad=True), torch.zeros(2, 50, dtype=torch.int64)
    head = nn.Linear(4, 200).requires_grad_(trained)
    with LargestTensor() as largest:
        token_logprob(hidden, head, tokens, chunk=10).sum().backward()
    assert largest.elements == 10 * 200


def test_what_does_not_fit() -> None:
    conditional, unconditional, tokens, _ = make_inputs()
    head = make_head("linear")
    with pytest.raises(ValueError, match=r"hidden \(3, 7, 8\), tokens \(3, 6\)"):
        token_logprob(conditional, head, tokens[:, 1:])
    with pytest.raises(ValueError, match="unconditional"):
        token_logprob(conditional, head, tokens, unconditional=unconditional[1:], guidance=2.0)
    with pytest.raises(ValueError, match="guidance is 2"):
        token_logprob(conditional, head, tokens, guidance=2.0)
    with pytest.raises(ValueError, match="chunk"):
        token_logprob(conditional, head, tokens, chunk=0)


@pytest.mark.slow
def test_compiles_in_one_graph() -> None:
    logits, tokens = torch.randn(4, 20, generator=torch.Generator().manual_seed(0)), torch.arange(4)

    def both(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return selected_logprob(logits, tokens), entropy(logits)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for plain, ours in zip(both(logits, tokens), compiled(logits, tokens), strict=True):
        torch.testing.assert_close(plain, ours)
    leaf = logits.clone().requires_grad_()
    compiled(leaf, tokens)[0].sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, torch.eye(20)[:4] - logits.softmax(-1))
