"""Run folders for the tests of what reads them, written by the library's own writers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from helpers.fake_generator import FakeGenerator, options, token_score
from rewards import RewardOutput
from t2i_gcpo.algorithms import resolve
from t2i_gcpo.commands.options import arguments
from t2i_gcpo.commands.options.config import TrainConfig
from t2i_gcpo.evaluation import kept_images
from t2i_gcpo.evaluation.evaluate import evaluate
from t2i_gcpo.records import Prompt
from t2i_gcpo.training.tracker import Tracker, prepare_run

PROMPTS = [Prompt(f"prompt {k}", {"tag": "odd" if k % 2 else "even"}) for k in range(8)]


def metrics(step: int, gain: float) -> dict[str, float]:
    found = {
        "reward/mean": 0.4 + gain * step,
        "kl": 0.001 * step,
        "entropy": 2.0,
        "diversity": 0.2,
        "variety/color_entropy": 1.2,
        "variety/near_duplicates": 0.1,
        "clip_fraction_low": 0.01,
        "clip_fraction_high": 0.02,
        "credit/contrast": 0.3,
        "grad_norm": 1.0,
        "advantage/abs_mean": 0.8,
        "time/sample": 1.0 + 0.1 * (step % 2),
        "time/forward": 0.7,
        "time/other": 0.3 - 0.1 * (step % 2),
        "time/step": 2.0,
        "images_sampled": 64.0 * step,
    }
    return found | ({"validation/overall": 0.3 + gain * step} if step % 2 == 0 else {})


def write(
    path: Path,
    *,
    algorithm: str = "gcpo",
    seed: int = 0,
    steps: int = 4,
    shift: int = 4,
    before: bool = True,
    after: bool = True,
    held_out: bool = False,
    verdicts: bool = False,
    **changes: Any,
) -> Path:
    """Write a run whose images gained `shift` tokens, i.e. a score of shift / 32.

    With `held_out`, their score under the scorer "dark" changed by -shift / 8. With `verdicts` an image is right or
    wrong by its first token, wrong ones say why, and the images are kept, as a run does.
    """
    config = TrainConfig(algorithm=resolve(algorithm), seed=seed, output_dir=str(path), steps=10, **changes)
    prepare_run(path, arguments.dump(config))
    assert yaml.safe_load((path / "config.yaml").read_text())["seed"] == seed
    with Tracker(path, steps=10) as tracker:
        for step in range(1, steps + 1):
            tracker.log(step, metrics(step, gain=0.01 + 0.001 * seed))
    dark = {"dark": lambda images, prompts, metadata: RewardOutput(-4 * token_score(images))}
    others: dict[str, Any] = {"held_out": dark} if held_out else {}
    for name, wanted, generator in (("before", before, FakeGenerator()), ("after", after, FakeGenerator(shift=shift))):
        if wanted:
            named = options(checkpoint=name, source="shapes:test", reward_name="geneval", **others)
            reward = verdict if verdicts else lambda images, prompts, metadata: RewardOutput(token_score(images))
            result = evaluate(generator, PROMPTS, reward, keep_images=verdicts, **named)
            result.save(path / f"eval_{name}.json")
            if verdicts:
                kept_images.write(result, path / {"before": kept_images.BEFORE, "after": kept_images.AFTER}[name])
    return path


def verdict(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
    """Call an image right whose first token is 2 or 3 modulo 4, and say of the others which token they have."""
    tokens = (32 * token_score(images)).long()
    right = tokens % 4 >= 2
    pairs = zip(tokens.tolist(), right.tolist(), strict=True)
    return RewardOutput(
        right.float(), reasons=tuple(() if fine else (f"the token is <{token}>",) for token, fine in pairs)
    )
