"""A benchmark's run without a model: killed, resumed, shared, exported, and summed up as its own script would."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_benchmark_files import SAMPLES, write
from torch import Tensor

from helpers.chat_server import ChatServer
from helpers.fake_generator import FakeGenerator, token_score
from rewards.base import AsyncReward, Reward, RewardOutput
from rewards.scorers.vlm_judge import VlmJudge
from t2i_gcpo.commands import benchmark as command
from t2i_gcpo.commands import evaluate
from t2i_gcpo.evaluation.benchmarks import layout
from t2i_gcpo.evaluation.benchmarks.run import Record, Run, describe, records, work
from t2i_gcpo.evaluation.benchmarks.summary import summarise
from t2i_gcpo.evaluation.benchmarks.table import find
from t2i_gcpo.evaluation.evaluate import EvalResult
from t2i_gcpo.records import Prompt, Sampling
from t2i_gcpo.reports import image_folders

PROMPTS = [Prompt(f"prompt {k}", {"tag": "odd" if k % 2 else "even", "k": k}) for k in range(7)]


def score(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
    assert prompts == [f"prompt {row['k']}" for row in metadata]
    return RewardOutput(token_score(images), {"k": torch.tensor([float(row["k"]) for row in metadata])})


def run(out: Path, **changes: Any) -> Run:
    given: dict[str, Any] = {
        "images": 2,
        "batch": 4,
        "reward": "mine",
        "prompts": PROMPTS,
        "sampling": Sampling(seed=3),
    }
    given |= changes
    return Run(given.pop("prompts"), out, given.pop("sampling"), **given)


def do(one: Run, reward: Reward = score, generator: FakeGenerator | None = None) -> FakeGenerator:
    generator = generator or FakeGenerator()
    work(one, lambda: generator, reward)
    return generator


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# -- images ------------------------------------------------------------------------------------------------------------


def test_images_lie_as_genevals_scripts_read_them(tmp_path: Path) -> None:
    do(run(tmp_path))
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [f"{k:05d}" for k in range(7)]
    folder = tmp_path / "images" / "00004"
    assert sorted(path.name for path in (folder / "samples").iterdir()) == ["0000.png", "0001.png"]
    # As evaluate_images.py reads it: one JSON object.
    assert json.loads((folder / "metadata.jsonl").read_text()) == {"tag": "even", "k": 4, "prompt": "prompt 4"}
    found, _ = image_folders.find(tmp_path / "images")
    assert [(picture.prompt.text, picture.group) for picture in found[8:10]] == [("prompt 4", "even")] * 2
    rollout = FakeGenerator().sample([PROMPTS[4]], Sampling(seed=3, group_size=2), prompt_indices=[4])
    assert torch.equal(found[9].pixels(), FakeGenerator().decode(rollout.tokens)[1])


def test_what_a_kill_leaves_is_gone_on_with(tmp_path: Path) -> None:
    whole = do(run(tmp_path / "whole"))
    assert whole.batches == [4, 4, 4, 2]

    class Killed(BaseException):
        pass

    calls: list[int] = []

    def dies(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        calls.append(len(images))
        if len(calls) == 2:
            raise Killed
        return score(images, prompts, metadata)

    with pytest.raises(Killed):
        do(run(tmp_path / "killed"), dies)
    there = files(tmp_path / "killed")
    assert len([name for name in there if name.endswith(".png")]) == 8 and len([n for n in there if "scores" in n]) == 2
    # A write that was cut off leaves a file of another name; a missing image has its whole part drawn again.
    (tmp_path / "killed/images/00003/samples/0001.png").rename(tmp_path / "killed/images/00003/samples/.tmp_1_0001.png")
    again = do(run(tmp_path / "killed"))
    assert again.batches == [4, 4, 2]
    (tmp_path / "killed/images/00003/samples/.tmp_1_0001.png").unlink()
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_run_that_is_done_draws_and_scores_nothing(tmp_path: Path) -> None:
    do(run(tmp_path))

    def never(*_: Any) -> Any:
        raise AssertionError

    work(run(tmp_path), never, never)


def test_an_image_without_a_score_is_scored_again(tmp_path: Path) -> None:
    def fails(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        scores = score(images, prompts, metadata).scores
        return RewardOutput(torch.where(torch.tensor([row["k"] == 5 for row in metadata]), math.nan, scores))

    do(run(tmp_path), fails)
    failed = [record for record in records(run(tmp_path)) if record is not None and math.isnan(record.scores[0])]
    assert len(failed) == 1
    generator = do(run(tmp_path))
    assert generator.batches == [] and all(r is not None and r.scores[0] == r.scores[0] for r in records(run(tmp_path)))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_shards_make_the_same_files_as_one_process(tmp_path: Path, count: int) -> None:
    do(run(tmp_path / "one"))
    drawn = 0
    for number in reversed(range(count)):
        missing = [record is None for record in records(run(tmp_path / "many"))]
        assert any(missing)
        drawn += sum(do(run(tmp_path / "many", shard=(number, count))).batches)
    assert drawn == 14 and files(tmp_path / "many") == files(tmp_path / "one")


def test_a_scorer_that_works_elsewhere_is_asked_while_the_next_images_are_drawn(tmp_path: Path) -> None:
    order: list[str] = []

    class Elsewhere(AsyncReward):
        submit_batch: int | None = 4

        def submit(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Any:
            order.append("ask")

            class Later:
                def result(self) -> RewardOutput:
                    order.append("wait")
                    return score(images, prompts, metadata)

            return Later()

        def __call__(self, *_: Any) -> Any:
            raise AssertionError

    do(run(tmp_path / "one"), Elsewhere())
    assert order[:4] == ["ask"] * 4 and order[4:] == ["wait"] * 4
    do(run(tmp_path / "two"))
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_another_run_is_not_gone_on_with(tmp_path: Path) -> None:
    describe(tmp_path, {"batch": 9, "sampling": {"seed": 0}})  # nothing came of it
    describe(tmp_path, {"batch": 2, "sampling": {"seed": 0}})
    (tmp_path / "00000").mkdir()
    describe(tmp_path, {"batch": 2, "sampling": {"seed": 0}})
    with pytest.raises(ValueError, match=r"is of another run \(sampling\.seed 0 there, 1 here\); name another --out"):
        describe(tmp_path, {"batch": 2, "sampling": {"seed": 1}})
    do(run(tmp_path / "run"))
    with pytest.raises(ValueError, match="another prompt, or of another number of images"):
        list(records(run(tmp_path / "run", prompts=PROMPTS[::-1])))
    (tmp_path / "run/scores/mine/00001.json").write_text('{"scores"')
    with pytest.raises(ValueError, match=r"00001\.json, line 1: not valid JSON"):
        list(records(run(tmp_path / "run")))


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    do(run(tmp_path))
    path = tmp_path / "images/00002/samples/0000.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\nhalf")
    (tmp_path / "scores/mine/00002.json").unlink()
    with pytest.raises(ValueError, match=r"00002/samples/0000\.png cannot be read.*drawn anew"):
        do(run(tmp_path))
    path.unlink()
    assert do(run(tmp_path)).batches == [4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"images": 0}, "must be at least 1"), ({"batch": 0}, "must be at least 1"), ({"shard": (2, 2)}, "shard 2/2")],
)
def test_runs_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **changes)


# -- the benchmarks' own layouts ---------------------------------------------------------------------------------------


def shades(folder: Path, prompts: list[Prompt], count: int) -> None:
    """Images of 2 x 2 pixels, each of the grey 10 * row + its number."""
    for row, prompt in enumerate(prompts):
        levels = torch.tensor([10 * row + k for k in range(count)], dtype=torch.uint8)
        layout.write_prompt(folder, row, prompt, levels.reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2))


def test_dpgs_grid_of_four(tmp_path: Path) -> None:
    prompts = [Prompt("a", {"item_id": "0"}), Prompt("b", {"item_id": "coco7"})]
    shades(tmp_path / "images", prompts, 4)
    assert layout.export("dpg", tmp_path / "images", tmp_path / "dpg", prompts, 4) == 2
    assert sorted(path.name for path in (tmp_path / "dpg").iterdir()) == ["0.png", "coco7.png"]
    pixels = np.array(Image.open(tmp_path / "dpg" / "coco7.png"))
    assert pixels.shape == (4, 4, 3)
    # The script's crops, at RESOLUTION 2: left, top, right, bottom.
    crops = [(0, 0, 2, 2), (2, 0, 4, 2), (0, 2, 2, 4), (2, 2, 4, 4)]
    assert [{*pixels[t:b, left:r].flat} for left, t, r, b in crops] == [{10}, {11}, {12}, {13}]


def test_compbenchs_names(tmp_path: Path) -> None:
    prompts = [
        Prompt("a red/blue bowl", {"tag": "color"}),
        Prompt("x" * 300, {"tag": "shape"}),
        Prompt("b", {"tag": "color"}),
    ]
    shades(tmp_path / "images", prompts, 2)
    assert layout.export("compbench", tmp_path / "images", tmp_path / "own", prompts, 2) == 6
    names = sorted(str(path.relative_to(tmp_path / "own")) for path in (tmp_path / "own").rglob("*.png"))
    assert names[:4] == [
        "color/samples/a red blue bowl_000000.png",
        "color/samples/a red blue bowl_000001.png",
        "color/samples/b_000002.png",
        "color/samples/b_000003.png",
    ]
    assert all(len(Path(name).name.encode()) <= 255 for name in names)
    assert np.array(Image.open(tmp_path / "own" / names[3]))[0, 0, 0] == 21
    assert layout.export("compbench", tmp_path / "images", tmp_path / "own", prompts, 2) == 6


# -- the number that is reported ---------------------------------------------------------------------------------------


def test_the_mean_over_tasks_and_the_mean_over_images(tmp_path: Path) -> None:
    prompts = [Prompt("a", {"tag": "x"}), Prompt("b", {"tag": "x"}), Prompt("c", {"tag": "y"})]
    scored = [Record([1.0, 1.0], {}), Record([1.0, math.nan], {}), Record([0.0, 0.5], {})]
    one = run(tmp_path, prompts=prompts)
    over_tasks = summarise(one, scored, find("geneval"), checkpoint="base", source="file")
    assert over_tasks.number.overall == pytest.approx((1 + 0.25) / 2) and over_tasks.result.by_task == {
        "x": 1,
        "y": 0.25,
    }
    over_images = summarise(one, scored, find("parti"), checkpoint="base", source="file")
    assert over_images.number.overall == pytest.approx((1 + 1 + 1 + 0 + 0.5) / 5)
    data = over_images.to_json()
    assert data["failed"] == 1 and data["images"] == 6 and data["prompts"] == 3 and not data["whole"]
    assert data["number"]["what"] == "mean over images"


def test_intervals_are_clustered_by_prompt(tmp_path: Path) -> None:
    """Four images that always agree say no more than one: the interval is that of one image a prompt."""
    prompts = [Prompt(f"p{k}") for k in range(40)]
    once = summarise(
        run(tmp_path, prompts=prompts),
        [Record([k % 2], {}) for k in range(40)],
        find("parti"),
        checkpoint="",
        source="",
    )
    four = summarise(
        run(tmp_path, prompts=prompts),
        [Record([k % 2] * 4, {}) for k in range(40)],
        find("parti"),
        checkpoint="",
        source="",
    )
    assert four.number.ci95 == pytest.approx(once.number.ci95)


def test_dpgs_categories_are_means_over_questions(tmp_path: Path) -> None:
    def asked(*categories: str) -> dict[str, Any]:
        return {"questions": [{"id": k, "question": "?", "category": c} for k, c in enumerate(categories)]}

    prompts = [Prompt("a", asked("entity", "entity", "entity", "global")), Prompt("b", asked("entity"))]
    scored = [
        Record([0.5, 0.5], {"category/entity": [1.0, 2 / 3], "category/global": [0.0, 1.0]}),
        Record([1.0, 0.0], {"category/entity": [1.0, 0.0], "category/global": [math.nan, math.nan]}),
    ]
    summary = summarise(run(tmp_path, prompts=prompts), scored, find("dpg"), checkpoint="", source="")
    assert summary.parts["category/entity"].overall == pytest.approx((3 + 2 + 1 + 0) / 8)
    assert summary.parts["category/global"].overall == 0.5 and summary.parts["category/global"].n == 2
    assert summary.number.overall == 0.5


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[FakeGenerator]:
    loaded: list[FakeGenerator] = []

    def load(args: Any) -> FakeGenerator:
        loaded.append(FakeGenerator())
        return loaded[-1]

    monkeypatch.setattr(command, "load_generator", load)
    return loaded


def command_line(tmp_path: Path, name: str, *more: str) -> list[str]:
    file = write(tmp_path, name)
    return ["--benchmark", name, "--checkpoint", "fake", "--prompts", str(file), "--out", str(tmp_path / "out"), *more]


def test_dpg_from_the_command_line_with_a_judge(tmp_path: Path, fake: list[FakeGenerator], capsys: Any) -> None:
    def rule(pixels: np.ndarray, question: str) -> dict[str, float]:
        return {"Yes": 0.2, "No": 0.8} if "brown" in question else {"Yes": 0.8, "No": 0.2}

    with ChatServer(rule) as server:
        line = command_line(tmp_path, "dpg", "--reward.url", server.url, "--guidance", "5", "--batch", "4")
        assert evaluate.main(line) == 0
        assert {body["model"] for body in server.bodies} == {"judge-7b"}
    data = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    # Brown is answered no, so that it is a photo does not count either: 1 of 3 questions, and 1 of 1.
    assert data["number"]["mean"] == pytest.approx((1 / 3 + 1) / 2) and data["reward"] == "vlm_judge"
    assert data["parts"]["category/global"]["mean"] == 1 and data["parts"]["category/attribute"]["mean"] == 0
    assert (data["prompts"], data["images"], data["whole"]) == (2, 8, False)
    result = EvalResult.load(tmp_path / "out" / "eval.json")
    assert result.n == 8 and result.sampling.guidance == 5 and result.checkpoint == "fake"
    assert sorted(path.name for path in (tmp_path / "out" / "dpg").iterdir()) == ["0.png", "coco7.png"]
    printed = capsys.readouterr().out
    assert "mean over images" in printed and "not a number to compare with published ones" in printed.replace("\n", " ")


def test_shards_from_the_command_line(tmp_path: Path, fake: list[FakeGenerator], capsys: Any) -> None:
    (tmp_path / "mine.py").write_text("def score(images, prompts, metadata):\n    return [0.5] * len(images)\n")
    line = command_line(tmp_path, "parti", "--reward", f"{tmp_path}/mine.py:score", "--batch", "1", "--images", "1")
    assert evaluate.main([*line, "--shard", "1/2"]) == 0
    assert "scored 1 of 2 prompts" in capsys.readouterr().out and not (tmp_path / "out" / "benchmark.json").exists()
    assert evaluate.main([*line, "--shard", "0/2"]) == 0
    assert (tmp_path / "out" / "benchmark.json").is_file() and len(fake) == 2
    assert evaluate.main(line) == 0 and len(fake) == 2  # nothing is left to draw
    with pytest.raises(ValueError, match=r"of another run \(sampling\.seed 0 there, 7 here\)"):
        evaluate.main([*line, "--seed", "7"])
    with pytest.raises(ValueError, match="--shard is 'half'"):
        evaluate.main([*line, "--shard", "half"])
    with pytest.raises(ValueError, match="unknown benchmark 'coco'"):
        evaluate.main(["--benchmark", "coco"])


def test_a_scorer_with_other_options_does_not_mix_with_the_scores_that_are_there(tmp_path: Path, fake: Any) -> None:
    (tmp_path / "mine.py").write_text("def score(images, prompts, metadata, by=1):\n    return [by] * len(images)\n")
    line = command_line(tmp_path, "drawbench", "--reward", f"{tmp_path}/mine.py:score")
    assert evaluate.main([*line, "--reward.by", "2"]) == 0
    assert json.loads((tmp_path / "out" / "benchmark.json").read_text())["number"]["mean"] == 2
    with pytest.raises(ValueError, match=r"options\.by 2 there, 3 here"):
        evaluate.main([*line, "--reward.by", "3"])


def test_a_benchmarks_scorer_is_that_of_the_table(tmp_path: Path, fake: Any) -> None:
    with pytest.raises(ValueError, match="reward 'vlm_judge' needs the option url"):
        evaluate.main(command_line(tmp_path, "dpg"))
    assert VlmJudge.__init__.__kwdefaults__ is not None
    known = set(VlmJudge.__init__.__kwdefaults__)
    assert {*find("dpg").options, *find("compbench").options} <= known
    assert set(SAMPLES) == {"geneval", "dpg", "compbench", "drawbench", "parti", "ocr"}
