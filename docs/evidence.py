"""Write docs/evidence.md from the results that are committed below docs/results/: `python docs/evidence.py`.

Every number of the page, and every sentence about what was told from what, is made of these files; what was tried and
given up before them is told in words.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evidence_findings import LEAST_GAIN, MOST_IMAGES, findings, of_weight, prediction, signed, verdict
from evidence_worlds import BASELINE, RULES, World, but_rule, reruns_of, rule_of, worlds

from t2i_gcpo.reports.tables import number, with_interval
from t2i_gcpo.study import learning

DOCS = Path(__file__).parent
#: Columns of a study's table of learning that say what GRPO's final level took.
FOR_A_LEVEL = 4
WHEN = ("committed", "again")

INTRODUCTION = """# Does it matter which token gets the credit?

*Written by `python docs/evidence.py` from the files below `docs/results/`; the numbers, and what is said of them,
follow from these, but for [what was given up](#how-the-rules-were-tuned) before.*

## The question

GCPO gives the tokens that the prompt drives more of an image's advantage. Three things can be asked of such a rule, in
rising order of cost: does it put the credit on the tokens that *decide* the reward ([causal truth](truth.md)); does one
batch's gradient point better along the true one ([alignment](alignment.md)); and does a run end higher, or sooner
([studies](studies.md))? This page puts the three side by side.

## How it was asked

* **What would count**, set before the studies: at least {gain:+.2f} above `{baseline}` with the 95 % interval above 0,
  or `{baseline}`'s final level within {images:.0f} % of the images that it first took to it; and above the rule's
  control, by score or, for the second, by the area under the learning curve. `gcpo_shuffled` is that of `gcpo`, with
  the same weights at places that mean nothing; `gcpo_events_matched` that of `gcpo_events`, with events of codes that
  have nothing in common. [What each rule is](algorithms.md).
* **Alike for all**: start, prompts, noise, and the number of images where it does not say otherwise. Differences are
  image by image under the same seed, prompt and noise, their intervals over seeds and prompts.
* **Tuned**: each rule by [trials](#how-the-rules-were-tuned) on `shapes:val`, of which the best was taken, of equal
  ones that with the lower KL; how many each had is said there. Rates and epsilons so differ between the rules, and with
  them the KL. The scores of the worlds are of the 144 prompts of `shapes:test`: the 112 of four tasks have combinations
  that are in no training prompt, the 32 of single_object and counting are those of every split.
* **The columns**: *alignment* is the expected cosine of one batch's gradient with the true one, *agreement* that with
  another batch under `{baseline}`, *as AdamW sees it* both with AdamW's own metric ([formulas](alignment.md)); *AUROC*
  how well a rule's weights order the deciding tokens among all, and among those that could change the reward at all,
  *credit where the reward is decided* a token's weight, counted by
  its influence squared, with 1 for uniform weights ([definitions](truth.md)).
* **Several rules, one baseline**: the intervals are of one comparison each, and not widened for their number. Those of
  a final score are a bootstrap over seeds and prompts, those of the learning curve Student's over the seeds.

## The short answer
"""


GIVEN_UP = """Tried on janus-textured before that, and given up; none of these runs is kept or in a table above:

* 30 steps of 96 images at a rate of 4e-4, `grpo` and `gcpo` without ranks: neither moved, both had a KL of about 1 nat
  a token. The rule without ranks had been named as ours until then, and `gcpo_variance` before it, which its alignment
  spoke against.
* AdamW's epsilon of 1e-3 at a rate of 4e-3: a KL of 0.18 (`grpo`) and 0.07 (`gcpo_events`) after two steps.
* One run of `gcpo_events` at 2e-4 was known before its tuning was written; it is the trial of that name.

`gcpo_events` was named as our rule, with its hypothesis, before its tuning; its control then was
`gcpo_events:event_codes=shuffled`, events of as many codes. During the tuning, and before any run of the study, that
was found to keep far more of the noise than the rule does, so that to be above it says little, and
`gcpo_events_matched`, events about as probable, took its place with trials of its own. Two trials of `gcpo_events` came
out equal. That the one with the lower KL is taken then was written after them and before the study, so part of its low
KL is chosen. The study was looked at after two and after four of its five seeds, and nothing was changed for it.

Two arms came after the results of the other four had been read. The causal truth, measured anew, favoured
`gcpo_variance`: it was given trials of its own and then the same five seeds. Its hypothesis was committed while the
first two trials were in their last steps, before any of them was evaluated; it has no control of its own; and the truth
that picked it is of prompts of `shapes:test`, on which it was judged, which could only favour it. `grpo-lr1e-4` is
`grpo` with the optimiser of `gcpo_events`, so that the rule can be told from that; the other half of the swap,
`gcpo_events` with the optimiser of `grpo`, has its one trial in the table and was not run with more seeds. Of two equal
trials of `gcpo_events_matched`, too, the one with the lower KL was taken.

The norm of a gradient was limited to 1 for every rule, which was not tuned. The study and the last two tunings ran
under one code, the first tuning under an earlier one, of before the control `gcpo_events_matched` was added."""

ABOUT_TRAINING = """What was trained, and what it cost: the score before and after, KL to the start (nats a token) and
diversity (the share of tokens in which images of a prompt differ) at the end; images until the trailing reward first
reached `{baseline}`'s last, as a number and as a share of `{baseline}`'s own, medians over the seeds, in which a seed
that never reaches it counts as infinity; and KL and diversity over those steps with `{baseline}`'s in brackets
([how they are computed](studies.md#how-fast-each-group-learns))."""


def page(found: Sequence[World], reruns: Mapping[str, Any] | None = None) -> str:
    """Return the whole page. `reruns`: what `docs/rerun.py` wrote, where it did."""
    values = {"gain": LEAST_GAIN, "images": MOST_IMAGES * 100, "baseline": BASELINE}
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
            if folder in world.drawn:
                parts += [f"![curves of {folder}'s runs over the images sampled](results/{folder}/curves.png)"]
    parts += ["## Do the instruments predict the gain?", prediction(found)]
    parts += ["## How the rules were tuned", tuning(found), GIVEN_UP, "## What it cost", cost(found)]
    if reruns is not None:
        parts += ["## Run again", run_again(reruns)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown themselves."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


# -- what each world says ----------------------------------------------------------------------------------------------


def rule_table(world: World) -> str:
    """Return one row a rule: the two instruments, and what training gained."""
    header = [
        "rule", "alignment", f"agreement, less {BASELINE}'s", "the same, as AdamW sees it",
        "AUROC, deciding tokens", "AUROC among the open ones", "credit where the reward is decided",
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
                *(_of_auroc(credited, measure) for measure in ("auroc", "auroc_open")),
                number(None) if credited is None else of_weight(credited),
                number(None) if difference is None else signed(difference["overall"], difference["ci95"]),
                number(None) if area is None else signed(area["mean"], area["ci95"]),
            ]
        )
    return markdown(header, rows)


def training_table(study: Mapping[str, Any]) -> str:
    """Return one row a rule that a study trained: with what options, how its score moved, and what the score cost."""
    groups = study["groups"]
    own = dict(zip((group["group"] for group in groups), _own_choices(groups), strict=True))
    learnt = {
        rule_of(row): [_reaching(row["share"]), *learning.table([row])[0][-FOR_A_LEVEL:]]
        for row in study.get("learning", ())
        if row["against"] == BASELINE
    }
    rows = []
    for group in groups:
        if group["after"] is None:
            continue
        rule = rule_of(group)
        means = (group["before"]["overall"], group["after"]["overall"], group["kl"], group["diversity"])
        at_level = learnt.get(rule, [number(None)] * (FOR_A_LEVEL + 1))
        seeds = f"{group['seeds']} of {group['of']}"
        chosen = ", ".join(own[group["group"]]) or number(None)
        rows.append([f"`{rule}`", chosen, seeds, *map(number, means), *at_level])
    header = [
        "rule", "options", "seeds", "before", "after", "KL", "diversity", f"seeds that reach {BASELINE}'s level",
        "images to it",
        f"of {BASELINE}'s own", f"KL there ({BASELINE}'s)", f"diversity there ({BASELINE}'s)",
    ]  # fmt: skip
    return markdown(header, rows)


def _reaching(shares: Sequence[float | None]) -> str:
    return f"{sum(share is not None for share in shares)} of {len(shares)}"


def _of_alignment(row: Mapping[str, Any] | None) -> str:
    if row is None or row["values"]["plain"]["alignment"] is None:
        return number(None)
    return with_interval(row["values"]["plain"]["alignment"], row["intervals"]["plain"]["alignment"])


def _of_gain(rule: str, row: Mapping[str, Any] | None, metric: str) -> str:
    if row is None or rule == BASELINE:
        return number(None)
    return signed(row["gain"][metric]["value"], row["gain"][metric]["interval"])


def _of_auroc(row: Mapping[str, Any] | None, measure: str) -> str:
    return number(None) if row is None else with_interval(row[measure]["mean"], row[measure]["ci95"])


# -- tuning and cost ---------------------------------------------------------------------------------------------------


def tuning(found: Sequence[World]) -> str:
    """List every trial of the tuning with its gain on the validation prompts, a table a world, the best one in bold."""
    parts = []
    for world in found:
        groups = [group for study in world.tunings.values() for group in study["groups"]]
        if not groups:
            continue
        rules = [*map(_tuned_rule, groups)]
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
    gain = signed(group["difference"]["overall"], group["difference"]["ci95"])
    return f"**{gain}**" if _merit(group) == best else gain


def _tuned_rule(group: Mapping[str, Any]) -> str:
    """Return the rule of a trial, with what makes it another than the row of that name."""
    name, codes = (group["options"].get(f"algorithm.{one}") for one in ("name", "event_codes"))
    return RULES.get(name, name) if codes is None else f"{name}:event_codes={codes}"


def _choices(group: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in but_rule(group).items()
    ]


def _own_choices(groups: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return what of each group's options, but for the rule, is not that of all groups."""
    choices = [*map(_choices, groups)]
    common = set.intersection(*map(set, choices)) if len(choices) > 1 else set()
    return [[one for one in own if one not in common] for own in choices]


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


def run_again(reruns: Mapping[str, Any]) -> str:
    """Set what trials that were picked at random gained when they were run again beside what they had gained."""
    rows = [
        [
            f"{row['study']}/{row['trial']}",
            *(signed(row[when]["difference"]["overall"], row[when]["difference"]["ci95"]) for when in WHEN),
            *(with_interval(row[when]["after"]["overall"], row[when]["after"]["ci95"]) for when in WHEN),
            "yes" if all(row["inside"].values()) else "no",
            *(f"{row['images_alike'][name]} of {row['committed']['after']['n']}" for name in ("before", "after")),
        ]
        for row in reruns["trials"]
    ]
    about = (
        f"Of the {reruns['of']} finished trials of the studies of `shapes:test`, {len(rows)} picked at random (seed "
        f"{reruns['seed']}) were run again from the start, with the options, the seed and the noise that they had, by "
        f"later code: `python docs/rerun.py --count {len(rows)} --seed {reruns['seed']}`. *Inside*: the gain and the "
        "score lie in the committed intervals, which are of one trial, over its prompts. *Alike*: test images with the "
        "very score that they had. [reruns.json](results/reruns.json)"
    )
    header = [
        "trial", "gain", "gain, run again", "score after", "score after, run again", "inside", "alike before",
        "alike after",
    ]  # fmt: skip
    return f"{about}\n\n{markdown(header, rows)}"


def main(argv: Sequence[str]) -> None:
    target = Path(argv[0]) if argv else DOCS / "evidence.md"
    target.write_text(page(worlds(DOCS / "results"), reruns_of(DOCS / "results")), encoding="utf-8")
    sys.stdout.write(f"wrote {target}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
