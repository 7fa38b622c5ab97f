"""Build the page: five tabs over one context; requests that are not the page's are answered by a sentence."""

from __future__ import annotations

from typing import Any

import gradio as gr

from t2i_gcpo.demo.context import DemoContext
from t2i_gcpo.demo.tabs import compare, runs, text
from t2i_gcpo.demo.tabs import inspect as inspect_tab
from t2i_gcpo.demo.tabs import train as live

TITLE = "t2i_gcpo: GRPO, DAPO and GCPO on image tokens"
ODD_REQUEST = "A value of this request is none that the page sends: check the number of values and their types."
#: Seconds: how often files of the page that nobody looks at are removed, and how old they must be.
CLEANING = (3600, 24 * 3600)


class Page(gr.Blocks):
    """Is Gradio's page, but takes a value of an odd type, which only a script sends, for the sender's mistake."""

    async def preprocess_data(self, block_fn: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Turn the values of a request into the arguments of an event handler, as Gradio does."""
        try:
            return await super().preprocess_data(block_fn, inputs, *args, **kwargs)
        except gr.Error as error:
            error.print_exception = False
            raise
        except Exception as error:  # whatever Gradio's components make of it
            raise gr.Error(ODD_REQUEST, print_exception=False) from error


def build(context: DemoContext) -> gr.Blocks:
    """Build the page. Sessions share the checkpoints and nothing else: what one person sees is in `gr.State`."""
    with Page(title=TITLE, analytics_enabled=False, delete_cache=CLEANING) as app:
        gr.Markdown(f"## {TITLE}")
        with gr.Tab("Compare"):
            compare.tab(context)
        with gr.Tab("Inspect"):
            inspect_tab.tab(context)
        with gr.Tab("Train live"):
            live.tab(context)
        with gr.Tab("Runs") as runs_tab:
            runs.tab(context, runs_tab)
        with gr.Tab("Text"):
            text.tab(context)
    return app.queue(default_concurrency_limit=4, max_size=64)
