"""Write the model card of an embedded Janus: curves of its training, an unpicked sample grid, and its scores."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewards.geneval.reward import GenEvalReward
from t2i_gcpo.data.prompts import limit
from t2i_gcpo.data.shapes.prompts import TASKS, split
from t2i_gcpo.evaluation.evaluate import EvalResult, evaluate
from t2i_gcpo.generators import load
from t2i_gcpo.pretrain.janus.recipes import Recipe
from t2i_gcpo.pretrain.janus.vq import encoder_agreement
from t2i_gcpo.records import Prompt, Sampling
from t2i_gcpo.utils.files import write_atomically
from t2i_gcpo.utils.json_files import read_json_lines
from t2i_gcpo.utils.pictures import sample_grid, write_png

#: Guidance of the card's samples and score; that of the quickstart.
GUIDANCE = 2.0
SEED = 0
AGREEMENT_SCENES = 300
ENTROPY_IMAGES = 120

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-to-image
---
# {name}

A `JanusForConditionalGeneration` of {parameters:.1f} million parameters ({language:.1f} in the language model, {vq:.1f} in the VQ model) for
ShapeScenes in the {style} style, the embedded world of t2i_gcpo: 96 × 96 pixels, {grid} × {grid} tokens, a codebook of {codebook}. It was trained from nothing
by `{command}` on two CPU cores; `training/` has the settings, the logs and the curves. The vision tower (image understanding)
is as it was initialised: nothing here uses it. A code stands for an 8 × 8 patch (k-means of patches); on {agreement_scenes} new scenes the VQ model's encoder
finds that code for {agreement:.2%} of the tokens. The language model knows the words of `t2i-gcpo prompts shapes:vocabulary`, and no others.

## Score

GenEval's verdict on `shapes:test` (combinations that were never trained on), guidance {guidance}, seed {seed}, n = {n} images; the intervals are
95 %, clustered by prompt.

| task | score | 95 % interval |
|---|---|---|
{table}

```bash
t2i-gcpo eval --checkpoint {name} --prompts shapes:test --limit {n} --guidance {guidance} --seed {seed} --out out/base
```

On training prompts (`--prompts shapes:train`, the same options, n = {train_n}) the score is {train:.3f} ({train_low:.3f} to {train_high:.3f}).
The raw conditional distribution (guidance 1, temperature 1) has {entropy:.2f} nats of entropy a token on average, over the tokens of {entropy_images} images for prompts of `shapes:test`
drawn with guidance {guidance}.

## Samples

The first four prompts of each task in `shapes:test`, two images each, seed {seed}, not picked. Green: the verdict is "correct".

![samples](training/samples.png)

## Training

![curves](training/curves.png)

```bash
{command} --seed {seed}
```
"""


def write(folder: Path, work: Path, recipe: Recipe, codes: Tensor, *, images: int = 600) -> EvalResult:
    """Write `README.md` and `training/` into the checkpoint `folder`, from the logs in `work`; returns the score."""
    training = folder / "training"
    training.mkdir(parents=True, exist_ok=True)
    for stage in ("vq", "language"):
        for name in ("log.jsonl", "settings.json"):
            shutil.copyfile(work / stage / name, training / f"{stage}_{name}")
    draw_curves(work).savefig(training / "curves.png", dpi=110)
    generator: Any = load(str(folder))
    sampling = Sampling(guidance=GUIDANCE)
    draw_samples(generator, training / "samples.png", sampling)
    result = score(generator, training / "eval.json", recipe.name, sampling, images=images)
    trained = score(generator, training / "eval_train.json", recipe.name, sampling, images=images, part="train")
    model = generator.model

    text = CARD.format(
        name=recipe.name,
        style=recipe.vq.style,
        command=recipe.command,
        train=trained.overall,
        train_low=trained.ci95[0],
        train_high=trained.ci95[1],
        train_n=trained.n,
        entropy=mean_entropy(generator, sampling, ENTROPY_IMAGES),
        entropy_images=ENTROPY_IMAGES,
        parameters=millions(model),
        language=millions(model.model.language_model),
        vq=millions(model.model.vqmodel),
        grid=generator.grid[0],
        codebook=generator.codebook_size,
        guidance=GUIDANCE,
        seed=SEED,
        n=result.n,
        table=table(result),
        agreement=encoder_agreement(model.model.vqmodel, recipe.vq, AGREEMENT_SCENES, codes),
        agreement_scenes=AGREEMENT_SCENES,
    )
    write_atomically(folder / "README.md", text)
    return result


def millions(module: Any) -> float:
    """Count a module's parameters in millions."""
    return sum(p.numel() for p in module.parameters()) / 1e6


def draw_samples(generator: Any, file: Path, sampling: Sampling) -> None:
    """Draw the first prompts of each task in shapes:test, two images each, with GenEval's verdicts, as a PNG."""
    shown = [prompt for task in TASKS for prompt in [p for p in split("test") if p.task == task][:4]]
    samples = evaluate(
        generator, shown, GenEvalReward(), sampling=sampling, images_per_prompt=2, seed=SEED, keep_images=True
    )
    grid = sample_grid(
        samples.kept_images(),
        [row.text for row in samples.rows],
        columns=8,
        scores=[row.score for row in samples.rows],
        scale=1,
    )
    write_png(file, grid)


@torch.no_grad()
def mean_entropy(generator: Any, sampling: Sampling, images: int) -> float:
    """Measure the mean entropy of the raw conditional distribution, nats a token, on images for shapes:test."""
    prompts = limit(split("test"), images, repeat=True)
    rollouts = [
        generator.sample(part, sampling, prompt_indices=range(k, k + len(part))) for k, part in _parts(prompts, 30)
    ]
    return float(torch.cat([rollout.stats["entropy"] for rollout in rollouts]).mean())


def _parts(prompts: list[Prompt], size: int) -> list[tuple[int, list[Prompt]]]:
    return [(start, prompts[start : start + size]) for start in range(0, len(prompts), size)]


def score(generator: Any, file: Path, name: str, sampling: Sampling, *, images: int, part: str = "test") -> EvalResult:
    """Score `images` prompts of a split by GenEval's verdict, and write the result to the JSON `file`."""
    result = evaluate(
        generator,
        limit(split(part), images, repeat=True),
        GenEvalReward(),
        sampling=sampling,
        seed=SEED,
        progress=True,
        checkpoint=name,
        source=f"shapes:{part}",
        reward_name="geneval",
    )
    result.save(file)
    return result


def table(result: EvalResult) -> str:
    """Return rows of Markdown: score and interval of each task, and overall."""
    rows = {
        **{task: (result.by_task[task], result.by_task_ci95[task]) for task in TASKS},
        "overall": (result.overall, result.ci95),
    }
    return "\n".join(
        f"| {name} | {score:.3f} | {low:.3f} to {high:.3f} |" for name, (score, (low, high)) in rows.items()
    )


def draw_curves(work: Path) -> Any:
    """Draw the VQ model's error and codebook, and the language model's losses, as a figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    vq, language = (read_json_lines(work / stage / "log.jsonl") for stage in ("vq", "language"))
    left.semilogy([row["step"] for row in vq], [row["mse"] for row in vq], label="squared error, pixels in [-1, 1]")
    left.set(title="VQ model", xlabel="step")
    right.plot([row["step"] for row in language], [row["loss"] for row in language], label="training")
    split = [row for row in language if "layout_loss" in row]
    right.plot([row["step"] for row in split], [row["layout_loss"] for row in split], label="of which the layout")
    checked = [row for row in language if "validation_loss" in row]
    right.plot([r["step"] for r in checked], [r["validation_loss"] for r in checked], "o-", label="validation prompts")
    right.set(title="language model", xlabel="step", ylabel="nats a token", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
