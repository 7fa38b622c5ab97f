"""Models of the published shapes with random weights: their sizes, their names, and every shipped config run on one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import rewards
from t2i_gcpo import generators
from t2i_gcpo.commands.options.arguments import load
from t2i_gcpo.commands.options.build import build_trainer
from t2i_gcpo.data import prompts
from t2i_gcpo.generators import random_models
from t2i_gcpo.generators.amused import random_model as amused
from t2i_gcpo.generators.janus import random_model as janus
from t2i_gcpo.generators.random_models import RandomModel, parse
from t2i_gcpo.planning.sources import find
from t2i_gcpo.records import Sampling

META = torch.device("meta")
CONFIGS = Path(__file__).parent.parent / "configs"
SHIPPED = sorted(set(CONFIGS.glob("*.yaml")) - set(CONFIGS.glob("text_*.yaml"))) + sorted(
    CONFIGS.glob("as_published/*.yaml")
)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def llama(width: int, layers: int, intermediate: int, vocabulary: int = 102400) -> int:
    """Parameters of a Llama without its head: embeddings, 4 projections of attention, 3 of the MLP, norms."""
    return vocabulary * width + layers * (4 * width**2 + 3 * width * intermediate + 2 * width) + width


@pytest.mark.parametrize(
    ("shape", "sizes", "billions"),
    [("janus-pro-1b", (2048, 24, 5632), 1.44), ("janus-pro-7b", (4096, 30, 11008), 6.49)],
)
def test_janus_has_the_published_size(shape: str, sizes: tuple[int, int, int], billions: float) -> None:
    """Everything is made on the device: on "meta", which has no memory, no tensor is anywhere else."""
    model, processor = janus.build(RandomModel(shape), device=META, dtype=torch.bfloat16)
    parameters = count(model.model.language_model)
    assert parameters == llama(*sizes) and round(parameters / 1e9, 2) == billions
    assert {(one.device, one.dtype) for one in model.parameters()} == {(META, torch.bfloat16)}
    assert model.config.vq_config.num_patches == 24 and model.config.vq_config.num_embeddings == 16384
    assert processor.tokenizer.boi_token == "<begin_of_image>"


@pytest.mark.parametrize(("shape", "millions", "pixels"), [("amused-256", 603, 256), ("amused-512", 608, 512)])
def test_amused_has_the_published_size(shape: str, millions: int, pixels: int) -> None:
    """The counts of the model cards: 603M and 608M parameters of the transformer."""
    parts = amused.build(RandomModel(shape), device=META, dtype=torch.bfloat16)
    assert int(count(parts.transformer) / 1e6) == millions and parts.pixels == (pixels, pixels)
    assert {(one.device, one.dtype) for one in parts.parameters()} == {(META, torch.bfloat16)}


def test_names() -> None:
    assert parse("random:janus-pro-1b") == RandomModel("janus-pro-1b")
    cut = RandomModel("amused-512", layers=2, width=64, seed=3)
    assert cut.name == "random:amused-512:layers=2,width=64,seed=3" and parse(cut.name) == cut
    assert parse(cut.name, layers=1) == replace(cut, layers=1)
    assert set(random_models.SHAPES.values()) == set(generators.ADAPTERS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("random:janus", "no shape 'janus'; write random: and one of janus-pro-1b, "),
        ("random:", "no shape ''"),
        ("random:janus-pro-1b:depth=2", "the part 'depth=2'"),
        ("random:janus-pro-1b:layers=-2", "the part 'layers=-2'"),
        ("random:janus-pro-1b:width=20", "a multiple of 32"),
        ("random:janus-pro-1b:layers=1,width=4096", "janus-pro-1b has 2048, and it can only be cut"),
        ("random:amused-256:layers=1,width=2048", "amused-256 has 1024, and it can only be cut"),
        ("random:janus-pro-1b:layers=25,width=32", "has 24, and they can only be cut"),
        ("random:amused-256:layers=23,width=32", "has 22, and they can only be cut"),
    ],
)
def test_a_name_that_says_no_model_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        generators.load(name)
    assert message in str(caught.value)


def test_trained_models_are_not_cut() -> None:
    with pytest.raises(ValueError, match="janus-mini has trained ones"):
        generators.load("janus-mini", layers=1)
    with pytest.raises(ValueError, match="deepseek-community/Janus-Pro-1B has trained ones"):
        find("deepseek-community/Janus-Pro-1B", width=64)


@pytest.mark.parametrize(("name", "tokens"), [("random:janus-pro-1b", 576), ("random:amused-256", 256)])
def test_a_cut_model_samples_scores_and_is_found_again(name: str, tokens: int, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    generator = generators.load(name, layers=1, width=32, compile=False)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_default_dtype() == torch.float32
    rollout = generator.sample(["naïve café, 日本"], Sampling(group_size=1, guidance=2.0, seed=0))
    assert rollout.tokens.shape == (1, tokens)
    with torch.no_grad():
        torch.testing.assert_close(generator.token_logprobs(rollout), rollout.logprob_positive, atol=1e-5, rtol=0)
    generator.save(tmp_path / "whole")
    generator.add_lora(rank=2, alpha=4)
    generator.save(tmp_path / "lora")
    again = generators.load(str(tmp_path / "lora"), compile=False)
    assert again.has_lora and again.base.name == f"{name}:layers=1,width=32"
    whole = generators.load(str(tmp_path / "whole"), compile=False)
    for one, other in zip(whole.policy.parameters(), generators.load(again.base.name).policy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_width_that_the_published_heads_do_not_divide_has_fewer() -> None:
    words = janus.byte_processor().tokenizer
    heads = {width: janus.config(RandomModel("janus-pro-1b", 1, width), words).text_config.num_attention_heads
             for width in (32, 256, 416, 2048)}  # fmt: skip
    assert heads == {32: 1, 256: 2, 416: 2, 2048: 16}
    parts = amused.build(RandomModel("amused-256", layers=1, width=224), device=META, dtype=torch.float32)
    assert parts.transformer.config.num_attention_heads == parts.text_encoder.config.num_attention_heads == 2


def test_the_seed_makes_the_weights() -> None:
    one, other = (generators.load(f"random:amused-256:layers=1,width=32,seed={seed}") for seed in (0, 1))
    assert not torch.equal(next(one.policy.parameters()), next(other.policy.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_runs_two_steps_on_a_cut_model(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The config as it stands, but for checkpoint, device, prompt files, scorer, and how many images are sampled."""
    from t2i_gcpo.commands.options import build

    def brightness(images: torch.Tensor, texts: list[str], metadata: list[dict[str, object]]) -> torch.Tensor:
        return images.float().mean(dim=(1, 2, 3)) / 255

    def redness(images: torch.Tensor, texts: list[str], metadata: list[dict[str, object]]) -> torch.Tensor:
        return images[:, 0].float().mean(dim=(1, 2)) / 255

    stand_in = rewards.composite({brightness: 1.0, redness: 0.5})  # with parts, which some configs normalise
    monkeypatch.setattr(build, "reward", lambda options: stand_in)
    monkeypatch.setattr(build, "held_out", lambda options: {})
    config = load(path)
    masked = "amused" in config.generator.checkpoint
    shape = "random:amused-256" if masked else "random:janus-pro-1b"
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": text}) for text in ("a red circle", "a bench")))
    small = replace(
        config,
        generator=replace(config.generator, checkpoint=shape, layers=1, width=32, device="cpu", dtype="float32"),
        algorithm=replace(config.algorithm, group_size=2),
        prompts=replace(config.prompts, train=str(file), validation=str(file), test=str(file), balanced=False),
        prompts_per_step=2,
        minibatches=1,
        steps=2,
        output_dir=str(tmp_path / "run"),
    )
    rows = prompts.read(file)
    trainer = build_trainer(small, rows, rows)
    before = [parameter.detach().clone() for parameter in trainer.generator.trainable_parameters()]
    trainer.step(), trainer.step()
    assert trainer.step_number == 2 and trainer.images_sampled >= 8
    after = trainer.generator.trainable_parameters()
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
