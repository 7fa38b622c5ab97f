"""Say what the results tell: of each instrument and world, whether a rule met what was asked, what predicts a gain."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
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
#: Fewer pairs of rule and world than this are not correlated.
LEAST_PAIRS = 5


def signed(value: float, interval: Sequence[float] | None) -> str:
    return number(value, signed=True) if interval is None else with_interval(value, tuple(interval), signed=True)


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
    met, controlled = [], []
    for rule, row in world.against(BASELINE).items():
        control = control_of(rule, world)
        if control is None:
            continue
        above = world.against(control)[rule]
        controlled.append(f"`{rule}` with `{control}`")
        low = row["difference"]["ci95"][0]
        gained = row["difference"]["overall"] >= LEAST_GAIN and low > 0
        shares = [math.inf if one is None else one for one in (world.learning().get(rule) or {}).get("share", ())]
        faster = bool(shares) and statistics.median(shares) <= MOST_IMAGES
        area = world.learning(control).get(rule)
        sooner = area is not None and area["difference"]["ci95"] is not None and area["difference"]["ci95"][0] > 0
        if (gained and above["difference"]["ci95"][0] > 0) or (faster and sooner):
            met.append(f"`{rule}`")
    if not controlled:
        return f"{world.name}: **no rule met it**; no rule was compared with a control of its kind there."
    which = f"compared with a control of its kind: {', '.join(controlled)}"
    return f"{world.name}: {', '.join(met) + ' met it' if met else '**no rule met it**'}; {which}."


def pairs(found: Sequence[World]) -> list[tuple[str, str, float, float | None, float]]:
    """Return (world, rule, agreement above GRPO's, weight where the reward is decided, gain), by rule and world."""
    rows = []
    for world in found:
        for rule, row in world.against(BASELINE).items():
            aligned = world.aligned.get(rule)
            if aligned is None:
                continue
            less = aligned["gain"]["plain"]["value"]
            credited = world.credited.get(rule)
            weight = None if credited is None else credited["weight"]["mean"]
            rows.append((world.name, rule, less, weight, row["difference"]["overall"]))
    return rows


def prediction(found: Sequence[World]) -> str:
    """Correlate each instrument with the gain over the rules of each world, with Fisher's interval."""
    rows = pairs(found)
    if len(rows) < LEAST_PAIRS:
        there = "is one pair" if len(rows) == 1 else f"are {len(rows)} pairs"
        return (
            f"There {there} of a rule and a world with both a measured alignment and a trained gain; a correlation "
            f"over fewer than {LEAST_PAIRS} would say nothing."
        )
    lines = []
    for name, column in (("agreement above GRPO's", 2), ("credit where the reward is decided", 3)):
        known = _within_worlds([(row[0], row[column], row[4]) for row in rows if row[column] is not None])
        if len(known) < LEAST_PAIRS:
            continue
        result = stats.pearsonr(*zip(*known, strict=True))
        bounds = result.confidence_interval()
        value = with_interval(float(result.statistic), (bounds.low, bounds.high), signed=True)
        lines.append(f"* {name}: correlation with the gain {value} over {len(known)} pairs of rule and world.")
    lines.append(
        "\nEach value is less the mean of its world, so that no difference between worlds makes a correlation. The "
        f"intervals take the pairs as independent; those of a world share the runs of `{BASELINE}`, so they are too "
        "narrow."
    )
    return "\n".join(lines)


def _within_worlds(rows: Sequence[tuple[str, float, float]]) -> list[tuple[float, float]]:
    """Return two numbers of each row less their means over the world, of worlds with at least two rows."""
    found = []
    for name in dict.fromkeys(row[0] for row in rows):
        own = [row[1:] for row in rows if row[0] == name]
        means = [statistics.fmean(values) for values in zip(*own, strict=True)]
        found += [(left - means[0], right - means[1]) for left, right in own] if len(own) > 1 else []
    return found
