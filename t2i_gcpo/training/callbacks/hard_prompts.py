"""Choose the prompts of a run's fixed pictures: those that the model sometimes fails, on which training has an effect.

P candidates with G images each. The noise is that of the pictures, and nothing else is random, so that runs with the
same start, candidates and seed choose the same prompts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from t2i_gcpo.records import Prompt
from t2i_gcpo.utils.files import write_atomically
from t2i_gcpo.utils.json_files import finite_or_none, read_json

#: In the run folder: the candidates, their scores, and which were chosen.
FILE = "samples/prompts.json"
SHAPE = {"rule": str, "seed": int, "chosen": [int], "candidates": [{"prompt": str, "mean": (float, None)}]}
RULE = (
    "Of {candidates} candidates the {chosen} whose {images} images differ most in their scores before training "
    "(largest standard deviation, then lowest mean, then first), noise of seed {seed}."
)


def hardest(scores: Tensor, group_size: int, count: int) -> list[int]:
    """Choose the prompts with the largest standard deviation of their scores, in their order.

    Equal ones go by the lower mean, then by their place. Scores that failed are left out; a prompt without two scores
    comes last. scores: [P * G].

    >>> hardest(torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0]), 2, 2)  # spread in the second; the third fails
    [1, 2]
    """
    rows = rearrange(scores.double(), "(p g) -> p g", g=group_size)
    ranked = sorted(range(len(rows)), key=lambda p: (*_ease(rows[p]), p))
    return sorted(ranked[:count])


def save(folder: Path, prompts: Sequence[Prompt], scores: Tensor, chosen: list[int], *, seed: int) -> None:
    """Write how the prompts were chosen into a run folder."""
    rows = rearrange(scores.double(), "(p g) -> p g", p=len(prompts))
    means = [float(row[row.isfinite()].mean()) for row in rows]
    rule = RULE.format(candidates=len(prompts), chosen=len(chosen), images=rows.shape[1], seed=seed)
    candidates = [
        {"prompt": prompt.text, "mean": finite_or_none(mean)} for prompt, mean in zip(prompts, means, strict=True)
    ]
    content = {"rule": rule, "seed": seed, "chosen": chosen, "candidates": candidates}
    (folder / FILE).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / FILE, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def load(folder: Path, prompts: Sequence[Prompt], count: int) -> list[int] | None:
    """Return what a run has chosen of these candidates before; None where it has not."""
    try:
        known = read_json(folder / FILE, SHAPE)
    except (OSError, ValueError):
        return None
    chosen: list[int] = known["chosen"]
    same = [one["prompt"] for one in known["candidates"]] == [prompt.text for prompt in prompts]
    return chosen if same and len(chosen) == count and all(0 <= p < len(prompts) for p in chosen) else None


def _ease(scores: Tensor) -> tuple[float, float]:
    """Return (minus the standard deviation, the mean) of a prompt's scores, which are smallest for hard ones."""
    known = scores[scores.isfinite()]
    if len(known) < 2:
        return (1.0, 0.0)
    return (-round(float(torch.std(known)), 9), round(float(known.mean()), 9))
