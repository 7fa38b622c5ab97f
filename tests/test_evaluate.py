"""Evaluation: noise, batches, failures, eval.json, paired differences, the command."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rewards
from helpers.fake_generator import FakeGenerator, options, token_score
from rewards import RewardOutput
from t2i_gcpo import generators
from t2i_gcpo.commands.evaluate import main
from t2i_gcpo.data.prompts import limit
from t2i_gcpo.evaluation.evaluate import EvalResult, evaluate, paired_difference, pick
from t2i_gcpo.records import Prompt, Sampling

PROMPTS = [Prompt(f"prompt {k}", {"tag": "odd" if k % 2 else "even", "k": k}) for k in range(10)]


def score(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
    return RewardOutput(token_score(images))


def run(generator: FakeGenerator | None = None, prompts: list[Prompt] = PROMPTS, **changes: Any) -> EvalResult:
    return evaluate(generator or FakeGenerator(), prompts, changes.pop("reward", score), **options(**changes))


def test_scores_do_not_depend_on_the_batch() -> None:
    generator = FakeGenerator()
    whole = run(images_per_prompt=2)
    parts = run(generator, images_per_prompt=2, batch=5)
    assert max(generator.batches) <= 5 and len(generator.batches) > 1
    assert parts.rows == whole.rows
    assert [(r.index, r.image) for r in whole.rows] == [(p, g) for p in range(10) for g in range(2)]
    assert len({r.score for r in whole.rows}) > 10  # each image has noise of its own
    assert run(images_per_prompt=2, seed=4).rows != whole.rows


def test_the_rows_are_scored_with_their_own_prompt_and_metadata() -> None:
    def reward(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        assert prompts == [f"prompt {row['k']}" for row in metadata]
        return RewardOutput(torch.tensor([float(row["k"]) for row in metadata]))

    result = run(reward=reward, batch=3, images_per_prompt=2)
    assert result.by_task == {"even": 4.0, "odd": 5.0} and result.overall == 4.5
    assert all(r.score == PROMPTS[r.index].metadata["k"] and r.task == PROMPTS[r.index].task for r in result.rows)


def test_nothing_is_sampled_that_no_one_reads() -> None:
    generator = FakeGenerator()
    run(generator, sampling=Sampling(group_size=8, guidance=3.0, temperature=0.5, seed=99), images_per_prompt=2)
    used = generator.samplings[0]
    assert (used.group_size, used.guidance, used.temperature, used.seed, used.contrast, used.stats) == (
        2,
        3.0,
        0.5,
        3,
        False,
        (),
    )


def test_failed_images_are_counted_and_left_out() -> None:
    def reward(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        return RewardOutput(torch.tensor([math.nan if row["k"] == 0 else 1.0 for row in metadata]))

    result = run(reward=reward)
    assert (result.n, result.failed, result.overall) == (10, 1, 1.0)
    assert result.rows[0].failed and result.to_json()["images"][0]["score"] is None
    everything_failed = run(reward=lambda images, prompts, metadata: RewardOutput(torch.full((len(images),), math.nan)))
    assert everything_failed.to_json()["overall"] is None and everything_failed.to_json()["ci95"] == [None, None]


def test_a_reward_that_scores_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="one number per image"):
        run(reward=lambda images, prompts, metadata: RewardOutput(torch.zeros(len(images) - 1)))
    for wrong in ({"batch": 0}, {"images_per_prompt": 0}, {"prompts": []}):
        with pytest.raises(ValueError, match=r"at least 1|no prompts"):
            run(**wrong)


def test_eval_json_is_read_back(tmp_path: Path) -> None:
    result = run(images_per_prompt=2, checkpoint="base", source="shapes:test", reward_name="mine")
    data = json.loads(result.save(tmp_path / "deep" / "eval.json").read_text())
    assert {"overall", "by_task", "n", "ci95", "checkpoint", "prompts"} <= data.keys()
    assert data["overall"] == pytest.approx(sum(data["by_task"].values()) / 2) and data["n"] == 20
    assert data["ci95"][0] < data["overall"] < data["ci95"][1]
    again = EvalResult.load(tmp_path / "deep" / "eval.json")
    assert again.rows == result.rows and again.to_json() == result.to_json()
    (tmp_path / "other.json").write_text('{"overall": 1}')
    with pytest.raises(ValueError, match=r"other\.json is not an evaluation"):
        EvalResult.load(tmp_path / "other.json")


def test_scorers_that_are_not_trained_on_judge_the_same_images(tmp_path: Path) -> None:
    def brightness(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        assert prompts == [f"prompt {row['k']}" for row in metadata]
        found = images.float().mean(dim=(1, 2, 3)) + 1000 * torch.tensor([float(row["k"]) for row in metadata])
        return RewardOutput(torch.where(torch.tensor([row["k"] == 7 for row in metadata]), math.nan, found))

    result = run(images_per_prompt=2, batch=6, held_out={"bright": brightness}, keep_images=True, reward_name="mine")
    alone = run(images_per_prompt=2, reward=brightness, reward_name="bright")
    assert result.images is not None and result.rows == run(images_per_prompt=2).rows
    other = result.under("bright")
    assert other.to_json()["images"] == alone.to_json()["images"] and (other.reward, other.failed) == ("bright", 2)
    assert other.estimates == alone.estimates and result.estimates != alone.estimates
    again = EvalResult.load(result.save(tmp_path / "eval.json"))
    assert again.to_json() == result.to_json()
    assert again.to_json()["held_out"]["bright"]["overall"] == alone.overall
    shifted = run(FakeGenerator(shift=2), images_per_prompt=2, held_out={"bright": brightness})
    gain = paired_difference(other, shifted.under("bright"))
    assert gain.overall == pytest.approx(2 * 8) and gain.n == 18  # two codes of eight levels each; two images failed
    data = json.loads((tmp_path / "eval.json").read_text())
    data["held_out"]["bright"]["scores"].pop()
    (tmp_path / "eval.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"eval\.json has 19 scores of bright for 20 images"):
        EvalResult.load(tmp_path / "eval.json")


def test_images_of_one_text_are_one_cluster_also_where_the_list_repeats_it() -> None:
    two = [Prompt("a", {"tag": "t"}), Prompt("b", {"tag": "t"})]

    def reward(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        return RewardOutput(torch.tensor([float(text == "a") for text in prompts]))

    repeated = run(prompts=[p for p in two for _ in range(8)], reward=reward)
    assert repeated.ci95 == (0.0, 1.0)  # two prompts, one right, one wrong: 16 images know no more
    assert repeated.ci95 == run(prompts=two, reward=reward, images_per_prompt=8).ci95


def test_paired_difference_by_hand_and_its_sign() -> None:
    base, better = run(images_per_prompt=4), run(FakeGenerator(shift=4), images_per_prompt=4)
    difference = paired_difference(base, better)
    assert difference.overall == pytest.approx(4 * 8 / 256) and difference.by_task == pytest.approx(
        {"even": 0.125, "odd": 0.125}
    )
    assert difference.ci95 == pytest.approx((0.125, 0.125))  # every image gained the same, however much they differ
    assert base.ci95[1] - base.ci95[0] > 0.05
    assert paired_difference(better, base).overall == pytest.approx(-0.125)
    for other in (
        run(seed=5, images_per_prompt=4),
        run(images_per_prompt=2),
        run(prompts=PROMPTS[::-1], images_per_prompt=4),
    ):
        with pytest.raises(ValueError, match="cannot be paired"):
            paired_difference(base, other)


def test_an_image_that_failed_in_one_is_no_pair() -> None:
    def reward(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        scores = token_score(images)
        return RewardOutput(
            torch.tensor([math.nan if row["k"] < 2 else s for row, s in zip(metadata, scores.tolist(), strict=True)])
        )

    difference = paired_difference(run(reward=reward), run(FakeGenerator(shift=2)))
    assert difference.n_by_task == {"even": 4, "odd": 4} and difference.overall == pytest.approx(0.0625)


def test_limit_takes_the_tasks_in_equal_parts_and_repeats_small_ones() -> None:
    prompts = [Prompt(f"s{k}", {"tag": "small"}) for k in range(2)] + [
        Prompt(f"l{k}", {"tag": "large"}) for k in range(20)
    ]
    chosen = limit(prompts, 11, repeat=True)
    assert Counter(p.task for p in chosen) == {"small": 6, "large": 5}
    assert Counter(p.text for p in chosen if p.task == "small") == {"s0": 3, "s1": 3}
    assert [p.text for p in chosen if p.task == "large"] == ["l2", "l6", "l10", "l14", "l18"]
    assert limit(prompts, 0, repeat=True) == limit(prompts, None, repeat=True) == prompts
    with pytest.raises(ValueError, match="at least 0"):
        limit(prompts, -1, repeat=True)


def test_pictures_are_picked_by_task_and_never_by_score() -> None:
    result = run()
    chosen = pick(result, 4)
    assert [result.rows[k].task for k in chosen] == ["even", "even", "odd", "odd"]
    assert chosen == pick(run(FakeGenerator(shift=7)), 4) and pick(result, 0) == []


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(generators, "load", lambda name, **_: FakeGenerator(shift=4 * (name == "trained")))
    monkeypatch.setattr(rewards, "load", lambda name: score)
    out = tmp_path / "out"
    arguments = [
        "--checkpoint",
        "trained",
        "--against",
        "base",
        "--prompts",
        "shapes:test",
        "--limit",
        "60",
        "--guidance",
        "1.5",
        "--out",
        str(out),
    ]
    assert main(arguments) == 0
    data = json.loads((out / "eval.json").read_text())
    assert (data["checkpoint"], data["prompts"], data["n"], data["guidance"]) == ("trained", "shapes:test", 60, 1.5)
    assert data["n_by_task"] == dict.fromkeys(data["by_task"], 10) and len(data["by_task"]) == 6
    assert json.loads((out / "eval_against.json").read_text())["checkpoint"] == "base"
    assert {path.name for path in out.iterdir()} == {"eval.json", "eval_against.json", "samples.png", "against.png"}
    shown = capsys.readouterr().out
    assert "+0.125" in shown and "color_attr" in shown and "overall" in shown


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[FakeGenerator]:
    """Every generator that the command loads; `unknown` is no checkpoint."""
    loaded: list[FakeGenerator] = []

    def load(name: str, **_: Any) -> FakeGenerator:
        if name == "unknown":
            raise ValueError("no checkpoint 'unknown'")
        loaded.append(FakeGenerator(shift=4 * (name == "trained")))
        return loaded[-1]

    monkeypatch.setattr(generators, "load", load)
    monkeypatch.setattr(rewards, "load", lambda name: score)
    return loaded


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", "FOLDER/five.txt"], "does not know 'zebra'"),
        (["--prompts", "shapes:test", "--against", "unknown"], "no checkpoint 'unknown'"),
        (["--prompts", "shapes:test", "--guidance", "-1"], "guidance"),
    ],
)
def test_the_command_checks_everything_before_it_draws(
    tmp_path: Path, drawn: list[FakeGenerator], arguments: list[str], message: str
) -> None:
    (tmp_path / "five.txt").write_text("a star\na circle\na ring\na cross\na zebra\n")
    arguments = [argument.replace("FOLDER", str(tmp_path)) for argument in arguments]
    with pytest.raises(ValueError, match=message):
        main(["--checkpoint", "base", "--out", str(tmp_path / "out"), *arguments])
    assert not any(generator.batches for generator in drawn) and not (tmp_path / "out").exists()


def test_the_command_tries_its_folder_before_it_loads(tmp_path: Path, drawn: list[FakeGenerator]) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "out" / "eval_against.json").mkdir(parents=True)
    for folder in (tmp_path / "file" / "deep", tmp_path / "out"):
        with pytest.raises(ValueError, match="--out: "):
            main(["--checkpoint", "base", "--prompts", "shapes:test", "--out", str(folder)])
    assert drawn == []


def test_what_was_measured_is_saved_when_the_other_checkpoint_fails(
    tmp_path: Path, drawn: list[FakeGenerator], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory")

    plain = FakeGenerator.decode
    monkeypatch.setattr(FakeGenerator, "decode", lambda self, tokens: plain(self, tokens) if self.shift else fail())
    arguments = ["--checkpoint", "trained", "--against", "base", "--prompts", "shapes:test", "--limit", "6"]
    with pytest.raises(RuntimeError, match="out of memory"):
        main([*arguments, "--out", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "eval.json").read_text())["n"] == 6


def test_the_table_is_shown_where_the_pictures_cannot_be_saved(
    tmp_path: Path, drawn: list[FakeGenerator], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError("the disk is full")

    monkeypatch.setattr("t2i_gcpo.utils.pictures.sample_grid", full)
    with pytest.raises(OSError, match="full"):
        main(["--checkpoint", "base", "--prompts", "shapes:test", "--limit", "6", "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "eval.json").is_file() and "overall" in capsys.readouterr().out
