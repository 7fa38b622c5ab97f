"""Draw a token from the logits of all branches, and record its log-probs, in one way for all generators.

N branches in one batch (the prompt, then where wanted the null prompt and a negative prompt), R rows, T tokens, V
codebook, `*` any shape.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t2i_gcpo.generators.tokens.events import event_logprob, same_event
from t2i_gcpo.generators.tokens.logprobs import entropy, selected_logprob
from t2i_gcpo.generators.tokens.sampling import contrast_variance, draw, draw_coupled, exact_kl, js, sampled_logits
from t2i_gcpo.records import Events, Sampling


@dataclass(frozen=True)
class Branches:
    """Which part each folded branch plays; None means that it does not run."""

    null: int | None = None
    """The null prompt, for guidance."""
    contrast: int | None = None
    """The one that gives `logprob_negative` and the divergences."""
    count: int = 1
    """N; branch 0 is the prompt."""

    @classmethod
    def of(cls, sampling: Sampling, *, negative: bool) -> Branches:
        """Choose the branches that a rollout needs, in the order prompt, null prompt, negative prompt.

        `negative`: there are negative texts; the null prompt is the contrast where there are none. A negative text runs
        for the divergences alone: its log-probs can be computed afterwards.
        """
        divergences = bool({"exact_kl", "js", "variance", "event"} & set(sampling.stats))
        null = 1 if sampling.guidance != 1 or (divergences and not negative) else None
        following = 1 if null is None else 2
        if not negative:
            return cls(null=null, contrast=null, count=following)
        return cls(null, following, following + 1) if divergences else cls(null, None, following)


@dataclass(frozen=True)
class SampledRows:
    """The sampled tokens of R rows, and what was recorded of each token."""

    tokens: Tensor
    """[R, T] int64."""
    records: dict[str, Tensor]
    """[R, T] by name: positive, behaviour, negative (if it was free) and the stats asked for, fp32; commit_step,
    int64."""

    def first(self, count: int) -> SampledRows:
        """Return the first rows."""
        return SampledRows(self.tokens[:count], {name: value[:count] for name, value in self.records.items()})

    @staticmethod
    def cat(parts: Sequence[SampledRows]) -> SampledRows:
        """Return the rows of all parts, one after the other."""
        records = {name: torch.cat([part.records[name] for part in parts]) for name in parts[0].records}
        return SampledRows(torch.cat([part.tokens for part in parts]), records)


def choice(sampling: Sampling) -> tuple[Hashable, ...]:
    """Return all of `sampling` that `choose` reads: what is compiled for it serves every sampling with the same."""
    return (sampling.guidance, sampling.temperature, sampling.top_k, sampling.top_p, tuple(sampling.stats))


def choose(logits: Tensor, noise: Tensor, sampling: Sampling, branches: Branches) -> tuple[Tensor, dict[str, Tensor]]:
    """Draw one token [*] from the branches' logits [N, *, V], and take its log-probs and stats [*].

    noise: uniform [*], for `draw`, or Gumbel [*, V], for `draw_coupled`.
    """
    conditional = logits[0]
    behaviour = sampled_logits(conditional, None if branches.null is None else logits[branches.null], sampling)
    token = draw(behaviour, noise) if noise.ndim < behaviour.ndim else draw_coupled(behaviour, noise)
    record = {"positive": selected_logprob(conditional, token), "behaviour": selected_logprob(behaviour, token)}
    if "entropy" in sampling.stats:
        record["entropy"] = entropy(conditional)
    if "behaviour_entropy" in sampling.stats:
        record["behaviour_entropy"] = entropy(behaviour)
    if branches.contrast is not None:
        contrast = logits[branches.contrast]
        record["negative"] = selected_logprob(contrast, token)
        for name, divergence in (("exact_kl", exact_kl), ("js", js)):
            if name in sampling.stats:
                record[name] = divergence(conditional, contrast)
        if "variance" in sampling.stats:
            record["variance"] = contrast_variance(behaviour, conditional, contrast)
        if "event" in sampling.stats:
            same = same_event(conditional, contrast, behaviour, token, Events())
            record["event"] = -event_logprob(behaviour, same)
    return token, record
