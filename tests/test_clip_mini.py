"""clip-mini: its captions and loss, its training, how it is measured, and the checkpoint that ships."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import rewards
from rewards.geneval import judge
from rewards.geneval.vocabulary import CLASSES, PLURALS
from rewards.models.torchvision_mend import mend
from rewards.scorers.clip import ASSETS, CLIP_MINI
from t2i_gcpo import cli
from t2i_gcpo.data.shapes.prompts import SPLITS, TASKS, split
from t2i_gcpo.data.shapes.scene import Scene, SceneObject, sample_scene
from t2i_gcpo.pretrain import command as pretrain_command
from t2i_gcpo.pretrain.amused import command as pretrain_masked
from t2i_gcpo.pretrain.amused.model import TEXT_LENGTH, tokenizer
from t2i_gcpo.pretrain.clip import command as pretrain_clip
from t2i_gcpo.pretrain.clip.captions import changed_word, family, mirrored, neighbours, shows
from t2i_gcpo.pretrain.clip.model import ClipShape, build, save
from t2i_gcpo.pretrain.clip.retrieval import measure, render, retrieve
from t2i_gcpo.pretrain.clip.train import ClipSettings, ClipTrainer, contrastive_loss, draw_batch, encode
from t2i_gcpo.pretrain.janus import command as pretrain
from t2i_gcpo.pretrain.stages import save_state
from t2i_gcpo.records import Prompt

mend()

SHAPE = ClipShape(features=8, width=8, text_layers=1, text_width=8, text_heads=1)
SETTINGS = ClipSettings(steps=4, families=2, family=3, misses=1, warmup=2, bfloat16=False)


def trained(steps: int = 0, **changes: Any) -> ClipTrainer:
    trainer = ClipTrainer(ClipSettings(**{**vars(SETTINGS), **changes}), build(SHAPE, 0))
    for _ in range(steps):
        trainer.step()
    return trainer


# -- captions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        ("a photo of a red star", "a photo of a blue star", "color"),
        ("a photo of a red star", "a photo of an orange star", "color"),
        ("a photo of a red star", "a photo of a red ring", "class"),
        ("a photo of two stars", "a photo of four stars", "count"),
        ("a photo of two stars", "a photo of two crosses", "class"),
        ("a photo of a star left of a ring", "a photo of a star above a ring", "relation"),
        ("a photo of a star left of a ring", "a photo of a ring left of a star", None),
        ("a photo of a red star", "a photo of a blue ring", None),
        ("a photo of a red star", "a photo of a red star", None),
        ("a photo of a star", "a photo of two stars", None),
    ],
)
def test_the_word_in_which_captions_differ(first: str, second: str, kind: str | None) -> None:
    assert changed_word(first, second) == changed_word(second, first) == kind


def test_the_caption_that_says_the_opposite_with_the_same_words() -> None:
    found = {prompt.text: mirrored(prompt) for name in SPLITS for prompt in split(name)}
    assert found["a photo of a star above a ring"] == "a photo of a star below a ring"
    red, blue = "a photo of a red circle and a blue star", "a photo of a blue circle and a red star"
    assert found.get(red, blue) == blue and found.get(blue, red) == red
    rng = random.Random(0)
    by_text = {prompt.text: prompt for name in SPLITS for prompt in split(name)}
    for prompt in rng.sample(list(by_text.values()), 150):
        opposite = found[prompt.text]
        assert (opposite is None) == (prompt.task not in ("position", "color_attr"))
        if opposite is None:
            continue
        assert mirrored(by_text.get(opposite, prompt)) in (prompt.text, opposite)
        if opposite in by_text:
            assert not shows([sample_scene(prompt.metadata, rng)], [by_text[opposite]])[0, 0]


def test_neighbours_are_all_prompts_that_differ_in_one_word() -> None:
    found, prompts = neighbours(("train",)), split("train")
    for prompt in random.Random(0).sample(prompts, 20):
        expected: dict[str, set[str]] = {}
        for other in prompts:
            kind = changed_word(prompt.text, other.text)
            if kind is not None:
                expected.setdefault(kind, set()).add(other.text)
        assert {
            kind: {other.text for other in others} for kind, others in found[prompt.text].items() if others
        } == expected


def test_a_family_is_of_training_prompts_that_miss_by_one_word() -> None:
    rng, training = random.Random(0), {prompt.text for prompt in split("train")}
    for task in TASKS:
        anchor = next(prompt for prompt in split("train") if prompt.task == task)
        texts = [member.text for member in family(anchor, 5, rng, ("train",))]
        assert texts[0] == anchor.text and len(set(texts)) == 5 and set(texts) <= training
        assert all(changed_word(anchor.text, text) for text in texts[1:])
    lonely = Prompt("a photo of a star", {"tag": "x", "include": []})
    assert len(family(lonely, 100, rng, ("train",))) == 8, "itself and the seven other classes: there are no more"


def test_who_shows_what_equals_a_slow_loop() -> None:
    rng = random.Random(0)
    prompts = [rng.choice([p for p in split(name) if p.task == task]) for task in TASKS for name in SPLITS]
    scenes = [sample_scene(prompt.metadata, rng) for prompt in prompts]
    slow = [[judge([t.detection() for t in scene.objects], p.metadata).correct for p in prompts] for scene in scenes]
    found = shows(scenes, prompts)
    assert found.tolist() == slow and found.diagonal().all() and 1.1 < found.sum() / len(prompts) < len(prompts) / 2
    assert shows(scenes[:2], []).shape == (2, 0)


# -- loss and training ------------------------------------------------------------------------------------------------


def test_the_loss_by_hand() -> None:
    """Two pictures, three captions, cosines 1, 0.6 and 0 and 0, 0.8, 1 at scale 2."""
    images, texts = torch.eye(2), torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    none = torch.zeros(2, 3, dtype=torch.bool)
    loss, right = contrastive_loss(images, texts, torch.tensor(2.0), none)
    e = math.exp
    to_texts = -math.log(e(2) / (e(2) + e(1.2) + 1)) - math.log(e(1.6) / (1 + e(1.6) + e(2)))
    to_images = -math.log(e(2) / (e(2) + 1)) - math.log(e(1.6) / (e(1.2) + e(1.6)))
    assert float(loss) == pytest.approx((to_texts + to_images) / 4, abs=1e-6)
    assert float(right) == 0.5, "the second picture is nearer to the near miss"
    excused = none.clone()
    excused[1, 2] = True  # the third caption is true of the second picture
    loss, right = contrastive_loss(images, texts, torch.tensor(2.0), excused)
    to_texts = -math.log(e(2) / (e(2) + e(1.2) + 1)) - math.log(e(1.6) / (1 + e(1.6)))
    assert float(loss) == pytest.approx((to_texts + to_images) / 4, abs=1e-6) and float(right) == 1


def test_the_gradient_pulls_pairs_together_and_near_misses_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(3, 5, generator=generator), dim=-1)
    texts = F.normalize(torch.randn(6, 5, generator=generator), dim=-1).requires_grad_()
    excused = torch.zeros(3, 6, dtype=torch.bool)
    excused[0, 5] = excused[1, 5] = excused[2, 5] = True
    loss, _ = contrastive_loss(images, texts, torch.tensor(4.0), excused)
    (gradient,) = torch.autograd.grad(loss, texts)
    along = (gradient[:3] * images).sum(dim=-1)
    assert (along < 0).all(), "a step down the gradient raises each picture's similarity to its caption"
    weights = (4.0 * images @ texts.T).masked_fill(excused, -torch.inf).softmax(dim=1)[:, 3:5]
    expected = torch.einsum("n m, n d -> m d", weights, images) * 4.0 / 3 / 2
    torch.testing.assert_close(gradient[3:5], expected, rtol=1e-4, atol=1e-6)
    assert not gradient[5].any(), "a caption that is true of all pictures is no one's negative"


def test_a_batch_holds_training_captions_and_excuses_what_is_true() -> None:
    words = tokenizer()
    batch = draw_batch(random.Random(3), SETTINGS, words)
    pictures, captions = batch.false_negatives.shape
    assert batch.pixels.shape == (pictures, 3, 96, 96) and batch.pixels.abs().max() <= 1
    assert pictures == 6 and captions == 12 and batch.tokens.shape == (captions, TEXT_LENGTH)
    assert not batch.false_negatives.diagonal().any()
    training = {tuple(row) for row in encode([prompt.text for prompt in split("train")], words).tolist()}
    short = encode([prompt.text.removeprefix("a photo of ") for prompt in split("train")], words)
    training |= {tuple(row) for row in short.tolist()}
    drawn = [draw_batch(random.Random(seed), SETTINGS, words) for seed in range(8)]
    assert {tuple(row) for b in drawn for row in b.tokens.tolist()} <= training
    assert any(b.false_negatives.any() for b in drawn)
    again = draw_batch(random.Random(3), SETTINGS, words)
    assert torch.equal(again.pixels, batch.pixels) and torch.equal(again.tokens, batch.tokens)


def test_training_resumes_bit_for_bit(tmp_path: Path) -> None:
    straight, first, second = trained(), trained(2), trained()
    losses = [straight.step()["loss"] for _ in range(4)]
    save_state(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [second.step()["loss"] for _ in range(2)] == losses[2:]
    ends = [trainer.finished().state_dict() for trainer in (straight, second)]
    assert ends[0].keys() == ends[1].keys() and all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    for name, value in straight.optimisation.average.items():
        assert torch.equal(ends[0][name], value), "the averaged weights are what ships"


def test_the_statistics_are_those_of_the_averaged_weights() -> None:
    trainer = trained(2)
    model = trainer.finished()
    assert not model.training
    seen: list[Tensor] = []
    handle = model.visual.bn1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    rng = random.Random(trainer.settings.seed + 1)
    means = []
    for _ in range(20):
        with torch.no_grad():
            model.encode_image(draw_batch(rng, trainer.settings, trainer.words).pixels)
        means.append(seen.pop().mean(dim=(0, 2, 3)))
    handle.remove()
    torch.testing.assert_close(model.visual.bn1.running_mean, torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)


def test_the_saved_folder_is_a_checkpoint_of_the_clip_reward(tmp_path: Path) -> None:
    model = trained(1).finished()
    save(model, SHAPE, tmp_path / "mini")
    reward = rewards.load("clip", checkpoint=str(tmp_path / "mini"), unfit_text="raise")
    prompts = [next(p for p in split("test") if p.task == task) for task in TASKS]
    images = render([sample_scene(prompt.metadata, random.Random(0)) for prompt in prompts])
    texts = [prompt.text for prompt in prompts]
    with torch.no_grad():
        pictures = model.encode_image(images.float() / 127.5 - 1)
        captions = model.encode_text(encode(texts, tokenizer()))
    expected = F.cosine_similarity(pictures, captions)
    torch.testing.assert_close(reward(images, texts, [{}] * 6).scores, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="holds words outside the model's vocabulary"):
        reward(images[:1], ["a photo of a dog"], [{}])


# -- the measurement --------------------------------------------------------------------------------------------------


def test_retrieval_by_hand() -> None:
    similarity = torch.tensor([[0.9, 0.1, 0.2, 0.0], [0.8, 0.5, 0.3, 0.0], [0.1, 0.3, 0.3, 0.0]])
    nothing = np.zeros((4, 3), dtype=bool)
    rng = random.Random(0)
    assert retrieve(similarity, nothing, 3, rng) == [True, False, False], "the third is a tie"
    excused = nothing.copy()
    excused[0, 1] = True  # the first picture shows what the second caption says, so the last one takes its place
    assert retrieve(similarity, excused, 3, rng) == [True, True, False]
    with pytest.raises(ValueError, match="caption 1 has 2 pictures that do not show what it says; 4 candidates need 3"):
        retrieve(similarity, excused, 4, rng)
    better = similarity.clone()
    better[0, 3] = 1.0  # of the reserve: only drawn where it is needed
    assert retrieve(better, nothing, 3, rng)[0] and not retrieve(better, nothing, 4, rng)[0]


class Classes:
    """An encoder that knows which classes are there and how often, and nothing else."""

    def texts(self, texts: list[str]) -> Tensor:
        return torch.stack([self.encode(text.split()) for text in texts])

    @staticmethod
    def encode(found: list[str]) -> Tensor:
        counts = [sum(word in (name, PLURALS[name]) for word in found) for name in CLASSES]
        return F.normalize(torch.tensor(counts, dtype=torch.float32), dim=0)

    def images(self, images: Tensor) -> Tensor:
        detect = rewards.load("geneval").detector  # type: ignore[attr-defined]
        return torch.stack([self.encode([one.class_name for one in found]) for found in detect(images)])


def test_the_measurement_of_an_encoder_that_is_blind_to_colours() -> None:
    found = measure(Classes(), candidates=100, rounds=1)  # type: ignore[arg-type]
    assert found.words.by_task["class"] > 0.95 and found.words.by_task["color"] == 0.0
    assert found.words.by_task["relation"] == 0.0 and found.words.by_task["count"] == 0.0
    assert found.mirrors.by_task == {"position": 0.0, "color_attr": 0.0}
    assert found.top1.by_task["single_object"] == 1.0 and found.top1.n == len(split("test"))
    assert found.top1.by_task["color_attr"] < 0.2, "every pair of classes comes in several colours"
    assert set(found.to_json()["top1"]["by_task"]) == set(TASKS)


# -- the checkpoint that ships ----------------------------------------------------------------------------------------


def test_the_embedded_model_retrieves_scenes_of_combinations_never_trained_on() -> None:
    folder = ASSETS / CLIP_MINI
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 15e6
    reward: Any = rewards.load("clip", unfit_text="raise")
    found = measure(reward.encoder, rounds=1, seed=7)
    assert found.top1.overall >= 0.8 and found.top1.n == 144
    claimed = json.loads((folder / "training" / "retrieval.json").read_text())["rendered"]
    assert claimed["top1"]["ci95"][0] - 0.05 <= found.top1.overall <= claimed["top1"]["ci95"][1] + 0.05
    assert (
        f"| overall | {claimed['top1']['n']} | {claimed['top1']['overall']:.3f} |" in (folder / "README.md").read_text()
    )


def test_the_embedded_model_hears_every_kind_of_word() -> None:
    def scene(*things: tuple[str, str, int, int]) -> Scene:
        return Scene(tuple(SceneObject(*thing, 24) for thing in things))

    star = ("star", "red", 8, 40)
    cases: list[tuple[Scene, str, str]] = [
        (scene(star), "a photo of a red star", "a photo of a green star"),
        (scene(star), "a photo of a red star", "a photo of a red heart"),
        (scene(star, ("star", "red", 64, 8)), "a photo of two stars", "a photo of three stars"),
        (scene(star, ("ring", "blue", 64, 40)), "a photo of a star left of a ring", "a photo of a star above a ring"),
    ]
    images, reward = render([case[0] for case in cases]), rewards.load("clip")
    right = reward(images, [case[1] for case in cases], [{}] * 4).scores
    wrong = reward(images, [case[2] for case in cases], [{}] * 4).scores
    assert (right > wrong + 0.02).all(), (right, wrong)


# -- the command ------------------------------------------------------------------------------------------------------


def test_pretrain_finds_the_checkpoint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    called: list[tuple[str, list[str]]] = []

    def command(name: str) -> Callable[[list[str]], int]:
        def main(argv: list[str]) -> int:
            called.append((name, argv))
            return len(called)

        return main

    for name, module in (("janus", pretrain), ("amused", pretrain_masked), ("clip", pretrain_clip)):
        monkeypatch.setattr(module, "main", command(name))
    given: list[list[str]] = [[], ["--seed", "1"], ["amused"], ["clip", "--steps", "2"]]
    assert [pretrain_command.main(argv) for argv in given] == [1, 2, 3, 4]
    assert called == [("janus", []), ("janus", ["--seed", "1"]), ("amused", []), ("clip", ["--steps", "2"])]
    assert cli.main(["pretrain", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in pretrain_command.CHECKPOINTS)
    assert cli.main(["pretrain", "klip"]) == 2
    error = capsys.readouterr().err
    assert "no embedded checkpoint 'klip'; did you mean clip? Checkpoints: janus, textured, amused, clip" in error
