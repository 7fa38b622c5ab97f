"""From the options of `t2i-gcpo train` to generator, reward and sampling: the last place that knows the option groups."""

from __future__ import annotations

import torch

from rewards.base import Reward
from t2i_gcpo.config import GeneratorConfig, RewardConfig, SamplingConfig, WatchConfig
from t2i_gcpo.generators.base import ImageGenerator
from t2i_gcpo.records import Sampling

COMPILE: dict[str, bool | str] = {"auto": "auto", "on": True, "off": False}


def pick_device(name: str) -> torch.device:
    """ "auto" is the first GPU there is, else the CPU. ValueError for a device that this machine or torch does not have."""
    if name == "auto":
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(found)
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"device is {name!r}, which cannot be used here ({reason}); use auto, cpu, cuda, cuda:1 or mps"
        ) from error
    return device


def generator(options: GeneratorConfig, *, seed: int = 0) -> ImageGenerator:
    """Load the checkpoint, with LoRA adapters where a rank is given; `seed` is of their initial values."""
    from t2i_gcpo import generators

    # Only what was asked for, so that a generator that has no such option refuses it.
    masked = {name: getattr(options, name) for name in generators.MASKED_OPTIONS
              if getattr(options, name) != getattr(GeneratorConfig(), name)}  # fmt: skip
    loaded = generators.load(
        options.checkpoint,
        device=pick_device(options.device),
        dtype=options.dtype,
        revision=options.revision,
        max_batch=options.max_batch,
        compile=COMPILE[options.compile],
        gradient_checkpointing=options.gradient_checkpointing,
        decode_dtype=options.decode_dtype,
        **masked,
    )
    if options.lora_rank:
        loaded.add_lora(rank=options.lora_rank, alpha=options.lora_alpha, seed=seed)
    return loaded


def reward(options: RewardConfig) -> Reward:
    import rewards

    return rewards.load(options.name, **options.options)


def held_out(options: WatchConfig) -> dict[str, Reward]:
    """Name -> scorer that a run logs and does not train on."""
    import rewards

    return {name: rewards.load(name) for name in options.rewards}


def sampling(options: SamplingConfig, *, guidance: float | None = None) -> Sampling:
    """How images are drawn; `guidance` replaces that of the options where it is given."""
    return Sampling(
        guidance=options.guidance if guidance is None else guidance,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        unmasking=options.unmasking,
    )
