"""Say what the results tell: of each instrument and world, whether a rule met what was asked, what predicts a gain."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evidence_worlds import BASELINE, World
from scipy import stats

from t2i_gcpo.evaluation.learning_curve import over_seeds
from t2i_gcpo.reports.tables import number, with_interval
from t2i_gcpo.study.comparable import unequal

#: The controls of a rule, which have what the rule has, at places or of codes that mean nothing. Others have none.
CONTROLS = {"gcpo": ("gcpo_shuffled",), "gcpo_events": ("gcpo_events_matched", "gcpo_events:event_codes=shuffled")}
#: What would have counted as a gain, set before the studies: this much above GRPO with the interval above 0, or GRPO's
#: final level within this share of its images; and above the rule's control.
LEAST_GAIN, MOST_IMAGES = 0.05, 0.6
#: Fewer free pairs of rule and world than this are not correlated: Fisher's interval takes more than three.
LEAST_PAIRS = 4
METRICS = ("plain", "adamw")


@dataclass(frozen=True)
class Pair:
    """Holds what the instruments and a run said of a rule on a world; None where an instrument says nothing of it."""

    world: str
    rule: str
    plain: float
    adamw: float
    weight: float | None
    gain: float


#: What is correlated with the gain -> what a pair holds of it.
INSTRUMENTS: Mapping[str, Callable[[Pair], float | None]] = {
    f"agreement, less `{BASELINE}`'s": lambda pair: pair.plain,
    "the same, as AdamW sees it": lambda pair: pair.adamw,
    "credit where the reward is decided": lambda pair: pair.weight,
}


def signed(value: float, interval: Sequence[float] | None) -> str:
    return (
        number(value, signed=True)
        if interval is None
        else with_interval(value, (interval[0], interval[1]), signed=True)
    )


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def _span(interval: Sequence[float]) -> str:
    low, high = (number(bound, signed=True) for bound in interval)
    return f"[{low}, {high}]"


def told(interval: Sequence[float]) -> str:
    """Say whether an interval tells a difference from 0."""
    low, high = interval
    return "above 0" if low > 0 else "below 0" if high < 0 else "not told from 0"


def findings(world: World) -> Iterator[str]:
    """Say what each instrument and the study told of a world, a sentence a line."""
    if world.truth is not None:
        decided, varies = (
            with_interval(one["mean"], one["ci95"])
            for one in (world.truth["decided_variance"], world.truth["reward_variance"])
        )
        sums = f"the tokens decide a variance of the reward of {decided} in sum, where it has one of {varies}"
        if world.told:
            half = _percent(world.truth["half_tokens"])
            rules = world.credited
            falling = sorted(rules, key=lambda rule: rules[rule]["weight"]["mean"] or 0.0, reverse=True)
            named = [rule for rule in falling if rule in falling[:3] or rule == "gcpo"]
            shown = ", ".join(f"`{rule}` {of_weight(rules[rule])}" for rule in named)
            yield (
                f"**What decides**: {sums}, and {half} of them hold half of the influence. Weight where it is decided, "
                f"in units of the mean, of the three highest and of the paper's rule: {shown}."
            )
        else:
            yield (
                f"**What decides was not found out**: {sums}. That is not told from 0, so no agreement of a rule with "
                "it is given ([why](truth.md#what-it-says-of-janus-textured))."
            )
    if world.alignment is not None:
        gains = {rule: row["gain"]["plain"]["interval"] for rule, row in world.aligned.items() if rule != BASELINE}
        above, below = (
            ", ".join(
                f"`{rule}`" for rule, interval in gains.items() if None not in interval and told(interval) == side
            )
            for side in ("above 0", "below 0")
        )
        stability = world.alignment["stability"]
        plain, adamw = (number(stability[metric], digits=2) for metric in ("plain", "adamw"))
        agree = f"The halves of the batches order the rules alike by {plain} (as AdamW sees it {adamw})"
        yield (
            f"**Alignment**, on the same batches. Told from `{BASELINE}`'s agreement, above it: {above or 'no rule'}; "
            f"below it: {below or 'no rule'}. {agree}; below an agreement of 0.8 no rule should be chosen by it."
        )
    for folder, study in world.studies.items():
        if budgets := unequal(study["groups"], study["against"]):
            yield f"**Budgets** of `{folder}`, in images to train on: {budgets}."
    for rule in world.against(BASELINE):
        yield f"**`{rule}` against `{BASELINE}`**{_compared(world, rule, BASELINE)}"
        alike = world.alike(rule)
        if alike is not None and rule in world.against(alike):
            yield f"**`{rule}` against `{alike}`**, `{BASELINE}` with its options{_compared(world, rule, alike)}"
        control = control_of(rule, world)
        if control is not None:
            yield f"**`{rule}` against its control, `{control}`**{_compared(world, rule, control)}"


def _compared(world: World, rule: str, other: str) -> str:
    """Say how a rule ended beside another, and how it came there."""
    row, learnt = world.against(other)[rule], world.learning(other).get(rule)
    interval = row["difference"]["ci95"]
    text = (
        f", {row['seeds']} seeds, {row['images']:,} test images: {signed(row['difference']['overall'], interval)}, "
        f"{told(interval)}."
    )
    each = world.by_seed(rule, other)
    if len(each) > 1:
        shown = ", ".join(number(one, signed=True) for one in each)
        student = over_seeds(each)
        text += f" By seed: {shown}; over the seeds alone, on these prompts, {_span(student['ci95'])}."
    if learnt is not None and learnt["difference"]["ci95"] is not None:
        area = learnt["difference"]
        text += (
            f" While training, on average over the images: {signed(area['mean'], area['ci95'])} of reward over the "
            f"seeds, {told(area['ci95'])}."
        )
    own, theirs = world.trained(rule), world.trained(other)
    if own and theirs:
        (kl, diversity), (their_kl, theirs_diversity) = (
            (number(group["kl"]), number(group["diversity"])) for group in (own, theirs)
        )
        text += f" At the end a KL of {kl} beside {their_kl}, a diversity of {diversity} beside {theirs_diversity}."
    return text


def of_weight(row: Mapping[str, Any]) -> str:
    """Return a rule's weight where the reward is decided, with its interval where it has one."""
    mean, interval = row["weight"]["mean"], row["weight"]["ci95"]
    return number(mean) if mean is None or None in interval else with_interval(mean, interval)


def control_of(rule: str, world: World) -> str | None:
    """Return the control that was trained beside a rule, and that it must be above; None where there is none."""
    return next((one for one in CONTROLS.get(rule, ()) if rule in world.against(one)), None)


def verdict(world: World) -> str:
    """Say of a world whether a rule met what was set before, and which."""
    if not world.against(BASELINE):
        return f"{world.name}: no study compares rules there."
    unfinished = [
        f"`{folder}` has {min(group['seeds'] for group in study['groups'])} of {study['groups'][0]['of']} seeds"
        for folder, study in world.studies.items()
        if any(group["seeds"] < group["of"] for group in study["groups"])
    ]
    if unfinished:
        return f"{world.name}: **not decided yet**: {', '.join(unfinished)}."
    met, controlled, uncontrolled = [], [], []
    for rule, row in world.against(BASELINE).items():
        low = row["difference"]["ci95"][0]
        gained = row["difference"]["overall"] >= LEAST_GAIN and low > 0
        shares = [math.inf if one is None else one for one in (world.learning().get(rule) or {}).get("share", ())]
        faster = bool(shares) and statistics.median(shares) <= MOST_IMAGES
        control = control_of(rule, world)
        if control is None:
            uncontrolled += [f"`{rule}`"] if gained or faster else []
            continue
        controlled.append(f"`{rule}` with `{control}`")
        above, area = world.against(control)[rule], world.learning(control).get(rule)
        sooner = area is not None and area["difference"]["ci95"] is not None and area["difference"]["ci95"][0] > 0
        if (gained and above["difference"]["ci95"][0] > 0) or (faster and sooner):
            met.append(f"`{rule}`")
    which = (
        f"compared with a control of its kind: {', '.join(controlled)}" if controlled
        else "no rule was compared with a control of its kind there"
    )  # fmt: skip
    others = (
        f"without one, but as high or as soon as was asked: {', '.join(uncontrolled)}" if uncontrolled
        else "of those without one none was as high or as soon as was asked"
    )  # fmt: skip
    return f"{world.name}: {', '.join(met) + ' met it' if met else '**no rule met it**'}; {which}; {others}."


def pairs(found: Sequence[World]) -> list[Pair]:
    """Return what each instrument and a run said of a rule, by rule and world; the baseline is a rule as well."""
    rows = []
    for world in found:
        trained = {rule: row["difference"]["overall"] for rule, row in world.against(BASELINE).items()}
        measured = [rule for rule in trained if rule in world.aligned]
        for rule in [BASELINE, *measured] if measured else []:
            plain, adamw = (world.aligned[rule]["gain"][metric]["value"] for metric in METRICS)
            credited = world.credited.get(rule)
            weight = None if credited is None else credited["weight"]["mean"]
            rows.append(Pair(world.name, rule, plain, adamw, weight, trained.get(rule, 0.0)))
    return rows


def prediction(found: Sequence[World]) -> str:
    """Correlate each instrument with the gain over the rules of each world, with Fisher's interval."""
    rows = pairs(found)
    lines = [f"* {name}: {_correlated(rows, read)}." for name, read in INSTRUMENTS.items()]
    return (
        f"Correlation with the final score less `{BASELINE}`'s, with its 95 % interval and what it is when any one "
        f"pair is left out, over the rules with a measured alignment and a trained run ({_named(rows) or 'none yet'}):"
        + "\n\n"
        + "\n".join(lines)
        + f"\n\nEach value is less the mean of its world, so that no difference between worlds makes a correlation; "
        f"each world beyond the first takes a pair for that, and with fewer than {LEAST_PAIRS} left none is given. The "
        f"intervals take the pairs as independent; those of a world share the runs of `{BASELINE}`, and the error of "
        "each value itself is in none of them, so they are too narrow, and a few pairs can hang on one of them."
    )


def _correlated(rows: Sequence[Pair], read: Callable[[Pair], float | None]) -> str:
    """Say how one instrument goes with the gain, or why that is not said."""
    values = [(row.world, value, row.gain) for row in rows if (value := read(row)) is not None]
    known = _within_worlds(values)
    free = len(known) - len({world for world, *_ in known}) + 1  # a mean is taken away in each world but the first
    if free < LEAST_PAIRS:
        return f"not given, as {len(known)} pairs of rule and world leave too few"
    value = _pearson(known)
    if not -1 < value < 1:
        return f"not given, as the values of its {len(known)} pairs lie on a line or do not differ"
    half = stats.norm.ppf(0.975) / math.sqrt(free - 3)
    interval = (math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half))
    without = [_pearson(_within_worlds([*values[:k], *values[k + 1 :]])) for k in range(len(values))]
    low, high = (number(bound, signed=True) for bound in (min(without), max(without)))
    return f"{signed(value, interval)} over {len(known)} pairs of rule and world, without any one {low} to {high}"


def _pearson(known: Sequence[tuple[str, float, float]]) -> float:
    """Return Pearson's correlation; nan where either side does not vary."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        return float(stats.pearsonr(*zip(*(row[1:] for row in known), strict=True)).statistic)


def _named(rows: Sequence[Pair]) -> str:
    """List the rules of each world."""
    by_world = {row.world: [one.rule for one in rows if one.world == row.world] for row in rows}
    return "; ".join(f"{world}: {', '.join(f'`{rule}`' for rule in rules)}" for world, rules in by_world.items())


def _within_worlds(rows: Sequence[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """Return world and two numbers of each row, these less their means over the world, where it has two rows."""
    found = []
    for world in dict.fromkeys(row[0] for row in rows):
        own = [row[1:] for row in rows if row[0] == world]
        means = [statistics.fmean(values) for values in zip(*own, strict=True)]
        found += [(world, left - means[0], right - means[1]) for left, right in own] if len(own) > 1 else []
    return found
