"""Where credit lies: on rendered scenes whose objects are known, with credit that was put there by hand."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange, repeat
from torch import Tensor

from helpers.fake_generator import FakeGenerator, options, token_score
from rewards import RewardOutput
from rewards.geneval import Detection
from rewards.geneval.detectors.shapes import ShapesDetector
from t2i_gcpo import cli, credit, generators
from t2i_gcpo.algorithms import ALL_STATS
from t2i_gcpo.commands import evaluate as evaluate_command
from t2i_gcpo.data.shapes.prompts import split
from t2i_gcpo.data.shapes.scene import sample_scene
from t2i_gcpo.evaluation import localisation
from t2i_gcpo.evaluation.causal_file import Truth
from t2i_gcpo.evaluation.causal_influence import Influence
from t2i_gcpo.evaluation.credit_location import (
    DRAWS,
    MEASURES,
    CreditObserver,
    CreditResult,
    credit_values,
    named,
    weights,
)
from t2i_gcpo.evaluation.evaluate import evaluate
from t2i_gcpo.records import Prompt, Rollout, Sampling
from t2i_gcpo.reports.tables import credit_rows, credit_share_rows

GRID = (12, 12)
PROMPTS = [prompt for prompt in split("test") if prompt.task in ("colors", "two_object")][::4]


def scenes() -> tuple[Tensor, np.ndarray]:
    """Each prompt's scene [P, 3, H, W], and the cells [P, T] of its objects."""
    found = [sample_scene(prompt.metadata, random.Random(k)) for k, prompt in enumerate(PROMPTS)]
    images = rearrange(torch.from_numpy(np.stack([scene.render() for scene in found])), "b h w c -> b c h w")
    masks = [np.any([one.mask for one in objects], axis=0) for objects in ShapesDetector()(images)]
    return images, localisation.cells(np.stack(masks), GRID)


def rollout(prompts: list[Prompt], **values: Tensor) -> Rollout:
    """`values`: positive, negative [P, T] and statistics; zeros where they are not given."""
    zeros = torch.zeros(len(prompts), GRID[0] * GRID[1])
    positive = values.pop("positive", zeros - 1)
    return Rollout(
        tokens=zeros.long(),
        logprob_positive=positive,
        logprob_negative=values.pop("negative", positive),
        logprob_behaviour=positive,
        commit_step=repeat(torch.arange(zeros.shape[1]), "t -> b t", b=len(prompts)).clone(),
        prompts=tuple(prompts),
        grid=GRID,
        sampling=Sampling(),
        stats={name: values.get(name, zeros) for name in ALL_STATS},
    )


def perfect() -> tuple[CreditResult, np.ndarray]:
    """A contrast on the objects' cells and nowhere else; an entropy everywhere else."""
    images, target = scenes()
    there = torch.from_numpy(target).float()
    observer = CreditObserver(ShapesDetector())
    observer(rollout(PROMPTS, negative=-1 - 2 * there, entropy=1 - there, exact_kl=there, js=there), images)
    return observer.result(seed=1, checkpoint="x"), target


def test_credit_on_the_objects_is_found_and_credit_beside_them_is_not() -> None:
    result, target = perfect()
    assert (result.images, result.left_out) == (len(PROMPTS), 0)
    assert result.object_cells == pytest.approx(target.mean())
    for name in ("kl", "abs", "js", "information_gain", "exact_kl", "js_full"):
        measures, shares = result.find(name).measures, result.find(name).shares
        assert measures["auroc"].overall == 1 and measures["pointing"].overall == 1
        assert measures["auroc_less_entropy"].overall == 1 and measures["auroc_begins"].overall > 0.9
        assert shares["none"].overall == shares["minmax"].overall == pytest.approx(1)
        assert target.mean() < shares["rank"].overall < 1 and target.mean() < shares["softmax"].overall < 1
    entropy = result.find("entropy").measures
    assert (entropy["auroc"].overall, entropy["pointing"].overall) == (0, 0)


def test_the_controls_are_at_chance() -> None:
    result, target = perfect()
    chance = result.find("uniform").shares["rank"].overall
    tasks = [prompt.task for prompt in PROMPTS]
    by_task = [target[[task == name for task in tasks]].mean() for name in dict.fromkeys(tasks)]
    assert chance == pytest.approx(np.mean(by_task))
    assert result.find("uniform").measures["auroc"].overall == 0.5
    assert result.find("surprisal").measures["auroc"].overall == 0.5  # the same at every token here
    for name in ("random", "shuffled"):
        measures = result.find(name).measures
        assert measures["auroc"].overall == pytest.approx(0.5, abs=0.03)
        assert result.find(name).shares["rank"].overall == pytest.approx(chance, abs=0.03)
        assert measures["auroc"].by_task["colors"] != 0.5


def test_the_noise_of_the_controls_is_averaged_over_draws_and_seeded() -> None:
    one = rollout(PROMPTS, negative=-1 - torch.rand(len(PROMPTS), 144, generator=torch.Generator().manual_seed(0)))
    values = credit_values(one, seed=3)
    assert len(values["random"]) == len(values["shuffled"]) == DRAWS and len(values["kl"]) == 1
    assert all((draw != values["random"][0]).any() for draw in values["random"][1:])
    for draw in values["shuffled"]:
        assert (draw != values["kl"][0]).any()
        np.testing.assert_array_equal(np.sort(draw.numpy()), np.sort(values["kl"][0].numpy()))
    assert (credit_values(one, seed=3)["random"][0] == values["random"][0]).all()
    assert (credit_values(one, seed=4)["random"][0] != values["random"][0]).any()


def test_the_weights_are_those_of_training() -> None:
    one = rollout(PROMPTS, negative=-1 - torch.rand(len(PROMPTS), 144, generator=torch.Generator().manual_seed(0)))
    values = credit_values(one)
    for normalization in ("rank", "softmax", "minmax", "none"):
        wanted = credit.token_weights(
            one.logprob_positive,
            one.logprob_negative,  # type: ignore[arg-type]
            divergence="js",
            normalization=normalization,  # type: ignore[arg-type]
        )
        assert (weights("js", values["js"][0], one, normalization) == wanted).all()  # type: ignore[arg-type]
    assert (weights("entropy", values["entropy"][0] + 1, one, "rank") - 1).abs().max() < 1e-5
    with pytest.raises(ValueError, match="lacks exact_kl"):
        credit_values(replace(one, stats={"entropy": one.stats["entropy"], "js": one.stats["js"]}))
    with pytest.raises(ValueError, match="lacks contrast"):
        credit_values(replace(one, logprob_negative=None))


def test_every_number_is_that_of_the_pure_functions() -> None:
    images, target = scenes()
    rng = torch.Generator().manual_seed(0)
    noise = [torch.rand(target.shape, generator=rng) for _ in range(4)]
    one = rollout(PROMPTS, positive=-1 - noise[0], negative=-1 - noise[1], entropy=noise[2], exact_kl=noise[3])
    observer = CreditObserver(ShapesDetector())
    observer(one, images)
    result, values = observer.result(seed=5), credit_values(one, seed=5)
    order = np.arange(144)
    begins = np.stack(
        [
            localisation.first_cells([localisation.cells(found.mask, GRID) for found in objects], order)  # type: ignore[arg-type]
            for objects in ShapesDetector()(images)
        ]
    )
    tasks = np.array([prompt.task for prompt in PROMPTS])

    def overall(each: np.ndarray) -> float:
        return float(np.mean([each[tasks == name].mean() for name in set(tasks)]))

    entropy = localisation.auroc(values["entropy"][0].numpy(), target)
    for name, draws in values.items():
        measures = result.find(name).measures
        auroc = np.mean([localisation.auroc(draw.numpy(), target) for draw in draws], axis=0)
        assert measures["auroc"].overall == pytest.approx(overall(auroc))
        assert measures["auroc_less_entropy"].overall == pytest.approx(overall(auroc - entropy), abs=1e-9)
        started = np.mean([localisation.auroc(draw.numpy(), begins) for draw in draws], axis=0)
        assert measures["auroc_begins"].overall == pytest.approx(overall(started))


def test_batches_change_nothing() -> None:
    images, target = scenes()
    negative = -1 - torch.rand(target.shape, generator=torch.Generator().manual_seed(0))
    results = []
    for sizes in ([len(PROMPTS)], [3, 1, len(PROMPTS) - 4]):
        observer = CreditObserver(ShapesDetector())
        for part in torch.arange(len(PROMPTS)).split(sizes):
            observer(rollout([PROMPTS[k] for k in part], negative=negative[part]), images[part])
        results.append(observer.result().to_json())
    assert results[0] == results[1]


def test_an_image_without_the_objects_of_its_prompt_is_left_out_and_counted() -> None:
    images, target = scenes()
    images[0] = images[0, :, :1, :1]  # background all over
    observer = CreditObserver(ShapesDetector())
    observer(rollout(PROMPTS, negative=-1 - 2 * torch.from_numpy(target).float()), images)
    result = observer.result()
    assert (result.images, result.left_out) == (len(PROMPTS) - 1, 1)
    assert result.find("kl").measures["auroc"].n == len(PROMPTS) - 1
    assert result.object_cells == pytest.approx(target[1:].mean())
    empty = CreditObserver(ShapesDetector())
    empty(rollout(PROMPTS[:1]), images[:1])
    with pytest.raises(ValueError, match="none of the 1 images"):
        empty.result()


def test_which_objects_a_prompt_names() -> None:
    prompt = Prompt("a red star and a ring", {"include": [{"class": "star", "color": "red"}, {"class": "ring"}]})
    mask = np.ones((2, 2), dtype=bool)

    def seen(name: str, color: str, score: float = 0.95, mask: np.ndarray | None = mask) -> Detection:
        return Detection(name, score, (0, 0, 1, 1), mask, color)

    good = [seen("star", "red"), seen("ring", "blue"), seen("ring", "red", 0.31)]
    assert named([*good, seen("star", "blue"), seen("heart", "red"), seen("ring", "red", 0.3)], prompt) == good
    with pytest.raises(ValueError, match="gives no masks"):
        named([seen("ring", "red", mask=None)], prompt)
    with pytest.raises(ValueError, match="'a cat' does not say which objects"):
        named(good, Prompt("a cat"))


def test_the_file_and_the_tables_hold_every_map(tmp_path: Path) -> None:
    result, _ = perfect()
    data = json.loads(result.save(tmp_path / "a" / "credit.json").read_text())
    assert (data["checkpoint"], data["seed"]) == ("x", 1) and set(data["measures"]) == set(MEASURES)
    assert len(data["maps"]) == 11 and all(len(m["share_of_weights"]) == 4 for m in data["maps"])
    kl = next(m for m in data["maps"] if m["map"] == "kl")
    assert kl["auroc"] == {"mean": 1, "ci95": [1, 1], "by_task": {"two_object": 1, "colors": 1}, "n": len(PROMPTS)}
    header, rows = credit_rows(result)
    assert [row[0] for row in rows][:6] == ["kl", "abs", "js", "information_gain", "exact_kl", "js_full"]
    assert [row[0] for row in rows][6:] == ["entropy", "surprisal", "shuffled", "random", "uniform"]
    assert rows[0][:3] == ["kl", "1.000 [1.000, 1.000]", "+1.000 [+1.000, +1.000]"] and len(header) == len(rows[0])
    header, rows = credit_share_rows(result)
    assert header[1:] == ["rank", "softmax", "minmax", "none"] and all(len(row) == 5 for row in rows)
    assert rows[0][4] == "1.000 [1.000, 1.000]" and rows[-1][1] == rows[-1][4] != rows[0][1]


def test_watching_changes_no_image_and_keeps_what_it_needs() -> None:
    def score(images: Tensor, prompts: list[str], metadata: list[dict[str, object]]) -> RewardOutput:
        return RewardOutput(token_score(images))

    seen: list[Rollout] = []
    prompts = [Prompt(f"prompt {k}") for k in range(5)]
    plain = evaluate(FakeGenerator(), prompts, score, **options())
    wanted = options(sampling=Sampling(guidance=2.0, stats=("entropy", "js")))
    watched = evaluate(FakeGenerator(), prompts, score, **wanted, batch=2, observe=lambda r, images: seen.append(r))
    assert watched.rows == plain.rows
    assert sum(one.batch for one in seen) == 5
    assert all(one.logprob_negative is not None and set(one.stats) == {"entropy", "js"} for one in seen)


def star() -> Detection:
    """Return a red star in the upper left."""
    mask = np.zeros((8, 8), dtype=bool)
    mask[:2, :4] = True
    return Detection("star", 0.95, (0, 0, 4, 2), mask, "red")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(evaluate_command, "load_detector", lambda name: lambda images: [[star()]] * len(images))
    monkeypatch.setattr(generators, "load", lambda name, **_: FakeGenerator())
    rows = [{"tag": "t", "include": [{"class": "star", "count": 1}], "prompt": f"a star {k}"} for k in range(3)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--checkpoint", "x", "--prompts", str(tmp_path / "p.jsonl"), "--out", str(tmp_path / "out")]
    assert evaluate_command.main([*arguments, "--credit"]) == 0
    data = json.loads((tmp_path / "out" / "credit.json").read_text())
    assert (data["images"], data["checkpoint"], data["object_cells"]) == (3, "x", 2 / 16)
    shown = capsys.readouterr().out
    assert "information_gain" in shown and "credit.json" in shown
    assert evaluate_command.main([*arguments[:-1], str(tmp_path / "plain")]) == 0
    assert not (tmp_path / "plain" / "credit.json").exists()


def test_the_maps_against_what_each_token_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the influence is one map's own values, that map agrees wholly; the file must be of the checkpoint."""
    generator = FakeGenerator()
    monkeypatch.setattr(generators, "load", lambda name, **_: generator)
    monkeypatch.setattr(evaluate_command, "load_detector", lambda name: lambda images: [[star()]] * len(images))
    drawn = generator.sample(["a star", "two stars"], Sampling(group_size=2, stats=ALL_STATS))
    drawn = replace(drawn, stats={name: torch.rand(value.shape) for name, value in drawn.stats.items()})
    entropy = drawn.stats["entropy"]
    influence = Influence(entropy.square(), entropy.square().expand(2, -1, -1), 9)
    truth = Truth(drawn, influence, generator.decode(drawn.tokens), torch.ones(4), {"checkpoint": "x"})
    path = str(truth.save(tmp_path / "truth.safetensors"))
    (tmp_path / "p.jsonl").write_text('{"include": [{"class": "star", "count": 1}], "prompt": "a star"}\n')
    arguments = ["eval", "--prompts", str(tmp_path / "p.jsonl"), "--out", str(tmp_path / "out"), "--checkpoint"]
    assert cli.main([*arguments, "x", "--credit", "--truth", path]) == 0
    measured = json.loads((tmp_path / "out" / "credit.json").read_text())["truth"]
    assert set(measured["rules"]) >= {"kl", "exact_kl", "entropy", "surprisal", "random", "shuffled", "uniform"}
    assert measured["rules"]["entropy"]["rank_correlation"]["mean"] == pytest.approx(1)
    assert measured["rules"]["entropy"]["auroc"]["mean"] == 1 and measured["rules"]["uniform"]["auroc"]["mean"] == 0.5
    assert abs(measured["rules"]["random"]["rank_correlation"]["mean"]) < 0.3
    assert "Against what each token does to the reward" in capsys.readouterr().out
    for wrong, message in (
        (["x", "--truth", path], "--truth compares the maps of --credit with it; give --credit too"),
        (["y", "--credit", "--truth", path], "was measured on the checkpoint x, and --checkpoint is y"),
        (["x", "--credit", "--truth", "nowhere"], "nowhere is no measured influence"),
    ):
        assert cli.main([*arguments, *wrong]) == 2 and message in capsys.readouterr().err


def test_prompts_that_name_no_objects_are_refused_before_any_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.jsonl"
    good = '{"prompt": "a red circle", "include": [{"class": "circle", "color": "red"}]}'
    options = ["--checkpoint", "nowhere", "--prompts", str(file), "--reward", "clip", "--out", str(tmp_path / "out")]
    for bad, message in (
        ('{"prompt": "a cat"}', "the prompt 'a cat' does not say which objects it names"),
        ('{"prompt": "a cat", "include": [{"class": "cat", "count": 0}]}', "the 'count' of include[0] is 0"),
    ):
        file.write_text(f"{good}\n{good}\n{bad}\n")
        assert cli.main(["eval", *options, "--credit"]) == 2
        assert f"{file}, line 3: {message}" in capsys.readouterr().err
    assert cli.main(["eval", *options]) == 2 and "no checkpoint 'nowhere'" in capsys.readouterr().err
