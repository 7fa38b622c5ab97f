"""Curves of runs as data frames for the page's line plots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import gradio as gr

from t2i_gcpo.curves import COLORS, PANELS, series
from t2i_gcpo.run_folder import Run

if TYPE_CHECKING:
    import pandas

HEIGHT = 320
"""Pixels; lower plots are cut off."""
#: An algorithm has one colour in all plots.
_OF = {"grpo": COLORS[0], "gcpo": COLORS[1], "dapo": COLORS[2]}


def frame(runs: Mapping[str, Run], metric: str) -> pandas.DataFrame:
    """Label -> run as rows of (step, value, run), where the metric was logged and finite."""
    import pandas

    rows = [
        (step, value, label) for label, run in runs.items() for step, value in zip(*series(run, metric), strict=True)
    ]
    # With types of its own an empty frame is numbers as well: a plot that began with text keeps a scale for text.
    return pandas.DataFrame(rows, columns=["step", "value", "run"]).astype({"step": "int64", "value": "float64"})


def metrics(runs: Iterable[Run]) -> list[str]:
    """The metrics that any of the runs logged, those with a panel in `t2i-gcpo compare` first."""
    logged = dict.fromkeys(name for run in runs for row in run.metrics for name in row if name != "step")
    first = [name for name in PANELS if "+" not in name and name in logged]
    return [*first, *sorted(name for name in logged if name not in first)]


def colors(labels: Iterable[str]) -> dict[str, str]:
    labels = list(labels)
    if len(set(labels) & set(_OF)) == len(labels):
        return {label: _OF[label] for label in labels}
    return {label: COLORS[k % len(COLORS)] for k, label in enumerate(labels)}


def line_plot(title: str = "", *, min_width: int = 280) -> gr.LinePlot:
    """An empty plot for `filled`."""
    return gr.LinePlot(
        x="step", y="value", color="run", title=title, x_title="step", y_title=" ", color_title=" ", height=HEIGHT,
        min_width=min_width, tooltip="all", buttons=[],
    )  # fmt: skip


def filled(runs: Mapping[str, Run], metric: str) -> Any:
    """The plot of one metric over the runs, as an update of a `line_plot`."""
    return gr.update(value=frame(runs, metric), title=PANELS.get(metric, metric), color_map=colors(runs))
