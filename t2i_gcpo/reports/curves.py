"""Training curves of one run or of several, as a matplotlib figure."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from t2i_gcpo.algorithms.palette import Style, styles
from t2i_gcpo.reports import html_page as pages
from t2i_gcpo.reports.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Metric -> title of its panel. A sum of two metrics is written with +.
PANELS: dict[str, str] = {
    "validation/overall": "validation score",
    "reward/mean": "reward, mean of the rollout",
    "kl": "KL to the reference, nats a token",
    "entropy": "entropy of the tokens, nats",
    "diversity": "diversity: tokens in which siblings differ",
    "variety/color_entropy": "entropy of an image's colours, nats",
    "variety/near_duplicates": "near-duplicates, share of sibling pairs",
    "clip_fraction_low+clip_fraction_high": "share of tokens clipped",
    "credit/contrast": "contrast, mean |d|, nats",
    "grad_norm": "gradient norm",
    "advantage/abs_mean": "mean |advantage|",
}
#: Measured now and then and without training noise: shown as they are, with a mark at each.
EXACT = {"validation/overall"}
#: matplotlib's black and white -> the ink and the ground of a dark page.
DARK = {b"#000000": b"#e8e8ec", b"#ffffff": b"#17181c"}
SMOOTHING = 0.05
"""Width of the moving average as a share of a run's steps."""


def draw(groups: Mapping[str, Sequence[Run]], *, x: str = "step") -> Figure:
    """One panel a metric that any run has; a style a group, thin lines its runs, a thick one their mean.

    x: "step", or "images_sampled" for runs whose steps cost differently. One run: thin as logged, thick smoothed.
    """
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    runs = [run for members in groups.values() for run in members]
    titles = PANELS | held_out(runs)
    panels = [name for name in titles if any(series(run, name)[0] for run in runs)]
    columns = min(4, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(3.7 * columns, 2.7 * rows + (0.5 if len(groups) > 1 else 0)), layout="constrained")
    for k, name in enumerate(panels):
        axes = figure.add_subplot(rows, columns, k + 1)
        for style, (label, members) in zip(_styles(groups), groups.items(), strict=True):
            _lines(axes, name, members, style, label, x)
        axes.set_title(titles[name], fontsize=10)
        axes.set_xlabel("images sampled" if x == "images_sampled" else x, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    if not panels:
        figure.text(0.5, 0.5, "no metrics yet", ha="center")
    elif len(groups) > 1:
        figure.legend(
            *figure.axes[0].get_legend_handles_labels(),
            loc="outside upper center",
            ncols=min(4, len(groups)),
            fontsize=9,
        )
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a name with dollar signs is a name
    return figure


def figure(drawn: Figure, caption: str) -> str:
    """Return curves as a figure of a page, for light and for dark pages."""
    light = svg(drawn)
    return pages.picture(light, caption, kind="svg", dark=darkened(light))


def darkened(light: bytes) -> bytes:
    """Return a figure's SVG with ink and ground exchanged; the colours of its lines stay."""
    dark = light.replace(b"<svg ", b'<svg fill="%s" ' % DARK[b"#000000"], 1)  # letters have no colour of their own
    for old, new in DARK.items():
        dark = dark.replace(old, new)
    return dark


def held_out(runs: Sequence[Run]) -> dict[str, str]:
    """Panels of the scorers that a run watches and does not train on."""
    names = sorted({name for run in runs for row in run.metrics for name in row if name.startswith("held_out/")})
    return {name: f"not trained on: {name.removeprefix('held_out/')}" for name in names}


def series(run: Run, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric, or of a sum of metrics at the steps that have all of them."""
    parts = [dict(zip(*run.series(part), strict=True)) for part in name.split("+")]
    steps = [step for step in parts[0] if all(step in part for part in parts)]
    return steps, [sum(part[step] for part in parts) for step in steps]


def smooth(values: Sequence[float], width: int) -> np.ndarray:
    """Return the centred moving average over `width` values (an even width counts as the next odd).

    At the ends it is taken over the values that there are.
    """
    half = width // 2
    total = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    return buffer.getvalue()


def _lines(axes: Axes, name: str, members: Sequence[Run], style: Style, label: str, x: str) -> None:
    exact = name in EXACT
    curves = []
    for run in members:
        steps, values = series(run, name)
        if not steps:
            continue
        smoothed = np.asarray(values) if exact else smooth(values, max(1, math.ceil(SMOOTHING * len(values))))
        curves.append((steps, _positions(run, steps, x), smoothed))
        faint = values if len(members) == 1 else smoothed
        axes.plot(curves[-1][1], faint, color=style.color, alpha=0.3, linewidth=0.8)
    if not curves:
        return
    # The mean of several seeds, at the steps that all of them have.
    common = sorted(set.intersection(*(set(steps) for steps, _, _ in curves)))
    mean_x, mean_y = (
        [np.mean([dict(zip(c[0], c[k], strict=True))[step] for c in curves]) for step in common] for k in (1, 2)
    )
    axes.plot(
        mean_x, mean_y, color=style.color, linestyle=(0, style.dash) if style.dash else "solid", linewidth=1.8,
        label=label, marker="o" if exact else None, markersize=3.5,
    )  # fmt: skip


def _positions(run: Run, steps: Sequence[int], x: str) -> list[float]:
    if x == "step":
        return [float(step) for step in steps]
    known = dict(zip(*run.series(x), strict=True))
    return [known.get(step, math.nan) for step in steps]


def _styles(groups: Mapping[str, Sequence[Run]]) -> list[Style]:
    return styles([members[0].algorithm if members else "" for members in groups.values()])
