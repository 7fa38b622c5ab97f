# %% [markdown]
# # Rewards: what each scorer sees, and what the training gets of it
#
# A reward takes images, their prompts and a row of metadata each, and gives one number an image, the higher the better. This notebook runs every scorer that needs no download on images of the
# embedded generator, says what the others need, mixes scores, adds scorers of one's own, and looks at what a group-relative algorithm learns from: the
# *spread* of the reward among the images of one prompt. [docs/rewards.md](../docs/rewards.md) is the reference.

# %%
import inspect
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from einops import rearrange
from IPython.display import Markdown, display
from PIL import Image, ImageDraw
from transformers.utils import logging

import rewards
from rewards import geneval
from rewards.function import as_reward
from rewards.geneval.detectors.shapes import ShapesDetector
from rewards.registry import REWARDS, find
from t2i_gcpo import advantages, generators
from t2i_gcpo.data.prompts import limit, read
from t2i_gcpo.records import Sampling
from t2i_gcpo.reports import tables
from t2i_gcpo.training.rollout import score
from t2i_gcpo.utils.pictures import font, sample_grid

logging.disable_progress_bar()
plt.rcParams.update({"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False})
print("registered:", ", ".join(rewards.available()))

# %% [markdown]
# ## Images to score
#
# Twelve validation prompts of ShapeScenes, two of each of GenEval's six tasks, with eight images each. Their metadata are GenEval's own rows.

# %%
P, G = 12, 8
prompts = limit(read("shapes:val"), P)
generator = generators.load("janus-mini", compile=False)
rollout = generator.sample(prompts, Sampling(group_size=G, guidance=2.0, seed=0, contrast=False, stats=()))
images = generator.decode(rollout.tokens)
owners = [prompt for prompt in prompts for _ in range(G)]
texts, rows = [prompt.text for prompt in owners], [prompt.metadata for prompt in owners]
for prompt in prompts[4:6]:
    print(prompt.text, prompt.metadata)

# %% [markdown]
# ## `geneval`: a verdict by rules
#
# A detector says what is in the image, and GenEval's rules ([2310.11513](https://arxiv.org/abs/2310.11513)) judge it: every `include` clause must hold, no `exclude` clause may. The
# detector `shapes` reads ShapeScenes exactly and needs no weights. The score is strict (0 or 1), or the share of clauses that hold (`score="clauses"`).

# %%
strict = rewards.load("geneval")
verdicts = strict.verdicts(images, texts, rows)
output = strict(images, texts, rows)
assert output.scores.tolist() == [float(verdict.correct) for verdict in verdicts]
shown = [k for k in range(P * G) if k % G < 2]
display(sample_grid(images[shown], [texts[k] for k in shown], columns=6, scores=output.scores[shown], scale=1))
for k in [k for k in shown if not verdicts[k].correct][:4]:
    print(f"{texts[k]}: {verdicts[k].clauses} {verdicts[k].reason}")

# %% [markdown]
# What the detector found in three images: class, colour, confidence and box.

# %%
detector = ShapesDetector()
figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
for axis, k in zip(axes, [2 * G, 6 * G, 10 * G], strict=True):
    axis.imshow(rearrange(images[k].numpy(), "c h w -> h w c"))
    for one in detector(images[k : k + 1])[0]:
        x, y, right, bottom = one.box
        axis.add_patch(plt.Rectangle((x - 0.5, y - 0.5), right - x, bottom - y, fill=False, color="black", linewidth=1))
        axis.text(x, bottom + 1, f"{one.color} {one.class_name} {one.score:.2f}", fontsize=7, va="top")
    axis.set_title(f"{texts[k]}\n{'right' if verdicts[k].correct else 'wrong'}", fontsize=8)
    axis.axis("off")
plt.show()

# %% [markdown]
# The rules need no image: `judge` takes detections. By hand, a star whose centre is 40 pixels left of a ring's:

# %%
row = {
    "include": [{"class": "ring", "count": 1}, {"class": "star", "count": 1, "position": ["left of", 0]}],
    "prompt": "a photo of a star left of a ring",
    "tag": "position",
}
star = geneval.Detection("star", 0.9, (10, 40, 30, 60))
ring = geneval.Detection("ring", 0.9, (50, 40, 70, 60))
assert geneval.judge([star, ring], row).clauses == [True, True]
moved = geneval.Detection("star", 0.9, (80, 40, 100, 60))
verdict = geneval.judge([moved, ring], row)
assert verdict.clauses == [True, False]
print(verdict.reason)

# %% [markdown]
# ## `clip`: a cosine
#
# `clip-mini` is a small open_clip model of ShapeScenes' words and pictures, in the package. It gives a graded score where the verdict jumps. Here is what it says beside the verdict, and what it can *not* say:
# the same image scored under a prompt with the relation turned round.

# %%
clip = rewards.load("clip")
cosines = clip(images, texts, rows).scores
for verdict, name in ((1, "right"), (0, "wrong")):
    mine = cosines[output.scores == verdict]
    print(
        f"{len(mine)} images that are {name}: cosine {float(mine.mean()):.3f}, standard deviation {float(mine.std()):.3f}"
    )
position = [k for k in range(P * G) if rows[k]["tag"] == "position" and output.scores[k] == 1]
opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
relation = [next(word for word in opposite if f" {word} " in texts[k]) for k in position]
turned = [texts[k].replace(word, opposite[word]) for k, word in zip(position, relation, strict=True)]
difference = cosines[position] - clip(images[position], turned, [rows[k] for k in position]).scores
print(
    f"{len(position)} right images of task position: cosine with their prompt less that with the relation turned round:"
)
print(f"  mean {float(difference.mean()):+.3f}, from {float(difference.min()):+.3f} to {float(difference.max()):+.3f}")

# %% [markdown]
# [Its card](../rewards/assets/clip-mini/README.md) measures how often it tells which words apart. A score that cannot see a mistake cannot teach to avoid it.
#
# ## `ocr`: is the text there?
#
# RapidOCR's models come with its package (`pip install 't2i-gcpo[rewards]'`), so that this runs offline too. The wanted text stands in quotes in the prompt, or in the metadata. The score is
# 1 less the edit distance over the text's length; case and spaces do not count.


# %%
def sign(text: str) -> torch.Tensor:
    picture = Image.new("RGB", (160, 56), "white")
    ImageDraw.Draw(picture).text((12, 14), text, fill="black", font=font(24))
    return rearrange(torch.from_numpy(np.array(picture)), "h w c -> c h w")


signs = torch.stack([sign(text) for text in ("OPEN", "OPFN", "CLOSED", "")])
ocr = rewards.load("ocr", threads=1)
wanted = ['a door with a sign that says "open"'] * len(signs)
read_scores = ocr(signs, wanted, [{}] * len(signs)).scores
display(sample_grid(signs, wanted, columns=4, scores=read_scores, scale=1))
assert read_scores[0] == 1 and read_scores[3] == 0, "the right text, and none"

# %% [markdown]
# ## Your own: a function
#
# A function of images, prompts and metadata that returns B numbers is a reward. In Python it goes wherever a reward goes; on the command line it is named `FILE.py:FUNCTION` (`--reward.name symmetry.py:symmetry`), and its
# further arguments are options.

# %%
folder = tempfile.TemporaryDirectory()
Path(folder.name, "symmetry.py").write_text('''
def symmetry(images, prompts, metadata, strength=1.0):
    """How alike the left and the right half of a picture are."""
    pixels = images.float() / 255
    return 1 - strength * (pixels - pixels.flip(-1)).abs().mean(dim=(1, 2, 3))
''')
symmetry = rewards.load(f"{folder.name}/symmetry.py:symmetry", strength=2.0)
half = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
half[..., 4:] = 255  # black on the left, white on the right
assert symmetry(half, ["a half moon"], [{}]).scores.tolist() == [-1.0]


def brightness(images, prompts, metadata):
    return images.float().mean(dim=(1, 2, 3)) / 255


assert as_reward(brightness)(half, ["a half moon"], [{}]).scores.tolist() == [0.5]

# %% [markdown]
# ## Your own: a registered class
#
# A class is built once with its options, may hold a model, and returns parts for the log. The registry is a dict from a name to an import path; the module is imported when the name is first
# loaded. Here the entry is made for this session; a scorer that stays gets its line in `rewards/registry.py`.

# %%
Path(folder.name, "palette.py").write_text('''
from rewards import RewardOutput


class Palette:
    """How near a picture's mean brightness is to `wanted`, in [0, 1]."""

    def __init__(self, *, wanted: float = 0.5) -> None:
        self.wanted = wanted

    def __call__(self, images, prompts, metadata):
        brightness = images.float().mean(dim=(1, 2, 3)) / 255
        return RewardOutput(1 - (brightness - self.wanted).abs(), {"brightness": brightness})
''')
sys.path.insert(0, folder.name)
REWARDS["palette"] = "palette:Palette"
palette = rewards.load("palette", wanted=0.6)
print({name: [round(v, 3) for v in part[:3].tolist()] for name, part in palette(images, texts, rows).parts.items()})
try:
    rewards.load("palette", wnated=0.6)
except ValueError as error:
    print(f"ValueError: {error}")

# %% [markdown]
# ## A score that cannot be given
#
# NaN says "could not be scored". By default that stops the run; with `failure="mark"` the image is left out of its group's statistics and of the loss. It never becomes 0, as zeros would be learned from. A scorer that *raises*
# stops the run under both.


# %%
def often(images, prompts, metadata):
    return [float("nan"), *([1.0] * (len(images) - 2)), 0.0]


group = images[:4], texts[:4], rows[:4]
try:
    as_reward(often)(*group)
except ValueError as error:
    print(f"ValueError: {error}")
Path(folder.name, "often.py").write_text(inspect.getsource(often))
marked = rewards.load(f"{folder.name}/often.py:often", failure="mark")(*group).scores
A = advantages.group_advantages(marked, 4)
by_hand = torch.tensor([1.0, 1.0, 0.0])
by_hand = (by_hand - by_hand.mean()) / (by_hand.std() + 1e-4)
torch.testing.assert_close(A, torch.cat([torch.zeros(1), by_hand]))
print("scores", marked.tolist(), "advantages", [f"{a:+.2f}" for a in A])

# %% [markdown]
# ## Spread: what a group-relative algorithm sees
#
# The advantage of an image is $(r - \operatorname{mean}) / \operatorname{std}$ within the group of its prompt. The mean of the group does not matter, and a group whose images all score alike teaches nothing. Below, each
# prompt's images under three scorers; a group without spread is drawn in grey.

# %%
scorers = {"geneval": strict, "geneval, clauses": rewards.load("geneval", score="clauses"), "clip": clip}
scores = {name: score(generator, scorer, rollout).scores for name, scorer in scorers.items()}
figure, axes = plt.subplots(1, 3, figsize=(11, 3.8), sharey=True, layout="constrained")
jitter = 0.12 * torch.randn(P, G, generator=torch.Generator().manual_seed(0))
lines = []
for axis, (name, values) in zip(axes, scores.items(), strict=True):
    grouped = rearrange(values, "(p g) -> p g", g=G)
    informative = advantages.informative_groups(values, G)
    for p in range(P):
        axis.scatter(grouped[p], p + jitter[p], s=14, alpha=0.7, color="tab:blue" if informative[p] else "lightgray")
    axis.set(title=name, xlabel="score")
    lines.append([name, f"{int(informative.sum())} of {P}", f"{float(grouped.std(dim=1).mean()):.3f}"])
axes[0].set_yticks(range(P), [prompt.text.removeprefix("a photo of ") for prompt in prompts], fontsize=8)
axes[0].invert_yaxis()
plt.show()
Markdown(tables.markdown(["scorer", "groups with spread", "standard deviation in a group, mean"], lines))

# %% [markdown]
# Every group has spread under a cosine. That is not the same as signal: dividing by the group's standard deviation blows a difference of hundredths up to the size of a verdict, be it about the prompt or about noise. Verdicts
# teach nothing where all images are right or all wrong; DAPO's dynamic sampling discards such groups.
#
# ## Mixing
#
# `composite` adds scores with weights, and logs each with its parts. In a YAML:
#
# ```yaml
# reward:
#   name: composite
#   rewards:
#     clip: {weight: 0.5}
#     geneval: {weight: 0.5, score: clauses}
# algorithm:
#   normalize_parts: true
# ```

# %%
settings = {"clip": {"weight": 0.5}, "geneval": {"weight": 0.5, "score": "clauses"}}
mixture = rewards.load("composite", rewards=settings)
mixed = mixture(images, texts, rows)
torch.testing.assert_close(mixed.scores, 0.5 * mixed.parts["clip"] + 0.5 * mixed.parts["geneval"])
print("parts:", ", ".join(mixed.parts))

# %% [markdown]
# Equal weights are not an equal say: the scorer that spreads more decides the order within a group. `normalize_parts` normalises each scorer within its group first. The table has the correlation of the advantages with those of each scorer alone, over the
# groups in which both have spread.

# %%
alone = {name: advantages.group_advantages(mixed.parts[name], G) for name in settings}
ways = {
    "sum of the scores": advantages.group_advantages(mixed.scores, G),
    "each normalised first": advantages.part_advantages(
        {name: mixed.parts[name] for name in settings}, mixture.weights, G
    ),
}
both = torch.stack([advantages.informative_groups(mixed.parts[name], G) for name in settings]).all(dim=0)
kept = advantages.per_row(both, G)
lines = []
for way, values in ways.items():
    correlations = [torch.corrcoef(torch.stack([values[kept], alone[name][kept]]))[0, 1] for name in settings]
    lines.append([way, *(f"{float(value):.3f}" for value in correlations)])
print(f"{int(both.sum())} of {P} groups")
Markdown(tables.markdown(["advantages of", *(f"correlation with {name}" for name in settings)], lines))

# %% [markdown]
# ## Scorers with weights of their own
#
# These need weights that are not in the package: they are fetched from the Hugging Face hub on first use, or read from a local path in their option `checkpoint` (`clip` too, for any open_clip model). They are not run here.
# `remote` asks a server that `t2i-gcpo serve-rewards` runs elsewhere; `vlm_judge` and `unified_reward` ask a vision-language model behind a chat API. What each is and which options it has, read from the classes:

# %%
elsewhere = (
    "aesthetic",
    "git_vqa",
    "grounding_dino",
    "hps",
    "image_reward",
    "pickscore",
    "remote",
    "unified_reward",
    "vlm_judge",
)
lines = [
    [name, inspect.getdoc(find(name)).splitlines()[0], ", ".join(inspect.signature(find(name)).parameters)]
    for name in elsewhere
]
assert {*elsewhere, "clip", "composite", "geneval", "ocr", "palette"} == set(rewards.available()), "none is left out"
Markdown(tables.markdown(["name", "what it measures", "options"], lines))

# %% [markdown]
# The same names and options are keys of a YAML (`configs/janus_pro_1b_hps.yaml` is a whole one) and options on the command line:
#
# ```yaml
# reward:
#   name: hps
#   version: v2.1
#   checkpoint: weights/HPS_v2.1_compressed.pt   # without it, from the hub
#   device: cuda
# ```
#
# ```
# t2i-gcpo train --config configs/quickstart.yaml --reward.name clip
# t2i-gcpo score --reward geneval --images out/images --prompts prompts.jsonl --out out/scores.json
# ```

# %%
del REWARDS["palette"]
sys.path.remove(folder.name)
folder.cleanup()
