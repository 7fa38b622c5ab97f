"""Write docs/evidence.md from the results that are committed below docs/results/: `python docs/evidence.py`.

Every number of the page, and every sentence about what was told from what, is made of these files.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scipy import stats

from t2i_gcpo.reports.tables import number, with_interval
from t2i_gcpo.study import learning
from t2i_gcpo.study.comparable import unequal

DOCS = Path(__file__).parent
BASELINE = "grpo"
#: The control of a rule, which has what the rule has, at places or of codes that mean nothing; of the others the first.
CONTROLS = {"gcpo": "gcpo_shuffled", "gcpo_events": "gcpo_events_matched"}
#: What would have counted as a gain, set before the studies: this much above GRPO with the interval above 0, or GRPO's
#: final level within this share of its images; and above the rule's shuffled control.
LEAST_GAIN, MOST_IMAGES = 0.05, 0.6
#: The name of an arm, which holds no colon -> the rule as the instruments call it.
RULES = {"gcpo-none": "gcpo:normalization=none"}
NAME = "algorithm.name "
#: Columns of a study's table of learning that say what GRPO's final level took.
FOR_A_LEVEL = 4
#: Fewer pairs of rule and world than this are not correlated.
LEAST_PAIRS = 5


@dataclass(frozen=True)
class World:
    """Holds what was measured on one checkpoint; None where it was not."""

    name: str
    about: str
    alignment: Mapping[str, Any] | None = None
    truth: Mapping[str, Any] | None = None
    studies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Folder below docs/results/ -> a study's results on the test prompts. Of a rule in several, the first counts."""
    tunings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The same of what was tuned on the validation prompts."""

    @property
    def aligned(self) -> dict[str, Mapping[str, Any]]:
        return {row["rule"]: row for row in (self.alignment or {}).get("rules", ())}

    @property
    def told(self) -> bool:
        """Whether the influence of the tokens, as a whole, is told from 0: else the truth may be all noise."""
        return self.truth is not None and self.truth["decided_variance"]["ci95"][0] > 0

    @property
    def credited(self) -> dict[str, Mapping[str, Any]]:
        """Return what the truth says of each rule; nothing where it may be noise."""
        return dict(self.truth["rules"]) if self.truth is not None and self.told else {}

    def against(self, baseline: str) -> dict[str, Mapping[str, Any]]:
        """Return the study's groups that were compared with a baseline after training, by name."""
        return self._first("against", lambda row: row["against"] == baseline and row["difference"])

    def learning(self, baseline: str = BASELINE) -> dict[str, Mapping[str, Any]]:
        """Return how fast the groups learn beside a baseline, by name."""
        return self._first("learning", lambda row: row["against"] == baseline)

    def _first(self, table: str, wanted: Callable[[Mapping[str, Any]], bool]) -> dict[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        for study in self.studies.values():
            found = {_rule(row): row for row in study.get(table, ()) if wanted(row)} | found
        return found

    @property
    def rules(self) -> list[str]:
        return list(dict.fromkeys([*self.aligned, *self.credited, *self.against(BASELINE)]))


def _rule(row: Mapping[str, Any]) -> str:
    return RULES.get(row["group"], row["group"])


def worlds(results: Path) -> list[World]:
    """Read the worlds of which anything is there."""

    def read(folder: str, name: str) -> Mapping[str, Any] | None:
        file = results / folder / name
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    plain = "ShapeScenes on plain backgrounds, where hardly a token is undecided"
    textured = "ShapeScenes on textures that no prompt decides: most tokens are open, and few matter"
    found = []
    for name, about, studies, tunings in (
        ("janus-mini", plain, ("plain", "shapes"), ("tune", "tune_events")),
        ("janus-textured", textured, ("textured",), ("textured_tune", "textured_tune_matched")),
    ):
        slug = name.replace("-", "_")
        alignment, truth = read(f"alignment_{slug}", "alignment.json"), read(f"truth_{slug}", "truth.json")
        trained, tuned = (
            {folder: seen for folder in folders if (seen := read(folder, "results.json")) is not None}
            for folders in (studies, tunings)
        )
        if alignment or truth or trained or tuned:
            found.append(World(name, about, alignment, truth, trained, tuned))
    return found


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown themselves."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


# -- what each world says ----------------------------------------------------------------------------------------------


def rule_table(world: World) -> str:
    """Return one row a rule: the two instruments, and what training gained."""
    header = [
        "rule", "alignment", f"agreement, less {BASELINE}'s", "the same, as AdamW sees it",
        "AUROC, deciding tokens", "credit where the reward is decided",
        f"final score, less {BASELINE}'s", f"area under the learning curve, less {BASELINE}'s",
    ]  # fmt: skip
    trained, learnt = world.against(BASELINE), world.learning()
    rows = []
    for rule in world.rules:
        aligned, credited = world.aligned.get(rule), world.credited.get(rule)
        difference = trained[rule]["difference"] if rule in trained else None
        area = learnt[rule]["difference"] if rule in learnt else None
        rows.append(
            [
                f"`{rule}`",
                _of_alignment(aligned),
                *(_of_gain(rule, aligned, metric) for metric in ("plain", "adamw")),
                *(_of_truth(credited, measure) for measure in ("auroc", "weight")),
                number(None) if difference is None else _signed(difference["overall"], difference["ci95"]),
                number(None) if area is None else _signed(area["mean"], area["ci95"]),
            ]
        )
    return markdown(header, rows)


def training_table(study: Mapping[str, Any]) -> str:
    """Return one row a rule that a study trained: with what options, how its score moved, and what the score cost."""
    groups = study["groups"]
    own = dict(zip((group["group"] for group in groups), _own_choices(groups), strict=True))
    learnt = {
        _rule(row): learning.table([row])[0]
        for row in study.get("learning", ())
        if row["against"] == BASELINE and "paid" in row
    }
    rows = []
    for group in groups:
        if group["after"] is None:
            continue
        rule = _rule(group)
        means = (group["before"]["overall"], group["after"]["overall"], group["kl"], group["diversity"])
        at_level = learnt[rule][-FOR_A_LEVEL:] if rule in learnt else [number(None)] * FOR_A_LEVEL
        seeds = f"{group['seeds']} of {group['of']}"
        chosen = ", ".join(own[group["group"]]) or number(None)
        rows.append([f"`{rule}`", chosen, seeds, *map(number, means), *at_level])
    header = [
        "rule", "options", "seeds", "before", "after", "KL", "diversity", f"images to {BASELINE}'s level",
        f"of {BASELINE}'s own", f"KL there ({BASELINE}'s)", f"diversity there ({BASELINE}'s)",
    ]  # fmt: skip
    return markdown(header, rows)


def _of_alignment(row: Mapping[str, Any] | None) -> str:
    if row is None or row["values"]["plain"]["alignment"] is None:
        return number(None)
    return with_interval(row["values"]["plain"]["alignment"], row["intervals"]["plain"]["alignment"])


def _of_gain(rule: str, row: Mapping[str, Any] | None, metric: str) -> str:
    if row is None or rule == BASELINE:
        return number(None)
    return _signed(row["gain"][metric]["value"], row["gain"][metric]["interval"])


def _of_truth(row: Mapping[str, Any] | None, measure: str) -> str:
    return number(None) if row is None else with_interval(row[measure]["mean"], row[measure]["ci95"])


def _signed(value: float, interval: Sequence[float] | None) -> str:
    return number(value, signed=True) if interval is None else with_interval(value, tuple(interval), signed=True)


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


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
            weights = {rule: row["weight"] for rule, row in world.credited.items()}
            best = max(weights, key=lambda rule: weights[rule]["mean"])
            paper, most = (with_interval(one["mean"], one["ci95"]) for one in (weights["gcpo"], weights[best]))
            yield (
                f"**Few tokens decide**: {sums}, and {_percent(world.truth['half_tokens'])} of them hold half of the "
                f"influence. Where it is decided the paper's ranks have {paper} times the mean weight, the best rule "
                f"measured (`{best}`) {most} times."
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
            yield f"**Budgets** of `{folder}`: {budgets}."
    for rule, row in world.against(BASELINE).items():
        interval = row["difference"]["ci95"]
        yield (
            f"**`{rule}` against `{BASELINE}`**, {row['seeds']} seeds, {row['images']:,} images: "
            f"{_signed(row['difference']['overall'], interval)}, {told(interval)}; lowest seed "
            f"{number(row['lowest_seed']['difference'], signed=True)}."
        )


def control_of(rule: str) -> str | None:
    """Return the control that a rule must be above; None where there is none of its kind."""
    return CONTROLS.get(rule, CONTROLS["gcpo"] if rule.startswith("gcpo") else None)


def verdict(world: World) -> str:
    """Say of a world whether a rule met what was set before, and which."""
    met, controlled = [], []
    for rule, row in world.against(BASELINE).items():
        control = control_of(rule)
        above = None if control is None else world.against(control).get(rule)
        if rule in CONTROLS.values() or control is None or above is None:
            continue
        controlled.append(f"`{rule}`")
        low = row["difference"]["ci95"][0]
        gained = row["difference"]["overall"] >= LEAST_GAIN and low > 0
        shares = [math.inf if one is None else one for one in (world.learning().get(rule) or {}).get("share", ())]
        faster = bool(shares) and statistics.median(shares) <= MOST_IMAGES
        area = world.learning(control).get(rule)
        sooner = area is not None and area["difference"]["ci95"] is not None and area["difference"]["ci95"][0] > 0
        if (gained and above["difference"]["ci95"][0] > 0) or (faster and sooner):
            met.append(f"`{rule}`")
    if not world.against(BASELINE):
        return f"{world.name}: no study compares rules there."
    if not controlled:
        return f"{world.name}: **no rule met it**; no rule was compared with a control of its kind there."
    compared = f"{len(controlled)} of the rules {'was' if len(controlled) == 1 else 'were'} compared with a control"
    which = f"{compared} of its kind ({', '.join(controlled)})"
    return f"{world.name}: {', '.join(met) + ' met it' if met else '**no rule met it**'}; {which}."


# -- do the instruments predict the gain? ------------------------------------------------------------------------------


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
        known = "is one pair" if len(rows) == 1 else f"are {len(rows)} pairs"
        return (
            f"There {known} of a rule and a world with both a measured alignment and a trained gain; a correlation "
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


# -- the page ----------------------------------------------------------------------------------------------------------


INTRODUCTION = """# Does it matter which token gets the credit?

*Written by `python docs/evidence.py` from the files below `docs/results/`; the numbers, and what is said of them,
follow from these.*

## The question

GCPO gives the tokens that the prompt drives more of an image's advantage. Three things can be asked of such a rule, in
rising order of cost: does it put the credit on the tokens that *decide* the reward ([causal truth](truth.md)); does one
batch's gradient point better along the true one ([alignment](alignment.md)); and does a run end higher, or sooner
([studies](studies.md))? This page puts the three side by side.

## How it was asked

* **What would count**, set before the studies: at least {gain:+.2f} above `{baseline}` with the 95 % interval above 0,
  or `{baseline}`'s final level within {images:.0f} % of its images; and above its control: `{control}` has the same
  weights at places that mean nothing, `{events}` events as probable of codes that have nothing in common.
* **Alike for all**: start, prompts, noise, and the number of images where it does not say otherwise. Differences are
  image by image under the same seed, prompt and noise, their intervals over seeds and prompts.
* **Tuned**: each rule by [trials](#how-the-rules-were-tuned) on `shapes:val`, of which the best was taken, of equal
  ones that with the lower KL; how many each had is said there. The scores of the worlds are of `shapes:test`, whose
  combinations are in no training prompt.
* **Several rules, one baseline**: the intervals are of one comparison each, and not widened for their number.

## The short answer
"""


GIVEN_UP = """Tried on janus-textured before that, and given up; none of these runs is kept or in a table above:

* 30 steps of 96 images at a rate of 4e-4, `grpo` and `gcpo` without ranks: neither moved, both had a KL of about 1 nat
  a token. The rule without ranks had been named as ours until then, and `gcpo_variance` before it, which its alignment
  spoke against.
* AdamW's epsilon of 1e-3 at a rate of 4e-3: a KL of 0.18 (`grpo`) and 0.07 (`gcpo_events`) after two steps.
* One run of `gcpo_events` at 2e-4 was known before its tuning was written; it is the trial of that name."""

ABOUT_TRAINING = """What was trained, and what it cost: the score before and after, KL to the start (nats a token) and
diversity at the end; images until the trailing reward first reached `{baseline}`'s last, as a number and as a share of
`{baseline}`'s own, and KL and diversity over those steps with `{baseline}`'s in brackets
([how they are computed](studies.md#how-fast-each-group-learns))."""


def page(found: Sequence[World]) -> str:
    """Return the whole page."""
    values = {"gain": LEAST_GAIN, "images": MOST_IMAGES * 100, "baseline": BASELINE}
    values |= {"control": CONTROLS["gcpo"], "events": CONTROLS["gcpo_events"]}
    parts = [INTRODUCTION.format(**values), "\n".join(f"* {verdict(world)}" for world in found)]
    for world in found:
        parts += [f"## {world.name}", f"{world.about}.", rule_table(world)]
        parts += ["\n".join(f"* {line}" for line in findings(world))]
        if world.studies:
            parts += [ABOUT_TRAINING.format(baseline=BASELINE)]
        for folder, study in world.studies.items():
            about = (
                f"Study [{folder}](results/{folder}/table.md), whose options are in `configs/studies/{folder}.yaml`:"
            )
            parts += [about, training_table(study)]
    parts += ["## Do the instruments predict the gain?", prediction(found)]
    parts += ["## How the rules were tuned", tuning(found), GIVEN_UP, "## What it cost", cost(found)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def tuning(found: Sequence[World]) -> str:
    """List every trial of the tuning with its gain on the validation prompts, a table a world, the best one in bold."""
    parts = []
    for world in found:
        groups = [group for study in world.tunings.values() for group in study["groups"]]
        if not groups:
            continue
        choices = [*map(_choices, groups)]
        rules = [next(one.removeprefix(NAME) for one in own if one.startswith(NAME)) for own in choices]
        best: dict[str, tuple[float, float]] = {}
        for rule, group in zip(rules, groups, strict=True):
            if group["after"] is not None:
                best[rule] = max(_merit(group), best.get(rule, (-math.inf, 0.0)))
        listed = sorted(zip(rules, groups, _own_choices(groups), strict=True), key=lambda one: rules.index(one[0]))
        rows = [
            [f"`{rule}`", ", ".join(own) or "as it is", _of_trial(group, best.get(rule))] for rule, group, own in listed
        ]
        seeds = max(group["of"] for group in groups)
        run = [rule for rule, group in zip(rules, groups, strict=True) if group["after"] is not None]
        counts = {rule: run.count(rule) for rule in rules}
        each = {*counts.values()}
        had = (
            f"each rule had {counts[rules[0]]} trials" if len(each) == 1
            else "not all had as many trials: " + ", ".join(f"`{rule}` {count}" for rule, count in counts.items())
        )  # fmt: skip
        tables = ", ".join(f"[{folder}](results/{folder}/table.md)" for folder in world.tunings)
        head = (
            f"{world.name}, {seeds} seed a trial; {had}. Score after less before, on `shapes:val`; the best in bold. "
            f"By task, with KL and diversity: {tables}."
        )
        parts += [head, markdown(["rule", "trial", "gain"], rows)]
    return "\n\n".join(parts)


def _merit(group: Mapping[str, Any]) -> tuple[float, float]:
    """Return by what the best trial is chosen: its score, then its KL, the lower the better."""
    return group["after"]["overall"], -(group["kl"] or 0.0)


def _of_trial(group: Mapping[str, Any], best: tuple[float, float] | None) -> str:
    if group["after"] is None:
        return "not run"
    gain = _signed(group["difference"]["overall"], group["difference"]["ci95"])
    return f"**{gain}**" if _merit(group) == best else gain


def _choices(group: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in group["options"].items()
    ]


def _own_choices(groups: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return what of each group's options, but for the algorithm's name, is not that of all groups."""
    choices = [*map(_choices, groups)]
    common = set.intersection(*map(set, choices)) if len(choices) > 1 else set()
    return [[one for one in own if one not in common and not one.startswith(NAME)] for own in choices]


def cost(found: Sequence[World]) -> str:
    """List the studies with their trials, seeds and hours."""
    rows = []
    for world in found:
        for folder, study in {**world.studies, **world.tunings}.items():
            trials = [trial for trial in study["trials"] if trial["seconds"]]
            failed = sum(trial["status"] == "failed" for trial in study["trials"])
            hours = sum(trial["seconds"] for trial in trials) / 3600
            rows.append(
                [
                    f"[{folder}](results/{folder}/results.json)", world.name, str(len(trials)), str(failed),
                    f"{len({trial['seed'] for trial in trials})}",
                    f"{sum(trial['images_sampled'] for trial in trials):,.0f}", f"{hours:.1f}",
                ]
            )  # fmt: skip
    return markdown(
        ["study", "world", "trials", "failed", "seeds", "images sampled", "hours of training, all trials"], rows
    )


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS / "evidence.md"
    target.write_text(page(worlds(DOCS / "results")), encoding="utf-8")
    sys.stdout.write(f"wrote {target}\n")
