"""Prompts that a reward cannot score are refused before anything is drawn, with file and line.

And a reward says which one it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import rewards
from rewards.base import PromptError, Reward, RewardOutput, check_each
from rewards.function import FunctionReward, as_reward
from rewards.identity import fingerprint, hide_secrets
from rewards.weighted_sum import Composite
from t2i_gcpo import cli
from t2i_gcpo.data.prompts import read
from t2i_gcpo.evaluation.scorable import check_scorable

STAR = {"class": "star", "count": 1}
GOOD = {"tag": "single_object", "include": [STAR]}


def refusal(row: Any, reward: Reward | None = None) -> str:
    """What the reward says of the second of two prompts."""
    with pytest.raises(PromptError) as caught:
        (reward or rewards.load("geneval")).check_prompts(["a star", "a riddle"], [GOOD, row])
    assert caught.value.index == 1 and "'a riddle'" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({}, "no metadata"),
        ({"tag": "x"}, "no metadata"),
        ({"include": []}, "no metadata"),
        ({"include": {"class": "star"}}, "'include' is {'class': 'star'}"),
        ({"include": "star"}, "'include' is 'star'"),
        ({"include": ["star"]}, "'include' is ['star']"),
        ({"include": [STAR], "exclude": {"class": "ring", "count": 1}}, "'exclude' is {'class': 'ring'"),
        ({"include": [{}]}, "'class' of include[0] is None"),
        ({"include": [{"class": 7}]}, "'class' of include[0] is 7"),
        ({"include": [{"class": "cat"}]}, "asks for the class 'cat', which the detector cannot find"),
        ({"include": [STAR, {"class": "ring", "count": "two"}]}, "'count' of include[1] is 'two'"),
        ({"include": [{"class": "ring", "colour": "red"}]}, "include[0] has the key 'colour'"),
        ({"include": [STAR], "exclude": [{"class": "ring", "color": "red"}]}, "exclude[0] has the key 'color'"),
        ({"include": [{"class": "ring", "count": -1}]}, "'count' of include[0] is -1"),
        ({"include": [{"class": "ring", "count": 0}]}, "'count' of include[0] is 0"),
        ({"include": [{"class": "ring", "count": 17}]}, "is 17; it must be a whole number from 1 to 16"),
        (
            {"include": [STAR], "exclude": [{"class": "ring", "count": 10**30}]},
            "it must be a whole number from 1 to 16",
        ),
        ({"include": [{"class": "ring", "count": 0.5}]}, "'count' of include[0] is 0.5"),
        ({"include": [{"class": "ring", "count": 1e400}]}, "'count' of include[0] is inf"),
        ({"include": [{"class": "ring", "count": True}]}, "'count' of include[0] is True"),
        ({"include": [STAR], "exclude": [{"class": "ring", "count": -3}]}, "'count' of exclude[0] is -3"),
        ({"include": [{**STAR, "color": 3}]}, "'color' of include[0] is 3"),
        ({"include": [{**STAR, "color": "turquoise"}]}, "asks for the colour 'turquoise'"),
        ({"include": [STAR, {"class": "ring", "position": "left of"}]}, "'position' of include[1] is 'left of'"),
        ({"include": [STAR, {"class": "ring", "position": ["left of"]}]}, "must be a pair"),
        ({"include": [STAR, {"class": "ring", "position": ["beside", 0]}]}, "unknown relation 'beside'"),
        ({"include": [STAR, {"class": "ring", "position": [["a"], 0]}]}, "unknown relation ['a']"),
        ({"include": [STAR, {"class": "ring", "position": ["left of", 99]}]}, "earlier include clause (0 to 0)"),
        ({"include": [STAR, {"class": "ring", "position": ["left of", 1]}]}, "earlier include clause (0 to 0)"),
        ({"include": [STAR, {"class": "ring", "position": ["left of", -1]}]}, "earlier include clause"),
        ({"include": [STAR, {"class": "ring", "position": ["left of", 0.5]}]}, "earlier include clause"),
        ({"include": [STAR, {"class": "ring", "position": ["left of", None]}]}, "earlier include clause"),
        ({"include": [{**STAR, "position": ["left of", 0]}]}, "there is none before the first"),
        ({"tag": ["x"], "include": [STAR]}, "'tag' is ['x']"),
    ],
)
def test_a_geneval_row_that_cannot_be_judged_is_refused_by_name(row: dict[str, Any], says: str) -> None:
    assert says in refusal(row)
    image = torch.full((1, 3, 96, 96), 160, dtype=torch.uint8)
    with pytest.raises(ValueError) as caught:  # and never scored, whatever the picture
        rewards.load("geneval")(image, ["a riddle"], [row])
    assert says in str(caught.value)


def test_whole_rows_pass() -> None:
    row = {
        "tag": "position",
        "include": [{"class": "star"}, {"class": "ring", "count": 2.0, "color": "red", "position": ("above", 0)}],
        "exclude": [{"class": "heart", "count": None}],
    }
    rewards.load("geneval").check_prompts(["a", "b"], [row, {"exclude": [STAR], "include": None}])
    anything = rewards.geneval.reward.GenEvalReward(detector=lambda images: [], colors=lambda found: [])
    anything.check_prompts(["a"], [{"include": [{"class": "cat", "color": "turquoise"}]}])


def test_other_rewards_take_any_prompt_and_a_sum_takes_what_all_take() -> None:
    ones = FunctionReward(lambda images, prompts, metadata: [1.0] * len(images))
    ones.check_prompts(["a", "b"], [{}, {}])

    class Short(Reward):
        def check_prompts(self, prompts: Any, metadata: Any) -> None:
            def check(prompt: str, row: dict[str, Any]) -> None:
                if len(prompt) > 3:
                    raise ValueError("too long")

            check_each(check, prompts, metadata)

    both = Composite({"ones": ones, "short": Short(), "geneval": rewards.load("geneval")})
    both.check_prompts(["abc"], [GOOD])
    for prompts, rows, index in (
        (["abcd", "a"], [GOOD, {}], 0),
        (["a", "abcd"], [{}, GOOD], 0),
        (["a", "b"], [GOOD, {}], 1),
    ):
        with pytest.raises(PromptError) as caught:
            both.check_prompts(prompts, rows)
        assert caught.value.index == index


def test_an_object_s_own_check_is_asked() -> None:
    class Mine:
        def __call__(self, images: Any, prompts: Any, metadata: Any) -> Any:
            return [1.0] * len(images)

        def check_prompts(self, prompts: Any, metadata: Any) -> None:
            raise PromptError(0, "never")

    with pytest.raises(PromptError, match="never"):
        as_reward(Mine()).check_prompts(["a"], [{}])


# -- with file and line ------------------------------------------------------------------------------------------------


def bad_file(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    rows = [
        {"prompt": "a photo of a star", **GOOD},
        {"prompt": "a photo of a ring", "include": [{"class": "ring", "count": "two"}]},
    ]
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    return path


def test_the_place_of_a_prompt_is_named(tmp_path: Path) -> None:
    prompts = read(bad_file(tmp_path))
    with pytest.raises(
        ValueError, match=r"rows.jsonl, line 3: .*'a photo of a ring'.*'count' of include\[0\] is 'two'"
    ):
        check_scorable([*prompts, prompts[0]], rewards.load("geneval"))
    (tmp_path / "lines.txt").write_text("a\n\nb\n")
    assert [p.source.rpartition(", ")[2] for p in read(tmp_path / "lines.txt")] == ["line 1", "line 3"]
    (tmp_path / "t.csv").write_text("Prompts,Category\na,x\nb,y\n")
    assert [p.source.rpartition(", ")[2] for p in read(tmp_path / "t.csv")] == ["line 2", "line 3"]
    assert read("shapes:val")[0].source == ""


@pytest.mark.parametrize("option", ["prompts.train", "prompts.validation", "prompts.test"])
def test_train_refuses_them_before_it_loads_anything(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from t2i_gcpo import generators

    monkeypatch.setattr(generators, "load", lambda *_, **__: pytest.fail("the generator was loaded"))
    arguments = ["train", "--config", "configs/quickstart.yaml", "--output-dir", str(tmp_path / "run")]
    assert cli.main([*arguments, f"--{option}", str(bad_file(tmp_path))]) == 2
    assert "rows.jsonl, line 3: " in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_eval_and_score_refuse_them_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    from t2i_gcpo import generators

    monkeypatch.setattr(generators, "load", lambda *_, **__: pytest.fail("the generator was loaded"))
    file = str(bad_file(tmp_path))
    assert cli.main(["eval", "--checkpoint", "janus-mini", "--prompts", file, "--out", str(tmp_path / "eval")]) == 2
    assert "rows.jsonl, line 3: " in capsys.readouterr().err
    (tmp_path / "images").mkdir()
    for k in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{k}.png")
    monkeypatch.setattr("rewards.geneval.reward.GenEvalReward.__call__", lambda *_: pytest.fail("a picture was scored"))
    arguments = ["score", "--reward", "geneval", "--images", str(tmp_path / "images"), "--prompts", file]
    assert cli.main([*arguments, "--out", str(tmp_path / "scores.json")]) == 2
    assert "rows.jsonl, line 3: " in capsys.readouterr().err and not (tmp_path / "scores.json").exists()


def test_the_trainer_and_evaluate_of_python_refuse_them(tmp_path: Path) -> None:
    from helpers.fake_generator import FakeGenerator
    from t2i_gcpo.evaluation.evaluate import evaluate
    from t2i_gcpo.records import Sampling
    from t2i_gcpo.training.trainer import Trainer

    class Generator(FakeGenerator):
        def check_prompts(self, prompts: Any) -> None:
            return None

    prompts, geneval = read(bad_file(tmp_path)), rewards.load("geneval")
    with pytest.raises(ValueError, match="rows.jsonl, line 3: "):
        Trainer(Generator(), geneval, prompts, tmp_path / "run")
    for reward, held_out in ((geneval, {}), (lambda images, *_: [1.0] * len(images), {"geneval": geneval})):
        with pytest.raises(ValueError, match="rows.jsonl, line 3: "):
            evaluate(FakeGenerator(), prompts, reward, sampling=Sampling(), seed=0, held_out=held_out)


# -- identity ----------------------------------------------------------------------------------------------------------


def twice(images: Any, prompts: Any, metadata: Any, factor: float = 2.0, **options: Any) -> list[float]:
    return [factor] * len(images)


def test_a_reward_says_which_one_it_is() -> None:
    plain, same, other = (
        rewards.load("geneval"),
        rewards.load("geneval", score="strict"),
        rewards.load("geneval", score="clauses"),
    )
    identity = plain.identity()
    assert identity["name"] == "geneval" and identity["weights"] is None
    assert identity["options"]["score"] == "strict" and identity["options"]["detector"] == "shapes"
    assert identity == same.identity(), "an option that is given as its default says nothing new"
    assert fingerprint(identity) == fingerprint(same.identity()) != fingerprint(other.identity())
    assert json.loads(json.dumps(identity)) == identity


def test_where_a_scorer_runs_and_its_secrets_are_no_part_of_its_identity() -> None:
    loaded = rewards.load(f"{__name__}:twice", factor=3.0)
    assert loaded.identity() == {"name": f"{__name__}:twice", "options": {"factor": 3.0}, "weights": None}
    one = FunctionReward(
        twice, device="cpu", batch_size=4, api_token="hunter2", inner={"password": "hunter2", "tokenizer": "bert"}
    )
    assert one.identity()["options"] == {"inner": {"tokenizer": "bert"}}
    assert "hunter2" not in json.dumps(hide_secrets(one.options)) and hide_secrets({"tokenizer": "bert"}) == {
        "tokenizer": "bert"
    }
    assert "0x" not in json.dumps(FunctionReward(twice, model=object(), by=twice).identity()), "no address of an object"


def test_the_identity_of_a_sum_is_that_of_its_rewards_and_weights() -> None:
    def mixture(weight: float, score: str) -> Any:
        return rewards.load("composite", rewards={"geneval": {"weight": weight, "score": score}}).identity()

    one = mixture(0.5, "strict")
    assert one["weights"] == {"geneval": 0.5} and one["options"]["rewards"]["geneval"]["options"]["score"] == "strict"
    assert one == mixture(0.5, "strict") and one != mixture(0.6, "strict") and one != mixture(0.5, "clauses")


def test_a_class_that_only_scores_is_a_reward_with_defaults() -> None:
    class Ones(Reward):
        def __call__(self, images: Any, prompts: Any, metadata: Any) -> RewardOutput:
            return RewardOutput(torch.ones(len(images)))

    ones = Ones()
    ones.check_prompts(["a"], [{}])
    assert ones.weights is None and ones.identity() == {"name": "Ones", "options": {}, "weights": None}
    assert as_reward(ones) is ones
    with pytest.raises(ValueError, match="cannot be called"):
        as_reward(3)
