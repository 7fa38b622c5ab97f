"""The reward package's plumbing: names, checks, sums, functions of one's own.

And the geneval reward on painted scenes.
"""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import rewards
from helpers.messages import names
from rewards import RewardOutput
from rewards.base import check, join
from rewards.function import FunctionReward
from rewards.geneval import Detection
from rewards.geneval.reward import GenEvalReward
from rewards.registry import REWARDS, find
from rewards.weighted_sum import Composite
from t2i_gcpo.data.shapes.scene import Scene, SceneObject

NAN = float("nan")
IMAGES = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
PROMPTS = ["a cat", "a dog", "a fish"]
ROWS: list[dict[str, Any]] = [{}, {}, {}]


def gives(*scores: float, **parts: list[float]) -> Any:
    """A reward with fixed scores."""
    output = RewardOutput(torch.tensor(scores), {name: torch.tensor(values) for name, values in parts.items()})
    return lambda images, prompts, metadata: output


# A module of a user's own, as the tests of `module:callable` import it.
def brightness(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]], scale: float = 1.0) -> list[float]:
    return [scale * float(image.float().mean()) for image in images]


class Constant:
    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> np.ndarray:
        return np.full(len(images), self.value)


number = 3


# --- check


def test_check_passes_good_scores_through() -> None:
    output = check(RewardOutput(torch.tensor([1, 2, 3])), 3, "mine", PROMPTS)
    assert output.scores.dtype == torch.float32 and output.scores.tolist() == [1, 2, 3]


@pytest.mark.parametrize("failure", ["raise", "mark"])
@pytest.mark.parametrize("scores", [torch.zeros(2), torch.zeros(4), torch.zeros(3, 1), torch.tensor(0.0)])
def test_check_counts(scores: Tensor, failure: Any) -> None:
    with pytest.raises(
        ValueError, match=r"'mine' returned scores of shape .* for 3 images \(prompts: 'a cat', 'a dog'"
    ):
        check(RewardOutput(scores), 3, "mine", PROMPTS, failure=failure)


def test_check_counts_parts() -> None:
    with pytest.raises(ValueError, match="'mine' returned sharp of shape"):
        check(RewardOutput(torch.zeros(3), {"sharp": torch.zeros(2)}), 3, "mine", PROMPTS)


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
def test_check_finds_scores_that_are_not_finite(bad: float) -> None:
    output = RewardOutput(torch.tensor([1.0, bad, 3.0]), {"sharp": torch.tensor([NAN, 1.0, 1.0])})
    with pytest.raises(ValueError, match=r"'mine' gave 1 of 3 images .*not finite \(prompts: 'a dog'\)"):
        check(output, 3, "mine", PROMPTS)
    marked = check(output, 3, "mine", PROMPTS, failure="mark").scores
    assert marked[[0, 2]].tolist() == [1, 3] and marked[1].isnan()


def test_check_names_a_few_prompts_only() -> None:
    with pytest.raises(ValueError, match=r"prompts: '0', '1', '2' and 7 more\)"):
        check(RewardOutput(torch.full((10,), NAN)), 10, "mine", [str(k) for k in range(10)])


# --- registry


def test_available_rewards_all_import() -> None:
    assert rewards.available() == sorted(REWARDS)
    assert {"composite", "geneval"} <= set(rewards.available())
    assert all(callable(find(name)) for name in rewards.available())
    assert isinstance(rewards.load("geneval"), GenEvalReward)


def test_unknown_names_and_options() -> None:
    with pytest.raises(ValueError, match=names("'genval'", "composite", "geneval", "module:callable")):
        rewards.load("genval")
    with pytest.raises(ValueError, match=names("'geneval'", "detecter", "detector", "score")):
        rewards.load("geneval", detecter="shapes")


def test_import_is_light() -> None:
    code = "import rewards, rewards.geneval, sys; print('torch' in sys.modules, 't2i_gcpo' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


# --- functions


@pytest.mark.parametrize(
    "result",
    [
        [1, 2, 3],
        (1.0, 2.0, 3.0),
        np.array([1.0, 2.0, 3.0]),
        torch.tensor([1, 2, 3]),
        RewardOutput(torch.tensor([1.0, 2, 3])),
    ],
)
def test_function_results(result: Any) -> None:
    reward = FunctionReward(lambda images, prompts, metadata: result)
    output = reward(IMAGES, PROMPTS, ROWS)
    assert output.scores.dtype == torch.float32 and output.scores.tolist() == [1, 2, 3]


def test_function_gets_what_the_reward_got() -> None:
    seen: list[Any] = []
    rows = [{"k": k} for k in range(3)]

    def mine(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]], *, scale: float) -> list[float]:
        seen.append((images, prompts, metadata))
        return [scale] * len(images)

    assert FunctionReward(mine, scale=2.5)(IMAGES, PROMPTS, rows).scores.tolist() == [2.5] * 3
    assert seen[0][0] is IMAGES and seen[0][1] == PROMPTS and seen[0][2] == rows


def test_function_failures() -> None:
    with pytest.raises(ValueError, match="'short' returned scores of shape"):
        FunctionReward(lambda *_: [1.0, 2.0], name="short")(IMAGES, PROMPTS, ROWS)
    with pytest.raises(ValueError, match="'words' returned str"):
        FunctionReward(lambda *_: "good", name="words")(IMAGES, PROMPTS, ROWS)
    with pytest.raises(ValueError, match="'nan' gave 1 of 3.*'a fish'"):
        FunctionReward(lambda *_: [1.0, 2.0, NAN], name="nan")(IMAGES, PROMPTS, ROWS)
    marked = FunctionReward(lambda *_: [1.0, 2.0, NAN], failure="mark")(IMAGES, PROMPTS, ROWS).scores
    assert marked[:2].tolist() == [1, 2] and marked[2].isnan()
    with pytest.raises(ValueError, match="'ignore' is unknown; allowed: raise, mark"):
        FunctionReward(lambda *_: [], failure="ignore")  # type: ignore[arg-type]


def test_an_error_in_a_function_is_not_swallowed() -> None:
    def broken(*_: Any) -> list[float]:
        raise KeyError("text")

    with pytest.raises(KeyError, match="text"):
        Composite({"broken": FunctionReward(broken, failure="mark")}, failure="mark")(IMAGES, PROMPTS, ROWS)


def test_load_by_module_and_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "my_scorer.py"
    file.write_text("def ones(images, prompts, metadata):\n    return [1.0] * len(images)\n")
    assert rewards.load(f"{file}:ones")(IMAGES, PROMPTS, ROWS).scores.tolist() == [1, 1, 1]
    monkeypatch.syspath_prepend(tmp_path)
    assert rewards.load("my_scorer:ones")(IMAGES, PROMPTS, ROWS).scores.tolist() == [1, 1, 1]

    images = torch.stack([torch.full((3, 4, 4), value, dtype=torch.uint8) for value in (0, 10, 20)])
    assert rewards.load(f"{__name__}:brightness", scale=0.5)(images, PROMPTS, ROWS).scores.tolist() == [0, 5, 10]
    assert rewards.load(f"{__name__}:Constant", value=0.25)(images, PROMPTS, ROWS).scores.tolist() == [0.25] * 3


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module:score", "no module 'no_such_module'.*PYTHONPATH"),
        ("no/such/file.py:score", "no file 'no/such/file.py'"),
        (f"{__name__}:number", "no callable 'number'"),
        (f"{__name__}:missing", "no callable 'missing'"),
    ],
)
def test_load_by_path_failures(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rewards.load(path)


def test_a_missing_package_of_the_module_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_more.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        rewards.load("needs_more:score")


# --- composite


def test_composite_sums_by_hand() -> None:
    both = Composite(
        {"one": gives(1.0, 2.0, 3.0, sharp=[7.0, 8.0, NAN]), "two": gives(10.0, 0.0, -10.0)}, {"one": 0.5, "two": 0.1}
    )
    output = both(IMAGES, PROMPTS, ROWS)
    assert output.scores.tolist() == pytest.approx([1.5, 1.0, 0.5])  # 0.5 + 1, 1 + 0, 1.5 - 1
    assert set(output.parts) == {"one", "one/sharp", "two"}
    assert output.parts["one"].tolist() == [1, 2, 3]  # unweighted
    assert output.parts["one/sharp"][:2].tolist() == [7, 8] and output.parts["one/sharp"][2].isnan()


def test_a_reward_without_a_weight_weighs_one() -> None:
    output = Composite({"one": gives(1.0, 2.0, 3.0), "two": gives(1.0, 1.0, 1.0)}, {"two": -2.0})(IMAGES, PROMPTS, ROWS)
    assert output.scores.tolist() == [-1, 0, 1]


def test_composite_failure_policies() -> None:
    parts = {"fine": gives(1.0, 2.0, 3.0), "flaky": gives(1.0, NAN, 3.0)}
    with pytest.raises(ValueError, match="'flaky' gave 1 of 3 .*'a dog'"):
        Composite(parts)(IMAGES, PROMPTS, ROWS)
    output = Composite(parts, failure="mark")(IMAGES, PROMPTS, ROWS)
    assert output.scores[[0, 2]].tolist() == [2, 6] and output.scores[1].isnan()
    assert output.parts["fine"].tolist() == [1, 2, 3]


def test_composite_settings() -> None:
    settings = {"plain": {"name": f"{__name__}:Constant", "value": 2.0, "weight": 3.0}, f"{__name__}:brightness": None}
    images = torch.full((3, 3, 4, 4), 5, dtype=torch.uint8)
    output = rewards.load("composite", rewards=settings)(images, PROMPTS, ROWS)
    assert output.scores.tolist() == [11, 11, 11]  # 3 * 2 + 1 * 5
    marked = {"a": {"name": f"{__name__}:Constant", "value": NAN}}
    assert rewards.load("composite", rewards=marked, failure="mark")(images, PROMPTS, ROWS).scores.isnan().all()
    with pytest.raises(ValueError, match="unknown reward 'nope'"):
        rewards.load("composite", rewards={"nope": {}})


def test_composite_is_checked() -> None:
    with pytest.raises(ValueError, match="at least one reward"):
        Composite({})
    with pytest.raises(ValueError, match="weights for three.*there are one"):
        Composite({"one": gives(1.0)}, {"three": 1.0})
    with pytest.raises(ValueError, match="weight of reward 'one' is nan"):
        Composite({"one": gives(1.0)}, {"one": NAN})


# --- geneval


def scene(*objects: tuple[str, str, int, int]) -> Tensor:
    painted = Scene(tuple(SceneObject(name, color, left, top, 24) for name, color, left, top in objects)).render()
    return torch.from_numpy(painted).permute(2, 0, 1)


GENEVAL: list[tuple[Tensor, dict[str, Any]]] = [
    (scene(("star", "red", 10, 10)), {"tag": "colors", "include": [{"class": "star", "count": 1, "color": "red"}]}),
    (scene(("star", "blue", 10, 10)), {"tag": "colors", "include": [{"class": "star", "count": 1, "color": "red"}]}),
    (
        scene(("star", "blue", 10, 10), ("ring", "pink", 60, 10)),
        {"tag": "two_object", "include": [{"class": "star", "count": 1}, {"class": "heart", "count": 1}]},
    ),
    (
        scene(("ring", "blue", 4, 4), ("ring", "blue", 40, 4), ("ring", "blue", 4, 60)),
        {
            "tag": "counting",
            "include": [{"class": "ring", "count": 2}],
            "exclude": [{"class": "ring", "count": 3}, {"class": "ring", "count": 4}],
        },
    ),
]


@pytest.mark.parametrize(
    ("score", "expected"), [("strict", [1, 0, 0, 0]), ("clauses", [1, 0, 0.5, 2 / 3])], ids=["strict", "clauses"]
)
def test_geneval_scores(score: str, expected: list[float]) -> None:
    images, rows = torch.stack([image for image, _ in GENEVAL]), [row for _, row in GENEVAL]
    output = rewards.load("geneval", detector="shapes", score=score)(images, ["a photo"] * 4, rows)
    assert output.scores.tolist() == pytest.approx(expected)
    assert output.parts["strict"].tolist() == [1, 0, 0, 0]
    assert output.parts["clauses"].tolist() == pytest.approx([1, 0, 0.5, 2 / 3])
    tasks = {"task/colors", "task/counting", "task/two_object"}
    assert set(output.parts) == {"strict", "clauses", "clause/0", "clause/1", "clause/2", *tasks}
    colors = output.parts["task/colors"]
    assert colors[:2].tolist() == [1, 0] and colors[2:].isnan().all()
    check(output, 4, "geneval", ["a photo"] * 4)
    assert output.reasons[0] == () and output.reasons[2] == (
        "heart: there are 0",
        "in the image: 1 blue star, 1 pink ring",
    )


def test_reasons_go_through_sums_functions_and_joins() -> None:
    output = RewardOutput(torch.tensor([1.0, 0.0]), reasons=((), ("too dark",)))
    function = FunctionReward(lambda images, prompts, metadata: output, name="light")
    plain = FunctionReward(lambda images, prompts, metadata: torch.ones(2), name="plain")
    summed = Composite({"light": function, "plain": plain})(IMAGES[:2], PROMPTS[:2], ROWS[:2])
    assert summed.reasons == ((), ("light: too dark",))
    assert join([output, RewardOutput(torch.zeros(1))]).reasons == ((), ("too dark",), ())
    assert join([RewardOutput(torch.zeros(1))] * 2).reasons == ()
    with pytest.raises(ValueError, match="'light' returned reasons for 2 of 3 images"):
        check(replace(output, scores=torch.zeros(3)), 3, "light", PROMPTS)


@pytest.mark.parametrize("row", [{}, None, {"tag": "colors"}, {"include": None}, {"include": []}])
def test_geneval_names_the_prompt_without_metadata(row: Any) -> None:
    images, rows = torch.stack([image for image, _ in GENEVAL[:2]]), [GENEVAL[0][1], row]
    with pytest.raises(ValueError, match="no metadata for the prompt 'a dog'"):
        rewards.load("geneval")(images, ["a cat", "a dog"], rows)


def test_geneval_with_a_detector_and_colors_of_ones_own() -> None:
    def detector(images: Tensor) -> list[list[Detection]]:
        return [[Detection("star", 0.9, (0.0, 0.0, 4.0, 4.0))] for _ in images]

    rows = [{"tag": "colors", "include": [{"class": "star", "count": 1, "color": color}]} for color in ("red", "blue")]
    reward = GenEvalReward(detector=detector, colors=lambda detections: ["blue"] * len(detections))
    assert reward(IMAGES[:2], PROMPTS[:2], rows).scores.tolist() == [0, 1]
    reasons = [verdict.reason for verdict in reward.verdicts(IMAGES[:2], PROMPTS[:2], rows)]
    assert reasons == ["expected red star>=1, found blue", ""]


def test_geneval_options() -> None:
    with pytest.raises(ValueError, match="score 'soft' is unknown; allowed: strict, clauses"):
        rewards.load("geneval", score="soft")
    with pytest.raises(ValueError, match="unknown detector 'yolo'"):
        rewards.load("geneval", detector="yolo")
