"""What a study refuses to put into one table: other worlds, other budgets, other code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t2i_gcpo.study import command as study
from t2i_gcpo.study import comparable
from t2i_gcpo.study.comparable import budget, check_arms, check_code, check_unchanged, read_code, record_code, unequal
from t2i_gcpo.study.spec import Study, read

ARMS = """
config: configs/quickstart.yaml
seeds: [0]
against: a
arms:
  a: {algorithm.name: grpo}
  b: {algorithm.name: gcpo, %s}
"""


def file(folder: Path, more: str = "steps: 60", *, text: str = ARMS) -> Path:
    path = folder / "probe.yaml"
    path.write_text(text % more, encoding="utf-8")
    return path


def made(folder: Path, more: str = "steps: 60", *, text: str = ARMS) -> Study:
    return read(file(folder, more, text=text), folder / "out")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("generator.checkpoint: amused-mini", "b is compared with a, and generator.checkpoint is 'amused-mini' and"),
        ("prompts.test: shapes:val", "prompts.test is 'shapes:val' and 'shapes:test'; compare arms of one world"),
        ("evaluate.guidance: 3.0", "evaluate.guidance is 3.0 and None"),
        ("steps: 30", r"they sample 2,880 and 5,760 images; give both the same steps"),
        ("algorithm.group_size: 8", r"they sample 2,880 and 5,760 images"),
        ("max_images: 960", r"they sample 960 and 5,760 images"),
    ],
)
def test_arms_that_cannot_be_compared(tmp_path: Path, more: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study.main([str(file(tmp_path, more)), "--dry-run", "--out", str(tmp_path / "out")])
    check_arms(made(tmp_path, more, text=ARMS.replace("against: a\n", "")))  # nobody compares them


def test_arms_that_can_be_compared(tmp_path: Path) -> None:
    for more in ("optim.lr: 0.1", "steps: 30, prompts_per_step: 12", "steps: 90, max_images: 5760"):
        check_arms(made(tmp_path, more))
    dapo = made(tmp_path, "algorithm.dynamic_sampling: true, steps: 40")
    check_arms(dapo)  # nobody knows before what it will sample
    assert [budget(trial) for trial in dapo.trials] == [5760, None]
    check_arms(read("configs/studies/shapes.yaml"))


def test_groups_that_sampled_unequal_numbers_are_named() -> None:
    groups = [{"group": "grpo", "images_sampled": 7680.0}, {"group": "dapo", "images_sampled": 8848.0}]
    pair = [{"group": "dapo", "against": "grpo"}]
    assert unequal(groups, pair) == ("not at an equal number of images: dapo sampled 8,848 images and grpo 7,680")
    assert unequal([{**groups[0]}, {**groups[1], "images_sampled": 7680.0}], pair) == ""
    assert unequal([groups[0], {"group": "dapo", "images_sampled": None}], pair) == ""  # not run yet


def test_trials_of_other_code_are_refused_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = made(tmp_path)
    plan.out.mkdir()
    first, second = plan.trials
    monkeypatch.setattr(comparable, "code_hash", lambda: "old")
    record_code(plan.out, first, resume=False)
    check_code(plan, [first.name], mixed=False)
    check_unchanged("old", mixed=False)
    monkeypatch.setattr(comparable, "code_hash", lambda: "new")
    with pytest.raises(ValueError, match=r"out: a/seed_0 ran with other code than the present.*--mixed-code"):
        check_code(plan, [first.name], mixed=False)
    with pytest.raises(ValueError, match="the code has changed since the study began"):
        check_unchanged("old", mixed=False)
    check_code(plan, [first.name], mixed=True)
    check_unchanged("old", mixed=True)
    check_code(plan, [], mixed=False)  # the trial's folder was removed: it begins anew
    record_code(plan.out, first, resume=True)
    record_code(plan.out, second, resume=False)
    assert read_code(plan.out) == {first.name: ["old", "new"], second.name: ["new"]}
    record_code(plan.out, first, resume=False)
    assert read_code(plan.out)[first.name] == ["new"]


def test_a_study_that_goes_on_with_other_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = made(tmp_path)
    arguments = [str(plan.file), "--out", str(plan.out)]
    monkeypatch.setattr(study, "command", lambda trial, *, resume: ["true"])  # trains nothing: every trial fails
    monkeypatch.setattr(study, "POLL_SECONDS", 0.01)
    assert study.main(arguments) == 1
    assert len(set(map(tuple, read_code(plan.out).values()))) == 1
    assert json.loads((plan.out / "results.json").read_text())["code"] == read_code(plan.out)
    (plan.out / "code.json").write_text(json.dumps({trial.name: ["old"] for trial in plan.trials}))
    monkeypatch.setattr(study, "state", lambda trial: "unfinished")
    with pytest.raises(ValueError, match="a/seed_0, b/seed_0 ran with other code"):
        study.main(arguments)
    assert study.main([*arguments, "--mixed-code"]) == 1
    assert "2 versions of the code" in (plan.out / "table.md").read_text()
