"""Write the model card of `clip-mini`: its retrieval, which words it tells apart, the curves of its training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from rewards.models.open_clip_encoder import OpenClipEncoder
from rewards.models.open_clip_model import load_open_clip
from t2i_gcpo.data.shapes.prompts import TASKS
from t2i_gcpo.evaluation.intervals import Estimates
from t2i_gcpo.generators.janus.adapter import Janus
from t2i_gcpo.pretrain.clip.captions import KINDS
from t2i_gcpo.pretrain.clip.retrieval import CANDIDATES, Retrieval, measure
from t2i_gcpo.pretrain.janus.card import millions
from t2i_gcpo.pretrain.verdicts import through_vq
from t2i_gcpo.utils.files import write_atomically
from t2i_gcpo.utils.json_files import read_json, read_json_lines

SEED = 0

CARD = """---
license: apache-2.0
library_name: open_clip
pipeline_tag: zero-shot-image-classification
---
# clip-mini

A CLIP model (arXiv 2103.00020) of {parameters:.2f} million parameters for ShapeScenes, the embedded world of t2i_gcpo, in the folder layout of
open_clip: a ResNet of {visual:.2f} million parameters for 96 × 96 pixels (other sizes are resized), a text transformer of {text:.2f} million, {features} features.
It was trained from nothing by `t2i-gcpo pretrain clip` on rendered scenes of the prompts of `shapes:train`; `training/` has the settings, the log and the curves. It knows
the words of `t2i-gcpo prompts shapes:vocabulary`, and no others.

```python
import rewards

reward = rewards.load("clip")  # reward(images, prompts, metadata).scores: cosines
```

## Does a caption find its picture?

Text-to-image retrieval on the prompts of `shapes:test`, whose combinations appear in no training prompt: {candidates} pictures of {candidates} distinct captions,
one of them the caption's own, none of the others showing what the caption says (a picture of a red star is no wrong answer to "a photo of a star"). Share of
captions whose own picture has the highest score, {rounds} new scenes a caption; overall: mean over the tasks; 95 % intervals, clustered by caption. "Decoded": the
same scenes after janus-mini's VQ model has encoded and decoded them, as the pictures that are scored in training are decoded.

| task | n | top-1 | 95 % interval | decoded | 95 % interval |
|---|---|---|---|---|---|
{top1}

Over all {n} captions alike, whatever their task: {share:.3f}.

## Which words does it tell apart?

Each picture's own caption against every caption that has one word wrong: share of the wrong ones that score lower.

| wrong word | n | lower | 95 % interval | decoded | 95 % interval |
|---|---|---|---|---|---|
{words}

The same for the caption that says the opposite with the same words: "left of" for "right of", or the colours of two objects exchanged. Near a
half, the model knows that the words belong to the picture, and not which object each belongs to: do not count on `clip` alone to teach a generator that.

| task | n | own caption higher | 95 % interval | decoded | 95 % interval |
|---|---|---|---|---|---|
{mirrors}

## Training

![curves](training/curves.png)

```bash
t2i-gcpo pretrain clip --out runs/pretrain_clip --seed {seed} --steps {steps} --threads 1
```
"""


def write(folder: Path, work: Path, *, rounds: int) -> Retrieval:
    """Measure the model in `folder`, write its `README.md` and `training/` from that and from the log in `work`.

    Returns the measurement of the rendered scenes.
    """
    training = folder / "training"
    training.mkdir(parents=True, exist_ok=True)
    for name in ("log.jsonl", "settings.json"):
        shutil.copyfile(work / "contrastive" / name, training / name)
    draw_curves(work / "contrastive" / "log.jsonl").savefig(training / "curves.png", dpi=110)
    encoder = load_open_clip("clip", checkpoint=str(folder), unfit_text="raise")
    rendered = measure(encoder, rounds=rounds, seed=SEED)
    decoded = measure(encoder, rounds=rounds, seed=SEED, transform=through_vq(Janus.load("janus-mini")))
    found: dict[str, Any] = {"candidates": CANDIDATES, "rounds": rounds, "seed": SEED}
    found |= {"rendered": rendered.to_json(), "decoded": decoded.to_json()}
    write_atomically(training / "retrieval.json", json.dumps(found, indent=2) + "\n")
    settings = read_json(training / "settings.json")
    text = CARD.format(
        **sizes(encoder),
        candidates=CANDIDATES,
        rounds=rounds,
        top1=_table(rendered.top1, decoded.top1, [*TASKS, "overall"]),
        n=rendered.top1.n,
        share=rendered.share,
        words=_table(rendered.words, decoded.words, [*KINDS, "overall"]),
        mirrors=_table(rendered.mirrors, decoded.mirrors, ["position", "color_attr"]),
        seed=settings["seed"],
        steps=settings["steps"],
    )
    write_atomically(folder / "README.md", text)
    return rendered


def sizes(encoder: OpenClipEncoder) -> dict[str, float]:
    """Count the parameters in millions, and the features."""
    whole, visual = millions(encoder.model), millions(encoder.model.visual)
    return {
        "parameters": whole,
        "visual": visual,
        "text": whole - visual,
        "features": encoder.model.text_projection.shape[1],
    }


def _table(rendered: Estimates, decoded: Estimates, names: list[str]) -> str:
    lines = []
    for name in names:
        cells = [name, str(rendered.n_by_task.get(name, rendered.n))]
        for found in (rendered, decoded):
            value, (low, high) = found.by_task.get(name, found.overall), found.by_task_ci95.get(name, found.ci95)
            cells += [f"{value:.3f}", f"{low:.3f} to {high:.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_curves(log: Path) -> Any:
    """Draw the loss, and the share of training pictures whose own caption wins, as a figure."""
    from matplotlib.figure import Figure

    rows = read_json_lines(log)
    steps = [row["step"] for row in rows]
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(steps, [row["loss"] for row in rows])
    left.set(title="contrastive loss, training batches", xlabel="step", ylabel="nats")
    right.plot(steps, [row["right"] for row in rows])
    right.set(title="share of pictures whose own caption wins", xlabel="step", ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure
