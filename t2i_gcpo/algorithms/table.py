"""GRPO, Dr. GRPO, DAPO, GCPO and their controls: `TABLE` has one row of choices for each.

This is the place to read how they differ; `objective.py` says what a row's choices do to a rollout. P prompts, G images
a prompt, B = P * G rows, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from t2i_gcpo import credit as credits
from t2i_gcpo.records import EventCodes, Events, Vectors
from t2i_gcpo.utils.checks import declared

STATS = {"exact_kl": ("exact_kl", 2.0), "js_full": ("js", 8.0)}
"""Full-vocabulary divergence -> its name in `Rollout.stats`, and c where it is d^2 / c for a small contrast d (its
floor)."""
ALL_STATS = ("entropy", *(stat for stat, _ in STATS.values()), "variance", "event", "behaviour_entropy")
"""The statistics of a rollout that any rule of credit or map may ask for; free where guidance has both branches
anyway."""


CAP = 10.0
"""The cap of `gcpo_magnitude`: no token counts more than ten mean ones. (Chosen here.)"""
TOKEN_FLOOR = 1e-3
"""The token floor of `gcpo_magnitude`, nats: fp32 rounds log-probs to about a thousandth of it. (Chosen here.)"""


@dataclass(frozen=True)
class Algorithm:
    """One row of choices. The defaults are GCPO's. ValueError for a value that is not allowed."""

    name: str = "gcpo"
    """Row of the table that the other fields start from: grpo, dr_grpo, dapo, gcpo, gcpo_dapo, gcpo_entropy,
    gcpo_magnitude, gcpo_variance, gcpo_clauses, gcpo_events, stage, critical_tokens, gcpo_random, gcpo_shuffled,
    gcpo_sibling, gcpo_events_matched."""
    group_size: int = 8
    """G, images a prompt, compared with one another; at least 2."""
    advantage_scale: Literal["std", "none"] = "std"
    """std: divide by the group's standard deviation (GRPO); none: subtract the mean only (Dr. GRPO)."""
    advantage_eps: float = 1e-4
    """Added to the group's standard deviation."""
    normalize_parts: bool = False
    """Normalise each part of the reward within its group before the weighted sum, instead of the sum."""
    normalize_batch: bool = False
    """Normalise that sum once more, over the whole batch (GDPO); needs normalize_parts."""
    entropy_reward_coef: float = 0.0
    """Factor of STAGE's entropy reward 1 / (1 + (H_reference - H)^2), centred, for the best images of a group; 0 is
    off, STAGE's code has 0.4."""
    entropy_reward_groups: Literal["all", "informative"] = "all"
    """Groups that get the entropy reward. all: as STAGE's code does, also those whose images score alike, which then
    have advantages by their entropy alone; informative: only those whose images score differently, so that equal scores
    teach nothing."""
    dynamic_sampling: bool = False
    """Draw more prompts until every group kept has reward spread (DAPO)."""
    dynamic_sampling_limit: int = 4
    """Rollouts drawn for one update at most, the first included; then the groups with spread that there are must
    do."""
    credit: Literal[
        "uniform",
        "contrast",
        "entropy",
        "variance",
        "clauses",
        "dissimilar",
        "critical",
        "random",
        "shuffled",
        "sibling",
    ] = "contrast"
    """Which tokens get the credit. contrast: where the prompt matters (GCPO); entropy: where the model is undecided;
    variance: where what the model is undecided about is what the prompt matters for; clauses: each clause of a GenEval
    prompt has an advantage of its own, which goes where the prompt without it would differ; dissimilar: where images of
    the other sign have unlike tokens (STAGE); critical: the first tokens, those where the entropy changes, and those
    where siblings differ, alike (Group Critical-token Policy Optimization); random, shuffled, sibling: controls."""
    divergence: Literal["kl", "abs", "js", "information_gain", "exact_kl", "js_full"] = "kl"
    """Contrast between the two prompts: the first four from the sampled token's log-probs, exact_kl and js_full over
    the whole codebook."""
    normalization: Literal["rank", "softmax", "minmax", "none"] = "rank"
    """From divergences to weights, within each image."""
    normalize_over: Literal["image", "batch", "running"] = "image"
    """Whose mean weighs 1, with normalization none: each image's tokens, those of the whole batch, or those of the
    batches before it (an average that forgets half in seven steps), so that no weight depends on what else was
    drawn."""
    cap: float = 0.0
    """With normalization none: divergences are cut to this many times the mean, at least 1; 0 is off."""
    token_floor: float = 0.0
    """With normalization none: contrast of a token, |log-prob difference| in nats, below which it weighs 0; 0 is
    off."""
    top: float = credits.DEFAULT_TOP
    """rank: this share of an image's tokens ..."""
    mass: float = credits.DEFAULT_MASS
    """rank: ... carries this share of its credit."""
    floor: float = credits.DEFAULT_FLOOR
    """Mean contrast of an image, |log-prob difference| in nats, below which all its tokens weigh 1."""
    event_width: float = 0.0
    """Train the probability of an event, which is all tokens that the prompt favours as much as the sampled one, to
    within so many nats of contrast, instead of that of the token: what was drawn of an event is noise, and gets no
    gradient; 0 is off."""
    event_codes: EventCodes = "own"
    """With event_width, whose contrast a code has. shuffled, matched: that of a random other, in events of as many
    codes, or about as probable ones; controls."""
    clip_low: float = 0.2
    """The probability ratio's lower bound is 1 - clip_low."""
    clip_high: float = 0.2
    """The probability ratio's upper bound is 1 + clip_high."""
    importance_cap: float = 0.0
    """Weigh each token's policy loss by its probability in training over that in sampling, at most this: truncated
    importance sampling, for bfloat16, where the two differ by rounding (2 is common); 0 is off."""
    reduction: Literal["token", "sequence", "constant"] = "sequence"
    """token: mean over the batch's valid tokens (DAPO); sequence: mean of the images' means (GRPO); constant: sum /
    (B * T) (Dr. GRPO)."""
    kl_estimator: Literal["none", "k2", "k3"] = "k3"
    """KL to the reference model in the loss; none needs no reference."""
    kl_coef: float = 0.01
    """Factor of the KL term (2605.29198's code has 0.03, GRPO's paper 0.04)."""
    ratio_bound: float = 0.0
    """Multiply each token's advantage by the running mean of the probability ratio to the reference, its logarithm cut
    at this bound in nats (2509.22485's code has 0.5); 0 is off."""
    kl_weighting: bool = True
    """Weigh each token's KL by 0.5 + 0.5 clamp(2 - 2 w, 0, 1): tokens with credit may move, the rest stay near the
    reference. With credit dissimilar by 0.5 + 0.5 clamp(1 + s, 0, 1), s its similarity with images of the other
    sign; with credit critical the KL is of the critical tokens alone."""

    def __post_init__(self) -> None:
        declared(self, "algorithm.")
        bounds = {
            "group_size": (self.group_size >= 2, "at least 2, as an image is compared with its siblings"),
            "advantage_eps": (self.advantage_eps > 0, "above 0"),
            "entropy_reward_coef": (self.entropy_reward_coef >= 0, "at least 0 (0 is off)"),
            "dynamic_sampling_limit": (self.dynamic_sampling_limit >= 1, "at least 1"),
            "top": (0 < self.top < 1, "in (0, 1)"),
            "mass": (self.top <= self.mass < 1, "below 1, and at least algorithm.top"),
            "floor": (self.floor >= 0, "at least 0"),
            "cap": (self.cap == 0 or self.cap >= 1, "at least 1, or 0 (off)"),
            "token_floor": (self.token_floor >= 0, "at least 0 (0 is off)"),
            "clip_low": (0 <= self.clip_low <= 1, "in [0, 1]"),
            "clip_high": (self.clip_high >= 0, "at least 0"),
            "kl_coef": (self.kl_coef >= 0, "at least 0"),
            "ratio_bound": (self.ratio_bound >= 0, "at least 0 (0 is off)"),
            "event_width": (self.event_width >= 0, "at least 0 nats (0 is off)"),
            "importance_cap": (self.importance_cap >= 0, "at least 0 (0 is off)"),
        }
        if self.normalize_parts and self.entropy_reward_coef > 0:
            raise ValueError(
                "entropy_reward_coef adds to the whole reward, which normalize_parts does not use; set one"
            )
        if self.credit == "clauses" and (self.normalize_parts or self.entropy_reward_coef > 0 or self.keeps_size):
            raise ValueError(
                "with credit clauses each clause has its own advantage and its own image-wise weights: leave out "
                "normalize_parts, entropy_reward_coef, normalize_over, cap and token_floor"
            )
        if self.credit == "clauses" and self.divergence in STATS:
            raise ValueError(
                f"divergence is {self.divergence}, a sum over the codebook, which is not taken under the prompt "
                "without a clause; with credit clauses it must be kl, abs, js or information_gain"
            )
        if self.keeps_size and self.normalization != "none":
            raise ValueError(
                "normalize_over, cap and token_floor are of weights that keep the size of the contrast, and "
                f"normalization is {self.normalization}; set normalization to none, or leave them out"
            )
        if self.event_codes != "own" and self.event_width == 0:
            raise ValueError(f"event_codes is {self.event_codes}, and there are no events; set event_width above 0")
        if self.event_width > 0 and self.ratio_bound > 0:
            raise ValueError(
                "ratio_bound multiplies each token's loss by its own ratio to the reference, whose gradient has what "
                "events leave out; set ratio_bound or event_width to 0"
            )
        if self.event_width > 0 and self.importance_cap > 0:
            raise ValueError(
                "importance_cap compares the log-probs in training with those that sampling recorded, which has none "
                "of events; set importance_cap or event_width to 0"
            )
        if self.normalize_batch and not self.normalize_parts:
            raise ValueError(
                "normalize_batch is GDPO's second normalisation, of the sum that normalize_parts makes; "
                "set both, or neither"
            )
        for name, (holds, rule) in bounds.items():
            if not holds:
                raise ValueError(f"algorithm.{name} is {vars(self)[name]}; it must be {rule}")

    @property
    def keeps_size(self) -> bool:
        """Return whether an option is set that only weights by the size of the contrast have."""
        return self.normalize_over != "image" or self.cap > 0 or self.token_floor > 0

    @property
    def needs_contrast(self) -> bool:
        """Return whether the rollout must have `logprob_negative` (`Sampling.contrast`)."""
        return self.credit in ("contrast", "clauses", "shuffled", "sibling")

    @property
    def needed_stats(self) -> tuple[str, ...]:
        """Return what the rollout must have in `Rollout.stats` (`Sampling.stats`)."""
        needed = {STATS[self.divergence][0]} if self.needs_contrast and self.divergence in STATS else set()
        if self.credit == "entropy" or self.entropy_reward_coef > 0:
            needed.add("entropy")
        if self.credit == "variance":
            needed.add("variance")
        if self.credit == "critical":
            needed.add("behaviour_entropy")
        return tuple(sorted(needed))

    @property
    def needed_vectors(self) -> Vectors | None:
        """Return which vectors of the codebook's tokens the weights are made of (`generator.code_vectors`), or None."""
        by_credit: dict[str, Vectors] = {"dissimilar": "codebook", "critical": "inputs"}
        return by_credit.get(self.credit)

    @property
    def events(self) -> Events | None:
        """Return which tokens are one event in training; None: each token is its own."""
        return Events(self.event_width, self.event_codes) if self.event_width > 0 else None

    @property
    def needs_reference(self) -> bool:
        """Return whether the loss wants the reference model's log-probs."""
        return (self.kl_estimator != "none" and self.kl_coef > 0) or self.ratio_bound > 0


def _row(name: str, **choices: Any) -> Algorithm:
    return Algorithm(name=name, **choices)


_GRPO: dict[str, Any] = {"credit": "uniform", "kl_weighting": False}
_DAPO: dict[str, Any] = {"clip_high": 0.28, "reduction": "token", "kl_estimator": "none", "dynamic_sampling": True}

TABLE: dict[str, Algorithm] = {
    "grpo": _row("grpo", **_GRPO),
    "dr_grpo": _row("dr_grpo", **_GRPO, advantage_scale="none", reduction="constant", kl_estimator="none"),
    "dapo": _row("dapo", **_GRPO, **_DAPO),
    "gcpo": _row("gcpo"),
    "gcpo_dapo": _row("gcpo_dapo", **_DAPO),
    "gcpo_entropy": _row("gcpo_entropy", credit="entropy"),
    "gcpo_magnitude": _row("gcpo_magnitude", normalization="none", cap=CAP, token_floor=TOKEN_FLOOR),
    "gcpo_variance": _row("gcpo_variance", credit="variance", normalization="none", normalize_over="running"),
    "gcpo_clauses": _row("gcpo_clauses", credit="clauses"),
    "gcpo_events": _row("gcpo_events", **_GRPO, event_width=Events.width),
    "stage": _row("stage", credit="dissimilar", entropy_reward_coef=0.4),
    "critical_tokens": _row("critical_tokens", credit="critical", ratio_bound=0.5),
    "gcpo_random": _row("gcpo_random", credit="random"),
    "gcpo_shuffled": _row("gcpo_shuffled", credit="shuffled"),
    "gcpo_sibling": _row("gcpo_sibling", credit="sibling"),
    "gcpo_events_matched": _row("gcpo_events_matched", **_GRPO, event_width=Events.width, event_codes="matched"),
}


def resolve(name: str, **overrides: Any) -> Algorithm:
    """Return the table's row `name` with some fields changed.

    ValueError for an unknown row or field, listing the allowed.
    """
    if name not in TABLE:
        raise ValueError(f"unknown algorithm {name!r}; allowed: {', '.join(TABLE)}")
    allowed = [field.name for field in fields(Algorithm) if field.name != "name"]
    unknown = sorted(set(overrides) - set(allowed))
    if unknown:
        raise ValueError(f"unknown algorithm option {', '.join(unknown)}; allowed: {', '.join(allowed)}")
    return replace(TABLE[name], **overrides)
