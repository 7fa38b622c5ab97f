"""Turn the curves of runs into line plots of the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import gradio as gr

from t2i_gcpo.algorithms.palette import OTHER, styles
from t2i_gcpo.reports.curves import PANELS, series
from t2i_gcpo.reports.run import Run

if TYPE_CHECKING:
    import altair
    import pandas

HEIGHT = 220
"""Height of the axes, in pixels."""
POINT = 20
"""Area of a point, in square pixels."""
LINE = 2
"""Width of a line, in pixels."""
WIDER = 2
"""Pixels by which an earlier one of a few lines is wider, so that it is seen below one that runs over it."""
FEW = 4


def frame(runs: Mapping[str, Run], metric: str) -> pandas.DataFrame:
    """Return runs by label as rows of (step, value, run), where the metric was logged and finite."""
    import pandas

    rows = [
        (step, value, label) for label, run in runs.items() for step, value in zip(*series(run, metric), strict=True)
    ]
    return pandas.DataFrame(rows, columns=["step", "value", "run"])


def metrics(runs: Iterable[Run]) -> list[str]:
    """Return the metrics that any of the runs logged, those with a panel in `t2i-gcpo compare` first."""
    logged = dict.fromkeys(name for run in runs for row in run.metrics for name in row if name != "step")
    first = [name for name in PANELS if "+" not in name and name in logged]
    return [*first, *sorted(name for name in logged if name not in first)]


def line_plot() -> gr.Plot:
    """Make an empty plot for `lines`."""
    return gr.Plot(show_label=False, min_width=280, buttons=[], elem_classes="t2i-plot")


def lines(runs: Mapping[str, Run], metric: str) -> altair.Chart:
    """Draw the plot of one metric over the runs, anew each time.

    Gradio's own line plot keeps the categories that it began with. Where nothing was logged yet, the plot says so: of a
    legend without entries Vega makes a picture 2^25 pixels high.
    """
    import altair

    data, title = frame(runs, metric), PANELS.get(metric, metric)
    # The page gives the background and the colour of the words, light or dark.
    size = {
        "width": "container",
        "height": HEIGHT,
        "background": "transparent",
        "usermeta": {"embedOptions": {"renderer": "svg", "actions": False}},
    }
    if data.empty:
        words = "no steps yet" if runs else "no runs yet"
        return altair.Chart(title=title).mark_text(text=words, color=OTHER).properties(**size)
    chosen = dict(zip(runs, styles([run.algorithm for run in runs.values()]), strict=True))
    color = altair.Scale(domain=list(chosen), range=[style.color for style in chosen.values()])
    dash = altair.Scale(
        domain=list(chosen), range=[[LINE * part for part in style.dash] or [1, 0] for style in chosen.values()]
    )
    under = [LINE + WIDER * (len(chosen) - 1 - k) * (len(chosen) <= FEW) for k in range(len(chosen))]
    width = altair.StrokeWidth("run:N", scale=altair.Scale(domain=list(chosen), range=under), legend=None)
    free = altair.Scale(zero=False)
    whole = altair.Axis(grid=False, ticks=False, labelExpr="datum.value % 1 ? '' : format(datum.value, 'd')")
    return (
        altair.Chart(data, title=title)
        .mark_line(point={"size": POINT})
        .encode(
            x=altair.X("step:Q", scale=free, axis=whole),
            y=altair.Y("value:Q", title=None, scale=free),
            color=altair.Color("run:N", title=None, scale=color).legend(orient="bottom"),
            strokeDash=altair.StrokeDash("run:N", title=None, scale=dash).legend(orient="bottom"),
            strokeWidth=width if len(chosen) > 1 else altair.value(LINE),
            tooltip=["run:N", "step:Q", altair.Tooltip("value:Q", format=".4g")],
        )
        .properties(**size)
    )
