"""Compute the log-probs of aMUSEd's tokens again, in the states that a likelihood asks for.

P prompts, B rows, T tokens, N sampling steps, R rows of a forward pass (B, or more of folded passes), c tokens that a
pass scores, V codebook, M branches folded in one batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from t2i_gcpo.generators.amused.likelihoods import (
    Likelihood,
    Pass,
    Plan,
    folded,
    log_remainder,
    passes,
    plan,
    trajectory,
)
from t2i_gcpo.generators.amused.parts import NULL, AmusedParts, TextEncoder, Texts, logits
from t2i_gcpo.generators.base import DISTRIBUTIONS, TrainingScores, row_texts
from t2i_gcpo.generators.policy_weights import PolicyWeights
from t2i_gcpo.generators.tokens.events import event_logprob, same_event
from t2i_gcpo.generators.tokens.logprobs import entropy, selected_logprob
from t2i_gcpo.generators.tokens.sampling import sampled_logits
from t2i_gcpo.generators.tokens.unmasking import LEAST_PROBABILITY
from t2i_gcpo.records import Events, Rollout, Sampling

STEP_GAIN = "step_gain"
"""The statistic of a rollout that `key_steps` chooses by: each token has that of its step."""

Branches = Callable[[Tensor, Texts, Tensor], tuple[Tensor, Tensor | None]]
"""States [R, T], their texts and positions [R, c] -> logits [R, c, V] under the texts and, where there is guidance,
under the null prompt."""
Score = Callable[[Pass, Tensor, Texts, Tensor, Tensor], Tensor]
"""A pass, its states [R, T] and their texts, positions [R, c] and their tokens [R, c] -> log-probs [..., R, c]."""


class StateScorer:
    """Score a rollout's tokens with the policy as it is now."""

    def __init__(
        self,
        parts: AmusedParts,
        texts: TextEncoder,
        weights: PolicyWeights,
        *,
        likelihood: Likelihood,
        masked_passes: int,
        gradient_checkpointing: bool,
        fold_passes: bool,
    ) -> None:
        self.parts, self.texts, self.weights = parts, texts, weights
        self.likelihood, self.masked_passes = likelihood, masked_passes
        self.gradient_checkpointing, self.fold_passes = gradient_checkpointing, fold_passes

    def token_logprobs(self, rollout: Rollout, prompt: str | list[str], distribution: str) -> Tensor:
        """Compute the log-probs [B, T] fp32 that `Amused.token_logprobs` describes."""
        return self._scored(rollout, self._every_step(rollout), self._row_texts(rollout, prompt), distribution)

    def training_scores(self, rollout: Rollout, distribution: str, events: Events | None = None) -> TrainingScores:
        """Compute what `Amused.training_scores` describes."""
        row, steps = self.likelihood, rollout.sampling.unmasking.steps
        count = passes(row, self.masked_passes, steps, rollout.sampling.unmasking.order)
        commit = rollout.commit_step.to(self.texts.device)
        gain = self._gain(rollout, steps) if row.name == "key_steps" else None
        rng = torch.Generator().manual_seed(rollout.sampling.seed)
        asked = plan(row, commit, steps=steps, count=count, generator=rng, gain=gain)
        every_token_once = row.name == "commit_step" and count == steps
        scale = None if every_token_once else asked.scale
        texts = self._row_texts(rollout, "positive")
        if events is not None:
            event, token = self._sum(rollout, asked, texts, self._event_score(rollout, distribution, events))
            return TrainingScores(event, scale, token_logprob=token)
        logprob = self._scored(rollout, asked, texts, distribution, row)
        if row.by_step:
            return TrainingScores(logprob[0], scale, token_logprob=logprob[1])
        return TrainingScores(logprob, scale)

    def token_entropy(self, rollout: Rollout) -> Tensor:
        """Compute the entropies [B, T] fp32 that `Amused.token_entropy` describes."""
        branches, texts = self._branches(rollout, "conditional"), self._row_texts(rollout, "positive")

        def score(item: Pass, states: Tensor, texts: Texts, index: Tensor, chosen: Tensor) -> Tensor:
            return entropy(branches(states, texts, index)[0])

        return self._sum(rollout, self._every_step(rollout), texts, score)

    # -- what is scored ------------------------------------------------------------------------------------------------

    def _every_step(self, rollout: Rollout) -> Plan:
        steps = int(rollout.commit_step.max()) + 1
        return trajectory(rollout.commit_step.to(self.texts.device), range(steps), steps=steps, by_step=False)

    def _gain(self, rollout: Rollout, steps: int) -> Tensor:
        """Return the gain of each step [B, N] from the statistic [B, T]."""
        if STEP_GAIN not in rollout.stats:
            raise ValueError(
                f"masked policy key_steps needs the statistic {STEP_GAIN!r} of the rollout, which has "
                f"{sorted(rollout.stats)}; "
                "sample with the generator that trains"
            )
        values = rollout.stats[STEP_GAIN].to(self.texts.device)
        commit = rollout.commit_step.to(self.texts.device)
        return values.new_zeros(len(values), steps).scatter(1, commit, values)

    def _scored(
        self, rollout: Rollout, asked: Plan, texts: Texts, distribution: str, row: Likelihood | None = None
    ) -> Tensor:
        """Compute log-probs [B, T] under `distribution`, or by step [2, B, T]: the step's, and each token's own.

        row: a likelihood that adds the log-probs up by step asks for the latter.
        """
        branches = self._branches(rollout, distribution)

        def score(item: Pass, states: Tensor, texts: Texts, index: Tensor, chosen: Tensor) -> Tensor:
            scores = _mixed(*branches(states, texts, index), rollout.sampling, distribution, chosen)
            logprob = selected_logprob(scores, chosen)
            if row is None or not row.by_step:
                return logprob
            target = item.target.gather(1, index)
            total = torch.where(target, logprob, 0.0).sum(dim=1, keepdim=True)
            if row.remainder:
                least = torch.where(target, logprob, torch.inf).amin(dim=1, keepdim=True).expand_as(logprob)
                left = log_remainder(scores, least, LEAST_PROBABILITY)
                still = ~target & ~item.visible.gather(1, index)
                total = total + torch.where(still, left, 0.0).sum(dim=1, keepdim=True)
            return torch.stack([total.expand_as(logprob), logprob])

        return self._sum(rollout, asked, texts, score, all_masked=row is not None and row.remainder)

    def _event_score(self, rollout: Rollout, distribution: str, events: Events) -> Score:
        """Return the function that gives the log-probs [2, R, c] of the tokens' events and of the tokens.

        The events are those of the contrast with the rollout's negative prompts. The null prompt's branch, where there
        is guidance, serves for it; else the negative one is a forward pass of its own, without gradient.
        """
        branches, sampling = self._branches(rollout, distribution), rollout.sampling
        null_serves = row_texts(rollout, "negative") is None and _guided(sampling, distribution)
        negative = None if null_serves else self._row_texts(rollout, "negative")

        def score(item: Pass, states: Tensor, texts: Texts, index: Tensor, chosen: Tensor) -> Tensor:
            conditional, unconditional = branches(states, texts, index)
            contrasted = unconditional
            if negative is not None:
                copies = len(states) // rollout.batch
                theirs = negative if copies == 1 else negative.cat(*[negative] * (copies - 1))
                with torch.no_grad():
                    contrasted = _at(self._logits(states, theirs), index)
            drawn_from = _mixed(conditional, unconditional, sampling, distribution, chosen)
            same = same_event(conditional, contrasted, drawn_from, chosen, events, seed=sampling.seed)
            return torch.stack([event_logprob(drawn_from, same), selected_logprob(drawn_from, chosen)])

        return score

    def _branches(self, rollout: Rollout, distribution: str) -> Branches:
        """Return the function that gives the logits of a distribution's branches. ValueError for an unknown name."""
        if distribution not in DISTRIBUTIONS:
            raise ValueError(f"distribution is {distribution!r}; allowed: {', '.join(DISTRIBUTIONS)}")
        one = self.texts([NULL]) if _guided(rollout.sampling, distribution) else None

        def branches(states: Tensor, texts: Texts, index: Tensor) -> tuple[Tensor, Tensor | None]:
            null = None if one is None else one.take(index.new_zeros(len(states)))
            if null is not None and distribution == "guided":
                both = self._logits(repeat(states, "r t -> (m r) t", m=2), texts.cat(null))
                conditional, unconditional = rearrange(_at(both, index.repeat(2, 1)), "(m r) c v -> m r c v", m=2)
                return conditional, unconditional
            conditional = _at(self._logits(states, texts), index)
            if null is None:
                return conditional, None
            with torch.no_grad():
                return conditional, _at(self._logits(states, null), index)

        return branches

    def _logits(self, states: Tensor, texts: Texts) -> Tensor:
        """Compute the logits [R, T, V] of the policy, or of the wrapper that it is trained through."""
        policy: nn.Module = self.weights.module
        return logits(policy, states, texts, self.parts.grid, self.parts.pixels)

    # -- the passes ----------------------------------------------------------------------------------------------------

    def _sum(
        self,
        rollout: Rollout,
        asked: Plan,
        texts: Texts,
        score: Score,
        *,
        all_masked: bool = False,
    ) -> Tensor:
        """Sum a token's share of a pass times its `score` [..., R, c] there over the passes: [..., B, T]."""
        tokens = rollout.tokens.to(self.texts.device)

        def run(item: Pass) -> Tensor:
            copies = len(item.visible) // len(tokens)
            own = tokens if copies == 1 else tokens.repeat(copies, 1)
            # Targets first, each group in raster order.
            wanted = item.target.int() * 2 + (~item.visible).int()
            count = int((~item.visible if all_masked else item.target).sum(dim=1).max())
            index = wanted.argsort(dim=1, descending=True, stable=True)[:, :count]
            states = torch.where(item.visible, own, self.parts.mask_token)
            theirs = texts if copies == 1 else texts.cat(*[texts] * (copies - 1))
            scores = score(item, states, theirs, index, own.gather(1, index))
            share = item.share.gather(1, index)
            # A row with fewer targets than others is filled up with tokens of share 0.
            counted = torch.where(share > 0, share * scores, 0.0)
            empty = counted.new_zeros(*counted.shape[:-1], item.share.shape[1])
            return empty.scatter(-1, index.expand_as(counted), counted)

        def run_pass(item: Pass) -> Tensor:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                scored: Tensor = checkpoint(run, item, use_reentrant=False, preserve_rng_state=False)
            else:
                scored = run(item)
            return rearrange(scored, "... (m b) t -> m ... b t", b=len(tokens)).sum(dim=0)

        items = [folded(asked.passes)] if self.fold_passes else asked.passes
        return functools.reduce(torch.add, map(run_pass, items))  # a plan has at least one pass

    def _row_texts(self, rollout: Rollout, prompt: str | list[str]) -> Texts:
        """Encode the texts [B] that `prompt` asks for."""
        return self.texts(row_texts(rollout, prompt) or [NULL] * rollout.batch)


def _guided(sampling: Sampling, distribution: str) -> bool:
    """Say whether the null prompt is a branch of the distribution."""
    return distribution != "conditional" and sampling.guidance != 1


def _mixed(
    conditional: Tensor, unconditional: Tensor | None, sampling: Sampling, distribution: str, tokens: Tensor
) -> Tensor:
    """Return the logits of the distribution that is scored: the raw conditional one, or that which was sampled."""
    if distribution == "conditional":
        return conditional
    return sampled_logits(conditional, unconditional, sampling, keep=tokens)


def _at(values: Tensor, index: Tensor) -> Tensor:
    """Take the logits [R, T, V] at the positions `index` [R, c]: [R, c, V].

    `gather` would do, but its backward pass keeps all of `values`.
    """
    return values[torch.arange(len(values), device=index.device)[:, None], index]
