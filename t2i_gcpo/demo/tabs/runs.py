"""Build the tab Runs: the curves of run folders, their table, and their samples and heatmaps step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from t2i_gcpo.demo import html_parts, plots, run_browser, validate
from t2i_gcpo.demo.context import PRIVATE, DemoContext
from t2i_gcpo.demo.errors import with_user_errors
from t2i_gcpo.reports import comparison as compare
from t2i_gcpo.reports.run import Run, groups
from t2i_gcpo.utils.markup import inline

ANYWHERE = ", or type the path of one"
HELP = (
    "Choose run folders{anywhere}. A run that is still being written may be opened; **Look again** shows what is new."
)
FIRST_METRIC = "reward/mean"
#: Seconds between two looks at runs that are being written.
PULSE = 10


def tab(context: DemoContext, here: gr.Tab) -> None:
    """Lay the tab out, inside a `gr.Blocks`; runs that are new are known whenever the tab is opened."""
    gr.Markdown(HELP.format(anywhere="" if context.only_runs else ANYWHERE))
    with gr.Row():
        paths = gr.Dropdown(
            choices(context), value=[], multiselect=True, allow_custom_value=True, label="Run folders", scale=4,
            min_width=300,
        )  # fmt: skip
        metric = gr.Dropdown([FIRST_METRIC], value=FIRST_METRIC, label="Curve", min_width=180)
    with gr.Row():
        again = gr.Button("Look again", min_width=120)
        follow = gr.Checkbox(False, label=f"Look again every {PULSE} seconds", min_width=220)
    status = gr.Markdown(elem_id="t2i-status-runs")
    curve = plots.line_plot()
    table = gr.HTML()
    with gr.Row():
        kind = gr.Dropdown(list(run_browser.PICTURES), value="samples", label="Pictures", min_width=200)
        step = gr.Slider(0, 1, 0, step=1, label="Step", scale=3, min_width=240)
    pictures = gr.Gallery(
        label="Newest picture of each run at or before this step", columns=2, height="auto",
        object_fit="contain", format="png", interactive=False, buttons=["fullscreen"],
        elem_classes="t2i-panels",
    )  # fmt: skip
    timer = gr.Timer(PULSE, active=False)

    everything = [status, metric, curve, table, step, pictures]
    chosen = [paths, metric, kind, step]

    @with_user_errors
    def on_open(paths: Any, metric: Any, kind: Any, step: Any) -> list[Any]:
        return show(opened(context, paths), metric, kind, None)

    @with_user_errors
    def on_look(paths: Any, metric: Any, kind: Any, step: Any) -> list[Any]:
        return show(opened(context, paths), metric, kind, validate.number(step, "The step", 0, 10**9))

    @with_user_errors
    def on_metric(paths: Any, metric: Any) -> Any:
        runs = opened(context, paths)
        return plots.lines(runs, validate.one_of(metric, "The curve", plots.metrics(runs.values()))) if runs else None

    @with_user_errors
    def on_step(paths: Any, kind: Any, step: Any) -> list[tuple[Any, str]]:
        validate.one_of(kind, "The kind of picture", list(run_browser.PICTURES))
        return gallery(opened(context, paths), kind, validate.number(step, "The step", 0, 10**9))

    gr.on(
        [paths.change, kind.input],
        on_open,
        chosen,
        everything,
        show_progress_on=status,
        api_name="runs",
    )
    gr.on(
        [again.click, timer.tick],
        lambda: gr.update(choices=choices(context)),
        None,
        paths,
        show_progress="hidden",
        **PRIVATE,
    ).then(on_look, chosen, everything, show_progress="hidden", **PRIVATE)
    here.select(lambda: gr.update(choices=choices(context)), None, paths, show_progress="hidden", **PRIVATE)
    metric.input(on_metric, [paths, metric], curve, show_progress="hidden", api_name="curve")
    step.input(
        on_step,
        [paths, kind, step],
        pictures,
        show_progress="hidden",
        trigger_mode="always_last",
        api_name="pictures",
    )
    follow.input(lambda on: gr.update(active=bool(on)), follow, timer, show_progress="hidden", **PRIVATE)


def choices(context: DemoContext) -> list[tuple[str, str]]:
    """Return run folders as (path below the folder of runs, path)."""
    return [(str(Path(path).relative_to(context.runs)), path) for path in run_browser.find(context.runs)]


def opened(context: DemoContext, paths: Any) -> dict[str, Run]:
    """Open run folders.

    ValueError: too many, one that is no run, or, where only --runs is opened, one that is elsewhere.
    """
    below = context.runs if context.only_runs else None
    return run_browser.open_runs(validate.paths(paths, "The run folders", validate.RUNS), below=below)


def show(runs: dict[str, Run], metric: str, kind: str, step: float | None) -> list[Any]:
    """Return status, choices of the metric, curve, table, slider and pictures.

    step: None is the last; a slider at its end stays there.
    """
    validate.one_of(kind, "The kind of picture", list(run_browser.PICTURES))
    names = plots.metrics(runs.values())
    metric = metric if metric in names else FIRST_METRIC
    there = run_browser.steps(runs.values(), kind)
    last = there[-1] if there else max((run.step for run in runs.values()), default=0)
    at = last if step is None else int(min(max(step, 0), last))
    return [
        status_line(runs),
        gr.update(choices=names or [FIRST_METRIC], value=metric),
        plots.lines(runs, metric),
        overview(runs),
        gr.update(maximum=max(last, 1), value=at),
        gallery(runs, kind, at),
    ]


def status_line(runs: dict[str, Run]) -> str:
    if not runs:
        return ""
    parts = []
    for label, run in runs.items():
        planned = run.config.get("steps")
        parts.append(f"**{inline(label)}**: {run.step}" + (f" of {inline(planned)}" if planned else "") + " steps")
    return "; ".join(parts)


def overview(runs: dict[str, Run]) -> str:
    """Return the table of `t2i-gcpo compare`."""
    if not runs:
        return ""
    data = {label: [compare.numbers(run) for run in members] for label, members in groups(list(runs.values())).items()}
    return html_parts.table(compare.COLUMNS, compare.table(data), numbers=range(2, len(compare.COLUMNS)))


def gallery(runs: dict[str, Run], kind: str, step: float) -> list[tuple[Any, str]]:
    """Return the pictures at a step: heatmaps of several runs as one picture on one scale, where they share prompts."""
    shared = run_browser.on_one_scale(runs, kind, int(step))
    if shared is not None:
        return [(shared[1], f"{', '.join(runs)}, step {shared[0]}: one scale for all")]
    own = ", on its own scale" if len(runs) > 1 and kind != "samples" else ""
    pictures = ((label, run_browser.picture(run, kind, int(step))) for label, run in runs.items())
    return [(picture[1], f"{label}, step {picture[0]}{own}") for label, picture in pictures if picture is not None]
