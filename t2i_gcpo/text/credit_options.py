"""Declare the options of the credit on text, which `GCPOConfig` has beyond TRL's own; this needs no TRL."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from t2i_gcpo import credit as credits

Credit = Literal["contrast", "uniform", "entropy", "random", "shuffled"]
Divergence = Literal["kl", "abs", "js", "information_gain", "exact_kl"]


def _help(text: str) -> dict[str, Any]:
    return {"help": text}


@dataclass
class CreditOptions:
    """Says which tokens of a completion get the credit. ValueError for a value that is not allowed."""

    credit: Credit = field(
        default="contrast",
        metadata=_help(
            "Which tokens get the credit. contrast: where the two prompts part (GCPO); uniform: all alike (GRPO); "
            "entropy: where the model is undecided; random, shuffled: controls."
        ),
    )
    divergence: Divergence = field(
        default="kl",
        metadata=_help(
            "Contrast between the two prompts: the first four from the drawn token's log-probs; exact_kl over the "
            "whole vocabulary, so it depends on the state and not on the token that was drawn."
        ),
    )
    normalization: credits.Normalization = field(
        default="rank", metadata=_help("From divergences to weights, within each completion.")
    )
    top: float = field(default=credits.DEFAULT_TOP, metadata=_help("rank: this share of a completion's tokens ..."))
    mass: float = field(default=credits.DEFAULT_MASS, metadata=_help("rank: ... carries this share of its credit."))
    floor: float = field(
        default=credits.DEFAULT_FLOOR,
        metadata=_help("Mean |log-prob difference| of a completion in nats below which all its tokens weigh 1."),
    )
    negative_prompt: str = field(
        default="wrong",
        metadata=_help(
            "wrong: the question after an instruction to answer it wrongly; empty: no question; else the path of a "
            "text file in which {question} stands for the question."
        ),
    )
    refresh_weights: bool = field(
        default=False,
        metadata=_help(
            "Compute the weights again at each update, with the policy as it is then; by default they stay those of "
            "the rollout. The same while there is one update a rollout."
        ),
    )
    kl_weighting: bool = field(
        default=True,
        metadata=_help(
            "With beta above 0: weigh each token's KL to the reference by 0.5 + 0.5 clamp(2 - 2 w, 0, 1). No effect "
            "where credit is uniform."
        ),
    )
    dynamic_sampling_limit: int = field(
        default=1,
        metadata=_help(
            "Rollouts drawn for one update at most, the first included, until every group has reward spread (DAPO's "
            "dynamic sampling); 1 is off."
        ),
    )
    heatmap_every: int = field(
        default=0, metadata=_help("Write a heatmap of one completion to heatmaps/ every so many steps; 0 is off.")
    )

    def __post_init__(self) -> None:
        choices = {"credit": Credit, "divergence": Divergence, "normalization": credits.Normalization}
        for name, kind in choices.items():
            value = self.__dict__[name]
            if value not in get_args(kind):
                raise ValueError(f"{name} is {value!r}; allowed: {', '.join(get_args(kind))}")
        bounds = {
            "top": (0 < self.top < 1, "in (0, 1)"),
            "mass": (self.top <= self.mass < 1, "below 1, and at least top"),
            "floor": (self.floor >= 0, "at least 0"),
            "dynamic_sampling_limit": (self.dynamic_sampling_limit >= 1, "at least 1"),
            "heatmap_every": (self.heatmap_every >= 0, "at least 0"),
        }
        for name, (holds, rule) in bounds.items():
            if not holds:
                raise ValueError(f"{name} is {self.__dict__[name]}; it must be {rule}")

    @property
    def needs_contrast(self) -> bool:
        """Tell whether completions are scored under a negative prompt too."""
        return self.credit in ("contrast", "shuffled")
