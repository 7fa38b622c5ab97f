"""Decides which probability of an image an update of a masked generator trains, as rows of choices, and their passes.

A forward pass of a masked generator has a state (some tokens visible, the others masked) and gives the log-probs of all
masked tokens. A likelihood says which states are scored, and which tokens in them. The option that names it is
`generator.masked_policy`. GCPO's contrast is not a matter of this file: it is always that of the step that committed
the token.

B rows, T tokens, N sampling steps, M passes, V codebook, D width of its entries. Pure functions; randomness comes in as
a `torch.Generator`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

REMASK_LOW, REMASK_HIGH = 0.6, 0.999
"""Rates between which the final image is masked again; those of the authors' script and code for images
(2510.02880)."""

KEY_STEPS = 6
"""Key steps an image, as in the authors' code (2512.18766), which has 64 steps in all."""


@dataclass(frozen=True)
class Likelihood:
    """One definition of the probability of an image, as a row of choices."""

    name: str
    paper: str
    """arXiv number, or "" for what needs none."""
    exact: str
    """Where it is the probability that the image was drawn with; "no" for a surrogate."""
    states: Literal["trajectory", "remasked", "remasked at key steps"]
    """What the model sees: the states of the sampling steps, or the final image with random tokens masked again."""
    targets: Literal["committed", "masked"]
    """Whose log-probs are taken: the tokens that the step committed, or all that are masked."""
    by_step: bool = False
    """One log-prob, and so one ratio, for all tokens of a step: their sum."""
    remainder: bool = False
    """`by_step`, and the log-prob that the step left the other masked tokens masked."""


#: The likelihoods by name. Where a paper and its code leave a choice, the functions below say which reading this is.
LIKELIHOODS: dict[str, Likelihood] = {
    row.name: row
    for row in (
        Likelihood("commit_step", "", "given the order", "trajectory", "committed"),
        Likelihood("transition", "2510.13418", "given the order", "trajectory", "committed", by_step=True),
        Likelihood(
            "transition_remask",
            "2510.13418",
            "order confidence, unmasking temperature 0",
            "trajectory",
            "committed",
            by_step=True,
            remainder=True,
        ),
        Likelihood("remask", "2510.02880", "no", "remasked", "masked"),
        Likelihood("key_steps", "2512.18766", "no", "remasked at key steps", "masked"),
    )
}


def resolve(name: str) -> Likelihood:
    """Return the likelihood `name`. ValueError for another name, listing the rows."""
    if name not in LIKELIHOODS:
        raise ValueError(f"masked policy {name!r} is unknown; allowed: {', '.join(LIKELIHOODS)}")
    return LIKELIHOODS[name]


def passes(likelihood: Likelihood, wanted: int, steps: int, order: str) -> int:
    """Count the forward passes of an update, M, for `wanted` of them (0: as many as the row says) at N sampling steps.

    The row says N; of key_steps, `KEY_STEPS` or N, whichever is less. ValueError: more passes than there are steps to
    choose from, or an order of unmasking that the likelihood is not defined for.
    """
    if likelihood.remainder and order != "confidence":
        raise ValueError(
            f"masked policy {likelihood.name} takes the tokens that stay masked for less likely than those committed, "
            f"but the unmasking order is {order!r}; set sampling.unmasking.order to "
            "confidence, or take the policy transition"
        )
    if likelihood.states != "remasked" and wanted > steps:
        raise ValueError(
            f"generator.masked_passes is {wanted}, but there are {steps} sampling steps to "
            f"choose from; allowed are 1 to {steps}, or 0"
        )
    return wanted or (min(KEY_STEPS, steps) if likelihood.name == "key_steps" else steps)


@dataclass(frozen=True)
class Pass:
    """One forward pass over B rows."""

    visible: Tensor
    """[B, T] bool, the tokens that the model sees; the others are masked."""
    target: Tensor
    """[B, T] bool, the tokens whose log-probs are taken."""
    share: Tensor
    """[B, T] fp32: a token's log-prob is the sum over the passes of share times log-prob; 0 where it is no target."""


@dataclass(frozen=True)
class Plan:
    """The passes of an update, and the factor of each token's loss."""

    passes: tuple[Pass, ...]
    scale: Tensor
    """[B, T] fp32; 0 for a token that no pass scores. The mean over T tokens of scale times loss is the likelihood's
    objective."""


def plan(
    likelihood: Likelihood,
    commit_step: Tensor,
    *,
    steps: int,
    count: int,
    generator: torch.Generator,
    gain: Tensor | None = None,
) -> Plan:
    """Plan what `likelihood` scores of trajectories `commit_step` [B, T] int64 of N `steps`, in `count` passes.

    The draws from `generator` are the same for all rows, so that a plan does not depend on how rows are batched. gain
    [B, N]: `step_gain`, for key_steps alone.
    """
    rows, length = commit_step.shape
    device = commit_step.device
    if likelihood.states == "trajectory":
        chosen = sorted(torch.randperm(steps, generator=generator)[:count].tolist()) if count < steps else range(steps)
        return trajectory(commit_step, list(chosen), steps=steps, by_step=likelihood.by_step)
    ranks = torch.rand(count, length, generator=generator).argsort(dim=1).argsort(dim=1).to(device)
    if likelihood.states == "remasked":
        counts = repeat(torch.tensor(remask_counts(count, length), device=device), "m -> m b", b=rows)
    else:
        if gain is None:
            raise ValueError(
                f"{likelihood.name} chooses its passes by the gain of the steps; pass "
                "gain, the `step_gain` of the rollout"
            )
        keys = gain.topk(count, dim=1).indices.sort(dim=1).values
        counts = (rearrange(commit_step, "b t -> 1 b t") >= rearrange(keys, "b m -> m b 1")).sum(dim=2)
    return remasked(ranks, counts)


def trajectory(commit_step: Tensor, chosen: Sequence[int], *, steps: int, by_step: bool) -> Plan:
    """Plan the states of the `chosen` steps of N, and the tokens that each committed.

    Tokens alone (commit_step): the scale is N / M, so that over random subsets of M steps the expected gradient is that
    of all steps. `by_step` (Mask-GRPO, its two definitions of the transition probability): the loss is a mean over
    steps, of which each counts the same however many tokens it commits, so a token of a step with c tokens has scale T
    / (M c).
    """
    length = commit_step.shape[1]
    passes, scale = [], torch.zeros(commit_step.shape, device=commit_step.device)
    for step in chosen:
        target = commit_step == step
        passes.append(Pass(commit_step < step, target, target.float()))
        size = target.sum(dim=1, keepdim=True).clamp(min=1) if by_step else length / steps
        scale = torch.where(target, length / (len(chosen) * size), scale)
    return Plan(tuple(passes), scale)


def remask_counts(count: int, length: int) -> list[int]:
    """Count the masked tokens of each of M passes (MaskGRPO), at rates from above `REMASK_LOW` to `REMASK_HIGH`.

    The rates rise in equal parts. The authors' code masks each token by itself with probability `low + (1 - low) m /
    M`, and makes an optimiser step of each m = 1..M. Here exactly `floor(rate T)` tokens are masked, and one optimiser
    step has all M passes.
    """
    rates = (min(REMASK_LOW + (1 - REMASK_LOW) * m / count, REMASK_HIGH) for m in range(1, count + 1))
    return [max(1, int(rate * length)) for rate in rates]


def remasked(ranks: Tensor, counts: Tensor) -> Plan:
    """Plan passes over the final image with `counts` [M, B] tokens masked, those of the lowest `ranks` [M, T].

    The log-probs of all masked tokens are taken. The objective is the mean over the passes of the mean over a pass's n
    masked tokens. A token's share of a pass goes as 1 / n, and its scale is `T / M` times the sum of 1 / n over its
    passes: at ratio 1 the gradient is that of the objective. Off-policy, a token has one ratio (the weighted geometric
    mean of its passes') where the papers' code has one for each pass.
    """
    total, length = ranks.shape
    masked = rearrange(ranks, "m t -> m 1 t") < rearrange(counts, "m b -> m b 1")
    weight = masked.float() / rearrange(counts, "m b -> m b 1")
    over_passes = weight.sum(dim=0)
    shares = weight / torch.where(over_passes > 0, over_passes, 1.0)
    passes = tuple(Pass(~m, m, share) for m, share in zip(masked, shares, strict=True))
    return Plan(passes, over_passes * length / total)


def folded(items: Sequence[Pass]) -> Pass:
    """Join passes to one, of M * B rows."""
    return Pass(
        visible=torch.cat([item.visible for item in items]),
        target=torch.cat([item.target for item in items]),
        share=torch.cat([item.share for item in items]),
    )


def step_gain(predictions: Tensor, codebook: Tensor) -> Tensor:
    """Measure how much each step changed the image to come (MaskFocus): `|s_{k+1} - s_k|` [B, N], the last step's 0.

    s_k is the cosine between the codebook's entries for the whole image that step k predicts (its candidates, beside
    the tokens known before) and those for the final image, over all tokens at once. predictions [N, B, T] int64, the
    last the final image; codebook [V, D].

    The authors' code takes the mean of s over a batch and the same steps for all its images; here each image has steps
    of its own, so that they do not depend on the batch. Its code also leaves s of the last step (1) out, so that its
    last two steps can never be key steps.
    """
    final = codebook[predictions[-1]].flatten(1).float()
    similarity = torch.stack([F.cosine_similarity(codebook[p].flatten(1).float(), final, dim=1) for p in predictions])
    return F.pad(rearrange(similarity.diff(dim=0).abs(), "n b -> b n"), (0, 1))


def log_remainder(logits: Tensor, least: Tensor, floor: float) -> Tensor:
    """Compute the log-prob [*] fp32 that a candidate from `softmax(logits)` [*, V] is less likely than `least` [*].

    All in nats. Mask-GRPO's first definition (2510.13418): a step that commits the most confident candidates leaves a
    token masked where its candidate is less confident than all of those. Bounded below by `floor`, a probability: noise
    on the confidence commits tokens that are not the most confident, and then no code may be less likely than `least`.
    """
    logprob = logits.float().log_softmax(dim=-1)
    below = logprob.masked_fill(logprob >= least.unsqueeze(-1), -torch.inf)
    # An empty set's logsumexp is -inf with a NaN gradient: give it one harmless entry first.
    empty = below.isneginf().all(dim=-1, keepdim=True)
    total = torch.where(empty, torch.zeros_like(below), below).logsumexp(dim=-1)
    bound = torch.tensor(floor, device=logits.device).log()
    return torch.where(empty.squeeze(-1), bound, total.clamp(min=bound))
