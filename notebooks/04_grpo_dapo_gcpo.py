# %% [markdown]
# # GRPO, DAPO and GCPO: what was compared, and what it says
#
# Three algorithms, one trainer: an algorithm is a row of choices. This notebook shows where the rows differ, loads the committed studies (with intervals, seeds and budgets), and draws the same prompts with the same noise by four checkpoints: the base and the
# three that were tuned from it (GRPO and GCPO with 3,840 sampled images each, DAPO with 3,296). Every number below comes from a file of the repository or is computed here.

# %%
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown, display
from transformers.utils import logging

import rewards
import t2i_gcpo
from t2i_gcpo import Schedule, Trainer, generators
from t2i_gcpo.algorithms import TABLE
from t2i_gcpo.algorithms.palette import COLORS
from t2i_gcpo.data.prompts import limit, read
from t2i_gcpo.evaluation.evaluate import evaluate, paired_difference, pick
from t2i_gcpo.records import Sampling
from t2i_gcpo.reports import tables
from t2i_gcpo.study import results as study_results
from t2i_gcpo.training.tracker import Tracker
from t2i_gcpo.utils import pictures

logging.disable_progress_bar()
plt.rcParams.update({"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False})
ROOT = Path(t2i_gcpo.__file__).parents[1]
RESULTS = ROOT / "docs/results"
ALGORITHMS = ("grpo", "dapo", "gcpo")

# %% [markdown]
# ## Where the rows differ
#
# All options of the table in `t2i_gcpo/algorithms/table.py` in which the three are not alike:

# %%
choices = {name: asdict(TABLE[name]) for name in ALGORITHMS}
differ = [option for option in choices["gcpo"] if len({str(row[option]) for row in choices.values()}) > 1]
rows = [[option, *(str(choices[name][option]) for name in ALGORITHMS)] for option in differ if option != "name"]
Markdown(tables.markdown(["option", *ALGORITHMS], rows))

# %% [markdown]
# * **GCPO** (2605.29198) differs from GRPO (2402.03300) by the credit, $A_{b,t} = A_b\,w_{b,t}$ instead of $A_{b,t} = A_b$, and by a KL term that is weighed by token. [02_token_credit](02_token_credit.ipynb) has the formulas.
# * **DAPO** (2503.14476): an image has a fixed number of tokens. With one update a rollout, a ratio of 1 is never clipped, and the mean over tokens is the mean of the images' means. What is left is that it has no KL term and draws more prompts
#   until every group has reward spread. It throws images away, so that a fair comparison has equal numbers of *sampled* images, not of steps.

# %% [markdown]
# ## Three seeds on the test prompts
#
# `t2i-gcpo study configs/studies/shapes.yaml` trains the three with three seeds each, and scores `shapes:test` before and after.


# %%
def load(name):
    return json.loads((RESULTS / name / "results.json").read_text())


def show(name, study):
    print(f"docs/results/{name}/results.json, from {study['machine']['cores']} cores ({study['machine']['cpu']})")
    display(Markdown(tables.markdown(study_results.COLUMNS, study_results.table(study["groups"]))))
    print(study["note"])


shapes = load("shapes")
show("shapes", shapes)

# %% [markdown]
# Left: the difference between after and before, with its 95 % interval over seeds and prompts, and each seed's own difference as a ring. Right: the same by task.

# %%
groups = shapes["groups"]
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), width_ratios=[1, 3], layout="constrained")
for k, row in enumerate(groups):
    found, color = row["difference"], COLORS[row["group"]]
    low, high = found["ci95"]
    left.errorbar(k, found["overall"], [[found["overall"] - low], [high - found["overall"]]], fmt="s", color=color)
    seeds = [t["difference"]["overall"] for t in shapes["trials"] if t["group"] == row["group"]]
    left.scatter([k + 0.18] * len(seeds), seeds, facecolors="none", edgecolors=color, s=22)
    names = list(found["by_task"])
    means = np.array([found["by_task"][task] for task in names])
    bounds = np.array([found["by_task_ci95"][task] for task in names])
    at = np.arange(len(names)) + 0.18 * (k - (len(groups) - 1) / 2)
    right.errorbar(at, means, np.abs(bounds.T - means), fmt="s", color=color, label=row["group"])
left.set_xticks(range(len(groups)), [row["group"] for row in groups])
right.set_xticks(range(len(names)), names)
for axis in (left, right):
    axis.axhline(0, color="black", linewidth=0.8, linestyle=":")
left.set(title="after less before", xlim=(-0.5, len(groups) - 0.3))
right.set(title="by task")
right.legend(frameon=False)
plt.show()

# %% [markdown]
# The rows share prompts and seeds, so the intervals of two rows are *not* an interval of their difference. The study has that, too (`against: [grpo, dapo]` in its file): one arm less another after training, image by image under the same seed, prompt and
# noise, pooled over the seeds.

# %%
display(Markdown(tables.markdown(study_results.AGAINST_COLUMNS, study_results.against_table(shapes["against"]))))
for row in shapes["against"]:
    low, high = row["difference"]["ci95"]
    holds = "holds 0: not told apart" if low <= 0 <= high else "does not hold 0"
    print(f"{row['group']} less {row['against']}: the interval {holds}")
luck = 1 - 0.95**3
print(f"Of three independent 95 % intervals around 0, at least one misses it by chance with probability {luck:.2f}.")

# %% [markdown]
# ## The quickstart: GCPO alone
#
# 60 steps, three seeds. It says what this much training gains, and nothing about the other two.

# %%
show("quickstart", load("quickstart"))

# %% [markdown]
# ## Tuning: one seed a setting, on the validation prompts
#
# The same settings for each algorithm, one factor at a time, about equal numbers of sampled images.

# %%
tune = load("tune")
show("tune", tune)

# %%
settings = list(dict.fromkeys(row["group"].split("-", 1)[1] for row in tune["groups"]))
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), sharey=True, width_ratios=[3, 2], layout="constrained")
for k, name in enumerate(ALGORITHMS):
    mine = [row for row in tune["groups"] if row["group"].startswith(f"{name}-")]
    means = np.array([row["difference"]["overall"] for row in mine])
    errors = np.abs(np.array([row["difference"]["ci95"] for row in mine]).T - means)
    at = [settings.index(row["group"].split("-", 1)[1]) + 0.18 * (k - 1) for row in mine]
    left.errorbar(at, means, errors, fmt="s", color=COLORS[name], label=name)
    right.errorbar([row["kl"] for row in mine], means, errors, fmt="s", color=COLORS[name])
left.set_xticks(range(len(settings)), settings, rotation=25, ha="right")
left.set(ylabel="after less before", title="one seed each, 95 % intervals over prompts alone")
right.set(xscale="log", xlabel="KL to the reference, nats a token", title="what the gain cost")
for axis in (left, right):
    axis.axhline(0, color="black", linewidth=0.8, linestyle=":")
figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
plt.show()

# %% [markdown]
# Rows like these can show what breaks (rollouts without guidance; a learning rate at which the KL runs away), not which of two neighbours is better: their intervals overlap, hold no variance between seeds, and the best of many rows is flattered by having been
# picked. [docs/results.md](../docs/results.md) goes through them.

# %% [markdown]
# ## The same prompt and noise, four checkpoints
#
# `t2i_gcpo/assets/tuned` holds what training changed: one run of each algorithm with the settings `base` of the tuning study, seed 0. Its README has their budgets and scores. They are evaluated here on 60 test prompts, an image each, with the same noise.

# %%
places = {"base": "janus-mini"} | {name: Path(t2i_gcpo.__file__).parent / "assets/tuned" / name for name in ALGORITHMS}
for name in ALGORITHMS:
    about = json.loads((places[name] / "delta.json").read_text())
    print(f"{name}: seed {about['seed']}, {about['step']} steps, {about['images_sampled']:,.0f} images sampled")
prompts, geneval = limit(read("shapes:test"), 60, repeat=True), rewards.load("geneval")
guided = Sampling(guidance=2.0)
results = {}
for name, place in places.items():
    generator = generators.load(place, compile=False)
    results[name] = evaluate(generator, prompts, geneval, sampling=guided, seed=0, checkpoint=name, keep_images=True)

# %%
chosen = pick(results["base"], 12)  # two a task, evenly spread; not by their score
cells = [
    (prompts[k].text, [
        pictures.Cell(pictures.to_picture(found.images[k], 1), f"{name} {mark[0]}", color)
        for name, found in results.items()
        for mark, color in [pictures.verdict(found.rows[k].score, strict=True)]
    ])
    for k in chosen
]  # fmt: skip
pictures.grid(cells, columns=8)

# %% [markdown]
# The noise is the same, so that layouts are often alike. The scores of all 60, and the difference from the base image by image:

# %%
rows = []
for name, found in results.items():
    against = paired_difference(results["base"], found)
    cell = "" if name == "base" else tables.with_interval(against.overall, against.ci95, signed=True)
    same = sum(a.score == b.score for a, b in zip(results["base"].rows, found.rows, strict=True))
    rows.append([name, str(found.n), tables.with_interval(found.overall, found.ci95), cell, f"{same} of {found.n}"])
display(Markdown(tables.markdown(["checkpoint", "images", "score", "less the base's", "verdict as the base's"], rows)))
print(tables.NOTE)
for a, b in (("gcpo", "grpo"), ("dapo", "grpo"), ("gcpo", "dapo")):
    between = paired_difference(results[b], results[a])
    low, high = between.ci95
    print(
        f"{a} less {b}: {tables.with_interval(between.overall, between.ci95, signed=True)}; the interval {'holds' if low <= 0 <= high else 'does not hold'} 0"
    )

# %% [markdown]
# ## Two steps of each, live
#
# Two steps teach nothing. They show what each algorithm *does*: the images that DAPO samples and the groups it discards, the share of its tokens on which GCPO puts the credit. A dash: the algorithm has no such term.

# %%
logged = {
    "images_sampled": "images sampled",
    "groups/discarded": "groups discarded",
    "groups/informative": "share of groups with spread",
    "reward/mean": "mean reward",
    "credit/effective_tokens": "effective share of tokens",
    "credit/top_share": "credit of the top 40 %",
    "kl_loss": "KL term",
    "grad_norm": "gradient norm",
}
folder = tempfile.TemporaryDirectory()
rows = []
for name in ALGORITHMS:
    generator, run = generators.load("janus-mini", compile=False), Path(folder.name, name)
    options = {"algorithm": name, "steps": 2, "prompts_per_step": 3, "optim": Schedule(warmup_steps=0)}
    with Tracker(run, steps=2) as tracker:
        trainer = Trainer(generator, geneval, "shapes:train", run, tracker=tracker, **options)
        for record in trainer.iterate():
            values = [record.metrics.get(key) for key in logged]
            rows.append([name, str(record.step), *("–" if value is None else f"{value:.3g}" for value in values)])
folder.cleanup()
Markdown(tables.markdown(["algorithm", "step", *logged.values()], rows))

# %% [markdown]
# ## What can be said, and what cannot
#
# * These intervals are over *prompts*. The three checkpoints are one run each; another seed gives other weights. A difference between two of them is a statement about these two files, not about two algorithms.
# * A claim about algorithms takes several seeds of each, tuned alike on prompts that the final comparison does not use, at equal sampled images, with an interval over seeds. Of three seeds such an interval holds the truth three times in four
#   where the runs differ far more than the noise of the images explains ([docs/studies.md](../docs/studies.md)).
# * Whether *where* GCPO puts its credit matters takes its controls besides: `gcpo_shuffled` (the same weights at other places), `gcpo_random`, and `gcpo_entropy`, which needs no second prompt. They are rows of the same table.
# * All of it is about one small generator on rendered scenes, whose tokens follow in raster order. It is a test bed, and no evidence about a model of another size.
