"""Score a language model on questions with answers.

The result is the share answered rightly, per task, with 95 % intervals clustered by question.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from t2i_gcpo.evaluation.intervals import Estimates, Interval, estimate
from t2i_gcpo.text.models import encode
from t2i_gcpo.text.rewards_by_name import check_scores
from t2i_gcpo.text.scoring import pad_prompts
from t2i_gcpo.utils.files import write_atomically

#: (completions, answer=...) -> a score each; None where it cannot be scored. What TRL calls, too.
Reward = Callable[..., Sequence[float | None]]


@dataclass(frozen=True)
class Answer:
    """Holds one sampled completion and its score."""

    index: int
    """Row of its question."""
    question: str
    completion: str
    task: str
    score: float
    """NaN where the reward could not score it."""


@dataclass(frozen=True)
class TextEvalResult:
    """Holds N scored completions; those that could not be scored are counted and left out of every mean."""

    rows: tuple[Answer, ...]
    seed: int
    temperature: float
    model: str = ""
    data: str = ""
    reward: str = ""

    @cached_property
    def estimates(self) -> Estimates:
        return estimate([r.score for r in self.rows], [r.index for r in self.rows], [r.task for r in self.rows])

    @property
    def overall(self) -> float:
        """Return the mean over tasks of the tasks' means."""
        return self.estimates.overall

    @property
    def ci95(self) -> Interval:
        return self.estimates.ci95

    @property
    def n(self) -> int:
        return len(self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return the content of eval.json; a number that does not exist is null."""
        e = self.estimates
        return {
            "overall": _number(e.overall),
            "by_task": {task: _number(value) for task, value in e.by_task.items()},
            "n": self.n,
            "ci95": [_number(value) for value in e.ci95],
            "checkpoint": self.model,
            "prompts": self.data,
            "by_task_ci95": {task: [_number(v) for v in pair] for task, pair in e.by_task_ci95.items()},
            "n_by_task": e.n_by_task,
            "failed": sum(math.isnan(row.score) for row in self.rows),
            "reward": self.reward,
            "seed": self.seed,
            "temperature": self.temperature,
            "completions": [
                {
                    "index": r.index, "task": r.task, "question": r.question, "completion": r.completion,
                    "score": _number(r.score),
                }
                for r in self.rows
            ],
        }  # fmt: skip

    def save(self, path: Path) -> Path:
        """Write eval.json."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n")
        return path


@torch.no_grad()
def evaluate(
    model: Any,
    tokenizer: Any,
    rows: Sequence[dict[str, Any]],
    reward: Reward,
    *,
    samples: int = 1,
    temperature: float = 1.0,
    max_new_tokens: int = 48,
    batch: int = 100,
    seed: int = 0,
    progress: bool = False,
    model_name: str = "",
    data: str = "",
    reward_name: str = "",
) -> TextEvalResult:
    """Sample `samples` completions of each question and score them. rows: those of `data.read_rows`.

    temperature 0 is greedy decoding. The global random state is left as it was. ValueError: numbers that are out of
    range, or a reward that gives another number of scores.
    """
    if samples < 1 or batch < 1 or max_new_tokens < 1 or temperature < 0:
        raise ValueError(
            f"samples is {samples}, batch {batch}, max_new_tokens {max_new_tokens}, temperature {temperature}; "
            "allowed: at least 1, 1, 1 and 0"
        )
    asked = [(index, row) for index, row in enumerate(rows) for _ in range(samples)]
    answers: list[Answer] = []
    with torch.random.fork_rng(), tqdm(total=len(asked), desc="completions", disable=not progress) as bar:
        torch.manual_seed(seed)
        for start in range(0, len(asked), batch):
            part = asked[start : start + batch]
            completions = generate(model, tokenizer, [row["prompt"] for _, row in part], temperature, max_new_tokens)
            scores = reward(completions=completions, answer=[row["answer"] for _, row in part])
            check_scores(scores, reward_name or "reward")
            if len(scores) != len(part):
                raise ValueError(
                    f"the reward gave {len(scores)} scores for {len(part)} completions; it must give one each"
                )
            for (index, row), completion, score in zip(part, completions, scores, strict=True):
                value = math.nan if score is None else float(score)
                answers.append(Answer(index, row["prompt"][-1]["content"], completion, row["task"], value))
            bar.update(len(part))
    return TextEvalResult(tuple(answers), seed, temperature, model_name, data, reward_name)


def generate(model: Any, tokenizer: Any, prompts: Sequence[Any], temperature: float, max_new_tokens: int) -> list[str]:
    """Draw one completion of each prompt, as text, from the global random state."""
    return tokenizer.batch_decode(
        generate_ids(model, tokenizer, prompts, temperature, max_new_tokens), skip_special_tokens=True
    )


def generate_ids(
    model: Any, tokenizer: Any, prompts: Sequence[Any], temperature: float, max_new_tokens: int
) -> list[list[int]]:
    """Draw one completion of each prompt, as token ids up to and with the token that ends it."""
    padded = pad_prompts(encode(tokenizer, list(prompts)), tokenizer.pad_token_id, model.device)
    how: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    drawn = model.generate(
        input_ids=padded.ids, attention_mask=padded.mask, max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id, **how,
    )  # fmt: skip
    rows = drawn[:, padded.ids.shape[1] :].tolist()
    ends = {tokenizer.eos_token_id, *_as_list(model.generation_config.eos_token_id)}
    return [row[: next((k + 1 for k, token in enumerate(row) if token in ends), len(row))] for row in rows]


def _as_list(value: Any) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
