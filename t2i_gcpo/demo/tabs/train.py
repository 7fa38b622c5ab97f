"""Build the tab Train live: some steps of several algorithms from the same start, with curves and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from t2i_gcpo.data.shapes.prompts import TASKS
from t2i_gcpo.demo import plots, run_browser, validate
from t2i_gcpo.demo.context import DemoContext
from t2i_gcpo.demo.errors import with_user_errors
from t2i_gcpo.demo.queueing import on_model
from t2i_gcpo.demo.sessions.live_training import ALGORITHMS, Plan, Progress, prompts_of, train
from t2i_gcpo.demo.sessions.stopping import Session
from t2i_gcpo.reports import side_by_side
from t2i_gcpo.reports.run import Run

HELP = (
    "Every algorithm starts from the same checkpoint, with the same prompts and noise, and takes its steps in "
    "turn. A step samples a group of "
    "images for each prompt, scores them and updates the weights. The control has GCPO's weights, but on other tokens "
    "of the same image: what GCPO gains over it comes from where the credit lies. A handful of steps shows the "
    "machinery, not which algorithm is better."
)
ALL, OWN = "all six tasks", "my own prompts"
LEARNING_RATES = [3e-5, 1e-4, 3e-4, 1e-3]
#: Metric of each plot.
SHOWN = ("reward/mean", "kl", "entropy")
SAMPLES, HEATMAPS = "samples", "heatmap, fixed prompts"


def tab(context: DemoContext) -> None:
    """Lay the tab out, inside a `gr.Blocks`."""
    names = context.models.names
    session = gr.State(Session())
    gr.Markdown(HELP)
    with gr.Row():
        algorithms = gr.CheckboxGroup(
            [(words, name) for name, words in ALGORITHMS.items()],
            value=list(ALGORITHMS)[:3],
            label="Algorithms",
            min_width=220,
        )
        prompts = gr.Dropdown([ALL, *TASKS, OWN], value="position", label="Prompts", min_width=160)
        checkpoint = gr.Dropdown(names, value=names[0], label="Start from", min_width=120)
        steps = gr.Slider(1, validate.STEPS, 6, step=1, label="Steps", min_width=140)
    own = gr.Textbox(
        label="One prompt a line", lines=3, visible=False, placeholder="a red circle and a blue star\nthree rings"
    )
    with gr.Row():
        per_step = gr.Slider(1, validate.PROMPTS_A_STEP, 4, step=1, label="Prompts a step", min_width=140)
        group = gr.Slider(2, validate.GROUP, 8, step=1, label="Images a prompt", min_width=140)
        lr = gr.Dropdown(LEARNING_RATES, value=3e-4, label="Learning rate", min_width=120)
        seed = gr.Number(0, label="Seed", precision=0, min_width=90)
    with gr.Row():
        go = gr.Button("Train", variant="primary", min_width=120)
        stop = gr.Button("Stop", variant="stop", min_width=120)
    status = gr.Markdown(elem_id="t2i-status-live")
    with gr.Row():
        curves = [plots.line_plot() for _ in SHOWN]
    samples = _gallery("Samples of fixed prompts and noise", columns=3)
    heatmaps = _gallery("Token advantages, one scale for all", columns=1)

    @with_user_errors
    def on_train(
        session_state: Session, algorithms: list[str], chosen: str, own: str, start: str, steps: float, per_step: float,
        group: float, lr: float, seed: float,
    ) -> Iterator[list[Any]]:  # fmt: skip
        plan = Plan(
            algorithms=tuple(validate.some_of(algorithms, "The algorithm", list(ALGORITHMS))),
            prompts=prompts_of(
                context,
                "all" if chosen == ALL else validate.one_of(chosen, "The prompt set", [*TASKS, OWN]),
                validate.prompt_lines(own) if chosen == OWN else [],
            ),
            checkpoint=validate.one_of(start, "The checkpoint", names),
            steps=validate.whole(steps, "The number of steps", 1, validate.STEPS),
            prompts_per_step=validate.whole(per_step, "Prompts a step", 1, validate.PROMPTS_A_STEP),
            group_size=validate.whole(group, "Images a prompt", 2, validate.GROUP),
            lr=validate.number(lr, "The learning rate", 1e-6, validate.LEARNING_RATE),
            seed=validate.whole(seed, "The seed", 0, validate.SEED),
        )
        if not plan.algorithms:
            raise ValueError("Tick at least one algorithm.")
        session_state.running, session_state.stop = True, False
        progress = None
        try:
            with context.jobs.doing("a live training") as job:
                for progress in train(context, plan, lambda: session_state.stop):
                    job.at(progress.now)
                    yield show(progress, status_line(progress, stopping=session_state.stop))
        finally:
            session_state.running = False
        if progress is not None:
            yield show(progress, ended(progress, stopped=session_state.stop))

    on_model(
        context,
        [go.click],
        on_train,
        [session, algorithms, prompts, own, checkpoint, steps, per_step, group, lr, seed],
        [status, *curves, samples, heatmaps],
        status=status,
        api_name="train",
    )
    stop.click(with_user_errors(on_stop), session, status, show_progress="hidden", queue=False, api_name="stop")
    prompts.change(
        lambda chosen: gr.update(visible=chosen == OWN), prompts, own, show_progress="hidden", api_visibility="private"
    )


def _gallery(label: str, *, columns: int) -> gr.Gallery:
    return gr.Gallery(
        label=label, columns=columns, height="auto", object_fit="contain", format="png", interactive=False,
        buttons=["fullscreen"],
        min_width=300,
        elem_classes="t2i-panels",
    )  # fmt: skip


def on_stop(session_state: Session) -> str:
    """Ask the training to end after the step that it is at."""
    session_state.ask_to_stop("training")
    return "Stopping: the step at hand is finished first …"


def show(progress: Progress, text: str) -> list[Any]:
    """Return status, curves and pictures of what there is."""
    runs = run_browser.begun(progress.runs)
    named = {ALGORITHMS.get(name, name): run for name, run in runs.items()}
    samples = []
    for label, run in named.items():
        there = run_browser.picture(run, SAMPLES, progress.steps)
        if there is not None:
            samples.append((there[1], f"{label} after step {there[0]}"))
    return [text, *(plots.lines(runs, metric) for metric in SHOWN), samples, maps(named, len(progress.runs))]


def maps(runs: dict[str, Run], expected: int) -> list[tuple[Any, str]]:
    """Return the heatmaps before the first step, where all algorithms have the same images, and after the last one.

    Several algorithms stand in one picture, on one scale. expected: the algorithms that are trained; nothing is shown
    before all of them have begun.
    """
    if len(runs) < expected:
        return []
    if expected == 1:
        (label, run), steps = next(iter(runs.items())), run_browser.steps(runs.values(), HEATMAPS)
        found = [(label, run_browser.picture(run, HEATMAPS, step)) for step in dict.fromkeys(steps[:1] + steps[-1:])]
        return [(picture[1], f"{label} after step {picture[0]}") for label, picture in found if picture is not None]
    steps = side_by_side.common_steps(runs)
    drawn = [(step, side_by_side.at(runs, step)) for step in dict.fromkeys(steps[:1] + steps[-1:])]
    return [(picture, f"after step {step}, one scale for all") for step, picture in drawn if picture is not None]


def status_line(progress: Progress, *, stopping: bool) -> str:
    return f"{progress.now} … {'(stopping)' if stopping else ''}"


def ended(progress: Progress, *, stopped: bool) -> str:
    how = f"Stopped after {progress.step} of {progress.steps} steps" if stopped else f"Done: {progress.steps} steps"
    return f"{how}. The run folders are in `{progress.folder}`, and the tab Runs opens them."
