# %% [markdown]
# # GCPO on a chain of thought
#
# A language model that reasons gets one reward a completion. Which of its tokens earned it? GCPO ([arXiv 2605.29198](https://arxiv.org/abs/2605.29198)) gives more credit to the tokens whose
# probability depends most on the question: here, on whether the model is asked to answer rightly or wrongly. This notebook takes one group of answers of the embedded model `text-mini`, computes its credit
# by hand and with the library (an `assert` says where both must agree), looks at it, asks where it lies, and trains some steps with `GCPOTrainer` on TRL.
#
# | symbol | meaning |
# | --- | --- |
# | $q$, $\bar q$ | the question, and the negative prompt: the question after an instruction to answer it wrongly |
# | $x_{b,t}$ | token $t$ of answer $b$ |
# | $A_b$, $w_{b,t}$ | group-relative advantage of answer $b$; weight of its token $t$, of mean 1 over the answer |

# %%
import contextlib
import io
import tempfile
import warnings

import datasets
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display
from transformers.utils import logging

from t2i_gcpo import credit
from t2i_gcpo.text import GCPOConfig, GCPOTrainer, arithmetic
from t2i_gcpo.text import heatmap as maps
from t2i_gcpo.text.credit_location import measure
from t2i_gcpo.text.evaluate import generate_ids
from t2i_gcpo.text.heatmap_picture import draw
from t2i_gcpo.text.models import load
from t2i_gcpo.text.negatives import negative_prompt

logging.disable_progress_bar()
logging.set_verbosity_error()
warnings.simplefilter("ignore", FutureWarning)  # of transformers about names that TRL still uses
plt.rcParams.update({"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False})
model, tokenizer = load("text-mini")

# %% [markdown]
# ## 1. A group of answers
#
# The task is arithmetic with a step an operator. Questions of the test split are in no training.

# %%
row = arithmetic.rows("test", 3)[2]
torch.manual_seed(0)
completions = generate_ids(model, tokenizer, [row["prompt"]] * 6, temperature=1.0, max_new_tokens=48)
texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
rewards = arithmetic.arithmetic_reward(texts, [row["answer"]] * len(texts))
lines = [f"| {text} | {reward:.0f} |" for text, reward in zip(texts, rewards, strict=True)]
display(
    Markdown(
        f"**{row['prompt'][0]['content']}** (right: {row['answer']})\n\n| answer | reward |\n|---|---|\n"
        + "\n".join(lines)
    )
)

# %% [markdown]
# ## 2. The negative prompt, and the weights by hand
#
# Each answer is scored under both prompts. With $d = \log p(x_t \mid \bar q) - \log p(x_t \mid q)$ the divergence is $e^d - d - 1$; its rank $u \in (0, 1]$ within the answer becomes the weight
# $u^{2.15}$, rescaled to mean 1: the top 40 % of the tokens carry 80 % of the credit.

# %%
display(Markdown("```text\n" + negative_prompt("wrong")(row["prompt"])[0]["content"] + "\n```"))
items = maps.describe(model, tokenizer, row["prompt"], completions, negative="wrong", scores=rewards)
first = items[0]
d = np.array(first.logprob_negative) - np.array(first.logprob_positive)
divergence = np.exp(d) - d - 1
rank = np.argsort(np.argsort(divergence)) + 1
weights = (rank / len(rank)) ** (np.log(1 - 0.8) / np.log(1 - 0.4) - 1)
weights /= weights.mean()
by_library = credit.token_weights(torch.tensor([first.logprob_positive]), torch.tensor([first.logprob_negative]))[0]
untied = np.array([list(np.round(divergence, 6)).count(value) == 1 for value in np.round(divergence, 6)])
assert np.allclose(weights[untied], by_library.numpy()[untied], atol=0.05) and np.allclose(
    by_library, first.weights["kl"], atol=1e-5
)
heaviest = sorted(zip(first.tokens, divergence, first.weights["kl"], strict=True), key=lambda cell: -cell[2])[:6]
table = "\n".join(f"| `{token}` | {value:.3f} | {weight:.2f} |" for token, value, weight in heaviest)
display(Markdown("| token | divergence, nats | weight |\n|---|---|---|\n" + table))

# %% [markdown]
# ## 3. The token advantages
#
# Red pushes a token up, blue pushes it down; a right answer has a positive advantage. `t2i-gcpo text heatmap` writes this picture, and a page on which every token shows its numbers.

# %%
draw(items, title=row["prompt"][0]["content"])

# %% [markdown]
# ## 4. Where does the credit lie?
#
# The digits that decide an answer are those right after "=". If a rule gave credit by chance, their share of it would be their share of the tokens. Entropy is the control that matters: it needs no second
# prompt, and where the contrast does no better than it, the contrast has told nothing that the model's own uncertainty does not tell.

# %%
found = measure(model, tokenizer, arithmetic.rows("test", 20), negative="wrong", samples=2)
cells = [f"| {name} | {e.overall:.3f} | {e.ci95[0]:.3f} to {e.ci95[1]:.3f} |" for name, e in found.by_rule.items()]
display(Markdown("| credit by | share on the digits that decide | 95 % interval |\n|---|---|---|\n" + "\n".join(cells)))

# %% [markdown]
# ## 5. Some steps with TRL
#
# `GCPOTrainer` takes what `GRPOTrainer` takes, and a `GCPOConfig`. A handful of steps shows the machinery, not which rule is better.

# %%
data = datasets.Dataset.from_list(arithmetic.rows("train", 200))
config = GCPOConfig(
    tempfile.mkdtemp(), max_steps=4, per_device_train_batch_size=32, num_generations=8, max_completion_length=48,
    learning_rate=1e-4, bf16=False, use_cpu=True, gradient_checkpointing=False, report_to="none", save_strategy="no",
    logging_steps=1, disable_tqdm=True,
)  # fmt: skip
trainer = GCPOTrainer(model, arithmetic.arithmetic_reward, config, data, processing_class=tokenizer)

# %%
with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    warnings.simplefilter("ignore")
    trainer.train()
log = [entry for entry in trainer.state.log_history if "reward" in entry]
figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
for axis, name in zip(axes, ("reward", "credit/contrast"), strict=True):
    axis.plot([entry["step"] for entry in log], [entry[name] for entry in log], marker="o")
    axis.set(xlabel="step", title=name)
assert all(entry["credit/below_floor"] == 0 for entry in log)

# %% [markdown]
# More: the page [GCPO for text](../docs/text.md), and credit, advantages and loss [in your own loop](../docs/own_loop.md).
