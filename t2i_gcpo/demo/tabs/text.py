"""The tab Text: completions of an arithmetic question, and which of their tokens get the credit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from t2i_gcpo.demo import validate as bounds
from t2i_gcpo.demo.context import PRIVATE, DemoContext
from t2i_gcpo.demo.errors import with_user_errors
from t2i_gcpo.demo.queueing import on_model
from t2i_gcpo.demo.sessions import text_credit

HELP = (
    "The same credit on a chain of thought. `text-mini` answers an arithmetic question several times; a token gets "
    "credit by how much its probability changes when the "
    "model is asked to answer wrongly (or is asked nothing). Red pushes a token up, blue pushes it down. Point at a "
    "token for its numbers."
)
FIRST = ("What is 37+48-19?", "66")
NOTHING = "Sample some answers first."


def tab(context: DemoContext) -> None:
    """Lay the tab out, inside a `gr.Blocks`."""
    state = gr.State(None)
    gr.Markdown(HELP)
    with gr.Row():
        question = gr.Textbox(FIRST[0], label="Question", scale=4, min_width=240, max_lines=1)
        answer = gr.Textbox(FIRST[1], label="Right answer (empty: not scored)", min_width=120, max_lines=1)
        negative = gr.Dropdown(list(text_credit.NAMES), value="wrong", label="Negative prompt", min_width=120)
    with gr.Row(equal_height=True):
        samples = gr.Slider(1, bounds.IMAGES, 4, step=1, label="Answers", min_width=170)
        seed = gr.Number(0, label="Seed", precision=0, min_width=110)
        other = gr.Button("Another question", min_width=130)
        go = gr.Button("Sample answers", variant="primary", min_width=130)
    status = gr.Markdown(elem_id="t2i-status-text")
    picture = gr.HTML()
    with gr.Row():
        save = gr.Button("Export this heatmap (HTML, PNG)", min_width=200)
        files = gr.File(label="Files", file_count="multiple", visible=False, min_width=280)

    @with_user_errors
    def on_sample(question: str, answer: str, negative: str, samples: float, seed: float) -> Iterator[list[Any]]:
        asked = bounds.prompt_text(question, what="The question")
        count = bounds.whole(samples, "The number of answers", 1, bounds.IMAGES)
        number = bounds.whole(seed, "The seed", 0, bounds.SEED)
        yield [gr.skip(), f"Answering “{asked}” …", gr.skip(), gr.skip()]
        with context.jobs.doing("answers to a question"):
            drawn = text_credit.heatmaps(asked, (answer or "").strip(), negative=negative, samples=count, seed=number)
        scored = [item.score for item in drawn if item.score is not None]
        line = f"{sum(score == 1 for score in scored)} of {len(scored)} answers are right." if scored else "Not scored."
        yield [(asked, drawn), line, text_credit.frame(drawn, asked), gr.update(visible=False)]

    @with_user_errors
    def on_export(found: Any) -> Any:
        if found is None:
            raise ValueError(NOTHING)
        folder = Path(tempfile.mkdtemp(prefix="t2i_gcpo_text_"))
        return gr.update(value=text_credit.export(found[1], found[0], folder), visible=True)

    on_model(
        context, [go.click, question.submit, answer.submit], on_sample, [question, answer, negative, samples, seed],
        [state, status, picture, files], status=status, api_name="text",
    )  # fmt: skip
    other.click(
        lambda: text_credit.another_question(context.shuffle),
        None,
        [question, answer],
        show_progress="hidden",
        **PRIVATE,
    )
    save.click(on_export, state, files, show_progress_on=files, **PRIVATE)
