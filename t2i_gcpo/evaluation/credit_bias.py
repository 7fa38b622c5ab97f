"""Enumerate worlds of two and three tokens, to see what a rule of credit does to the expected gradient.

The reward is 1 where the first token is the right one, and 0 otherwise; the others have no influence on it, so their
true gradient is 0. Groups have two images. All groups are listed with their probability and go through the code that
training uses, so the sums are the exact expectations, up to rounding.

`python -m t2i_gcpo.evaluation.credit_bias` prints the table of docs/method.md.

V tokens in the codebook, T tokens an image, N = V^(2 T) groups of two images, rows n * 2 + g.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor

from t2i_gcpo.algorithms import TABLE, Algorithm, RunningMean, token_advantages
from t2i_gcpo.generators.tokens.events import same_event
from t2i_gcpo.generators.tokens.logprobs import entropy
from t2i_gcpo.generators.tokens.sampling import contrast_variance, exact_kl, js
from t2i_gcpo.records import Prompt, Rollout, Sampling

#: Draws over which the rules that draw at random are averaged.
REPEATS = 400


@dataclass(frozen=True)
class World:
    """Holds the probabilities of each token."""

    positive: tuple[Tensor, ...]
    """[V] for each of T tokens: under the prompt, whatever was drawn before."""
    negative: tuple[Tensor, ...]
    """[V, ..., V] for each: under the negative prompt, by the tokens drawn before and then by the token itself."""


_HALF = torch.tensor([0.5, 0.3, 0.2])
_DECISIVE, _IDLE = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.4, 0.4, 0.2])

#: The first token decides the reward, the second has no influence.
TWO_TOKENS = World((_HALF, _HALF), (_DECISIVE, _IDLE.expand(3, 3)))
#: A third token has none either; the negative prompt contradicts it where the first two tokens are equal.
THREE_TOKENS = World(
    (_HALF, _HALF, _HALF),
    (_DECISIVE, _IDLE.expand(3, 3), torch.where(torch.eye(3, dtype=torch.bool)[..., None], _DECISIVE, _HALF)),
)


def enumerated(world: World) -> tuple[Tensor, Tensor, Tensor]:
    """List the tokens of every group [2 N, T], and their log-probs under both prompts [2 N, T, V]."""
    length, vocabulary = len(world.positive), len(world.positive[0])
    tokens = torch.tensor(list(itertools.product(range(vocabulary), repeat=2 * length))).view(-1, length)
    positive = torch.stack([table.expand(len(tokens), -1) for table in world.positive], dim=1).log()  # [2 N, T, V]
    before = [tuple(tokens[:, k] for k in range(t)) for t in range(length)]
    negative = torch.stack(
        [table[index] if index else table.expand(len(tokens), -1)
         for table, index in zip(world.negative, before, strict=True)], dim=1,
    ).log()  # fmt: skip
    return tokens, positive, negative


def enumerated_rollout(world: World = TWO_TOKENS) -> tuple[Rollout, Tensor, Tensor]:
    """List every group: the rollout of N groups, its rewards [2 N], and the groups' probabilities [N] fp64."""
    tokens, positive, negative = enumerated(world)
    length = tokens.shape[1]
    drawn = [logits.gather(-1, tokens[..., None]).squeeze(-1) for logits in (positive, negative)]
    rollout = Rollout(
        tokens=tokens,
        logprob_positive=drawn[0],
        logprob_negative=drawn[1],
        logprob_behaviour=drawn[0],
        commit_step=torch.arange(length).expand_as(tokens),
        prompts=tuple(Prompt("enumerated") for _ in range(len(tokens) // 2)),
        grid=(1, length),
        sampling=Sampling(guidance=1.0, group_size=2),
        stats={
            "entropy": entropy(positive),
            "behaviour_entropy": entropy(positive),
            "exact_kl": exact_kl(positive, negative),
            "js": js(positive, negative),
            "variance": contrast_variance(positive, positive, negative),
        },
    )
    probability = drawn[0].double().sum(dim=1).exp().view(-1, 2).prod(dim=1)
    return rollout, (tokens[:, 0] == 0).float(), probability


def group_gradients(
    algorithm: Algorithm, world: World = TWO_TOKENS, *, repeats: int = REPEATS, seed: int = 0, alone: bool = False
) -> Tensor:
    """Return the gradient of every group with respect to each token's logits, [N, T, V] fp64.

    The gradient is that of `sum_t A[g, t] log p(x[g, t])`, the mean over the two images, as in the first update of a
    rollout, where every ratio is 1. For rules that draw at random it is a mean of `repeats` draws. alone: each group
    is a batch of its own, the smallest; else all groups are one batch, whose means are as good as constant.
    """
    rollout, rewards, _ = enumerated_rollout(world)
    # There is no reference model here. Two tokens are alike where they are the same one.
    algorithm = replace(algorithm, group_size=2, dynamic_sampling=False, entropy_reward_coef=0.0, ratio_bound=0.0)
    vectors = torch.eye(len(world.positive[0]))
    generator = torch.Generator().manual_seed(seed)
    random = algorithm.credit in ("random", "shuffled")

    def advantages_of(groups: Tensor, running: RunningMean) -> Tensor:
        scores = rearrange(rewards, "(n g) -> n g", g=2)[groups].flatten()
        part = rollout.groups(groups)
        targets = token_advantages(
            algorithm,
            part,
            scores,
            generator=generator,
            parts={"clause/0": scores},  # what is asked for is one thing, and the negative prompt is without it
            code_vectors=vectors,
            clause_logprobs=None if part.logprob_negative is None else part.logprob_negative[None],
            running=running,
        )
        return targets.advantages.double()

    every, past = torch.arange(len(rollout.prompts)), RunningMean()
    if algorithm.normalize_over == "running":
        advantages_of(every, past)  # then each batch finds the average over all groups
    batches = every.split(1 if alone else len(every))
    draws = range(repeats if random else 1)
    drawn = [torch.cat([advantages_of(groups, replace(past)) for groups in batches]) for _ in draws]
    advantages = torch.stack(drawn).mean(dim=0)
    chance = torch.stack(world.positive).double()
    score = torch.nn.functional.one_hot(rollout.tokens, chance.shape[1]) - chance  # d log p(x) / d logits, [2 N, T, V]
    if algorithm.events is not None:
        tokens, positive, negative = enumerated(world)
        seeds = range(1 if algorithm.event_codes == "own" else repeats)  # the controls draw their events at random
        same = torch.stack(
            [same_event(positive, negative, positive, tokens, algorithm.events, seed=one) for one in seeds]
        )
        inside = chance * same
        score = (inside / inside.sum(dim=-1, keepdim=True)).mean(dim=0) - chance
    return rearrange(advantages[:, :, None] * score, "(n g) t v -> n g t v", g=2).mean(dim=1)


def expected_gradient(
    algorithm: Algorithm, world: World = TWO_TOKENS, *, repeats: int = REPEATS, seed: int = 0, alone: bool = False
) -> Tensor:
    """Return the expected gradient with respect to each token's logits, [T, V] fp64: exact, as no group is left out."""
    gradients = group_gradients(algorithm, world, repeats=repeats, seed=seed, alone=alone)
    return torch.einsum("n,ntv->tv", enumerated_rollout(world)[2], gradients)


def bias(gradient: Tensor) -> float:
    """Return the second token's expected gradient as a share of the first's: 0 where the rule is unbiased for it."""
    return float(gradient[1].norm() / gradient[0].norm())


#: The rules of docs/method.md's table.
RULES: dict[str, Algorithm] = {
    "grpo": TABLE["grpo"],
    "gcpo": TABLE["gcpo"],
    "gcpo, none": replace(TABLE["gcpo"], normalization="none"),
    "gcpo, abs, none": replace(TABLE["gcpo"], divergence="abs", normalization="none"),
    "gcpo, js, none": replace(TABLE["gcpo"], divergence="js", normalization="none"),
    "gcpo, information_gain": replace(TABLE["gcpo"], divergence="information_gain"),
    "gcpo, information_gain, none": replace(TABLE["gcpo"], divergence="information_gain", normalization="none"),
    "gcpo, exact_kl": replace(TABLE["gcpo"], divergence="exact_kl"),
    "gcpo, exact_kl, none": replace(TABLE["gcpo"], divergence="exact_kl", normalization="none"),
    "gcpo, js_full, none": replace(TABLE["gcpo"], divergence="js_full", normalization="none"),
    "gcpo, exact_kl, none, over the batch": replace(
        TABLE["gcpo"], divergence="exact_kl", normalization="none", normalize_over="batch"
    ),
    "gcpo, exact_kl, none, running": replace(
        TABLE["gcpo"], divergence="exact_kl", normalization="none", normalize_over="running"
    ),
    "gcpo_magnitude": TABLE["gcpo_magnitude"],
    "gcpo_entropy": TABLE["gcpo_entropy"],
    "gcpo_variance": TABLE["gcpo_variance"],
    "gcpo_clauses": TABLE["gcpo_clauses"],
    "gcpo_events": TABLE["gcpo_events"],
    "stage": TABLE["stage"],
    "gcpo_sibling": TABLE["gcpo_sibling"],
}


def table(rules: Mapping[str, Algorithm] = RULES) -> str:
    """Return a Markdown table: each rule's expected gradient, and the bias in both worlds."""
    lines = [
        "| rule | first token, which decides | second token, without influence | bias | bias, three tokens "
        "| three tokens, batches of one group |",
        "|---|---|---|---|---|---|",
    ]
    for name, rule in rules.items():
        two, three = (expected_gradient(rule, world) for world in (TWO_TOKENS, THREE_TOKENS))
        shared = rule.normalize_over != "image" or rule.credit == "dissimilar"  # else an image's weights are its own
        alone = expected_gradient(rule, THREE_TOKENS, alone=True) if shared else three
        cells = f"{_numbers(two[0])} | {_numbers(two[1])} | {bias(two):.1%} | {bias(three):.1%} | {bias(alone):.1%}"
        lines.append(f"| `{name}` | {cells} |")
    return "\n".join(lines)


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{value:+.3f}".replace("-0.000", "+0.000") for value in values.tolist())


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
