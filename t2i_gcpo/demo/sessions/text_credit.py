"""Sample completions of a question with the embedded language model and draw their heatmap, for the tab Text."""

from __future__ import annotations

import functools
import html
import random
from pathlib import Path
from typing import Any

import torch

from rewards.models.loading import one_at_a_time
from t2i_gcpo.text import arithmetic
from t2i_gcpo.text import heatmap as maps
from t2i_gcpo.text.evaluate import generate_ids
from t2i_gcpo.text.heatmap_files import save
from t2i_gcpo.text.heatmap_page import page
from t2i_gcpo.text.models import load
from t2i_gcpo.text.negatives import NAMES

MODEL = "text-mini"
LENGTH = 48
"""Tokens of a completion at most."""
HEIGHT = 640
"""Pixels of the frame that the heatmap is shown in."""


@one_at_a_time
@functools.cache
def model() -> tuple[Any, Any]:
    """Load the embedded language model and its tokenizer, once."""
    return load(MODEL)


def another_question(rng: random.Random) -> tuple[str, str]:
    """Draw a question of the test split, and return it with its answer."""
    problem = arithmetic.draw_problem(rng, "test")
    return problem.question, str(problem.answer)


def heatmaps(question: str, answer: str, *, negative: str, samples: int, seed: int) -> list[maps.TextHeatmap]:
    """Sample completions and describe the credit of their tokens; with an answer they are scored.

    ValueError: an unknown negative prompt.
    """
    if negative not in NAMES:
        raise ValueError(f"The negative prompt is {negative!r}; allowed: {', '.join(NAMES)}.")
    language_model, tokenizer = model()
    prompt = [{"role": "user", "content": question}]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        completions = generate_ids(language_model, tokenizer, [prompt] * samples, 1.0, LENGTH)
    texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
    scores = arithmetic.arithmetic_reward(texts, [answer] * samples) if answer else None
    return maps.describe(language_model, tokenizer, prompt, completions, negative=negative, scores=scores)


def frame(drawn: list[maps.TextHeatmap], title: str) -> str:
    """Put the heatmap's own page into a frame of the demo's page."""
    text = html.escape(page(drawn, title=title, recipe=maps.Recipe().words()), quote=True)
    return (
        f'<iframe title="text heatmap" id="t2i-text-frame" style="width:100%;height:{HEIGHT}px;border:1px solid '
        f'#ddd" srcdoc="{text}"></iframe>'
    )


def export(drawn: list[maps.TextHeatmap], title: str, folder: Path) -> list[str]:
    """Write the HTML and the PNG of `t2i-gcpo text heatmap`, and return their paths."""
    return [str(path) for path in save(drawn, folder, name="heatmap", title=title, recipe=maps.Recipe())]
