"""Measure which tokens of an arithmetic reasoning get the credit.

Measured is the share on the digits that decide the answer, against their share of the tokens.

The digits that decide are those of each step's result, right after "=": what follows copies them. Entropy and random
ranks are the controls: a rule that does not beat them tells nothing about the question.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from t2i_gcpo import credit
from t2i_gcpo.evaluation.intervals import Estimates, estimate
from t2i_gcpo.text.evaluate import generate_ids
from t2i_gcpo.text.heatmap import TextHeatmap, describe
from t2i_gcpo.utils.files import write_atomically

#: Rows of the table that are no divergence: the share of the tokens, and the controls.
TOKENS, ENTROPY, RANDOM = "share of tokens", "entropy", "random"
#: What ranks would give that put the deciding digits before all other tokens: no rule can have more.
MOST = "most that ranks allow"
#: Questions whose completions are sampled at once.
BATCH = 50


def deciding(tokens: Sequence[str]) -> list[bool]:
    """Flag the digits of each step's result: those from "=" to the next token that is no digit."""
    flags, inside = [], False
    for token in tokens:
        digit = token.strip().isdigit()
        flags.append(inside and digit)
        inside = token.strip().endswith("=") or (inside and digit)
    return flags


def shares(item: TextHeatmap, generator: torch.Generator) -> dict[str, float] | None:
    """Return, by rule, the share of a completion's credit on the deciding digits; None where it has no such digit."""
    flags = torch.tensor(deciding(item.tokens))
    if not flags.any() or item.entropy is None:
        return None
    weights = {kind: torch.tensor(values) for kind, values in item.weights.items()}
    weights[ENTROPY] = credit.normalize(torch.tensor(item.entropy)[None], floor=0.0)[0]
    weights[RANDOM] = credit.random_weights((1, len(flags)), generator=generator)[0]
    weights[MOST] = credit.normalize(flags.float()[None], floor=0.0)[0]
    weights[TOKENS] = torch.ones(len(flags))
    return {name: float(w[flags].sum() / w.sum()) for name, w in weights.items()}


@dataclass(frozen=True)
class CreditLocation:
    """Holds mean shares over completions, with intervals clustered by question."""

    by_rule: dict[str, Estimates]
    about: dict[str, Any]

    def save(self, path: Path) -> Path:
        """Write the shares, their intervals and what was measured as JSON."""
        rows = {name: {"share": e.overall, "ci95": list(e.ci95), "n": e.n} for name, e in self.by_rule.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_atomically(path, json.dumps({**self.about, "rules": rows}, indent=1) + "\n")


def measure(
    model: Any,
    tokenizer: Any,
    rows: Sequence[dict[str, Any]],
    *,
    negative: str = "wrong",
    samples: int = 2,
    seed: int = 0,
    max_new_tokens: int = 48,
    progress: bool = False,
    about: dict[str, Any] | None = None,
) -> CreditLocation:
    """Sample completions of each question and measure where their credit lies.

    ValueError: no completion has a step with a result.
    """
    generator = torch.Generator().manual_seed(seed)
    found: list[tuple[int, dict[str, float]]] = []
    with torch.random.fork_rng(), tqdm(total=len(rows), desc="questions", disable=not progress) as bar:
        torch.manual_seed(seed)
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            prompts = [row["prompt"] for row in part for _ in range(samples)]
            completions = generate_ids(model, tokenizer, prompts, 1.0, max_new_tokens)
            for place, row in enumerate(part):
                mine = completions[place * samples : (place + 1) * samples]
                drawn = describe(model, tokenizer, row["prompt"], mine, negative=negative)
                measured = [values for item in drawn if (values := shares(item, generator)) is not None]
                found += [(start + place, values) for values in measured]
                bar.update()
    if not found:
        raise ValueError(
            f"none of {len(rows) * samples} completions has a step of the form a+b=c.; there is nothing to measure"
        )
    clusters, tasks = [index for index, _ in found], ["all"] * len(found)
    names = [TOKENS, *(name for name in found[0][1] if name != TOKENS)]
    by_rule = {name: estimate([values[name] for _, values in found], clusters, tasks) for name in names}
    settings = {"negative_prompt": negative, "samples": samples, "seed": seed, "questions": len(rows)}
    return CreditLocation(by_rule, (about or {}) | settings)
