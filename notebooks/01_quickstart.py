# %% [markdown]
# # Quickstart: sample, score, train, evaluate
#
# Everything here runs offline on two CPU cores, in a few minutes: the generator `janus-mini`, the prompts (*ShapeScenes*, rendered scenes of coloured shapes) and the scorer (GenEval's rules) are in the package. The training here is far too short to
# learn much; it shows the parts. A whole run, whose result is in the package, is then scored on enough images to say that it gained, and the gain over several seeds is read from committed results.

# %%
import io
import json
import os
import tempfile
from pathlib import Path

import torch
from IPython.display import Image, Markdown, display
from transformers.utils import logging

import rewards
import t2i_gcpo
from t2i_gcpo import generators
from t2i_gcpo.commands import train as train_command
from t2i_gcpo.commands.options.arguments import parse
from t2i_gcpo.data.prompts import by_task, limit, read
from t2i_gcpo.evaluation.evaluate import evaluate, paired_difference
from t2i_gcpo.records import Sampling
from t2i_gcpo.reports import changes, curves, tables, verdict
from t2i_gcpo.reports import run as run_folder
from t2i_gcpo.study import results as study_results
from t2i_gcpo.training.rollout import score
from t2i_gcpo.utils.pictures import before_after, sample_grid

logging.disable_progress_bar()
ROOT = Path(t2i_gcpo.__file__).parents[1]
folder = tempfile.TemporaryDirectory()
os.chdir(folder.name)  # the run is written there

# %% [markdown]
# ## Sample
#
# The prompts have GenEval's six tasks and are split by *combination*: a pair of class and colour, or of two classes and a relation, that the test split holds is in no training prompt.

# %%
splits = {name: read(f"shapes:{name}") for name in ("train", "val", "test")}
tasks = {name: {task: len(found) for task, found in by_task(prompts).items()} for name, prompts in splits.items()}
rows = [[task, *(f"{tasks[name][task]:,}" for name in splits)] for task in tasks["train"]]
Markdown(tables.markdown(["prompts of task", *splits], rows))

# %% [markdown]
# `generators.load` takes the name of an embedded checkpoint, a folder (a run's `checkpoints/step_N` too) or a repository of the Hugging Face hub. Sampling uses classifier-free guidance, here with scale 2. Each image's noise depends on the
# seed, the prompt's place in the list and the image's number only.

# %%
generator = generators.load("janus-mini", compile=False)
prompts = limit(splits["val"], 6)
rollout = generator.sample(prompts, Sampling(group_size=4, guidance=2.0, seed=0))
print(
    f"{rollout.batch} images of {generator.grid[0]} x {generator.grid[1]} tokens, codebook of {generator.codebook_size}"
)
print(f"parameters that are trained: {sum(p.numel() for p in generator.trainable_parameters()):,}")

# %% [markdown]
# ## Score
#
# GenEval's rules: a detector finds the objects, and the image is right when every clause of the prompt's row holds. What fails is said in words.

# %%
geneval = rewards.load("geneval")
scored = score(generator, geneval, rollout)
texts = [prompt.text for prompt in prompts for _ in range(4)]
display(sample_grid(scored.images, texts, columns=8, scores=scored.scores, scale=1))
metadata = [prompt.metadata for prompt in prompts for _ in range(4)]
for text, judged in zip(texts, geneval.verdicts(scored.images, texts, metadata), strict=True):
    if not judged.correct:
        print(f"{text}: {judged.reason.replace(chr(10), '; ')}")

# %% [markdown]
# ## Train
#
# The same function that `t2i-gcpo train` calls. A config file holds what differs from the defaults, and further options override it. `configs/quickstart.yaml` is GCPO with 60 steps of 6 prompts with 16 images each; here the budget
# is cut to 6 steps of 4 prompts with 8 images. The test prompts are scored before and after, with the same noise.

# %%
options = {
    "output-dir": "first",
    "steps": 6,
    "prompts-per-step": 4,
    "algorithm.group-size": 8,
    "generator.compile": "off",
    "optim.warmup-steps": 2,
    "evaluate.test-limit": 48,
    "evaluate.every": 3,
    "evaluate.limit": 24,
    "pictures.every": 3,
    "logging.progress": False,
    "logging.tensorboard": False,
}
arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
settings = parse(["--config", str(ROOT / "configs/quickstart.yaml"), *arguments]).settings
trainer = train_command.run(settings)

# %% [markdown]
# ## The run folder
#
# `config.yaml` has every option, `metrics.jsonl` a line a step, `report.html` all of it on one page that needs no network.

# %%
for path in sorted(Path("first").iterdir()):
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    print(f"{path}: {len(files)} files, {sum(file.stat().st_size for file in files) / 1000:,.0f} kB")

# %%
run = run_folder.read("first")
picture = io.BytesIO()
curves.draw({run.algorithm: [run]}).savefig(picture, format="png", dpi=70)
Image(picture.getvalue())

# %% [markdown]
# The first group whose images did not all score alike in the last step's rollout, and the advantage that GCPO's loss multiplied each token's ratio with: red is made more likely, blue less. [02_token_credit](02_token_credit.ipynb) computes these maps step by step.

# %%
trained = run.path / "heatmaps" / f"step_{run.step:06d}_trained.png"
Image(filename=trained) if trained.is_file() else print("all groups of that step scored alike: nothing was trained on")

# %% [markdown]
# Test prompts before and after, with the same noise; some of each task, chosen by their place in the list and not by their score:

# %%
Image(filename=run.path / "samples/before_after.png")

# %% [markdown]
# ## Evaluate, honestly
#
# Before and after, image by image. The interval of the *difference* is what counts; it comes from a bootstrap that resamples the prompts within each task. A task whose images all score alike gets an interval of no
# width: a bootstrap knows nothing of what it has not seen.

# %%
difference, reason = run.difference()
assert difference is not None, reason
low, high = difference.ci95
display(Markdown(tables.markdown(*tables.evaluation_rows(run.after, run.before, names=("after", "before")))))
print(tables.NOTE)
print(
    f"\nn = {difference.n} images, one seed: {tables.with_interval(difference.overall, difference.ci95, signed=True)}"
)
print("The interval holds 0." if low <= 0 <= high else "The interval does not hold 0. It is still one seed.")
print(f"A mean over {difference.n // len(difference.by_task)} images a task cannot show more than a large effect.")

# %% [markdown]
# `report.html` begins with the same in one sentence:

# %%
print(verdict.sentence(run))

# %% [markdown]
# The trained generator is in the last checkpoint, and is loaded by its folder.

# %%
checkpoint = sorted(Path("first/checkpoints").glob("step_*"))[-1]
again = generators.load(checkpoint, compile=False)
same = Sampling(group_size=2, guidance=2.0, seed=0)
assert torch.equal(again.sample(prompts[:1], same).tokens, trainer.generator.sample(prompts[:1], same).tokens)
print(f"{checkpoint}: the same tokens as the generator in memory")

# %% [markdown]
# ## A run that gains
#
# What 40 steps of 6 prompts with 16 images each changed is in the package: `t2i_gcpo/assets/tuned/gcpo`, GCPO, seed 0, whose every option is in its `delta.json`. It loads as a checkpoint does. Both are scored on the test prompts, which
# no run has seen, with the same noise; prompts come several times, with noise of their own, and count as one cluster in the intervals.

# %%
tuned = ROOT / "t2i_gcpo/assets/tuned/gcpo"
test = limit(splits["test"], 480, repeat=True)
scores = {
    name: evaluate(
        generators.load(path, compile=False), test, geneval, sampling=Sampling(guidance=2.0), seed=0,
        keep_images=True, checkpoint=name, source="shapes:test", reward_name="geneval",
    )
    for name, path in {"janus-mini": "janus-mini", "after 40 steps": tuned}.items()
}  # fmt: skip
before, after = scores.values()
display(Markdown(tables.markdown(*tables.evaluation_rows(after, before, names=("after", "before")))))
gain = paired_difference(before, after)
print(f"n = {gain.n} images of {len({row.text for row in after.rows})} prompts, one seed of training:")
print(f"{tables.with_interval(gain.overall, gain.ci95, signed=True)}; {verdict.tasks_in_words(gain)}.")
assert gain.ci95[0] > 0, "the interval holds 0"

# %% [markdown]
# Images that became right, and images that became wrong, some of each task:

# %%
for name, sign in (("became right", 1), ("became wrong", -1)):
    pairs = changes.moved(before, after, sign)
    shown = [after.rows.index(pair.other) for pair in changes.choose(pairs, strict=True, most=8)]
    print(f"{name}: {len(pairs)} of {after.n}")
    display(
        before_after(
            before.kept_images()[shown],
            after.kept_images()[shown],
            [after.rows[k].text for k in shown],
            scores_before=[before.rows[k].score for k in shown],
            scores_after=[after.rows[k].score for k in shown],
            scale=1,
        )
    )

# %% [markdown]
# ## What a whole run gains, over several seeds
#
# `t2i-gcpo study configs/studies/quickstart.yaml` trains the whole config with several seeds and scores 600 test images a seed before and after. This is its file, `docs/results/quickstart/results.json`.

# %%
results = json.loads((ROOT / "docs/results/quickstart/results.json").read_text())
display(Markdown(tables.markdown(study_results.COLUMNS, study_results.table(results["groups"]))))
print(results["note"])
print(f"\ntrained on {results['machine']['cores']} cores ({results['machine']['cpu']})")

# %%
group = results["groups"][0]
parts = [
    ("before", group["before"], False),
    ("after", group["after"], False),
    ("difference", group["difference"], True),
]
rows = [
    [
        task,
        *(tables.with_interval(e["by_task"][task], e["by_task_ci95"][task], signed=signed) for _, e, signed in parts),
    ]
    for task in group["after"]["by_task"]
]
Markdown(tables.markdown(["task", *(name for name, _, _ in parts)], rows))

# %% [markdown]
# Tasks whose interval of the difference holds 0 have not been shown to gain. [docs/results.md](../docs/results.md) discusses the results, [04_grpo_dapo_gcpo](04_grpo_dapo_gcpo.ipynb) compares the algorithms.
#
# On the command line, this notebook is
#
# ```bash
# t2i-gcpo sample --checkpoint janus-mini --prompt "a photo of a red circle and a blue star" --num 4 --out out/samples
# t2i-gcpo train --config configs/quickstart.yaml
# t2i-gcpo eval --checkpoint runs/quickstart/checkpoints/step_000060 --against janus-mini --prompts shapes:test --limit 120 --out out/eval
# t2i-gcpo study configs/studies/quickstart.yaml --jobs 2
# ```

# %%
os.chdir(ROOT)
folder.cleanup()
