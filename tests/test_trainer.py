"""The training loop: every algorithm learns, what is logged, when it stops, and what is saved when it does."""

from __future__ import annotations

import itertools
import json
import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import repeat
from torch import Tensor

import t2i_gcpo
from helpers.training import PROMPTS, distance, generator, redness, same, trainer, weights
from rewards import RewardOutput
from t2i_gcpo.advantages import group_advantages
from t2i_gcpo.algorithms import TABLE, resolve
from t2i_gcpo.records import Sampling
from t2i_gcpo.reports import curves
from t2i_gcpo.training import checkpoint
from t2i_gcpo.training import tracker as tracking
from t2i_gcpo.training.callbacks.reward_hacking import Watch
from t2i_gcpo.training.options import CheckpointPlan, Schedule
from t2i_gcpo.training.trainer import StepRecord, Trainer


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("step_*"))


@pytest.fixture(autouse=True)
def _ctrl_c_interrupts() -> Any:
    """A test run in the background of a shell has Ctrl-C switched off."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def one_clause(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
    return RewardOutput(redness(images, prompts, metadata), {"clause/0": redness(images, prompts, metadata)})


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLE)
def test_every_algorithm_trains(name: str, tmp_path: Path) -> None:
    reward = one_clause if name == "gcpo_clauses" else redness
    run = trainer(tmp_path, name=name, reward=reward, steps=10, optim=Schedule(lr=2e-3, warmup_steps=2), kl_every=1)
    before = weights(run.generator)  # type: ignore[arg-type]
    run.train()
    after = weights(run.generator)  # type: ignore[arg-type]
    rows = tracking.read_metrics(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 11)) and run.step_number == 10
    assert all(value is not None for row in rows for value in row.values()), "null is a number that was not finite"
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) and all(
        bool(w.isfinite().all()) for w in after
    )
    assert rows[0]["kl"] == 0 and rows[-1]["kl"] > 0, "the first rollout is the reference's own"
    assert [row["lr"] for row in rows[:3]] == pytest.approx([1e-3, 2e-3, 2e-3]), (
        "the rate of the update, not of the next"
    )
    assert steps(tmp_path) == ["step_000010"]


@pytest.mark.parametrize("name", ["gcpo", "grpo"])
def test_training_raises_the_reward(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reward is the share of tokens in the lower half of the codebook, which a picture of the tokens shows."""
    policy = generator()
    monkeypatch.setattr(policy, "decode", lambda tokens: repeat(tokens.to(torch.uint8), "b (h w) -> b 3 h w", h=4))
    low: Any = lambda images, prompts, metadata: (images[:, 0] < 16).float().mean(dim=(1, 2))  # noqa: E731
    algorithm, optim = resolve(name, group_size=8, kl_coef=0.0), Schedule(lr=4e-3, warmup_steps=0)
    options: dict[str, Any] = {"steps": 8, "prompts_per_step": 4, "micro_batch": 32, "optim": optim}
    trainer(tmp_path, policy=policy, reward=low, algorithm=algorithm, **options).train()
    rewards = [row["reward/mean"] for row in tracking.read_metrics(tmp_path)]
    assert rewards[0] == pytest.approx(0.5, abs=0.05) and rewards[-1] > rewards[0] + 0.15


def test_ten_lines_of_ones_own(tmp_path: Path) -> None:
    from t2i_gcpo import Trainer, resolve

    def blueness(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        return [float(image[2].float().mean()) / 255 for image in images]

    def best(trainer: Trainer, record: StepRecord) -> None:
        record.metrics["best_score"] = float(record.scored.scores.max())  # type: ignore[union-attr]

    policy = generator()
    run = Trainer(
        policy,
        blueness,
        ["a red circle", "a blue square"],
        tmp_path / "run",
        steps=2,
        algorithm=resolve("grpo", group_size=4),
        prompts_per_step=2,
        callbacks=[best],
    )
    run.train()
    rows = tracking.read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2] and all(row["best_score"] >= row["reward/mean"] > 0 for row in rows)
    with pytest.raises(AttributeError, match="Trainr"):
        t2i_gcpo.Trainr
    assert "Trainer" in dir(t2i_gcpo) and run.tracker is None


def test_what_is_logged_is_what_the_reports_read(tmp_path: Path) -> None:
    def validation(run: Trainer, record: StepRecord) -> None:
        record.metrics["validation/overall"] = 0.5

    trainer(tmp_path, callbacks=[Watch(), validation], reward=parts).train()
    row = tracking.read_metrics(tmp_path)[-1]
    read = {name for panel in curves.PANELS for name in panel.split("+")} | set(tracking.SHOWN)
    read |= {"images_sampled", "time/step"}  # compare's columns
    assert read <= row.keys()
    assert {
        "time/sample",
        "time/decode",
        "time/score",
        "time/credit",
        "time/forward",
        "time/backward",
        "tokens_per_s",
        "reward/std",
    } <= row.keys()
    assert row["images_sampled"] == 16 and row["reward/part/red"] == pytest.approx(row["reward/mean"])
    phases = sum(value for name, value in row.items() if name.startswith("time/") and name != "time/step")
    assert phases == pytest.approx(row["time/step"]) and row["time/other"] >= 0


def parts(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
    return RewardOutput(redness(images, prompts, metadata), {"red": redness(images, prompts, metadata)})


def test_callbacks_see_the_tensors_of_the_loss(tmp_path: Path) -> None:
    seen: list[StepRecord] = []
    trainer(tmp_path, callbacks=[lambda run, record: seen.append(record)]).train()
    for record in seen:
        assert record.scored is not None and record.targets is not None
        targets = record.targets
        assert torch.equal(targets.advantages, targets.sequence_advantages[:, None] * targets.weights)
        assert record.metrics["credit/contrast"] > 0 and targets.weights.std() > 0.1
    assert [record.step for record in seen] == [1, 2]


def test_the_entropy_reward_is_an_option_that_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = generator()
    calls = []
    real = policy.token_entropy

    def token_entropy(rollout: Any) -> Tensor:
        calls.append(real(rollout))
        # At the first step the policy is the reference, and the entropies are those that sampling took.
        assert torch.allclose(calls[-1], rollout.stats["entropy"], atol=1e-4) and not calls[-1].requires_grad
        first = sum(len(rows) for rows in calls[:-1])
        return calls[-1] + torch.arange(first, first + rollout.batch)[:, None]

    monkeypatch.setattr(policy, "token_entropy", token_entropy)
    trainer(tmp_path / "off", policy=policy, steps=1).train()
    assert not calls
    solved: Any = lambda images, prompts, metadata: [1.0, 0.0, 1.0, 1.0] * 2  # noqa: E731
    run = trainer(
        tmp_path / "on",
        policy=policy,
        reward=solved,
        steps=1,
        micro_batch=3,
        algorithm=resolve("gcpo", group_size=4, entropy_reward_coef=0.4),
    )
    record = run.step()
    assert len(calls) == 3 and record.targets is not None
    best = record.targets.sequence_advantages.view(2, 4)
    assert best[0, 0] > best[0, 2] > best[0, 3] > best[0, 1], (
        "of the best images, the nearer to the reference's entropy the better"
    )


# -- which groups and images count -------------------------------------------------------------------------------------


def test_dynamic_sampling_without_any_spread_is_a_step_without_update(tmp_path: Path) -> None:
    algorithm = resolve("dapo", group_size=4, dynamic_sampling_limit=3)
    run = trainer(tmp_path, reward=lambda images, prompts, metadata: [0.5] * len(images), algorithm=algorithm)
    before = weights(run.generator)  # type: ignore[arg-type]
    run.train()
    assert same(weights(run.generator), before)  # type: ignore[arg-type]
    rows = tracking.read_metrics(tmp_path)
    assert [(row["step"], row["groups/discarded"], row["images_sampled"]) for row in rows] == [(1, 6, 24), (2, 6, 48)]
    assert rows[0]["reward/mean"] == 0.5 and "loss" not in rows[0] and steps(tmp_path) == ["step_000002"]


def test_dynamic_sampling_trains_on_full_groups_with_spread(tmp_path: Path) -> None:
    count = itertools.count()

    def every_other(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        groups = [torch.rand(4) if next(count) % 2 else torch.ones(4) for _ in range(len(images) // 4)]
        return torch.cat(groups)

    seen: list[StepRecord] = []
    run = trainer(
        tmp_path, name="dapo", reward=every_other, steps=1, callbacks=[lambda run, record: seen.append(record)]
    )
    run.train()
    # Groups with spread are the second, the fourth, ...: two prompts, then the one that is missing, twice.
    assert seen[0].metrics["groups/discarded"] == 2 and seen[0].metrics["images_sampled"] == 16
    assert (
        seen[0].scored is not None and seen[0].scored.rollout.batch == 8 and seen[0].metrics["groups/informative"] == 1
    )


def test_images_that_failed_are_counted_and_left_out(tmp_path: Path) -> None:
    class Marks:
        def __init__(self, all_fail: bool) -> None:
            self.all_fail = all_fail

        def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
            scores = redness(images, prompts, metadata)
            scores[slice(None) if self.all_fail else slice(0, 2)] = math.nan
            return RewardOutput(scores)

    run = trainer(tmp_path / "some", reward=Marks(False), steps=1)
    record = run.step()
    assert record.metrics["rows/failed"] == record.metrics["reward/failed"] == 2 and math.isfinite(
        record.metrics["loss"]
    )
    assert record.targets is not None and not record.targets.mask[:2].any() and record.targets.mask[2:].all()
    none = trainer(tmp_path / "all", reward=Marks(True), steps=1)
    before = weights(none.generator)  # type: ignore[arg-type]
    assert "loss" not in none.step().metrics and none.step_number == 1
    assert same(weights(none.generator), before)  # type: ignore[arg-type]


def test_normalize_parts_takes_the_rewards_weights(tmp_path: Path) -> None:
    class Two:
        weights = {"red": 1.0, "blue": -1.0}

        def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
            red, blue = redness(images, prompts, metadata), images[:, 2].float().mean(dim=(1, 2)) / 255
            return RewardOutput(red - blue, {"red": red, "blue": blue})

    record = trainer(tmp_path, reward=Two(), algorithm=resolve("grpo", group_size=4, normalize_parts=True)).step()
    assert record.scored is not None and record.targets is not None
    red = group_advantages(record.scored.parts["red"], 4)
    blue = group_advantages(record.scored.parts["blue"], 4)
    assert torch.allclose(record.targets.sequence_advantages, red - blue, atol=1e-6)


# -- options -----------------------------------------------------------------------------------------------------------


def test_the_algorithm_decides_how_is_sampled(tmp_path: Path) -> None:
    run = trainer(
        tmp_path,
        algorithm=resolve("gcpo", group_size=3, divergence="exact_kl"),
        sampling=Sampling(group_size=9, guidance=3.0),
    )
    assert run.sampling.group_size == 3 and run.sampling.guidance == 3 and run.sampling.contrast
    assert run.sampling.stats == ("entropy", "exact_kl")
    assert not trainer(tmp_path, name="grpo").sampling.contrast


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "grop"}, "unknown algorithm 'grop'; allowed: grpo"),
        ({"distribution": "guidd"}, "distribution is 'guidd'; allowed: conditional"),
        ({"schedule": "cosin"}, "optim.schedule is 'cosin'; allowed: constant, linear, cosine"),
    ],
)
def test_wrong_options_fail_before_anything_is_sampled(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **changes)


def test_prompts_that_the_tokenizer_cannot_read_fail_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not know 'purple' \(prompt 'a purple circle'\)"):
        Trainer(generator(), redness, ["a red circle", "a purple circle"], tmp_path)
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle\na blue star\n")
    assert [p.text for p in Trainer(generator(), redness, file, tmp_path).prompt_sampler.prompts] == [
        "a red circle",
        "a blue star",
    ]


# -- the tracker -------------------------------------------------------------------------------------------------------


class Closings(tracking.Tracker):
    """Counts how often it is closed."""

    closed = 0

    def close(self) -> None:
        self.closed += 1
        super().close()


def test_who_makes_the_tracker_closes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Closings(tmp_path / "given", steps=1)
    run = trainer(tmp_path / "given", steps=1, tracker=own)
    run.train()
    assert own.closed == 0 and run.tracker is own
    own.log(2, {"x": 1.0})
    own.close()
    made: list[Closings] = []

    def make(*args: Any, **options: Any) -> Closings:
        made.append(Closings(*args, **options))
        return made[-1]

    monkeypatch.setattr("t2i_gcpo.training.trainer.Tracker", make)
    run = trainer(tmp_path / "made", steps=1, callbacks=[lambda run, record: run.tracker.say("there is one")])  # type: ignore[func-returns-value, union-attr]
    run.train()
    assert [tracker.closed for tracker in made] == [1] and run.tracker is None


def test_another_run_in_the_folder_is_not_overwritten(tmp_path: Path) -> None:
    trainer(tmp_path, steps=1).train()
    log = (tmp_path / "metrics.jsonl").read_text()
    again = trainer(tmp_path, steps=2)
    with pytest.raises(ValueError, match="holds a run already"):
        again.train()
    assert (tmp_path / "metrics.jsonl").read_text() == log
    assert again.resume() == 1
    again.train()
    again.steps = 3
    again.train()
    assert [row["step"] for row in tracking.read_metrics(tmp_path)] == [1, 2, 3]


# -- stopping ----------------------------------------------------------------------------------------------------------


def test_the_kl_may_stop_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trainer(tmp_path, steps=9, kl_stop=1e-5, algorithm=resolve("grpo", group_size=4, kl_coef=0.0))
    run.train()
    rows = tracking.read_metrics(tmp_path)
    assert run.step_number == len(rows) < 9 and steps(tmp_path) == [f"step_{run.step_number:06d}"]
    assert [row["kl"] > 1e-5 for row in rows] == [False] * (len(rows) - 1) + [True]
    assert run.stopped is not None and "above kl_stop = 1e-05" in run.stopped and not run.interrupted
    assert f"stopped after step {run.step_number} of 9: the KL" in capsys.readouterr().out


def test_a_budget_of_images_ends_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It ends like one that has done its steps: saved, and with the callbacks' last picture."""
    ends: list[bool] = []
    options: dict[str, Any] = {"steps": 9, "prompts_per_step": 2, "group_size": 4, "max_images": 17}
    run = trainer(tmp_path, callbacks=[lambda one, _: ends.append(one.finished)], **options)
    run.train()
    assert (run.step_number, run.images_sampled, run.stopped) == (3, 24, None) and ends == [False, False, True]
    assert steps(tmp_path) == ["step_000003"] and "stopped" not in capsys.readouterr().out
    run.train()  # nothing is left to do
    assert run.step_number == 3


def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = itertools.count(1)

    def reward(*scene: Any) -> Tensor:
        if next(count) == 3:
            signal.raise_signal(signal.SIGINT)
        return redness(*scene)

    run = trainer(tmp_path, reward=reward, steps=9)
    run.train()
    assert run.step_number == 3 and run.interrupted and steps(tmp_path) == ["step_000003"]
    out = capsys.readouterr().out
    assert f"t2i-gcpo train --output-dir {tmp_path} --resume" in out and "press it again to stop at once" in out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run.steps = 4
    run.train()
    assert run.step_number == 4 and not run.interrupted


def test_ctrl_c_after_the_step_was_saved_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the last look at what is due and the next step."""
    real = checkpoint.prune

    def prune(*args: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return real(*args, **options)

    monkeypatch.setattr(checkpoint, "prune", prune)
    run = trainer(tmp_path, steps=9, checkpoint=CheckpointPlan(every=1))
    run.train()
    assert run.step_number == 1 and run.interrupted and steps(tmp_path) == ["step_000001"]


def test_ctrl_c_before_the_first_step_is_saved_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def at_once(request: Callable[[], None]) -> Iterator[None]:
        request()
        yield

    monkeypatch.setattr("t2i_gcpo.training.trainer.on_interrupt", at_once)
    run = trainer(tmp_path)
    run.train()
    assert run.step_number == 0 and run.interrupted and steps(tmp_path) == ["step_000000"]
    assert trainer(tmp_path).resume() == 0


def test_a_second_ctrl_c_interrupts_at_once(tmp_path: Path) -> None:
    def reward(*scene: Any) -> Tensor:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return redness(*scene)

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, reward=reward).train()
    assert steps(tmp_path) == []


def test_a_loss_that_stays_non_finite_stops_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = generator()
    run = trainer(tmp_path, policy=policy, steps=9, max_nonfinite=2)
    real = policy.token_logprobs

    def token_logprobs(*args: Any, **options: Any) -> Tensor:
        result = real(*args, **options)
        return result * math.nan if torch.is_grad_enabled() and run.step_number >= 2 else result

    monkeypatch.setattr(policy, "token_logprobs", token_logprobs)
    with pytest.raises(FloatingPointError, match="2 updates in a row"):
        run.train()
    rows = tracking.read_metrics(tmp_path)
    assert [row["updates/skipped"] for row in rows] == [0, 0, 1] and rows[2]["loss"] is None
    assert steps(tmp_path) == ["step_000003"] and "--resume" in capsys.readouterr().out
    assert all(bool(w.isfinite().all()) for w in weights(policy))
    monkeypatch.undo()
    again = trainer(tmp_path, policy=generator(), steps=5, max_nonfinite=2)
    assert again.resume() == 3 and again.updater.guard.in_a_row == 0
    again.train()
    assert again.step_number == 5


@pytest.mark.parametrize("where", ["reward", "callback"])
def test_an_error_loses_nothing(where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run that goes on after it is the run that never had it."""
    whole = trainer(tmp_path / "whole", steps=4)
    whole.train()
    count = itertools.count(1)

    def faulty(*scene: Any) -> Any:
        return [1.0] if next(count) == 3 else redness(*scene)

    def callback(run: Trainer, record: StepRecord) -> None:
        if record.step == 3:
            raise ValueError("callback")

    part = trainer(
        tmp_path / "part", steps=4, **({"reward": faulty} if where == "reward" else {"callbacks": [callback]})
    )
    with pytest.raises(ValueError, match=r"'faulty'.*shape \(1,\) for 8 images" if where == "reward" else "callback"):
        part.train()
    saved = 2 if where == "reward" else 3
    assert steps(tmp_path / "part") == [f"step_{saved:06d}"] and "--resume" in capsys.readouterr().out
    assert [row["step"] for row in tracking.read_metrics(tmp_path / "part")] == list(range(1, saved + 1))
    again = trainer(tmp_path / "part", steps=4)
    assert again.resume() == saved
    again.train()
    assert same(weights(again.generator), weights(whole.generator))  # type: ignore[arg-type]
    assert distance(weights(again.generator), weights(generator())) > 1e-3  # type: ignore[arg-type]
    assert again.images_sampled == whole.images_sampled == 32


def test_an_error_before_the_first_step_leaves_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not finite"):
        trainer(tmp_path, reward=lambda images, prompts, metadata: [math.nan] * len(images)).train()
    assert steps(tmp_path) == []


# -- which checkpoints are kept ----------------------------------------------------------------------------------------


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path: Path) -> None:
    scores = {1: 0.2, 2: 0.9, 4: 0.9, 5: math.nan, 6: 0.3}

    def validation(run: Trainer, record: StepRecord) -> None:
        if record.step in scores:
            record.metrics["validation/overall"] = scores[record.step]

    trainer(tmp_path, steps=6, checkpoint=CheckpointPlan(every=3, keep=1), callbacks=[validation]).train()
    assert steps(tmp_path) == ["step_000002", "step_000006"], "2 is the best, though no checkpoint was due"
    assert json.loads((tmp_path / "checkpoints" / "best.json").read_text()) == {"step": 2, "score": 0.9}


def test_steps_one_at_a_time_are_the_run(tmp_path: Path) -> None:
    """Two runs side by side, a step of each in turn, end where each alone does.

    `stop` between two steps saves and ends.
    """
    alone, here, other = (trainer(tmp_path / name, steps=3, seed=seed) for name, seed in (("a", 5), ("b", 5), ("c", 6)))
    alone.train()
    seen = [(one.step, two.step) for one, two in zip(here.iterate(), other.iterate(), strict=True)]
    assert seen == [(1, 1), (2, 2), (3, 3)]
    assert same(weights(here.generator), weights(alone.generator))  # type: ignore[arg-type]
    assert not same(weights(other.generator), weights(alone.generator))  # type: ignore[arg-type]
    run = trainer(tmp_path / "d", steps=9)
    for record in run.iterate():
        if record.step == 2:
            run.stop("enough")
    assert run.step_number == 2 and run.stopped == "enough" and steps(tmp_path / "d") == ["step_000002"]


def test_a_callback_may_stop_the_run(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=5, callbacks=[lambda run, record: run.stop("enough")])
    run.train()
    assert run.step_number == 1 and run.stopped == "enough" and steps(tmp_path) == ["step_000001"]


def test_prompts_are_shared_equally(tmp_path: Path) -> None:
    seen: list[str] = []

    def reward(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        seen.extend(prompts[::4])
        return redness(images, prompts, metadata)

    trainer(tmp_path, reward=reward, steps=4).train()
    assert sorted(seen) == sorted(prompt.text for prompt in PROMPTS)
