"""Write the model card of `text-mini`: accuracy, completions that were not picked, and the curves of its training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from t2i_gcpo.text import arithmetic
from t2i_gcpo.text.data import read_rows
from t2i_gcpo.text.evaluate import TextEvalResult, evaluate, generate
from t2i_gcpo.text.models import load
from t2i_gcpo.text.negatives import negative_prompt
from t2i_gcpo.utils.files import write_atomically
from t2i_gcpo.utils.json_files import read_json, read_json_lines

SEED = 0
QUESTIONS = 600
SHOWN = 6

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# text-mini

A `LlamaForCausalLM` of {parameters:.2f} million parameters ({layers} layers, width {width}, a vocabulary of {vocabulary}) for the arithmetic task of t2i_gcpo:
"What is 37+48-19?", answered by one step an operator and "The answer is 66." It was trained from nothing by `t2i-gcpo pretrain text` on one CPU core;
`training/` has the settings, the log and the curves. From step {slips_from} of {end} on, {slips:.0%} of the steps in its training reasoning were wrong, on purpose: the
model can calculate and slips, a start for reinforcement learning, which needs mistakes.

{wrong:.0%} of its training rows asked for a wrong answer (the instruction of the negative prompt `wrong`), and {empty:.0%} had no question (the negative
prompt `empty`), so that it knows what both ask for. Its text is ASCII: digits are tokens of their own, the task's words too, and all else is spelled in bytes.

```python
from t2i_gcpo.text.models import load

model, tokenizer = load("text-mini")
```

## Accuracy

Questions of `arithmetic:test`, none of which is a training question, sampled at temperature 1, seed {seed}, n = {n}; 95 % intervals, clustered by question.

| task | accuracy | 95 % interval |
|---|---|---|
{table}

Greedy decoding: {greedy:.3f}.

```bash
t2i-gcpo text eval --model text-mini --data arithmetic:test --limit {n} --seed {seed} --out out/text
```

## Completions

The first {shown} questions of `arithmetic:test`, not picked, at temperature 1, seed {seed}, and under the negative prompt `wrong`.

| question | right | completion | under `wrong` |
|---|---|---|---|
{samples}

## Training

![curves](training/curves.png)

```bash
t2i-gcpo pretrain text --out runs/pretrain_text --seed {train_seed} --threads 1
```
"""


def write(folder: Path, work: Path, *, questions: int = QUESTIONS) -> TextEvalResult:
    """Measure the model in `folder`, write its `README.md` and `training/`, and return the measurement."""
    training = folder / "training"
    training.mkdir(parents=True, exist_ok=True)
    for name in ("log.jsonl", "settings.json"):
        shutil.copyfile(work / "language" / name, training / name)
    draw_curves(work / "language" / "log.jsonl").savefig(training / "curves.png", dpi=110)
    settings = read_json(training / "settings.json")
    model, tokenizer = load(str(folder))
    rows = read_rows("arithmetic:test", limit=questions, seed=SEED)
    reward = arithmetic.arithmetic_reward
    about: dict[str, Any] = {"model_name": "text-mini", "data": "arithmetic:test", "reward_name": "arithmetic"}
    result = evaluate(model, tokenizer, rows, reward, seed=SEED, progress=True, **about)
    result.save(training / "eval.json")
    greedy = evaluate(model, tokenizer, rows, reward, temperature=0.0, **about)
    text = CARD.format(
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        layers=model.config.num_hidden_layers,
        width=model.config.hidden_size,
        vocabulary=model.config.vocab_size,
        end=settings["end"],
        slips=settings["slips"],
        slips_from=settings["slips_from"],
        wrong=settings["wrong"],
        empty=settings["empty"],
        seed=SEED,
        n=result.n,
        table=_table(result),
        greedy=greedy.overall,
        shown=SHOWN,
        samples=_samples(model, tokenizer, rows[:SHOWN], result),
        train_seed=settings["seed"],
    )
    write_atomically(folder / "README.md", text)
    return result


def _table(result: TextEvalResult) -> str:
    e = result.estimates
    lines = {task: (e.by_task[task], e.by_task_ci95[task]) for task in e.by_task} | {"overall": (e.overall, e.ci95)}
    return "\n".join(
        f"| {name} | {value:.3f} | {low:.3f} to {high:.3f} |" for name, (value, (low, high)) in lines.items()
    )


def _samples(model: Any, tokenizer: Any, rows: list[dict[str, Any]], result: TextEvalResult) -> str:
    wrong = negative_prompt("wrong")
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        negatives = generate(model, tokenizer, [wrong(row["prompt"]) for row in rows], 1.0, 48)
    return "\n".join(
        f"| {row['prompt'][-1]['content']} | {row['answer']} | {answer.completion} | {negative} |"
        for row, answer, negative in zip(rows, result.rows, negatives, strict=False)
    )


def draw_curves(log: Path) -> Any:
    """Draw the loss and the accuracy on validation questions as a matplotlib figure."""
    from matplotlib.figure import Figure

    rows = read_json_lines(log)
    checks = [row for row in rows if "accuracy" in row]
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([row["step"] for row in rows], [row["loss"] for row in rows])
    left.set(title="cross-entropy of completions, training batches", xlabel="step", ylabel="nats a token")
    right.plot([row["step"] for row in checks], [row["accuracy"] for row in checks], marker="o")
    right.set(title="accuracy on validation questions (temperature 1)", xlabel="step", ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure
