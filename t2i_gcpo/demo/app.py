"""The page: four tabs over one context."""

from __future__ import annotations

import gradio as gr

from t2i_gcpo.demo.context import DemoContext
from t2i_gcpo.demo.tabs import compare, runs
from t2i_gcpo.demo.tabs import inspect as inspect_tab
from t2i_gcpo.demo.tabs import train as live

TITLE = "t2i_gcpo: GRPO, DAPO and GCPO on image tokens"
#: Seconds: how often files of the page that nobody looks at are removed, and how old they must be.
CLEANING = (3600, 24 * 3600)


def build(context: DemoContext) -> gr.Blocks:
    """The app. Sessions share the context's checkpoints and nothing else: what one person sees is in `gr.State`."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=CLEANING) as app:
        gr.Markdown(f"## {TITLE}")
        with gr.Tab("Compare"):
            compare.tab(context)
        with gr.Tab("Inspect"):
            inspect_tab.tab(context)
        with gr.Tab("Train live"):
            live.tab(context)
        with gr.Tab("Runs"):
            runs.tab(context)
    return app.queue(default_concurrency_limit=4, max_size=64)
