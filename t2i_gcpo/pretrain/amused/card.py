"""Write the model card of `amused-mini`: its training curve, an unpicked sample grid, and its scores.

The curve of its training, an unpicked sample grid, and its scores, from files and from the model.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from t2i_gcpo.evaluation.evaluate import EvalResult
from t2i_gcpo.generators import load
from t2i_gcpo.pretrain.janus.card import GUIDANCE, SEED, draw_samples, millions, score, table
from t2i_gcpo.records import Sampling, Unmasking
from t2i_gcpo.utils.files import write_atomically
from t2i_gcpo.utils.json_files import read_json, read_json_lines

#: The card's scores: file -> how it samples. First as the commands do unless told otherwise, then with noise on the
#: confidence that was chosen on shapes:val.
SCORES = {
    "eval.json": Sampling(guidance=GUIDANCE),
    "eval_noisier_order.json": Sampling(guidance=GUIDANCE, unmasking=Unmasking(temperature=6.0)),
}

SCORE = """### Order temperature {temperature:g}

| task | score | 95 % interval |
|---|---|---|
{table}

```bash
t2i-gcpo eval --checkpoint amused-mini --prompts shapes:test --limit {n} --guidance {guidance} --order-temperature {temperature} \\
  --seed {seed} --out out/base
```
"""

CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# amused-mini

A masked generator in the folder layout of diffusers' `AmusedPipeline`, for ShapeScenes, the embedded world of t2i_gcpo: {height} × {width} pixels,
{rows} × {columns} tokens, a codebook of {codebook}. Its transformer (`UVit2DModel`) has {transformer:.1f} million parameters, its text encoder
{text:.1f}, its VQ model {vq:.1f}. Transformer and text encoder were trained from nothing by `t2i-gcpo pretrain amused`; the VQ model is that of
janus-mini, in diffusers' form. `training/` has the settings, the log and the curve. It knows the words of
`t2i-gcpo prompts shapes:vocabulary`, and no others.

## Score

GenEval's verdict on `shapes:test` (combinations that were never trained on), {sampling_steps} sampling steps, guidance {guidance}, seed {seed},
n = {n} images; the intervals are 95 %, clustered by prompt. It depends on the order temperature, the noise on the confidence that decides which
tokens a step fixes: {default:g} is aMUSEd's and the default, {noisier:g} was chosen on `shapes:val`.

{scores}
## Samples

The first four prompts of each task in `shapes:test`, two images each, order temperature {default:g}, seed {seed}, not picked. Green: the verdict is "correct".

![samples](training/samples.png)

## Training

![curve](training/curve.png)

```bash
t2i-gcpo pretrain amused --out runs/pretrain_amused --seed {training_seed} --steps {steps} --batch {batch} --device {device} --workers {workers}
```
"""


def write(folder: Path, work: Path, *, images: int = 600) -> EvalResult:
    """Write `README.md` and `training/` into the checkpoint `folder`, from the log in `work`.

    Returns the first score.
    """
    training = folder / "training"
    training.mkdir(parents=True, exist_ok=True)
    for name in ("log.jsonl", "settings.json"):
        shutil.copyfile(work / "masked" / name, training / name)
    draw_curve(training / "log.jsonl").savefig(training / "curve.png", dpi=110)
    generator: Any = load(str(folder))
    draw_samples(generator, training / "samples.png", SCORES["eval.json"])
    results = {
        file: score(generator, training / file, "amused-mini", sampling, images=images)
        for file, sampling in SCORES.items()
    }
    result, noisier = results.values()
    settings = read_json(training / "settings.json")
    parts = generator.parts

    text = CARD.format(
        height=parts.pixels[0],
        width=parts.pixels[1],
        rows=generator.grid[0],
        columns=generator.grid[1],
        codebook=generator.codebook_size,
        transformer=millions(parts.transformer),
        text=millions(parts.text_encoder),
        vq=millions(parts.vqvae),
        sampling_steps=result.sampling.unmasking.steps,
        default=result.sampling.unmasking.temperature,
        noisier=noisier.sampling.unmasking.temperature,
        guidance=GUIDANCE,
        seed=SEED,
        n=result.n,
        scores="\n".join(map(section, results.values())),
        training_seed=settings["seed"],
        steps=settings["steps"],
        batch=settings["batch"],
        device=settings["device"],
        workers=settings["workers"],
    )
    write_atomically(folder / "README.md", text)
    return result


def section(result: EvalResult) -> str:
    """Return the card's part on one of its scores."""
    temperature = result.sampling.unmasking.temperature
    return SCORE.format(temperature=temperature, table=table(result), n=result.n, guidance=GUIDANCE, seed=SEED)


def draw_curve(log: Path) -> Any:
    """Draw the loss of training batches, and of masked scenes of prompts never trained on, as a figure."""
    from matplotlib.figure import Figure

    rows = read_json_lines(log)
    checked = [row for row in rows if "validation_loss" in row]
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], label="training")
    axes.plot([r["step"] for r in checked], [r["validation_loss"] for r in checked], "o-", label="validation prompts")
    axes.set(title="masked transformer", xlabel="step", ylabel="nats a masked token", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
