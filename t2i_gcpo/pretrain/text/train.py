"""Pre-training of `text-mini`: next-token prediction of the arithmetic task's reasoning.

Most rows are a question and its right reasoning. A share has the instruction to answer wrongly before the question, and
reasoning with mistakes after it; another share has no question at all, and the reasoning of any. So the model knows
what the negative prompts "wrong" and "empty" ask for, as a model that follows instructions does. Once it can calculate,
a share of the steps in the right rows has slips, too: the model then knows the answer and slips now and then. It is a
start for reinforcement learning, and that needs mistakes that can be unlearned.

B rows, L tokens of prompt and completion, right-padded.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from t2i_gcpo.pretrain.optimisation import Optimisation
from t2i_gcpo.text.arithmetic import Problem, draw_problem, problems, read_answer, slipped_results, wrong_results
from t2i_gcpo.text.negatives import WRONG_INSTRUCTION

VALIDATION_PROBLEMS = 300
#: Longest completion in tokens: three steps of three digits, the answer and the end take 39.
COMPLETION_LENGTH = 48
#: Label of a token that is no target.
IGNORED = -100


@dataclass(frozen=True)
class TextSettings:
    """Holds how `text-mini` is trained; the defaults are the rule of the embedded checkpoint."""

    steps: int = 4000
    """The learning rate would have fallen to a fiftieth by then."""
    end: int = 1200
    """Training ends at this step."""
    slips: float = 0.25
    """Share of the steps of a reasoning without instruction that are off, carried on to the next step ..."""
    slips_from: int = 800
    """... from this step of the training on; before, all of these are right."""
    check_every: int = 100
    batch: int = 64
    lr: float = 2e-3
    muon_lr: float = 3e-3
    warmup: int = 60
    weight_decay: float = 0.02
    wrong: float = 0.15
    """Share of rows with the instruction to answer wrongly."""
    empty: float = 0.05
    """Share of rows without a question."""
    ema: float = 0.99
    seed: int = 0


def chat(content: str) -> list[dict[str, str]]:
    """Make a chat of one user message."""
    return [{"role": "user", "content": content}]


def draw_example(rng: random.Random, settings: TextSettings, step: int) -> tuple[list[dict[str, str]], str]:
    """Draw a prompt and its completion from the training split, for one step of the training."""
    problem = draw_problem(rng, "train")
    kind = rng.random()
    if kind < settings.wrong:
        return chat(WRONG_INSTRUCTION + problem.question), problem.reasoning(wrong_results(problem, rng))
    if kind < settings.wrong + settings.empty:
        return chat(""), problem.reasoning()
    slipped = slipped_results(problem, rng, settings.slips) if step >= settings.slips_from else None
    return chat(problem.question), problem.reasoning(slipped)


def encode(tokenizer: Any, prompts: list[list[dict[str, str]]]) -> list[list[int]]:
    """Return the token ids of each prompt under the chat template, up to where the assistant begins."""
    texts = tokenizer.apply_chat_template(prompts, tokenize=False, add_generation_prompt=True)
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def pad_rows(prompts: list[list[int]], completions: list[list[int]], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Make ids, attention mask and labels, each [B, L] int64; only completions are targets."""
    length = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
    ids = torch.full((len(prompts), length), pad)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        end = len(prompt) + len(completion)
        ids[row, :end] = torch.tensor(prompt + completion)
        mask[row, :end] = 1
        labels[row, len(prompt) : end] = torch.tensor(completion)
    return ids, mask, labels


@torch.no_grad()
def accuracy(model: Any, tokenizer: Any, questions: list[Problem], *, seed: int = 0) -> float:
    """Measure the share of questions whose sampled answer (temperature 1) is right.

    Leaves the global random state as it was.
    """
    encoded = encode(tokenizer, [chat(problem.question) for problem in questions])
    length = max(map(len, encoded))
    ids = torch.tensor([[tokenizer.pad_token_id] * (length - len(row)) + row for row in encoded])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in encoded])
    was_training = model.training
    model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        drawn = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=COMPLETION_LENGTH
        )
    model.train(was_training)
    texts = tokenizer.batch_decode(drawn[:, length:], skip_special_tokens=True)
    right = [read_answer(text) == str(problem.answer) for text, problem in zip(texts, questions, strict=True)]
    return sum(right) / len(right)


class TextTrainer:
    """Holds the training's state and makes its steps; `state_dict` has everything that a resumed run needs."""

    def __init__(self, settings: TextSettings, model: Any, tokenizer: Any) -> None:
        self.settings, self.model, self.tokenizer = settings, model.train(), tokenizer
        self.optimisation = Optimisation(model, settings, lambda name, _: "embed" not in name and "lm_head" not in name)
        self.rng = random.Random(settings.seed)
        self.validation = problems("val", VALIDATION_PROBLEMS)

    @property
    def step_number(self) -> int:
        return self.optimisation.step_number

    @property
    def done(self) -> bool:
        return self.step_number >= self.settings.end

    def step(self) -> dict[str, float | Tensor]:
        """Make one update; at a check the accuracy on validation questions is in the metrics."""
        examples = [draw_example(self.rng, self.settings, self.step_number) for _ in range(self.settings.batch)]
        prompts = encode(self.tokenizer, [prompt for prompt, _ in examples])
        completions = self.tokenizer([text for _, text in examples], add_special_tokens=False)["input_ids"]
        completions = [[*row, self.tokenizer.eos_token_id] for row in completions]
        ids, mask, labels = pad_rows(prompts, completions, self.tokenizer.pad_token_id)
        logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        norm = self.optimisation.step(loss)
        metrics: dict[str, float | Tensor] = {"loss": loss.detach(), "gradient_norm": norm}
        if self.step_number % self.settings.check_every == 0 or self.done:
            before = self.optimisation.load(self.optimisation.average)
            metrics["accuracy"] = accuracy(self.model, self.tokenizer, self.validation)
            self.optimisation.load(before)
        return metrics

    def finished(self) -> Any:
        """Return the model with the average of its weights."""
        self.optimisation.load(self.optimisation.average)
        return self.model.eval()

    def state_dict(self) -> dict[str, Any]:
        return {"optimisation": self.optimisation.state_dict(), "rng": self.rng.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimisation.load_state_dict(state["optimisation"])
        self.rng.setstate(state["rng"])
