# %% [markdown]
# # GRPO, DAPO and GCPO side by side
#
# What differs between the three, what the committed studies measured, what follows from it and what does not. Every number below is read from a file of this
# repository or computed here; no sentence about who did better is typed by hand.
#
# The maths of GCPO is in [02_token_credit](02_token_credit.ipynb), how the intervals are made in [docs/studies.md](../docs/studies.md).

# %%
import json
import os
import tarfile
import tempfile
from dataclasses import fields
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import Markdown, display
from transformers.utils import logging

import rewards
import t2i_gcpo
from t2i_gcpo import Sampling, Schedule, Trainer, curves, generators, prompts, run_folder
from t2i_gcpo.algorithms import TABLE, Algorithm
from t2i_gcpo.pictures import Cell, grid, to_picture, verdict
from t2i_gcpo.rollout import collect
from t2i_gcpo.statistics import pooled
from t2i_gcpo.study_results import COLUMNS, table
from t2i_gcpo.tables import markdown, number, with_interval
from t2i_gcpo.tracking import Tracker

logging.disable_progress_bar()
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False})
ROOT = Path(t2i_gcpo.__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
NAMES = ("grpo", "dapo", "gcpo")
COLOR = dict(zip(NAMES, curves.COLORS, strict=False))
os.chdir(tempfile.mkdtemp())  # what this notebook writes goes there


# %% [markdown]
# ## 1. Three rows of one table
#
# An algorithm is a row of `t2i_gcpo.algorithms.TABLE`. These are the choices in which the three rows are not alike; all others are the same.

# %%
differ = [f.name for f in fields(Algorithm) if f.name != "name" and len({getattr(TABLE[n], f.name) for n in NAMES}) > 1]
display(Markdown(markdown(["choice", *NAMES], [[f, *(str(getattr(TABLE[n], f)) for n in NAMES)] for f in differ])))

# %% [markdown]
# * **GRPO** ([2402.03300](https://arxiv.org/abs/2402.03300)): an image's advantage is its reward, centred and scaled within its prompt's group; all of its tokens get it.
# * **DAPO** ([2503.14476](https://arxiv.org/abs/2503.14476)): clips less from above, means over tokens, has no KL term, and draws prompts until every group has reward spread. With one
#   update a rollout the ratio is 1, nothing is clipped, and with images of one length the two means are equal: what is left is the missing KL term and dynamic sampling.
# * **GCPO** ([2605.29198](https://arxiv.org/abs/2605.29198)): GRPO, with the advantage spread over the tokens by their contrast between prompt and negative prompt, and the KL term held
#   looser on those tokens.
#
# ## 2. The committed studies
#
# `quickstart`: GCPO alone, three seeds, test prompts. `tune`: each algorithm at several settings, one seed, *validation* prompts. `shapes`: the three arms at an equal budget of
# sampled images, three seeds each, test prompts.

# %%
studies = {}
for name in ("quickstart", "tune", "shapes"):
    path = RESULTS / name / "results.json"
    if not path.is_file():
        print(
            f"docs/results/{name}/results.json is not there; it is made by: t2i-gcpo study configs/studies/{name}.yaml"
        )
        continue
    studies[name] = json.loads(path.read_text(encoding="utf-8"))
    done = [row for row in studies[name]["groups"] if row["difference"]]
    command = f"`t2i-gcpo study configs/studies/{name}.yaml`, in docs/results/{name}"
    display(Markdown(f"**{name}** ({command})\n\n{markdown(COLUMNS, table(done))}"))
print(studies["tune"]["note"])

# %% [markdown]
# The gain on the evaluated images, all groups. A dot is a group's mean over its seeds, the line its 95 % interval, the small marks are single seeds.

# %%
lines = [(name, row) for name, study in studies.items() for row in study["groups"] if row["difference"]][::-1]
figure, axes = plt.subplots(figsize=(8, 0.27 * len(lines) + 0.8), layout="constrained")
for y, (name, row) in enumerate(lines):
    color = COLOR[row["group"].split("-")[0]]
    axes.plot(row["difference"]["ci95"], [y, y], color=color, linewidth=2)
    axes.plot(row["difference"]["overall"], y, "o", color=color)
    own = [
        t["difference"]["overall"] for t in studies[name]["trials"] if t["group"] == row["group"] and t["difference"]
    ]
    if len(own) > 1:
        axes.plot(own, [y] * len(own), "|", color="black", markersize=9)
axes.axvline(0, color="grey", linewidth=0.8)
axes.set_yticks(range(len(lines)), [f"{name}: {row['group']}" for name, row in lines], fontsize=9)
axes.set_xlabel("GenEval score, after less before")
plt.show()

# %% [markdown]
# ## 3. The three arms
#
# What follows rests on `shapes` where it is there, else on the `base` arms of `tune`, which have one seed and the validation prompts.

# %%
source = "shapes" if "shapes" in studies else "tune"
arms = {n: row for n in NAMES for row in studies[source]["groups"] if row["group"] in (n, f"{n}-base")}
trials = {
    n: {t["seed"]: t for t in studies[source]["trials"] if t["group"] == row["group"] and t["difference"]}
    for n, row in arms.items()
}
for name, row in arms.items():
    low, high = row["difference"]["ci95"]
    found = "above 0" if low > 0 else "below 0" if high < 0 else "around 0"
    print(
        f"{source}, {name}: {row['seeds']} of {row['of']} seeds, {row['images_sampled']:,.0f} images sampled a run; ",
        end="",
    )
    print(
        f"the interval of its gain, {with_interval(row['difference']['overall'], (low, high), signed=True)}, lies {found}"
    )

# %% [markdown]
# The gain by task. A task has a sixth of the images, so that its intervals are wide.

# %%
tasks = list(arms["gcpo"]["difference"]["by_task"])
figure, axes = plt.subplots(figsize=(9, 3.4), layout="constrained")
for k, (name, row) in enumerate(arms.items()):
    for x, task in enumerate(tasks):
        at, color = x + 0.22 * (k - 1), COLOR[name]
        axes.plot([at, at], row["difference"]["by_task_ci95"][task], color=color, linewidth=2)
        axes.plot(at, row["difference"]["by_task"][task], "o", color=color, label=name if x == 0 else None)
axes.axhline(0, color="grey", linewidth=0.8)
axes.set_xticks(range(len(tasks)), tasks)
axes.set_ylabel("after less before")
axes.legend(frameon=False, ncols=3, loc="upper right")
plt.show()

# %% [markdown]
# ## 4. Is one arm better than another?
#
# Two rows' intervals that overlap, or do not, are no test: both arms share prompts and noise. The runs of one seed were evaluated on the same prompts with the same noise, so that
# **arm less arm can be taken image by image**. The interval resamples prompts, and with several seeds the seeds too.

# %%
archive = RESULTS / source / "trials.tgz"
if archive.is_file():
    with tarfile.open(archive) as file:
        file.extractall(".", filter="data")
else:
    print(f"docs/results/{source}/trials.tgz is not there: differences seed by seed, without intervals")
seeds = [seed for seed in trials["gcpo"] if all(seed in found for found in trials.values())]
paths = {n: [Path(trials[n][seed]["folder"]) for seed in seeds] for n in NAMES}
packed = all(path.is_dir() for found in paths.values() for path in found)
runs = {n: [run_folder.read(path) for path in found] for n, found in paths.items()} if packed else {}

# %%
rows, sentences = [], []
for a, b in combinations(NAMES, 2):
    by_seed = [trials[b][seed]["after"]["overall"] - trials[a][seed]["after"]["overall"] for seed in seeds]
    interval, n, says = "–", "–", "no interval, so nothing is said"
    if runs:
        images = runs[a][0].after.rows
        values = [
            [y.score - x.score for x, y in zip(before.after.rows, other.after.rows, strict=True)]
            for before, other in zip(runs[a], runs[b], strict=True)
        ]
        found = pooled(values, [row.text for row in images], [row.task for row in images])
        interval, n = with_interval(found.overall, found.ci95, signed=True), f"{found.n:,}"
        apart = found.ci95[0] > 0 or found.ci95[1] < 0
        says = "the interval does not hold 0" if apart else "the interval holds 0: these runs do not tell the two apart"
    rows.append([f"{b} less {a}", str(len(seeds)), n, interval, ", ".join(number(v, signed=True) for v in by_seed)])
    sentences.append(f"* {b} less {a}: {says}.")
display(Markdown(markdown(["after training", "seeds", "pairs of images", "difference", "seed by seed"], rows)))
if len(seeds) == 1:
    sentences.append("* One seed: the intervals hold no variance between seeds. No claim about algorithms follows.")
else:
    share = 2 * 0.5 ** len(seeds)
    sentences.append(f"* Of two equal arms, one is ahead in all {len(seeds)} seeds with probability {share:.2g}.")
share = 1 - 0.95 ** len(rows)
sentences.append(
    f"* Of {len(rows)} independent 95 % intervals around 0, one or more miss it with probability {share:.2f}."
)
display(Markdown("\n".join(sentences)))

# %% [markdown]
# The curves of these runs over the images sampled, discarded ones included: the fair axis, as DAPO samples more images a step.

# %%
if runs:
    figure = curves.draw({n: runs[n] for n in NAMES}, x="images_sampled")
    figure.set_dpi(62)
    display(figure)

# %% [markdown]
# **What this cannot say**, whatever the table holds:
#
# * It is one small generator on rendered scenes. A larger model, other rewards or longer runs may order the arms otherwise.
# * Each arm ran with the same options. An arm that wants another learning rate is at a disadvantage, and `tune` has tried only a few, with one seed.
# * An interval from three seeds cannot leave the range of these seeds; where seeds differ more than images do, it holds the truth three times in four, not 19 times in 20
#   ([docs/studies.md](../docs/studies.md)).
# * Whether it matters *where* GCPO puts its credit takes the controls (`gcpo_random`, `gcpo_shuffled`), which are not among these arms.
#
# ## 5. The same prompts and noise under four sets of weights
#
# `t2i_gcpo/assets/tuned` holds what the `base` arms of `tune` changed in the weights. One image each of twelve held-out prompts, two a task, taken without a look at their scores.

# %%
chosen = prompts.limit(prompts.read("shapes:test"), 12)
sampling = Sampling(guidance=2.0, seed=0, contrast=False, stats=())
reward = rewards.load("geneval")
drawn = {}
for name in ("janus-mini", *generators.checkpoints.tuned()):
    drawn[name] = collect(generators.load(name, compile=False), reward, chosen, sampling)

groups = []
for k, prompt in enumerate(chosen):
    cells = []
    for name, scored in drawn.items():
        words, color = verdict(float(scored.scores[k]), strict=True)
        cells.append(
            Cell(
                to_picture(scored.images[k], scale=1),
                f"{name.removeprefix('janus-mini').lstrip('-') or 'before'} {words[0]}",
                color,
            )
        )
    groups.append((prompt.text, cells))
display(
    grid(groups, columns=8, title="janus-mini before training, and after GRPO, DAPO and GCPO: same prompts, same noise")
)
print("right:", ", ".join(f"{n} {int(s.scores.sum())} of {len(chosen)}" for n, s in drawn.items()))

# %%
tuned = {n: json.loads((folder / "delta.json").read_text()) for n, folder in generators.checkpoints.tuned().items()}
header = ["weights", "steps", "images sampled", "seed", "prompts", "n", "before", "after"]
rows = [
    [n, str(d["step"]), f"{d['images_sampled']:,.0f}", str(d["seed"]), after["prompts"], str(after["n"])]
    + [with_interval(score["overall"], score["ci95"]) for score in (d["scores"]["test_before"], after)]
    for n, d in tuned.items()
    for after in [d["scores"]["test_after"]]
]
display(Markdown(markdown(header, rows)))

# %% [markdown]
# Twelve images are to look at, not to count.
#
# ## 6. Two steps of each, live
#
# What the log says of the first steps. Two steps teach nothing; look at what each algorithm *does*: DAPO's sampled and discarded groups, GCPO's share of tokens that carry the credit.

# %%
logged = {
    "images_sampled": "images sampled",
    "groups/discarded": "groups discarded",
    "groups/informative": "share of groups with spread",
    "reward/mean": "mean reward",
    "credit/effective_tokens": "effective share of tokens",
    "credit/top_share": "credit of the top 40 %",
    "kl_loss": "KL term in the loss",
    "grad_norm": "gradient norm",
}
rows = []
for name in NAMES:
    trainer = Trainer(
        generators.load("janus-mini", compile=False),
        rewards.load("geneval"),
        "shapes:train",
        f"runs/{name}",
        algorithm=name,
        steps=2,
        prompts_per_step=3,
        optim=Schedule(warmup_steps=0),
        tracker=Tracker(f"runs/{name}", steps=2),
    )
    records = list(trainer.iterate())
    trainer.tracker.close()
    numbers = [[r.metrics.get(key) for key in logged] for r in records]
    rows += [
        [name, str(r.step), *("–" if v is None else f"{v:.3g}" for v in row)]
        for r, row in zip(records, numbers, strict=True)
    ]
display(Markdown(markdown(["algorithm", "step", *logged.values()], rows)))

# %% [markdown]
# Credit is uniform under GRPO and DAPO: every token counts, and the top 40 % of them carry 40 %. Under GCPO the same 40 % carry about 80 %. A dash is a term that the algorithm does not
# have. The KL term of a first step is 0, as nothing has moved yet.
#
# To run the comparison itself: `t2i-gcpo study configs/studies/shapes.yaml`.
