"""Wire an event that uses a model: it queues up, and a click that has to wait is answered before that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from t2i_gcpo.demo.context import MODEL, PRIVATE, DemoContext
from t2i_gcpo.demo.jobs import QUEUED


def on_model(
    context: DemoContext,
    triggers: Sequence[Any],
    handler: Callable[..., Any],
    inputs: Any,
    outputs: Any,
    *,
    status: gr.Markdown,
    **options: Any,
) -> Any:
    """Let `handler` use a model when one of the triggers fires, and return the event's dependency.

    status: where a click that has to wait is told so, without queueing up itself; the time that a job takes is shown in
    its corner, and covers no words.
    """

    def answer() -> Any:
        words = context.jobs.answer()
        return gr.skip() if words is None else words

    aside: dict[str, Any] = {"queue": False, "show_progress": "hidden", **PRIVATE}
    gr.on(list(triggers), answer, None, status, **aside)
    options = {"show_progress": "minimal", "show_progress_on": status, **MODEL, **options}
    event = gr.on(list(triggers), handler, inputs, outputs, **options)
    # A job that fails when its turn comes waits no longer.
    event.failure(lambda words: "" if str(words).startswith(QUEUED) else gr.skip(), status, status, **aside)
    return event
