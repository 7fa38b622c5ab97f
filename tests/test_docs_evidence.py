"""The page of the evidence: it is what its script writes, and its sentences follow the numbers."""

from __future__ import annotations

import importlib
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import pages
from t2i_gcpo.reports import run as run_folder

sys.path.insert(0, str(pages.DOCS))  # the scripts of the documentation are no package
evidence: Any = importlib.import_module("evidence")
rerun: Any = importlib.import_module("rerun")
sys.path.remove(str(pages.DOCS))


def test_the_page_is_what_its_script_writes() -> None:
    written = (pages.DOCS / "evidence.md").read_text(encoding="utf-8")
    results = pages.DOCS / "results"
    assert written == evidence.page(evidence.worlds(results), evidence.reruns_of(results))


def aligned(rule: str, value: float, low: float) -> dict[str, Any]:
    of = {"alignment": value}
    pair = {"alignment": [low, value + 0.1]}
    gain = {"value": value - 0.2, "interval": [low - 0.2, low - 0.1 if value < 0.2 else value - 0.1]}
    both = {"values": of, "intervals": pair, "gain": gain}
    return {"rule": rule, **{name: {"plain": part, "adamw": part} for name, part in both.items()}}


def compared(group: str, against: str, overall: float, low: float) -> dict[str, Any]:
    difference = {"overall": overall, "ci95": [low, overall + 0.02]}
    lowest = {"seed": 0, "difference": low}
    return {
        "group": group,
        "against": against,
        "seeds": 5,
        "images": 3000,
        "difference": difference,
        "lowest_seed": lowest,
    }


def trained(name: str, lr: float) -> dict[str, Any]:
    return {
        "group": name, "images_sampled": 100.0, "seeds": 5, "of": 5, "before": {"overall": 0.5},
        "after": {"overall": 0.6}, "kl": 0.2, "diversity": 0.95,
        "options": {"steps": 40, "algorithm.name": name, "optim.lr": lr},
    }  # fmt: skip


def world(gain: float = 0.06, low: float = 0.03, beyond: float = 0.01, share: float = 0.9) -> Any:
    against = [
        compared("gcpo", "grpo", gain, low), compared("gcpo_shuffled", "grpo", 0.0, -0.02),
        compared("gcpo", "gcpo_shuffled", gain, beyond),
    ]  # fmt: skip
    learnt: list[dict[str, Any]] = [
        {
            "group": "gcpo", "against": "grpo", "seeds": 5, "images": 100.0, "area": {"mean": 0.5, "ci95": None},
            "difference": {"mean": 0.01, "ci95": [0.0, 0.02]}, "until": [share * 100] * 5, "share": [share] * 5,
            "paid": {"kl": [[0.1, 0.3]] * 5, "diversity": [[0.9, None]] * 5},
        }
    ]  # fmt: skip
    learnt.append(learnt[0] | {"against": "gcpo_shuffled", "difference": {"mean": 0.01, "ci95": [beyond, 0.02]}})
    groups = [trained(name, lr) for name, lr in (("grpo", 1e-4), ("gcpo", 2e-4), ("gcpo_shuffled", 1e-4))]
    ran: dict[str, Any] = {"seconds": 1800.0, "images_sampled": 50.0, "status": "done"}
    trials = [
        {**ran, "group": name, "seed": k, "after": {"overall": after + k * more}}
        for name, after, more in (("grpo", 0.5, 0.0), ("gcpo", 0.55, 0.02))
        for k in range(2)
    ]
    study = {"against": against, "learning": learnt, "groups": groups, "trials": trials}
    alignment = {
        "rules": [aligned("grpo", 0.2, 0.15), aligned("gcpo", 0.3, 0.25), aligned("gcpo_shuffled", 0.1, 0.05)],
        "stability": {"plain": 0.9, "adamw": None},
    }
    return evidence.World("a world", "About it", alignment=alignment, studies={"one": study})


@pytest.mark.parametrize(
    ("changes", "met"),
    [
        ({}, True),
        ({"gain": 0.04, "low": 0.03}, False),  # too little
        ({"low": -0.01}, False),  # not told from 0
        ({"beyond": -0.01}, False),  # no better than the shuffled control
        ({"gain": 0.0, "low": -0.02, "share": 0.5}, True),  # as high, in half of the images
        ({"gain": 0.0, "low": -0.02, "share": 0.7}, False),
        ({"gain": 0.0, "low": -0.02, "share": 0.5, "beyond": -0.01}, False),  # its control is as soon there
    ],
)
def test_what_was_set_before_decides(changes: dict[str, float], met: bool) -> None:
    assert ("`gcpo` met it" in evidence.verdict(world(**changes))) is met
    assert ("no rule met it" in evidence.verdict(world(**changes))) is not met


def test_a_study_that_is_not_finished_decides_nothing() -> None:
    seen = world()
    seen.studies["one"]["groups"][1]["seeds"] = 2
    assert evidence.verdict(seen) == "a world: **not decided yet**: `one` has 2 of 5 seeds."


def test_a_level_that_most_seeds_never_reach_is_not_reached_soon() -> None:
    seen = world(0.0, -0.02, share=0.5)
    seen.studies["one"]["learning"][0]["share"] = [0.5, 0.5, None, None, None]
    assert "no rule met it" in evidence.verdict(seen)


def test_sentences_and_rows_follow_the_numbers() -> None:
    text = evidence.page([world()])
    assert "Told from `grpo`'s agreement, above it: `gcpo`; below it: `gcpo_shuffled`. The halves" in text
    assert (
        "**`gcpo` against `grpo`**, 5 seeds, 3,000 test images: +0.060 [+0.030, +0.080], above 0. "
        "By seed: +0.050, +0.070; over the seeds alone, on these prompts, [-0.067, +0.187]. While training" in text
    )
    assert "over the images: +0.010 [+0.000, +0.020] of reward over the seeds, not told from 0. At the end" in text
    assert "At the end a KL of 0.200 beside 0.200, a diversity of 0.950 beside 0.950." in text
    assert (
        "**`gcpo` against its control, `gcpo_shuffled`**, 5 seeds, 3,000 test images: +0.060 [+0.010, +0.080]" in text
    )
    assert "against its control, `gcpo_shuffled`" not in text.replace("**`gcpo` against its", "")  # no other has one
    instruments = "0.300 [0.250, 0.400] | " + "+0.100 [+0.050, +0.200] | " * 2 + "– | – | – | "
    gains = "+0.060 [+0.030, +0.080] | +0.010 [+0.000, +0.020]"
    assert f"| `gcpo` | {instruments}{gains} |" in text
    assert "* the same, as AdamW sees it: not given, as 3 pairs of rule and world leave too few." in text
    assert (
        "| `gcpo` | optim.lr 0.0002 | 5 of 5 | 0.500 | 0.600 | 0.200 | 0.950 | 5 of 5 | 90 | 0.90 | 0.100 (0.300) | – |"
        in text
    )
    assert "| `grpo` | optim.lr 0.0001 | 5 of 5 | 0.500 | 0.600 | 0.200 | 0.950 | – | – | – | – | – |" in text
    assert "| [one](results/one/results.json) | a world | 4 | 0 | 2 | 200 | 2.0 |" in text
    picture = "![curves of one's runs over the images sampled](results/one/curves.png)"
    assert picture not in text and picture in evidence.page([replace(world(), drawn=frozenset({"one"}))])
    assert "not told from 0" in evidence.page([world(low=-0.01)]) and "below 0" in evidence.page([world(-0.1, -0.2)])


def test_an_arm_is_the_rule_that_the_instruments_measured() -> None:
    study = {"against": [compared("gcpo-none", "grpo", 0.06, 0.03)], "learning": [], "groups": [], "trials": []}
    alignment = {"rules": [aligned("grpo", 0.2, 0.15), aligned("gcpo:normalization=none", 0.3, 0.25)]}
    one = evidence.World("a world", "About it", alignment=alignment, studies={"one": study})
    rows = [row for row in evidence.rule_table(one).splitlines() if "none" in row]
    assert len(rows) == 1 and "0.300 [0.250, 0.400]" in rows[0] and "+0.060 [+0.030, +0.080]" in rows[0]


def test_a_rule_is_set_beside_the_baseline_at_its_own_options() -> None:
    seen = world()
    assert seen.alike("gcpo") is None and "with its options" not in evidence.page([seen])
    study = seen.studies["one"]
    study["groups"] += [
        trained("grpo", lr) | {"group": name, "kl": 0.3} for name, lr in (("grpo-low", 5e-5), ("grpo-high", 2e-4))
    ]
    study["against"].append(compared("gcpo", "grpo-high", 0.02, -0.01))
    assert seen.alike("gcpo") == "grpo-high"  # gcpo's own rate
    assert seen.alike("gcpo_shuffled") is None  # its rate is that of grpo itself
    told = "`grpo-high`**, `grpo` with its options, 5 seeds, 3,000 test images: +0.020 [-0.010, +0.040], not told"
    assert told in evidence.page([seen]) and "KL of 0.200 beside 0.300" in evidence.page([seen])


def test_a_rule_needs_a_control_of_its_own_kind() -> None:
    """Events at random say nothing of weights, nor the other way round."""
    seen = world()
    for row in seen.studies["one"]["against"]:
        row["group"] = {"gcpo": "gcpo_events"}.get(row["group"], row["group"])
    seen.studies["one"]["learning"][0]["group"] = "gcpo_events"
    assert "no rule was compared with a control" in evidence.verdict(seen)
    for row in seen.studies["one"]["against"]:
        row.update({key: row[key].replace("gcpo_shuffled", "gcpo_events_shuffled") for key in ("group", "against")})
    assert "`gcpo_events` met it; compared with a control of its kind" in evidence.verdict(seen)
    assert "of those without one none was as high" in evidence.verdict(seen)
    for row in seen.studies["one"]["against"]:  # a control is no rule that can meet it, and has none itself
        row["group"] = row["group"].replace("gcpo_events", "gcpo_random")
    assert "**no rule met it**; no rule was compared with a control of its kind there; " in evidence.verdict(seen)
    assert evidence.verdict(seen).endswith("; without one, but as high or as soon as was asked: `gcpo_random`.")


def trial(rule: str, lr: float, after: float | None, kl: float = 0.1) -> dict[str, Any]:
    score = None if after is None else {"overall": after}
    difference = None if after is None else {"overall": after - 0.5, "ci95": [after - 0.6, after - 0.4]}
    options = {"steps": 40, "algorithm.name": rule, "optim.lr": lr}
    return {"options": options, "of": 1, "after": score, "difference": difference, "kl": kl}


def test_every_trial_of_the_tuning_is_listed_by_rule_with_the_best_in_bold() -> None:
    groups = [
        trial("a", 1e-4, 0.6), trial("b", 1e-4, 0.55), trial("a", 2e-4, 0.7), trial("a", 4e-4, 0.7, kl=0.3),
        trial("b", 2e-4, None),
    ]  # fmt: skip
    text = evidence.tuning([replace(world(), tunings={"one": {"groups": groups[:2]}, "two": {"groups": groups[2:]}})])
    assert text.splitlines()[4:] == [
        "| `a` | optim.lr 0.0001 | +0.100 [+0.000, +0.200] |",
        "| `a` | optim.lr 0.0002 | **+0.200 [+0.100, +0.300]** |",
        "| `a` | optim.lr 0.0004 | +0.200 [+0.100, +0.300] |",
        "| `b` | optim.lr 0.0001 | **+0.050 [-0.050, +0.150]** |",
        "| `b` | optim.lr 0.0002 | not run |",
    ]


def test_the_instruments_are_correlated_with_the_gain() -> None:
    found = [replace(world(gain), name=str(gain)) for gain in (0.02, 0.04, 0.09)]
    # GRPO, GCPO and its control in each world, less the world's mean: GRPO's agreement and gain are 0 beside itself.
    agreement = np.array([0, 0.1, -0.1] * 3)
    gains = np.concatenate([np.array([0, gain, 0]) - gain / 3 for gain in (0.02, 0.04, 0.09)])
    expected = np.corrcoef(agreement, gains)[0, 1]
    half = 1.959964 / np.sqrt(9 - 2 - 3)  # nine pairs, of which three worlds' means leave seven
    low, high = np.tanh(np.arctanh(expected) + np.array([-half, half]))
    text = evidence.prediction(found)
    for name in ("agreement, less `grpo`'s", "the same, as AdamW sees it"):
        assert (
            f"* {name}: {expected:+.3f} [{low:+.3f}, {high:+.3f}] over 9 pairs of rule and world, without any" in text
        )
    assert "* credit where the reward is decided: not given, as 0 pairs" in text
    assert "(0.02: `grpo`, `gcpo`, `gcpo_shuffled`; 0.04: `grpo`" in text
    assert "AdamW sees it: not given, as 3 pairs of rule and world leave too few." in evidence.prediction(found[:1])
    assert "as AdamW sees it: not given, as 0 pairs" in evidence.prediction([evidence.World("a", "")])


def test_a_correlation_that_hangs_on_one_pair_says_so() -> None:
    gains = {"gcpo": 0.0, "gcpo_shuffled": 0.001, "stage": -0.001, "dapo": 0.2}
    rules = [aligned("grpo", 0.2, 0.15), *(aligned(rule, 0.25 + gain, 0.2) for rule, gain in gains.items())]
    study = {"against": [compared(rule, "grpo", gain, -0.1) for rule, gain in gains.items()]}
    one = evidence.World("a", "", alignment={"rules": rules}, studies={"one": study})
    values = np.array([[0.0, 0.0], *([0.05 + gain, gain] for gain in gains.values())])
    kept = [np.corrcoef(np.delete(values, k, axis=0).T)[0, 1] for k in range(5)]
    assert f"over 5 pairs of rule and world, without any one {min(kept):+.3f} to {max(kept):+.3f}." in (
        text := evidence.prediction([one])
    )
    assert min(kept) < 0.5 < 0.9 < max(kept) and "the same, as AdamW sees it: +0.9" in text
    flat = [aligned("grpo", 0.2, 0.15), *(aligned(rule, 0.2, 0.15) for rule in gains)]
    assert "5 pairs lie on a line" in evidence.prediction([replace(one, alignment={"rules": flat})])


def test_of_a_rule_in_two_studies_the_first_counts() -> None:
    seen = world()
    other = {
        **seen.studies["one"],
        "against": [compared("gcpo", "grpo", 0.2, 0.1), compared("dapo", "grpo", 0.3, 0.1)],
    }
    both = replace(seen, studies={"one": seen.studies["one"], "two": other}).against("grpo")
    assert {rule: row["difference"]["overall"] for rule, row in both.items()} == {
        "gcpo": 0.06, "gcpo_shuffled": 0.0, "dapo": 0.3,
    }  # fmt: skip


def test_trials_to_run_again_are_picked_among_those_that_are_done() -> None:
    trials = [{"name": f"grpo/seed_{k}", "status": "failed" if k == 3 else "done"} for k in range(6)]
    found = [evidence.World("a", "", studies={"one": {"trials": trials}, "two": {"trials": trials[:1]}})]
    picked = [(folder, row["name"]) for folder, row in rerun.pick(found, 6, 0)]
    done = {("one", f"grpo/seed_{k}") for k in (0, 1, 2, 4, 5)} | {("two", "grpo/seed_0")}
    assert {*picked} == done and len(picked) == 6
    assert picked[:3] == [(folder, row["name"]) for folder, row in rerun.pick(found, 3, 0)]
    assert len({tuple(row["name"] for _, row in rerun.pick(found, 3, seed)) for seed in range(5)}) > 1
    with pytest.raises(ValueError, match="from 1 to 6"):
        rerun.pick(found, 7, 0)


@pytest.mark.parametrize(("gained", "inside"), [(0.12, "yes"), (0.2, "no"), (0.04, "no")])
def test_a_trial_that_was_run_again_stands_beside_what_it_was(gained: float, inside: str) -> None:
    def row(gain: float, after: float) -> dict[str, Any]:
        difference, score = (
            {"overall": value, "ci95": [value - 0.05, value + 0.05], "n": 600, "by_task": {}} for value in (gain, after)
        )
        return {"difference": difference, "after": score, "seed": 1, "options": {"steps": 40}}

    one = {"study": "one", "trial": "grpo/seed_1", "images_alike": {"before": 600, "after": 480}}
    one |= rerun.beside(row(0.1, 0.6), row(gained, 0.62))
    text = evidence.page([world()], {"seed": 7, "of": 29, "trials": [one]})
    assert "Of the 29 finished trials" in text and "1 picked at random (seed 7)" in text
    again = f"{gained:+.3f} [{gained - 0.05:+.3f}, {gained + 0.05:+.3f}]"
    scores = "0.600 [0.550, 0.650] | 0.620 [0.570, 0.670]"
    counts = "600 of 600 | 480 of 600"
    assert f"| one/grpo/seed_1 | +0.100 [+0.050, +0.150] | {again} | {scores} | {inside} | {counts} |" in text
    assert "## Run again" not in evidence.page([world()])


def test_what_is_run_again_is_a_trial_of_the_committed_study() -> None:
    results = evidence.worlds(pages.DOCS / "results")
    for folder, row in rerun.pick(results, 3, 0):
        assert rerun.planned(folder, row)[1].name == row["name"]
        with pytest.raises(ValueError, match="with the options .* any more"):
            rerun.planned(folder, row | {"options": {"steps": 1}})


def test_a_trial_is_run_again_in_a_folder_that_is_not_there_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rerun, "OUT", tmp_path / "runs" / "reruns")
    called: list[list[str]] = []
    monkeypatch.setattr(rerun.subprocess, "run", lambda command, **_: called.append(command))
    _, trial = rerun.planned(*rerun.pick(evidence.worlds(pages.DOCS / "results"), 1, 0)[0])
    rerun.run(trial, 1)
    assert len(called) == 1 and called[0][3:] == ["train", *trial.arguments]
    assert trial.log.is_file() and trial.out.is_relative_to(tmp_path)


def test_images_of_a_committed_trial_are_alike_with_themselves(tmp_path: Path) -> None:
    folder, row = rerun.pick(evidence.worlds(pages.DOCS / "results"), 1, 0)[0]
    _, trial = rerun.planned(folder, row)
    with tarfile.open(pages.DOCS / "results" / folder / "trials.tgz") as kept:
        kept.extractall(tmp_path, filter="data")
    again = run_folder.read(tmp_path / row["folder"])
    images = row["after"]["n"]
    assert rerun.same_images(folder, trial, again) == {"before": images, "after": images}
    swapped = replace(again, before=again.after, after=again.before)
    assert all(0 < count < images for count in rerun.same_images(folder, trial, swapped).values())
