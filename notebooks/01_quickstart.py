# %% [markdown]
# # Quickstart: a generator, a score, a few steps of GCPO
#
# On a laptop, without a GPU and without a model hub: sample from the embedded generator, score its images by GenEval's rules, train a few steps, look at the run folder, and evaluate on prompts
# that were not trained on. The training here is a tiny part of `make quickstart`; what the whole of it gains is read from the committed results at the end.

# %%
import json
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import Image, Markdown, display
from transformers.utils import logging

import rewards
import t2i_gcpo
from t2i_gcpo import Sampling, curves, generators, prompts, report, run_folder, train_command
from t2i_gcpo.arguments import parse
from t2i_gcpo.pictures import before_after, sample_grid
from t2i_gcpo.rollout import collect
from t2i_gcpo.study_results import COLUMNS, table
from t2i_gcpo.tables import NOTE, PAIRED_NOTE, evaluation_rows, markdown, with_interval

logging.disable_progress_bar()
plt.rcParams["figure.dpi"] = 80
ROOT = Path(t2i_gcpo.__file__).parents[1]
os.chdir(tempfile.mkdtemp())  # what this notebook writes goes there

# %% [markdown]
# ## 1. The generator
#
# `janus-mini` is a `JanusForConditionalGeneration` of transformers, small enough to lie in the package, and loaded by the adapter that loads Janus-Pro. It draws an image as a grid of tokens,
# one after the other, each an entry of a codebook that stands for a square of 8 × 8 pixels.

# %%
generator = generators.load("janus-mini")
size = sum(parameter.numel() for parameter in generator.trainable_parameters())
rows, columns = generator.grid
print(
    f"a grid of {rows} x {columns} tokens, {generator.codebook_size} codes, {size / 1e6:.1f} million trainable parameters"
)

# %% [markdown]
# ## 2. Samples, with and without guidance
#
# Classifier-free guidance mixes the logits with the prompt, $c$, and without it, $u$, to $u + g\,(c - u)$; $g = 1$ is no guidance. The prompts come from the test split of ShapeScenes, one of
# each of GenEval's six tasks. Each has its metadata: what has to be in the picture.

# %%
chosen = prompts.limit(prompts.read("shapes:test"), 6)
for prompt in chosen:
    print(f"{prompt.task:14} {prompt.text:42} {json.dumps(prompt.metadata['include'])}")

# %%
reward = rewards.load("geneval")
plain, guided = (collect(generator, reward, chosen, Sampling(guidance=g, seed=0)) for g in (1.0, 2.0))
before_after(
    plain.images,
    guided.images,
    [prompt.text for prompt in chosen],
    scores_before=plain.scores,
    scores_after=guided.scores,
    labels=("g = 1", "g = 2"),
    pairs=3,
    scale=1,
    title="Same prompts and noise, without guidance and with guidance 2",
)

# %% [markdown]
# ## 3. The score
#
# GenEval's rules judge what a detector finds in a picture: classes, numbers, colours, positions. In ShapeScenes the detector reads the pictures exactly. A verdict says which of the prompt's
# clauses hold, and why one does not.

# %%
group = collect(generator, reward, chosen[4:], Sampling(guidance=2.0, group_size=8, seed=0))
texts = [prompt.text for prompt in chosen[4:] for _ in range(8)]
display(sample_grid(group.images, texts, columns=8, scores=group.scores, scale=1))
metadata = [prompt.metadata for prompt in chosen[4:] for _ in range(8)]
verdicts = reward.verdicts(group.images, texts, metadata)
wrong = [[texts[k], str(k % 8), v.reason] for k, v in enumerate(verdicts) if not v.correct]
display(Markdown(markdown(["prompt", "image", "why it is wrong"], wrong[:6])))

# %% [markdown]
# Images of one prompt differ in their score. That is all that GRPO and its relatives learn from: what did the better ones of a group do?
#
# ## 4. A few steps of GCPO
#
# The options are those of `configs/quickstart.yaml`, on a tiny budget. In a terminal this is `t2i-gcpo train --config configs/quickstart.yaml --steps 6 ...`. It evaluates the test prompts before
# and after, with the same prompts and the same noise.

# %%
options = {
    "output-dir": "runs/notebook",
    "steps": 6,
    "prompts-per-step": 4,
    "algorithm.group-size": 8,
    "optim.warmup-steps": 2,
    "evaluate.test-limit": 60,
    "evaluate.limit": 24,
    "evaluate.every": 3,
    "pictures.every": 6,
    "generator.compile": "off",
    "logging.tensorboard": False,
    "logging.progress": False,
}
arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
command = parse(["--config", str(ROOT / "configs" / "quickstart.yaml"), *arguments])
trainer = train_command.run(command.settings)

# %% [markdown]
# ## 5. The run folder

# %%
folder = Path("runs/notebook")
for path in sorted(folder.iterdir()):
    inside = f"  {len(list(path.rglob('*.*')))} files" if path.is_dir() else f"  {path.stat().st_size / 1024:,.0f} KB"
    print(f"{path.name + '/' * path.is_dir():20}{inside}")

# %% [markdown]
# `report.html` has all of it on one page that needs no network. Here are its parts. The curves of six steps are short; `credit` and `KL` are explained in
# [02_token_credit](02_token_credit.ipynb).

# %%
run = run_folder.read(folder)
figure = curves.draw({run.algorithm: [run]})
figure.set_dpi(58)
figure

# %% [markdown]
# A group that the last step was trained on, and the very token advantages that its loss used: red tokens are made more likely, blue ones less likely.

# %%
trained = sorted((folder / "heatmaps").glob("*_trained.npz"))[-1]
saved = t2i_gcpo.heatmap.load(trained)
saved.rows(range(4)).draw("advantage")

# %% [markdown]
# Test prompts before and after, the same noise, picked without a look at the scores:

# %%
Image(folder / "samples" / report.BEFORE_AFTER, width=700)

# %% [markdown]
# ## 6. What may be said of it
#
# The same images as a table, by task, with 95 % intervals that are clustered by prompt.

# %%
display(Markdown(markdown(*evaluation_rows(run.after, run.before, names=("after", "before")))))
print(f"{NOTE}; {PAIRED_NOTE}")
difference, _ = run.difference()
low, high = difference.ci95
shown = with_interval(difference.overall, difference.ci95, signed=True)
says = "does not hold 0" if low > 0 or high < 0 else "holds 0: nothing can be said"
print(f"\n{difference.n} images, {run.step} steps, one seed. The difference is {shown}: its interval {says}.")

# %% [markdown]
# Sixty images and one seed are few: the interval is as wide as the gain that a whole training brings. So look at the runs that were made for it.
#
# ## 7. The committed results
#
# Three seeds of the whole quickstart, 600 test images each before and after. The file is what `t2i-gcpo study configs/studies/quickstart.yaml` wrote.

# %%
study = json.loads((ROOT / "docs" / "results" / "quickstart" / "results.json").read_text(encoding="utf-8"))
display(Markdown(markdown(COLUMNS, table(study["groups"]))))
(row,) = study["groups"]
gain = row["difference"]
tasks = [
    [task, with_interval(value, gain["by_task_ci95"][task], signed=True), str(gain["n_by_task"][task])]
    for task, value in gain["by_task"].items()
]
display(Markdown(markdown(["task", "difference", "pairs of images"], tasks)))
print(study["note"])
width, here = gain["ci95"][1] - gain["ci95"][0], high - low
print(
    f"\nThe interval is {width:.3f} wide with {row['seeds']} seeds and {gain['n']:,} images; above it is {here:.3f} wide."
)

# %% [markdown]
# ![curves of the three runs](../docs/results/quickstart/curves.png)
#
# ## Where to go on
#
# * `make quickstart` is the whole run; `t2i-gcpo train --help` lists every option.
# * [02_token_credit](02_token_credit.ipynb): why GCPO weighs some tokens more, step by step.
# * [03_rewards](03_rewards.ipynb): the scorers, mixing them, writing one.
# * [04_grpo_dapo_gcpo](04_grpo_dapo_gcpo.ipynb): the algorithms side by side.
# * [docs/results.md](../docs/results.md): what was measured, and what did not work.
