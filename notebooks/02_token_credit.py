# %% [markdown]
# # Which tokens get the credit: GCPO step by step
#
# A generator draws an image as a sequence of $T$ tokens, and a reward gives the *image* one number. Which of its tokens earned it? GRPO gives all
# of them the same share. GCPO (Guidance Contrastive Policy Optimization, [arXiv 2605.29198](https://arxiv.org/abs/2605.29198)) gives more to the tokens whose
# probability depends on the prompt. This notebook takes one real rollout of the embedded generator and computes every quantity twice: by hand,
# and with the library. Where the two must agree, an `assert` says so. (Group *Critical-token* Policy Optimization, 2509.22485, is another method of the same initials.)
#
# | symbol | meaning |
# | --- | --- |
# | $c$, $\bar c$ | the prompt and the negative prompt (here the null prompt of guidance) |
# | $x_{b,t}$ | token $t$ of image $b$, an entry of the codebook; $x_{b,<t}$ are the tokens drawn before it |
# | $G$, $T$ | images a prompt (the group), tokens an image |
# | $r_b$, $A_b$ | reward and group-relative advantage of image $b$ |
# | $d_{b,t}$, $w_{b,t}$ | contrast and weight of token $t$ of image $b$ |
#
# All logarithms are natural: log-probs are in nats.

# %%
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display
from scipy.stats import rankdata
from transformers.utils import logging

import rewards
import t2i_gcpo
from t2i_gcpo import credit, generators, heatmap, losses
from t2i_gcpo.advantages import group_advantages
from t2i_gcpo.algorithms import ALL_STATS, resolve, token_advantages
from t2i_gcpo.data.shapes.grammar import find_prompt
from t2i_gcpo.records import Sampling
from t2i_gcpo.reports import tables
from t2i_gcpo.training.rollout import score
from t2i_gcpo.utils.pictures import sample_grid

logging.disable_progress_bar()
plt.rcParams.update({"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False})
ROOT = Path(t2i_gcpo.__file__).parents[1]
G = 8

# %% [markdown]
# ## 1. A rollout
#
# `janus-mini` draws $12 \times 12$ tokens in raster order, each one a square of $8 \times 8$ pixels. Under classifier-free guidance it computes
# the logits of both prompts, $\ell_c$ and $\ell_{\bar c}$, and draws from $\mathrm{softmax}(\ell_{\bar c} + g\,(\ell_c - \ell_{\bar c}))$; here $g = 2$. The reward is
# GenEval's verdict: 1 where all clauses of the prompt hold, else 0.

# %%
generator = generators.load("janus-mini", compile=False)
prompt = find_prompt("a photo of a star left of a ring")
rollout = generator.sample([prompt], Sampling(group_size=G, guidance=2.0, seed=0, stats=ALL_STATS))
scored = score(generator, rewards.load("geneval"), rollout)
B, T = rollout.tokens.shape
print(f"{B} images of {T} tokens out of a codebook of {generator.codebook_size}; scores {scored.scores.tolist()}")
sample_grid(scored.images, [prompt.text] * B, columns=4, scores=scored.scores)

# %% [markdown]
# The rollout keeps three log-probs of each token that was drawn: under the prompt, under the negative prompt (both raw: temperature 1, nothing
# truncated), and under the distribution that was sampled. The first two are by-products of guidance, so that the contrast below costs **no further forward pass**.
# The function that scores tokens again must agree with them, or the ratio of the loss is not 1 when nothing has been trained.

# %%
with torch.no_grad():
    positive = generator.token_logprobs(rollout, prompt="positive")
    negative = generator.token_logprobs(rollout, prompt="negative")
    guided = generator.token_logprobs(rollout, distribution="guided")
pairs = [
    (positive, rollout.logprob_positive),
    (negative, rollout.logprob_negative),
    (guided, rollout.logprob_behaviour),
]
for again, sampled in pairs:
    torch.testing.assert_close(again, sampled, atol=1e-4, rtol=0)
print("largest difference, nats:", [f"{float((again - sampled).abs().max()):.0e}" for again, sampled in pairs])

# %% [markdown]
# ## 2. The image: group-relative advantage
#
# GRPO ([2402.03300](https://arxiv.org/abs/2402.03300)) compares an image with its siblings of the same prompt:
#
# $$A_b = \frac{r_b - \operatorname{mean}(r)}{\operatorname{std}(r) + 10^{-4}}$$
#
# The standard deviation has $G - 1$ in the denominator. Images that did better than their siblings have $A_b > 0$. If all score alike, all are 0 and the group teaches nothing.

# %%
r = scored.scores
A = (r - r.mean()) / (((r - r.mean()) ** 2).sum() / (G - 1)).sqrt().add(1e-4)
torch.testing.assert_close(A, group_advantages(r, G))
print("A =", [f"{a:+.2f}" for a in A])

# %% [markdown]
# Under GRPO that is all: $A_{b,t} = A_b$ for every token. An empty corner of a right image is rewarded as much as the token with which its star begins.
#
# ## 3. The token: contrast between two prompts
#
# $$d_{b,t} = \log p(x_{b,t} \mid x_{b,<t}, \bar c) - \log p(x_{b,t} \mid x_{b,<t}, c)$$
#
# is negative where the prompt makes the token more likely, and 0 where the prompt does not matter. By the chain rule the sum over an image,
#
# $$-\sum_t d_{b,t} = \log \frac{p(x_b \mid c)}{p(x_b \mid \bar c)},$$
#
# is how much more likely the whole image is with the prompt than without. So $d$ splits that log-ratio into one share a token: it says where the prompt
# *acted*. That credit belongs there is GCPO's premise, and no theorem: where the model ignores words that it should heed, the contrast is small, too.

# %%
d = rollout.logprob_negative - rollout.logprob_positive
b = 3  # the image that the rest of the notebook looks at
rows, columns = rollout.grid
order = d[b].abs().argsort(descending=True)
lines = [
    [f"{name} |d|", f"({t // columns}, {t % columns})", *(f"{float(v):.4g}" for v in
     (rollout.logprob_positive[b, t].exp(), rollout.logprob_negative[b, t].exp(), d[b, t], (-d[b, t]).exp()))]
    for name, t in [("largest", order[0]), ("second", order[1]), ("third", order[2]), ("median", order[T // 2]), ("smallest", order[-1])]
]  # fmt: skip
display(
    Markdown(
        tables.markdown(["token", "(row, column)", "p with the prompt", "p without", "d", "p with / p without"], lines)
    )
)
print(f"the image as a whole is exp({float(-d[b].sum()):.2f}) times as likely with the prompt as without")
print(f"tokens of the rollout with |d| below 0.001: {float((d.abs() < 1e-3).float().mean()):.0%}")

# %% [markdown]
# The same over the picture. Red: the prompt makes the token more likely ($-d > 0$). In raster order the contrast lies where an object *begins*; the inside of a
# shape follows from the tokens before it, whatever the prompt says.

# %%
gcpo = resolve("gcpo", group_size=G)
saved = heatmap.Heatmap.of(scored, token_advantages(gcpo, rollout, scored.scores), algorithm=gcpo)
saved.rows([0, 1, 2, 3]).draw("contrast")

# %% [markdown]
# ## 4. From contrast to divergence
#
# GCPO turns $d$ into a number that is never negative, with the estimator "k3" of a KL divergence (Schulman, *Approximating KL divergence*), clamped against overflow:
#
# $$D_{b,t} = \min\left(e^{d_{b,t}} - 1 - d_{b,t},\; 10\right), \qquad d \leftarrow \operatorname{clamp}(d, -20, 20)$$
#
# For a token drawn from $p(\cdot \mid c)$ we have $\mathbb E[e^{d}] = \sum_x p(x \mid \bar c) = 1$, so that
# $\mathbb E[D] = \mathbb E[-d] = \mathrm{KL}\big(p(\cdot \mid c) \,\|\, p(\cdot \mid \bar c)\big)$, and each single $D$ is at least 0 because $e^d \ge 1 + d$.

# %%
exact = d.double().clamp(-20, 20)  # float64, by hand
exact = (torch.exp(exact) - 1 - exact).clamp(max=10)
D = credit.divergence(rollout.logprob_positive, rollout.logprob_negative, "kl")
torch.testing.assert_close(D, exact.float())

example = torch.tensor([[-2.0, 0.0, 1.0]])  # d of three tokens, by hand: e^-2 + 1, 0, e - 2
by_hand = torch.tensor([[1.1353353, 0.0, 0.7182818]])
torch.testing.assert_close(credit.divergence(torch.zeros(1, 3), example), by_hand, atol=1e-6, rtol=0)

# %% [markdown]
# Two details. In fp32 `exp(d) - d - 1` is rounding noise for small $d$; the library uses `expm1`. And the tokens here were drawn from the *guided* mix, not
# from $p(\cdot \mid c)$, so that the mean of $D$ is not an unbiased estimate of the divergence: the rollout also holds the exact one, over the whole codebook.

# %%
small = torch.tensor(1e-4)
print(
    f"d = 1e-4: exp(d) - d - 1 = {float(torch.exp(small) - small - 1):.1e}, expm1(d) - d = {float(torch.expm1(small) - small):.1e}, exact 5.0e-09"
)
print(
    f"mean over all tokens: D {float(D.mean()):.4f}, exact KL {float(rollout.stats['exact_kl'].mean()):.4f} nats a token"
)

# %% [markdown]
# Other divergences are options (`algorithm.divergence`): the distance $|d|$, an estimate of the Jensen-Shannon divergence, and the information gain $\max(-d, 0)$, which ignores tokens
# that the prompt made *less* likely. The figure shows how each grows with $d$, and the ranks that come next.

# %%
top, mass = credit.DEFAULT_TOP, credit.DEFAULT_MASS
alpha = np.log(1 - mass) / np.log(1 - top) - 1
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
x = torch.linspace(-4, 3, 200)[None]
for kind in ("kl", "abs", "js", "information_gain"):
    left.plot(x[0], credit.divergence(torch.zeros_like(x), x, kind)[0], label=kind)
left.set(xlabel="d, nats", ylabel="divergence, nats", ylim=(0, 6), title="four divergences of one token")
left.legend(frameon=False)
u = np.linspace(0, 1, 200)
right.plot(u, (alpha + 1) * u**alpha, label="weight $w(u) = (α + 1)\\,u^α$")
right.plot(u, 1 - u ** (alpha + 1), label="share of the credit on ranks above u")
right.plot([1 - top], [mass], "ko", label=f"top {top:.0%} of the tokens: {mass:.0%} of the credit")
right.set(xlabel="rank u of a token's divergence (1 = largest)", title=f"from ranks to weights, α = {alpha:.4f}")
right.legend(frameon=False)
plt.show()

# %% [markdown]
# ## 5. From divergence to weights
#
# Divergences differ by orders of magnitude. GCPO takes their **rank** within the image: $u_{b,t} = \operatorname{rank}(D_{b,t}) / T$, 1 for the largest, ties
# share their average rank. Then
#
# $$w_{b,t} = \frac{u_{b,t}^{\,\alpha}}{\frac1T \sum_s u_{b,s}^{\,\alpha}}, \qquad \alpha = \frac{\ln(1 - \text{mass})}{\ln(1 - \text{top})} - 1$$
#
# so that the weights of an image have mean 1. Where $\alpha$ comes from: with many tokens $u$ is uniform on $[0, 1]$, and the share $q$ of tokens with the
# largest ranks holds $\int_{1-q}^{1} (\alpha + 1)\,u^\alpha\,du = 1 - (1-q)^{\alpha+1}$ of the credit. Setting this to `mass` at $q$ = `top` gives the formula.

# %%
u = torch.from_numpy(rankdata(D.numpy(), axis=1)) / T  # ties share their average rank
w = u**alpha / (u**alpha).mean(dim=1, keepdim=True)
weights = credit.token_weights(rollout.logprob_positive, rollout.logprob_negative)
torch.testing.assert_close(w.float(), weights, atol=1e-4, rtol=1e-4)
torch.testing.assert_close(weights.mean(dim=1), torch.ones(B))
print(f"image {b}: w from {float(w[b].min()):.3f} to {float(w[b].max()):.2f}, median {float(w[b].median()):.2f}")
print(f"tokens of the rollout with D = 0 in fp32, which tie: {float((D == 0).float().mean()):.0%}")

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3), layout="constrained")
position = np.arange(1, T + 1)
left.semilogy(position, np.maximum(D[b].sort(descending=True).values.numpy(), 1e-16), ".")
left.set(xlabel="token, by divergence", ylabel="D, nats (0 is drawn at 1e-16)", title=f"image {b}: divergence")
right.plot(position, w[b].sort(descending=True).values, ".")
right.set(xlabel="token, by divergence", ylabel="w", title="its weight: the order is kept, the size is dropped")
plt.show()

# %% [markdown]
# A few tokens have nearly all of the divergence; the rank spreads the credit over many more. That makes it robust against one huge value, and it is also its price: most of these
# tokens are told apart by very small differences. The plateau on the right are ties: tokens that the model is so sure of that $d$ is below the resolution of fp32. Other normalisations keep the size. In the strip the same image has its weights by each; `effective tokens` is
# $(\sum w)^2 / (T \sum w^2)$, 1 for uniform weights.

# %%
names = ("rank", "softmax", "minmax", "none")
strips = [replace(heatmap.reweigh(saved, normalization=name).rows([b]), labels=np.array([name])) for name in names]
lines = []
for name in names:
    found = credit.statistics(
        credit.token_weights(rollout.logprob_positive, rollout.logprob_negative, normalization=name)
    )
    lines.append([name, f"{found['effective_tokens']:.3f}", f"{found['top_share']:.3f}"])
display(Markdown(tables.markdown(["normalisation", "effective tokens", f"share of the top {top:.0%}"], lines)))
heatmap.Heatmap.cat(strips).draw("weight")

# %% [markdown]
# **The noise floor.** A rank has no sense of size: with no contrast at all it would rank rounding noise. So an image whose mean $|d|$ is below
# a floor (1e-4 nats) gets $w = 1$, which is GRPO. Here the "contrast" is noise of 1e-6 nats:

# %%
noise = rollout.logprob_positive + 1e-6 * torch.randn(B, T, generator=torch.Generator().manual_seed(0))
without_floor = credit.token_weights(rollout.logprob_positive, noise, floor=0.0)
with_floor = credit.token_weights(rollout.logprob_positive, noise)
assert torch.equal(with_floor, torch.ones(B, T)) and float(without_floor.max()) > 3
print(
    f"without the floor: weights from {float(without_floor.min()):.4f} to {float(without_floor.max()):.2f}; with it: all 1"
)
print(
    "mean |d| of the images above, nats:",
    [f"{float(v):.3f}" for v in credit.contrast(rollout.logprob_positive, rollout.logprob_negative)],
)

# %% [markdown]
# ## 6. Weight × advantage
#
# $$A_{b,t} = A_b \, w_{b,t}$$
#
# The sign is the image's, the size the token's; the mean over the tokens is still $A_b$. Below: what GRPO's loss is given, and what GCPO's is, on one scale. Red tokens are made more
# likely, blue ones less likely.

# %%
targets = token_advantages(gcpo, rollout, scored.scores)
torch.testing.assert_close(targets.advantages, A[:, None] * weights)
torch.testing.assert_close(targets.advantages.mean(dim=1), A, atol=1e-5, rtol=1e-4)
uniform = heatmap.reweigh(saved, credit="uniform")
both = [
    replace(one.rows([1, b]), labels=np.array([f"{name}, A = {A[k]:+.2f}" for k in (1, b)]))
    for name, one in (("GRPO", uniform), ("GCPO", saved))
]
heatmap.Heatmap.cat(both).draw("advantage", columns=4, end=saved.end("advantage"))

# %% [markdown]
# ## 7. The loss and its gradient
#
# PPO's clipped surrogate ([1707.06347](https://arxiv.org/abs/1707.06347)) for each token, with $\rho_{b,t} = \exp(\log \pi_\theta(x_{b,t}) - \log \pi_{\text{old}}(x_{b,t}))$:
#
# $$L = -\frac1B \sum_b \frac1T \sum_t \min\big(\rho_{b,t} A_{b,t},\; \operatorname{clip}(\rho_{b,t}, 1 - \epsilon, 1 + \epsilon)\, A_{b,t}\big)$$
#
# At the first update $\rho = 1$. Then the *value* of the loss is $-\frac1B \sum_b A_b$, whatever the weights (they have mean 1). The gradient is what differs:
#
# $$\frac{\partial L}{\partial \log \pi_\theta(x_{b,t})} = -\frac{A_{b,t}}{B\,T}$$
#
# Gradient descent moves against it: the log-prob of a token rises where $A_{b,t} > 0$, and the faster the larger its weight.

# %%
old = rollout.logprob_behaviour
logprob = old.clone().requires_grad_()
loss = losses.policy_loss(logprob, old, targets.advantages, reduction="sequence").loss
loss.backward()
loss = loss.detach()
flat = losses.policy_loss(old, old, A, reduction="sequence").loss
torch.testing.assert_close(loss, flat, atol=1e-6, rtol=0)
torch.testing.assert_close(logprob.grad, -targets.advantages / (B * T))
assert torch.equal(logprob.grad[A > 0] < 0, targets.advantages[A > 0] > 0)
print(
    f"value: GCPO {float(loss):.1e}, GRPO {float(flat):.1e} (the group's advantages sum to 0); the gradients are -A[b,t] / (B T)"
)

# %% [markdown]
# So much for log-probs as free variables. In the model all tokens share their parameters. Here is the gradient of the real loss in all parameters, by four rules of credit on this one rollout: GRPO's uniform weights,
# GCPO's, and two controls that have the same weights at other places (see below). Compared are its length and its direction.

# %%
rules = ("grpo", "gcpo", "gcpo_shuffled", "gcpo_random")
parameters = generator.trainable_parameters()
logprob = generator.token_logprobs(rollout, distribution="guided")
gradients = {}
for name in rules:
    weighed = token_advantages(
        resolve(name, group_size=G), rollout, scored.scores, generator=torch.Generator().manual_seed(0)
    )
    loss = losses.policy_loss(logprob, old, weighed.advantages, reduction="sequence").loss
    gradients[name] = torch.nn.utils.parameters_to_vector(torch.autograd.grad(loss, parameters, retain_graph=True))
cosine = torch.nn.functional.cosine_similarity
lines = [
    [name, f"{float(g.norm()):.3f}", f"{float(cosine(g, gradients['grpo'], dim=0)):.3f}"]
    for name, g in gradients.items()
]
display(Markdown(tables.markdown(["credit", "length of the gradient", "cosine with GRPO's"], lines)))

# %% [markdown]
# A token that the model is sure of has next to no gradient, whatever its weight. `janus-mini` is undecided at few tokens, mostly those that the prompt drives; on this rollout that
# leaves GCPO a gradient that is longer rather than one of another direction (an optimiser such as Adam takes out most of the length). One rollout of one small model: measure it on yours.
#
# Last, a step. We move all parameters by 0.01 against GCPO's gradient, score the same tokens again, and put them back.

# %%
before = torch.nn.utils.parameters_to_vector(parameters).detach().clone()
step = 0.01 * gradients["gcpo"] / gradients["gcpo"].norm()
with torch.no_grad():
    torch.nn.utils.vector_to_parameters(before - step, parameters)
    change = generator.token_logprobs(rollout, distribution="guided") - old
    torch.nn.utils.vector_to_parameters(before, parameters)
heavy = weights > 1
lines = [
    [f"images with A {sign} 0", *(f"{float(change[side[:, None] & part].mean()):+.1e}" for part in (heavy, ~heavy))]
    for sign, side in ((">", A > 0), ("<", A < 0))
]
assert float((targets.advantages * change).sum()) > 0, "to first order, a step against the gradient must raise this sum"
print("mean change of a token's log-prob, nats")
display(Markdown(tables.markdown(["", "tokens with w > 1", "the other tokens"], lines)))

# %% [markdown]
# ## 8. The KL term
#
# GRPO and GCPO hold the policy near the model that it started from, by a KL term with the estimator k3. GCPO's code weighs it by token,
#
# $$v_{b,t} = \tfrac12 + \tfrac12 \operatorname{clamp}(2 - 2\,w_{b,t},\; 0,\; 1),$$
#
# so that tokens which the prompt drives ($w \ge 1$) are held half as firmly as those that it hardly touches ($w \le \frac12$).

# %%
w_examples = torch.tensor([0.0, 0.5, 0.75, 1.0, 3.0])
torch.testing.assert_close(losses.kl_weights(w_examples), torch.tensor([1.0, 1.0, 0.75, 0.5, 0.5]))
held = losses.kl_weights(weights)
print(
    f"image {b}: {float((held[b] == 0.5).float().mean()):.0%} of the tokens have weight 0.5, {float((held[b] == 1).float().mean()):.0%} have weight 1"
)

# %% [markdown]
# ## 9. Part of the prompt
#
# The negative prompt need not be empty. With part of the prompt removed, the contrast is that of the clause alone: same images, same tokens, one forward pass. Without "left of a ring" the
# rest asks for one star.

# %%
shorter = heatmap.without(prompt.text, "left of a ring")
clause = heatmap.against(saved.rows([0, 1, 2, 3]), generator, shorter)
clause.draw("contrast")

# %%
values = clause.maps()["contrast"]
lines = [
    [str(k), *(f"{values[k, t]:+.2f} at ({t // columns}, {t % columns})" for t in sorted(np.argsort(-values[k])[:2]))]
    for k in range(len(clause))
]
Markdown(tables.markdown(["image", "the two largest, in raster order", ""], lines))

# %% [markdown]
# What the clause drives most is the *second* object in raster order, be it star or ring: "a photo of a star" asks for one object, and a second one is nearly impossible under it. A
# contrast shows what changes the probability of a token, and that need not be the thing that the words name.
#
# ## 10. Controls
#
# Does it matter *where* the credit goes? The comparison needs controls: **shuffled** puts each image's own weights at random places, **random** draws the ranks,
# **uniform** is GRPO. The first two concentrate the credit as GCPO does. If they train as well, the place did not matter.

# %%
kinds = ("contrast", "shuffled", "random", "uniform")
strips = [replace(heatmap.reweigh(saved, credit=kind).rows([b]), labels=np.array([kind])) for kind in kinds]
torch.testing.assert_close(*(torch.from_numpy(strip.weights).sort().values for strip in strips[:2]))
assert not np.allclose(strips[0].weights, strips[1].weights), "the same weights, at other places"
heatmap.Heatmap.cat(strips).draw("weight", end=saved.end("weight"))

# %% [markdown]
# ## 11. Where the credit lies
#
# In ShapeScenes the detector gives each object's mask, so that "the credit lies on what the prompt names" can be measured. The file is what
#
# ```bash
# t2i-gcpo eval --checkpoint janus-mini --prompts shapes:test --limit 120 --credit --compile off --out out/credit
# ```
#
# wrote. AUROC is how often a cell of such an object has more credit than a cell beside it (0.5 is chance).

# %%
import json

found = json.loads((ROOT / "docs/results/credit_janus_mini.json").read_text())
maps = {one["map"]: one for one in found["maps"]}
shown = [name for name in maps if name != "uniform"]
colors = [
    "tab:gray" if name in ("shuffled", "random") else "tab:orange" if name in ("entropy", "surprisal") else "tab:blue"
    for name in shown
]
figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), sharey=True, layout="constrained")
titles = {
    "auroc": "AUROC: cells of the objects",
    "auroc_begins": "AUROC: cells where they begin",
    "pointing": "pointing game",
}
for axis, (measure, title) in zip(axes, titles.items(), strict=True):
    means = np.array([maps[name][measure]["mean"] for name in shown])
    bounds = np.array([maps[name][measure]["ci95"] for name in shown])
    axis.barh(shown, means, xerr=np.abs(bounds.T - means), color=colors, height=0.7)
    axis.axvline(found["object_cells"] if measure == "pointing" else 0.5, color="black", linestyle=":", linewidth=1)
    axis.set(title=title, xlim=(0, 1))
axes[0].invert_yaxis()
figure.suptitle(f"{found['images']} images of {found['prompts']}, 95 % intervals by prompt; dotted: chance", fontsize=9)
plt.show()

# %% [markdown]
# Blue: contrasts; orange: what needs no second prompt; grey: controls. In raster order the contrast finds where an object *begins* and not the object, and plain entropy and surprisal find the objects
# better than any contrast. Nor is this a statement about training: where a token's credit should go is another question than where the object is. What the rank makes of it:

# %%
share = ["kl", "exact_kl", "entropy", "surprisal", "shuffled"]
normalizations = ("rank", "softmax", "minmax", "none")
lines = [
    [
        name,
        *(
            tables.with_interval(cell["mean"], cell["ci95"])
            for n in normalizations
            for cell in [maps[name]["share_of_weights"][n]]
        ),
    ]
    for name in share
]
print(
    f"share of the weights on the objects; uniform weights: {maps['uniform']['share_of_weights']['rank']['mean']:.3f}"
)
display(Markdown(tables.markdown(["map", *normalizations], lines)))

# %% [markdown]
# With the size kept (`minmax`, `none`) most of the weight of `kl` lies on the objects; under the rank hardly more than under uniform weights, as an object begins in very few of the
# cells that share the credit.
#
# | here | in the library |
# | --- | --- |
# | group-relative advantage | `t2i_gcpo/advantages.py` |
# | contrast, divergence, weights, controls | `t2i_gcpo/credit.py` |
# | clipped loss, KL and its weights | `t2i_gcpo/losses.py` |
# | which algorithm takes which | `TABLE` in `t2i_gcpo/algorithms/table.py` |
# | the maps | `t2i_gcpo/heatmap/`, on the command line `t2i-gcpo heatmap` |
