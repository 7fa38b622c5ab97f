"""Read what docs/results/ holds of each world: alignment, causal truth, studies and tunings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BASELINE = "grpo"
#: Options of a trial that say which rule it is.
OF_THE_RULE = ("algorithm.name", "algorithm.event_codes")
#: The name of an arm, which holds no colon, or that a rule had -> the rule as the instruments call it.
RULES = {"gcpo-none": "gcpo:normalization=none", "gcpo_events_shuffled": "gcpo_events:event_codes=shuffled"}


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
    drawn: frozenset[str] = frozenset()
    """Folders of studies that hold curves.png."""

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
        return self._first("against", baseline, lambda row: row["difference"])

    def learning(self, baseline: str = BASELINE) -> dict[str, Mapping[str, Any]]:
        """Return how fast the groups learn beside a baseline, by name."""
        return self._first("learning", baseline, lambda _: True)

    def trained(self, rule: str) -> Mapping[str, Any] | None:
        """Return the first study's group of a rule, after training; None where none was trained."""
        groups = (group for study in self.studies.values() for group in study.get("groups", ()))
        return next((group for group in groups if rule_of(group) == rule and group["after"] is not None), None)

    def alike(self, rule: str) -> str | None:
        """Return the group that trained the baseline with a rule's own options; None where there is no other one."""
        for study in self.studies.values():
            groups = study.get("groups", ())
            own = next((group for group in groups if rule_of(group) == rule), None)
            if own is not None:
                names = (
                    rule_of(group)
                    for group in groups
                    if group["options"].get("algorithm.name") == BASELINE and but_rule(group) == but_rule(own)
                )
                return next((name for name in names if name not in (rule, BASELINE)), None)
        return None

    def by_seed(self, rule: str, other: str) -> list[float]:
        """Return how much higher a rule's final score is than another's, for each seed of a study of both."""
        for study in self.studies.values():
            ends: dict[str, dict[int, float]] = {rule: {}, other: {}}
            for trial in study["trials"]:
                if trial.get("after") and rule_of(trial) in ends:
                    ends[rule_of(trial)][trial["seed"]] = trial["after"]["overall"]
            if ends[rule] and ends[other]:
                return [ends[rule][seed] - ends[other][seed] for seed in sorted(ends[rule].keys() & ends[other].keys())]
        return []

    def _first(
        self, table: str, baseline: str, wanted: Callable[[Mapping[str, Any]], bool]
    ) -> dict[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        for study in self.studies.values():
            rows = (row for row in study.get(table, ()) if RULES.get(row["against"], row["against"]) == baseline)
            found = {rule_of(row): row for row in rows if wanted(row)} | found
        return found

    @property
    def rules(self) -> list[str]:
        return list(dict.fromkeys([*self.aligned, *self.credited, *self.against(BASELINE)]))


def rule_of(row: Mapping[str, Any]) -> str:
    """Return the rule of a study's group, as the instruments call it."""
    return RULES.get(row["group"], row["group"])


def but_rule(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a study's group but for those that say which rule it is."""
    return {name: value for name, value in group["options"].items() if name not in OF_THE_RULE}


def worlds(results: Path) -> list[World]:
    """Read the worlds of which anything is there."""

    def read(folder: str, name: str) -> Mapping[str, Any] | None:
        file = results / folder / name
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    plain = "ShapeScenes on plain backgrounds, where hardly a token is undecided"
    textured = "ShapeScenes on textures that no prompt decides, so that most tokens are undecided"
    tuned_textured = ("textured_tune", "textured_tune_matched", "textured_tune_variance")
    found = []
    for name, about, studies, tunings in (
        ("janus-mini", plain, ("plain", "shapes"), ("tune", "tune_events")),
        ("janus-textured", textured, ("textured",), tuned_textured),
    ):
        slug = name.replace("-", "_")
        alignment, truth = read(f"alignment_{slug}", "alignment.json"), read(f"truth_{slug}", "truth.json")
        trained, tuned = (
            {folder: seen for folder in folders if (seen := read(folder, "results.json")) is not None}
            for folders in (studies, tunings)
        )
        if alignment or truth or trained or tuned:
            drawn = frozenset(folder for folder in trained if (results / folder / "curves.png").is_file())
            found.append(World(name, about, alignment, truth, trained, tuned, drawn))
    return found


def reruns_of(results: Path) -> Mapping[str, Any] | None:
    """Return what `docs/rerun.py` wrote; None where it was not run."""
    file = results / "reruns.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
