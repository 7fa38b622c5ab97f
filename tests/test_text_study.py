"""Studies of text: the order of trials, going on after a stop, what is pooled from the trials' files, and the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from helpers.text_models import tiny_folder  # first: skips this file where TRL is missing

from t2i_gcpo.text import run as runs  # isort: skip
from t2i_gcpo.text import study, study_results  # isort: skip
from t2i_gcpo.text.options import parse  # isort: skip
from t2i_gcpo.text.study_curves import smoothed  # isort: skip
from t2i_gcpo.utils.json_files import read_json_lines  # isort: skip

CONFIGS = Path(__file__).parent.parent / "configs"


def base(**changes: Any) -> dict[str, Any]:
    return {
        "model": str(tiny_folder()), "data_limit": 20, "reward": "arithmetic", "eval_limit": 3, "max_steps": 2,
        "max_completions": 8, "num_generations": 2, "per_device_train_batch_size": 4, "max_completion_length": 4,
        "report_to": "none", "use_cpu": True, "bf16": False, "save_strategy": "no", "logging_steps": 1,
        "disable_tqdm": True, **changes,
    }  # fmt: skip


def spec(**changes: Any) -> study.Spec:
    arms = {"grpo": {"credit": "uniform"}, "gcpo": {"credit": "contrast"}}
    options: dict[str, Any] = {
        "base": base(), "arms": arms, "learning_rates": (1e-4, 1e-3), "seeds": (0, 1), "tune_seed": 9,
        "against": "grpo", "tune": {"max_steps": 1},
    }  # fmt: skip
    return study.Spec(**{**options, **changes})


def evaluation(scores: list[float]) -> dict[str, Any]:
    rows = [{"index": k, "task": f"{2 + k % 2} numbers", "score": score} for k, score in enumerate(scores)]
    return {"overall": float(np.mean(scores)), "completions": rows}


def put_trial(folder: Path, options: dict[str, Any], scores: list[float], log: list[tuple[int, float]]) -> None:
    """A finished trial: an evaluation, and of each step the completions sampled so far and their mean reward."""
    folder.mkdir(parents=True)
    (folder / study.OPTIONS).write_text(yaml.safe_dump(options))
    (folder / runs.AFTER).write_text(json.dumps(evaluation(scores)))
    rows = [
        {"step": k + 1, "reward": reward, "completions_sampled": end, "step_time": 2.0}
        for k, (end, reward) in enumerate(log)
    ]
    lines = [*rows, {"step": len(rows), "train_runtime": 1.0, "completions_sampled": log[-1][0]}]
    (folder / runs.METRICS).write_text("".join(json.dumps(row) + "\n" for row in lines))


#: arm -> seed -> scores of six questions after training, and its log.
OUTCOMES: dict[str, dict[int, tuple[list[float], list[tuple[int, float]]]]] = {
    "grpo": {0: ([1, 1, 0, 0, 0, 0], [(4, 0.0), (8, 0.5)]), 1: ([1, 1, 0, 0, 0, 0], [(4, 0.2), (8, 0.6)])},
    # The second step of the first seed sampled 8 completions, of which 4 are within the budget of 8.
    "gcpo": {0: ([1, 1, 1, 0, 0, 0], [(4, 0.2), (12, 0.8)]), 1: ([1, 1, 1, 1, 1, 0], [(4, 0.4), (8, 0.6)])},
}


@pytest.fixture
def finished(tmp_path: Path) -> tuple[study.Spec, Path]:
    """A study whose trials are all finished; GRPO's best rate is the lower one, GCPO's the higher one."""
    plan = spec()
    for arm, better in (("grpo", 1e-4), ("gcpo", 1e-3)):
        for rate in plan.learning_rates:
            options = study.tuning_options(plan, arm, rate)
            put_trial(study.tuning_folder(tmp_path, arm, rate), options, [float(rate == better)] * 6, [(8, 0.5)])
        for seed, (scores, log) in OUTCOMES[arm].items():
            options = study.trial_options(plan, arm, better, seed)
            put_trial(study.seed_folder(tmp_path, arm, seed), options, scores, log)
    for seed in plan.seeds:
        study.start_file(tmp_path, seed).parent.mkdir(exist_ok=True)
        study.start_file(tmp_path, seed).write_text(json.dumps(evaluation([1, 0, 0, 0, 0, 0])))
    return plan, tmp_path


def test_a_finished_study_trains_nothing_and_pools_its_files(
    finished: tuple[study.Spec, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, out = finished
    monkeypatch.setattr(runs, "train", lambda *_: pytest.fail("trained a finished trial again"))
    assert study.run(plan, out) == {"grpo": 1e-4, "gcpo": 1e-3}
    results = study_results.write(plan, out)
    assert json.loads((out / "results.json").read_text()) == results
    grpo, gcpo = results["arms"]
    assert gcpo["tuning"] == {"0.0001": 0.0, "0.001": 1.0} and gcpo["learning_rate"] == 1e-3
    assert grpo["before"]["mean"] == pytest.approx(1 / 6) and grpo["after"]["mean"] == pytest.approx(1 / 3)
    assert gcpo["after"]["by_seed"] == pytest.approx([1 / 2, 5 / 6]) and gcpo["gain"]["mean"] == pytest.approx(1 / 2)
    # Areas: (0 + 0.5) / 2, (0.2 + 0.6) / 2; and (0.2 + 0.8) / 2, of which 4 of the 8 last completions count.
    assert grpo["area"]["by_seed"] == pytest.approx([0.25, 0.4]) and gcpo["area"]["by_seed"] == pytest.approx([0.5] * 2)
    assert gcpo["sampled_by_seed"] == [12, 8] and gcpo["updates"] == [2, 2] and gcpo["seconds"] == [4.0, 4.0]
    (pair,) = results["against"]
    assert (pair["arm"], pair["against"], pair["seeds"]) == ("gcpo", "grpo", [0, 1])
    assert pair["after"]["by_seed"] == pytest.approx([1 / 6, 1 / 2]) and pair["after"]["mean"] == pytest.approx(1 / 3)
    assert pair["area"]["mean"] == pytest.approx(0.175)
    low, high = pair["after"]["ci95"]
    assert low < 1 / 3 < high
    table = (out / "table.md").read_text()
    assert (
        "| gcpo | 0.001 | 2 | 0.167" in table and "| 2 | 8 to 12 |" in table and "| gcpo | grpo | 2 | +0.333" in table
    )
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_interval_of_areas_is_students() -> None:
    value = study_results.over_seeds([0.1, 0.2, 0.3, 0.4, 0.5])
    half = 2.776445 * np.std([0.1, 0.2, 0.3, 0.4, 0.5], ddof=1) / 5**0.5  # the 0.975 quantile of 4 degrees of freedom
    assert value["mean"] == pytest.approx(0.3) and value["ci95"] == pytest.approx([0.3 - half, 0.3 + half], rel=1e-5)
    assert study_results.over_seeds([0.5])["ci95"] is None


def test_a_curve_is_the_mean_of_the_last_completions() -> None:
    curve = ([4, 8, 16], [0.0, 1.0, 0.5])
    # Of the last 4: those of the second step; half of the second's and half of the third's; 4 of the third's.
    np.testing.assert_allclose(smoothed(curve, np.array([2.0, 8.0, 10.0, 16.0]), window=4), [0.0, 1.0, 0.75, 0.5])


def test_trials_run_arm_by_arm_then_seed_by_seed_and_a_stopped_study_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    stop_after = 5

    def train(run: Any, config: Any, as_yaml: str) -> tuple[None, None]:
        folder = Path(config.output_dir)
        trained.append(str(folder.relative_to(tmp_path)))
        assert config.seed == run.eval_seed and not run.eval_before
        tuning = folder.parent.name == "tune"
        assert (config.max_steps, run.eval_data) == ((1, "arithmetic:val") if tuning else (2, "arithmetic:test"))
        (folder / runs.METRICS).write_text("{}\n")  # as a training that was killed leaves it
        if len(trained) == stop_after:
            raise KeyboardInterrupt
        (folder / runs.AFTER).write_text(json.dumps(evaluation([config.learning_rate * 1e3] * 6)))
        return None, None

    monkeypatch.setattr(runs, "train", train)
    monkeypatch.setattr(study, "_evaluate_start", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        study.run(spec(), tmp_path)
    tuning = ["tune/grpo_0.0001", "tune/grpo_0.001", "tune/gcpo_0.0001", "tune/gcpo_0.001"]
    assert trained == [*tuning, "grpo/seed_0"]
    trained.clear()
    stop_after = 0
    assert study.run(spec(), tmp_path) == {"grpo": 1e-3, "gcpo": 1e-3}
    assert trained == ["grpo/seed_0", "gcpo/seed_0", "grpo/seed_1", "gcpo/seed_1"]
    with pytest.raises(ValueError, match=r"holds a trial with other options \(max_steps\)"):
        study.run(spec(base=base(max_steps=3)), tmp_path)


def test_a_trial_in_the_study_is_the_run_that_text_train_makes(tmp_path: Path) -> None:
    reward = tmp_path / "low.py"  # tells completions of a random model apart, so that it learns
    reward.write_text(
        "def score(completions, **_):\n"
        "    texts = [text if isinstance(text, str) else text[-1]['content'] for text in completions]\n"
        "    return [float(sum(ord(letter) % 7 for letter in text)) for text in texts]\n"
    )
    options = base(reward=f"{reward}:score")
    plan = spec(base=options, arms={"grpo": {"credit": "uniform"}}, learning_rates=(0.1,), seeds=(0,))
    study.run(plan, tmp_path / "study")
    trial = study.seed_folder(tmp_path / "study", "grpo", 0)
    alone = tmp_path / "alone"
    runs.train(*parse(["--config", str(trial / study.OPTIONS), "--output-dir", str(alone)]))
    names = ("step", "loss", "grad_norm", "reward", "completions_sampled")
    logs = [
        [tuple(row.get(name) for name in names) for row in read_json_lines(folder / runs.METRICS)]
        for folder in (trial, alone)
    ]
    assert logs[0] == logs[1] and [row[-1] for row in logs[0]] == [4, 8, 8]
    texts = [[row["completion"] for row in json.loads((folder / runs.AFTER).read_text())["completions"]]
             for folder in (trial, alone)]  # fmt: skip
    assert texts[0] == texts[1] and len(texts[0]) == 3
    start = json.loads(study.start_file(tmp_path / "study", 0).read_text())
    assert [row["completion"] for row in start["completions"]] != texts[0] and not (trial / runs.BEFORE).exists()


def test_the_shipped_study_is_read_and_its_runs_parse(tmp_path: Path) -> None:
    plan = study.Spec.read(CONFIGS / "text_studies" / "arithmetic.yaml")
    assert set(plan.arms) >= {"grpo", "dapo", "gcpo", "gcpo_state", "gcpo_shuffled"} and len(plan.seeds) == 5
    for arm, own in plan.arms.items():
        path = tmp_path / f"{arm}.yaml"
        path.write_text(yaml.safe_dump({**plan.base, **own, "output_dir": str(tmp_path)}))
        assert parse(["--config", str(path)])[1].credit == own["credit"]


def test_a_study_that_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tune_seed 0 is among the seeds"):
        spec(tune_seed=0)
    with pytest.raises(ValueError, match="against is 'ppo'; it must be one of the arms: grpo, gcpo"):
        spec(against="ppo")
    with pytest.raises(ValueError, match="the base has no max_completions"):
        spec(base=base(max_completions=0))
    with pytest.raises(ValueError, match="no finished trial of the arm grpo; run the study first"):
        study_results.pool(spec(), tmp_path)
    (tmp_path / "s.yaml").write_text("arms: {}\nrates: []\n")
    missing = r"missing \['against', 'base', 'learning_rates', 'seeds', 'tune_seed'\]"
    with pytest.raises(ValueError, match=rf"unknown \['rates'\], {missing}"):
        study.Spec.read(tmp_path / "s.yaml")
