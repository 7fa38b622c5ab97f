"""Share between the tests of training: a tiny Janus in memory, a reward of the image alone, and a trainer of both."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helpers import tiny
from rewards.models.torchvision_mend import mend
from t2i_gcpo.algorithms import resolve
from t2i_gcpo.generators.janus.adapter import Janus
from t2i_gcpo.records import Prompt, Sampling
from t2i_gcpo.training.options import CheckpointPlan, Schedule
from t2i_gcpo.training.trainer import Trainer

PROMPTS = [
    Prompt(f"a {color} {shape}", {"tag": shape, "include": [{"class": shape, "count": 1, "color": color}]})
    for shape in ("circle", "square")
    for color in ("red", "green", "blue", "white")
]


def generator(**options: Any) -> Janus:
    """`options` go to `tiny.model`. Equal options give equal weights."""
    mend()
    return Janus(tiny.model(**options), tiny.processor(), compile=False)


def redness(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
    return images[:, 0].float().mean(dim=(1, 2)) / 255


def trainer(
    folder: Path, *, policy: Janus | None = None, reward: Any = redness, name: str = "gcpo", **changes: Any
) -> Trainer:
    """Two prompts, four images of each; the algorithm's row `name` with group size 4, unless `algorithm` is given."""
    options: dict[str, Any] = {
        "algorithm": resolve(name, group_size=4),
        "steps": 2,
        "prompts_per_step": 2,
        "sampling": Sampling(guidance=2.0),
        "micro_batch": 8,
        "optim": Schedule(lr=1e-2, warmup_steps=0),
        "checkpoint": CheckpointPlan(every=0),
        "seed": 5,
    }
    return Trainer(policy or generator(), reward, PROMPTS, folder, **{**options, **changes})


def weights(policy: Janus) -> list[Tensor]:
    """Copies of the trained parameters."""
    return [parameter.detach().clone() for parameter in policy.trainable_parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Bit for bit."""
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def distance(a: list[Tensor], b: list[Tensor]) -> float:
    """The largest difference of any weight."""
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
