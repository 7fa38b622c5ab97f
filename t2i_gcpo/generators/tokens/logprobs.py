"""Compute log-probs and entropies of tokens in fp32, a chunk of tokens at a time.

B rows, T tokens, D hidden width, V codebook, `*` any leading shape; nats. With V = 16,384 the logits of a batch are far
larger than its hidden states, and the language model's memory is wanted elsewhere: no [B, T, V] tensor exists here,
neither forward nor backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from t2i_gcpo.generators.tokens.sampling import behaviour_logits

DEFAULT_CHUNK = 128
"""Tokens scored at once: at V = 16,384 a fp32 buffer is 8 MiB, and two or three exist at a time. Where the head is
trained and memory allows, a larger chunk accumulates its weight gradient less often."""

Head = Callable[[Tensor], Tensor]
Score = Callable[..., tuple[Tensor, Tensor | None]]
"""Takes a chunk of each branch's hidden states (or None) and of the tokens."""


class TokenScores(NamedTuple):
    """The log-probs and entropies that `token_scores` returns."""

    logprob: Tensor
    """[*] fp32, differentiable with respect to the hidden states and the head."""
    entropy: Tensor | None
    """[*] fp32 without gradient; None where it was not asked for."""


def selected_logprob(logits: Tensor, tokens: Tensor) -> Tensor:
    """Compute `log softmax(logits)[tokens]` in fp32: [*, V], [*] int64 -> [*]; -inf for a token that truncation cut."""
    return _SelectedLogprob.apply(logits.float(), tokens)


def entropy(logits: Tensor) -> Tensor:
    """Compute the entropy of `softmax(logits)` in fp32, in [0, ln V]: [*, V] -> [*]. Logits of -inf count 0."""
    logprob = logits.float().log_softmax(dim=-1)
    return -(logprob.exp() * logprob.masked_fill(logprob == -torch.inf, 0.0)).sum(dim=-1)


def token_logprob(hidden: Tensor, head: Head, tokens: Tensor, **options: Any) -> Tensor:
    """Compute each token's log-prob, with the options of `token_scores`: [*, D], head, [*] int64 -> [*] fp32."""
    return token_scores(hidden, head, tokens, **options).logprob


@torch.no_grad()
def token_entropy(hidden: Tensor, head: Head, *, chunk: int = DEFAULT_CHUNK) -> Tensor:
    """Compute the entropy of `softmax(head(hidden))` in nats, without gradient: [*, D], head D -> V -> [*] fp32.

    At most `chunk` tokens have logits at a time.
    """
    flat = hidden.reshape(-1, hidden.shape[-1])
    pieces = flat.tensor_split(max(-(-len(flat) // chunk), 1))
    return torch.cat([entropy(head(piece)) for piece in pieces]).reshape(hidden.shape[:-1])


def token_scores(
    hidden: Tensor,
    head: Head,
    tokens: Tensor,
    *,
    unconditional: Tensor | None = None,
    guidance: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    with_entropy: bool = False,
    chunk: int = DEFAULT_CHUNK,
    recompute: bool | None = None,
) -> TokenScores:
    """Compute the log-prob, and if asked the entropy, of `tokens` [*] under `behaviour_logits` of `head(hidden)`.

    hidden is [*, D]; the head maps D to V and is applied to each token by itself. The defaults give the raw conditional
    distribution. Under guidance, `unconditional` [*, D] goes through the same head; pass it detached to let no gradient
    through that branch. The scored token always stays in the truncated set (`truncate(keep=...)`), so no log-prob is
    -inf.

    `recompute` chooses how the backward pass gets by without logits: True computes each chunk again (one more head
    forward); False takes each token's gradient d logprob / d hidden already in the forward pass, while the chunk's
    logits exist, and only scales it later (no more work than the plain computation, [*, D] to keep; but no gradient for
    the head's parameters). None takes False if the head is frozen, else True. There are no second derivatives.

    ValueError: shapes that do not fit, guidance without `unconditional`, chunk < 1.
    """
    if hidden.shape[:-1] != tokens.shape or (unconditional is not None and unconditional.shape != hidden.shape):
        other = None if unconditional is None else tuple(unconditional.shape)
        raise ValueError(
            f"hidden {tuple(hidden.shape)}, tokens {tuple(tokens.shape)}, unconditional {other}; expected [*, D], "
            "[*] and [*, D] or None"
        )
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be at least 1 token")
    if guidance == 1:
        unconditional = None  # the mix would not read it: save the second head
    elif unconditional is None:
        raise ValueError(
            f"guidance is {guidance}, but there is no unconditional hidden state; pass it, or set guidance to 1"
        )

    def score(
        conditional_chunk: Tensor, unconditional_chunk: Tensor | None, token_chunk: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        logits = behaviour_logits(
            head(conditional_chunk),
            None if unconditional_chunk is None else head(unconditional_chunk),
            guidance=guidance,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            keep=token_chunk,
        )
        return selected_logprob(logits, token_chunk), entropy(logits.detach()) if with_entropy else None

    flat = hidden.reshape(-1, hidden.shape[-1])
    flat_unconditional = None if unconditional is None else unconditional.reshape(-1, hidden.shape[-1])
    flat_tokens = tokens.reshape(-1)
    if torch.is_grad_enabled():
        recompute = _trains(head, flat) if recompute is None else recompute
        if not recompute and (
            flat.requires_grad or (flat_unconditional is not None and flat_unconditional.requires_grad)
        ):
            logprob, entropies = _GradientAhead.apply(score, chunk, flat_tokens, flat, flat_unconditional)
        else:
            logprob, entropies = score_in_chunks(recomputed(score), chunk, flat, flat_unconditional, flat_tokens)
    else:
        logprob, entropies = score_in_chunks(score, chunk, flat, flat_unconditional, flat_tokens)
    return TokenScores(logprob.reshape(tokens.shape), None if entropies is None else entropies.reshape(tokens.shape))


class _SelectedLogprob(torch.autograd.Function):
    """Compute gather - logsumexp with a backward pass in one buffer.

    The gradient `onehot - softmax` is written where autograd would add four tensors.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor) -> Tensor:
        index, total = tokens.unsqueeze(-1), logits.logsumexp(dim=-1, keepdim=True)
        ctx.save_for_backward(logits, index, total)
        return (logits.gather(-1, index) - total).squeeze(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        logits, index, total = ctx.saved_tensors
        upstream = upstream.unsqueeze(-1)
        gradient = (logits - total).exp_().mul_(-upstream)
        return gradient.scatter_add_(-1, index, upstream), None


def _trains(head: Head, flat: Tensor) -> bool:
    """Say whether the head, which may be any callable, has parameters that want a gradient, by asking one token."""
    with torch.enable_grad():
        return head(flat[:1].detach()).requires_grad


def recomputed(score: Score) -> Score:
    """Let the backward pass compute a chunk's logits again."""

    def run(*inputs: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return checkpoint(score, *inputs, use_reentrant=False, preserve_rng_state=False)

    return run


def score_in_chunks(score: Score, chunk: int, *inputs: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Apply `score` to nearly equal chunks of at most `chunk` rows of the inputs, and join the results."""
    count = max(-(-max(len(one) for one in inputs if one is not None) // chunk), 1)
    pieces = zip(*((None,) * count if one is None else one.tensor_split(count) for one in inputs), strict=True)
    first, second = zip(*(score(*piece) for piece in pieces), strict=True)
    return torch.cat(first), None if second[0] is None else torch.cat(second)


class _GradientAhead(torch.autograd.Function):
    """Take d logprob / d hidden while a chunk's logits exist.

    Each token's log-prob depends on its own hidden state alone, so the gradient of the chunk's sum holds each token's
    own gradient, and the chain rule is one multiplication per token.
    """

    @staticmethod
    def forward(
        ctx: Any, score: Score, chunk: int, tokens: Tensor, conditional: Tensor, unconditional: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        ctx.wants = tuple(tensor is not None and tensor.requires_grad for tensor in (conditional, unconditional))
        gradients: list[tuple[Tensor, ...]] = []

        def score_and_differentiate(
            conditional_chunk: Tensor, unconditional_chunk: Tensor | None, token_chunk: Tensor
        ) -> tuple[Tensor, Tensor | None]:
            branches = (conditional_chunk, unconditional_chunk)
            leaves = [
                None if branch is None else branch.detach().requires_grad_(wanted)
                for branch, wanted in zip(branches, ctx.wants, strict=True)
            ]
            with torch.enable_grad():
                logprob, entropies = score(*leaves, token_chunk)
                wanted_leaves = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
                gradients.append(torch.autograd.grad(logprob.sum(), wanted_leaves))
            return logprob.detach(), entropies

        logprob, entropies = score_in_chunks(score_and_differentiate, chunk, conditional, unconditional, tokens)
        ctx.save_for_backward(*(torch.cat(parts) for parts in zip(*gradients, strict=True)))
        if entropies is not None:
            ctx.mark_non_differentiable(entropies)
        return logprob, entropies

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, ...]:
        scale = upstream[0].unsqueeze(-1)
        saved = iter(ctx.saved_tensors)
        conditional, unconditional = (
            (scale * (gradient := next(saved))).to(gradient.dtype) if wanted else None for wanted in ctx.wants
        )
        return None, None, None, conditional, unconditional
