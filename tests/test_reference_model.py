"""The reference model is the generator as the run began.

Whole, with adapters or as a delta, of both kinds, in the loss and in pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from helpers import tiny, tiny_amused
from helpers.training import trainer
from t2i_gcpo import generators
from t2i_gcpo.commands.options import build
from t2i_gcpo.commands.options.config import GeneratorConfig
from t2i_gcpo.generators import deltas
from t2i_gcpo.generators.base import ImageGenerator
from t2i_gcpo.records import Prompt, Sampling
from t2i_gcpo.training.callbacks.pictures import reference_logprobs
from t2i_gcpo.training.tracker import read_metrics

PROMPTS = [Prompt("a red circle"), Prompt("a blue square")]
KINDS: dict[str, Callable[[Path], Path]] = {"janus": tiny.checkpoint, "amused": tiny_amused.checkpoint}


def push(policy: ImageGenerator, by: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter += by * torch.randn(parameter.shape, generator=rng)


def load(folder: Path, **options: object) -> ImageGenerator:
    config = GeneratorConfig(checkpoint=str(folder), device="cpu", compile="off", **options)  # type: ignore[arg-type]
    return build.generator(config, seed=0)


@pytest.fixture(scope="module", params=KINDS)
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint in each of the forms: whole, an adapter that was trained, and a delta."""
    folder = tmp_path_factory.mktemp(request.param)
    found = {"whole": KINDS[request.param](folder / "whole"), "adapter": folder / "adapter", "delta": folder / "delta"}
    adapted = load(found["whole"], lora_rank=2, lora_alpha=4.0)
    push(adapted, 0.3, 1)
    adapted.save(found["adapter"])
    base, tuned = load(found["whole"]), load(found["whole"])
    push(tuned, 0.05, 2)
    change = deltas.difference(base.policy, tuned.policy)
    deltas.save(found["delta"], change, base=str(found["whole"]), base_folder=found["whole"], about={})
    return found


#: Form of the checkpoint and rank of the training: what a run may begin with.
BEGINNINGS = [("whole", 0), ("whole", 2), ("adapter", 0), ("adapter", 2), ("delta", 0), ("delta", 2)]


@pytest.mark.parametrize(("form", "rank"), BEGINNINGS)
def test_the_reference_is_the_generator_as_it_was(folders: dict[str, Path], form: str, rank: int) -> None:
    policy = load(folders[form], lora_rank=rank, lora_alpha=4.0)
    rollout = policy.sample(PROMPTS, Sampling(group_size=2, guidance=2.0, seed=3))
    begun = generators.load(str(folders[form])).token_logprobs(rollout).detach()
    with torch.no_grad():
        torch.testing.assert_close(policy.token_logprobs(rollout), begun, atol=1e-4, rtol=0)
    policy.keep_reference()
    push(policy, 0.2, 4)
    with torch.no_grad():
        moved = policy.token_logprobs(rollout)
        assert (moved - begun).abs().mean() > 0.01
        with policy.reference():
            torch.testing.assert_close(policy.token_logprobs(rollout), begun, atol=1e-4, rtol=0)
        assert torch.equal(policy.token_logprobs(rollout), moved), "the trained weights are back"


def test_rank_0_trains_all_parameters_whatever_the_checkpoint_is(folders: dict[str, Path], tmp_path: Path) -> None:
    whole, adapted = load(folders["whole"]), load(folders["adapter"])
    assert len(adapted.trainable_parameters()) == len(whole.trainable_parameters())
    adapted.save(tmp_path)
    assert not (tmp_path / "adapter_config.json").exists(), "what was trained is saved: a whole model"
    again = load(tmp_path)
    for one, other in zip(adapted.trainable_parameters(), again.trainable_parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_run_from_an_adapter_begins_without_kl_and_is_resumed_to_the_same(
    folders: dict[str, Path], tmp_path: Path, rank: int
) -> None:
    def begin(folder: Path, steps: int) -> None:
        run = trainer(folder, policy=load(folders["adapter"], lora_rank=rank, lora_alpha=4.0), steps=steps)  # type: ignore[arg-type]
        if folder.exists():
            assert run.resume() == 1
        rollout = run.generator.sample(PROMPTS, Sampling(group_size=2, guidance=2.0, seed=3))
        with torch.no_grad():
            began = generators.load(str(folders["adapter"])).token_logprobs(rollout)
        torch.testing.assert_close(reference_logprobs(run, rollout), began, atol=5e-4, rtol=0)
        run.train()

    begin(tmp_path / "straight", 2)
    begin(tmp_path / "part", 1)
    begin(tmp_path / "part", 2)
    kl = [[row["kl"] for row in read_metrics(tmp_path / run)] for run in ("straight", "part")]
    assert kl[0] == kl[1] and kl[0][0] == pytest.approx(0, abs=1e-6) and kl[0][1] > 1e-5
