"""Heatmaps over the training and over the order of sampling, and the contrast with part of the prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_heatmap_views import drawn

from helpers import training
from t2i_gcpo import heatmap
from t2i_gcpo.commands import heatmap as heatmap_command
from t2i_gcpo.heatmap import Heatmap
from t2i_gcpo.heatmap.animation import NOT_YET, over_images, over_order, write_gif
from t2i_gcpo.records import Sampling, ScoredRollout


def write_run(folder: Path, steps: tuple[int, ...] = (0, 20, 100)) -> list[Heatmap]:
    """A run's heatmaps; the weights of each step are another constant."""
    (folder / "heatmaps").mkdir(parents=True)
    saved = []
    for k, step in enumerate(steps):
        one = drawn()
        one = replace(one, weights=np.full_like(one.weights, k + 1.0))
        one.save(folder / "heatmaps" / f"step_{step:06d}.npz")
        saved.append(one)
    drawn().save(folder / "heatmaps" / f"step_{steps[-1]:06d}_trained.npz")
    return saved


def test_one_prompt_over_the_steps_of_a_run(tmp_path: Path) -> None:
    write_run(tmp_path)
    found = heatmap.over_steps(tmp_path, prompt="b", image=1)
    assert found.labels.tolist() == ["step 0", "step 20", "step 100"]  # type: ignore[union-attr]
    assert found.prompts.tolist() == ["b"] * 3
    np.testing.assert_array_equal(found.weights[:, 0], [1, 2, 3])
    np.testing.assert_array_equal(found.tokens[1], drawn().tokens[4])
    assert heatmap.over_steps(tmp_path).prompts.tolist() == ["a photo of a star"] * 3
    # All steps stand on one scale, that of all: weights of 1, 2 and 3, whose mean is 2, end at twice that.
    assert found.end("weight") == 4.0
    assert found.notes()[1].startswith("step 20, score 0.5")
    picture = found.draw("weight")
    assert picture.width > picture.height / 2 and found.draw("weight", columns=1).height > picture.height
    assert len(over_images(found)) == 3


def test_a_run_without_the_picture_that_is_asked_for(tmp_path: Path) -> None:
    for arguments, message in (
        ({"prompt": "c"}, "has no images of 'c'; it has 'a photo of a star', 'b'"),
        ({"prompt": "b", "image": 3}, "no image 3 of 'b'"),
    ):
        write_run(tmp_path / message[:9])
        with pytest.raises(ValueError, match=message):
            heatmap.over_steps(tmp_path / message[:9], **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"holds no heatmaps/step_N.npz"):
        heatmap.over_steps(tmp_path)


def test_what_not_all_have_is_left_out_of_what_is_joined() -> None:
    one = drawn()
    joined = Heatmap.cat([one.rows([0]), replace(one, logprob_reference=None, stats={}).rows([1])])
    assert joined.logprob_reference is None and joined.stats == {} and joined.recipe == one.recipe
    np.testing.assert_array_equal(joined.tokens, one.tokens[:2])
    assert Heatmap.cat([one, heatmap.reweigh(one, divergence="js")]).recipe is None
    with pytest.raises(ValueError, match="2 sizes"):
        Heatmap.cat([one, replace(one, images=one.images[..., :4])])


def test_a_reader_never_sees_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = drawn().save(tmp_path / "step_000001.npz")
    before = path.read_bytes()

    def torn(file: object, **_: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", torn)
    with pytest.raises(KeyboardInterrupt):
        drawn(divergence="js").save(path)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.glob("step_*.npz")] == ["step_000001.npz"]


def test_the_order_uncovers_tokens_one_by_one() -> None:
    one = drawn().rows([0])
    frames = [np.asarray(frame) for frame in over_order(one, "weight")]
    assert len(frames) == 16

    def veiled(frame: np.ndarray) -> int:
        return int((frame == NOT_YET).all(axis=-1).sum())

    # 40 x 40 pixels a cell, in the picture and below the map, where grey stays grey. The first frame hides 15 of 16
    # cells.
    counts = [veiled(frame) - veiled(frames[-1]) for frame in frames]
    assert counts == [2 * 40 * 40 * hidden for hidden in range(15, -1, -1)]
    assert veiled(frames[-1]) < 40 * 40  # no cell is left, at most pixels of letters
    masked = replace(one, commit_step=one.commit_step // 8)  # two steps of eight tokens
    assert len(over_order(masked)) == 2


def test_a_gif_holds_its_frames(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20 + k, 10), color) for k, color in enumerate(("red", "lime", "blue"))]
    path = write_gif(frames, tmp_path / "a" / "x.gif", seconds=0.3, hold=1.0)
    with Image.open(path) as found:
        assert found.n_frames == 3 and found.size == (22, 10) and found.info["loop"] == 0
        durations = []
        for k, color in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255)]):
            found.seek(k)
            durations.append(found.info["duration"])
            assert np.abs(np.subtract(found.convert("RGB").getpixel((5, 5)), color)).max() < 8
    assert durations == [100, 100, 1100]
    with pytest.raises(ValueError, match="no frames"):
        write_gif([], path)


def test_removing_a_clause() -> None:
    prompt = "a photo of a red circle and a blue star"
    assert heatmap.without(prompt, "and a blue  star") == "a photo of a red circle"
    assert heatmap.without(prompt, "a red circle and") == "a photo of a blue star"
    for clause, message in (
        ("", "empty"),
        ("and a green star", "not in the prompt"),
        ("a", "3 times in the prompt"),
        ("blue sta", "not in the prompt"),
        (prompt, "all of the prompt"),
    ):
        with pytest.raises(ValueError, match=message):
            heatmap.without(prompt, clause)


def test_against_another_text_is_sampling_with_it() -> None:
    """The same noise: the tokens are the same, and only the contrast differs."""
    generator = training.generator()
    prompt, other = "a photo of a red circle and a blue star", "a photo of a red circle"
    sampling = Sampling(group_size=3, guidance=2.0, seed=4, stats=("entropy", "exact_kl"))

    def sampled(negative: str | None) -> Heatmap:
        rollout = generator.sample([prompt], sampling, negative_prompts=negative)
        images, scores = generator.decode(rollout.tokens), torch.full((3,), torch.nan)
        return heatmap.reweigh(Heatmap.of(ScoredRollout(rollout, images, scores), weights=torch.ones(3, 16)))

    null, wanted = sampled(None), sampled(other)
    found = heatmap.against(null, generator, heatmap.without(prompt, "and a blue star"), max_batch=2)
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_allclose(found.logprob_negative, wanted.logprob_negative, atol=1e-5)  # type: ignore[arg-type]
    assert np.abs(found.logprob_negative - null.logprob_negative).max() > 0.01  # type: ignore[operator]
    np.testing.assert_allclose(found.weights, wanted.weights, atol=1e-3)
    assert set(found.stats) == {"entropy"} and found.title("kl").endswith(f"“{other}”")
    with pytest.raises(ValueError, match="zebra"):
        heatmap.against(null, generator, "a zebra")
    with pytest.raises(ValueError, match="exact_kl"):
        heatmap.against(heatmap.reweigh(null, divergence="exact_kl"), generator, other)
    with pytest.raises(ValueError, match="2 negative prompts for 3"):
        heatmap.against(null, generator, [other, other])


def test_the_command_redraws_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = drawn().save(tmp_path / "x.npz"), tmp_path / "out"
    options = ["--divergence", "js", "--normalization", "softmax", "--map", "weight", "kl", "--gif"]
    assert heatmap_command.main(["--npz", str(path), "--out", str(out), *options]) == 0
    expected = heatmap.reweigh(drawn(), divergence="js", normalization="softmax")
    np.testing.assert_array_equal(heatmap.load(out / "heatmap.npz").weights, expected.weights)
    np.testing.assert_array_equal(np.asarray(Image.open(out / "heatmap.png")), np.asarray(expected.draw("weight")))
    np.testing.assert_array_equal(np.asarray(Image.open(out / "kl.png")), np.asarray(expected.draw("kl")))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("share of the credit on tokens below the floor (contrast under 0.0001 nats): 0 %")
    assert {line.removeprefix("wrote ") for line in lines[1:]} == {
        str(out / name) for name in ("heatmap.png", "heatmap.npz", "heatmap.html", "kl.png", "heatmap.gif")
    }
    alike = replace(drawn(), advantages=np.zeros((6, 16), np.float32)).save(tmp_path / "alike.npz")
    assert heatmap_command.main(["--npz", str(alike), "--out", str(out)]) == 0
    assert "every value of the map advantage is 0: the images of each group scored alike" in capsys.readouterr().out
    # As it was saved, where nothing else is asked for.
    assert heatmap_command.main(["--npz", str(path), "--out", str(out)]) == 0
    np.testing.assert_array_equal(heatmap.load(out / "heatmap.npz").weights, drawn().weights)
    with pytest.raises(ValueError, match="no map 'exact_kl'"):
        heatmap_command.main(["--npz", str(path), "--out", str(tmp_path / "none"), "--map", "weight", "exact_kl"])
    assert not (tmp_path / "none").exists()


def test_the_command_follows_a_run(tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=(0, 5))
    arguments = [
        "--run",
        str(tmp_path / "run"),
        "--prompt",
        "b",
        "--image",
        "1",
        "--out",
        str(tmp_path / "out"),
        "--gif",
    ]
    assert heatmap_command.main([*arguments, "--credit", "uniform"]) == 0
    found = heatmap.load(tmp_path / "out" / "heatmap.npz")
    assert found.labels.tolist() == ["step 0", "step 5"] and (found.weights == 1).all()  # type: ignore[union-attr]
    with Image.open(tmp_path / "out" / "heatmap.gif") as gif:
        assert gif.n_frames == 2


def test_the_command_needs_one_source(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--npz", "a", "--run", "b"]):
        with pytest.raises(SystemExit):
            heatmap_command.main([*arguments, "--out", "x"])
        assert "--npz" in capsys.readouterr().err
    with pytest.raises(ValueError, match="needs a --prompt"):
        heatmap_command.main(["--checkpoint", "janus-mini", "--out", "x"])
    both = ["--checkpoint", "x", "--out", "x", "--prompt", "a b c", "--without", "b", "--negative-prompt", "c"]
    with pytest.raises(ValueError, match="give one"):
        heatmap_command.main(both)
