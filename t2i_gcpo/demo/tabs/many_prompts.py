"""Build the part of the tab Compare that runs two checkpoints over many prompts and shows where they differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from t2i_gcpo.demo import differences, validate
from t2i_gcpo.demo.context import PRIVATE, DemoContext
from t2i_gcpo.demo.errors import with_user_errors
from t2i_gcpo.demo.queueing import on_model
from t2i_gcpo.demo.sessions.paired_run import PairedRun, held_out, run
from t2i_gcpo.demo.sessions.stopping import Session
from t2i_gcpo.utils.markup import inline

HELP = (
    "### Over many prompts\nTwo checkpoints on held-out prompts, evenly by task, one image each with the same noise. "
    "What one prompt shows may be luck; the counts say how often each is right where the other is not."
)
NOTHING = "Run over some prompts first."
OTHER_NOISE = (
    " The two are generators of different kinds, so the noise differs: a pair shows two "
    "draws, not one draw under two sets of weights."
)
#: What is shown of the prompts that differ -> which side scores higher.
WHICH: dict[str, int | None] = {"all that differ": None, "left better": -1, "right better": 1}


def part(context: DemoContext) -> None:
    """Lay the part out, inside the tab."""
    names, compared = context.models.names, context.models.compared
    session, state = gr.State(Session()), gr.State(None)
    gr.Markdown(HELP)
    with gr.Row():
        left = gr.Dropdown(names, value="GRPO" if "GRPO" in names else compared[0], label="Left", min_width=140)
        right = gr.Dropdown(names, value=compared[-1], label="Right", min_width=140)
        count = gr.Slider(6, validate.PROMPTS, 48, step=6, label="Prompts", min_width=170)
        seed = gr.Number(0, label="Seed", precision=0, min_width=90)
        guidance = gr.Slider(1, validate.GUIDANCE, 2, step=0.5, label="Guidance", min_width=170)
    with gr.Row():
        go = gr.Button("Run over the prompts", variant="primary", min_width=150)
        stop = gr.Button("Stop", variant="stop", min_width=100)
    status = gr.Markdown(elem_id="t2i-status-many")
    counts = gr.HTML(elem_id="t2i-counts")
    with gr.Row():
        which = gr.Radio(list(WHICH), value=next(iter(WHICH)), label="Prompts", min_width=240, scale=3)
        show = gr.Button("Show where they differ", min_width=150)
    pairs = gr.HTML(elem_id="t2i-differences")

    @with_user_errors
    def on_run(
        session_state: Session, left: Any, right: Any, count: Any, seed: Any, guidance: Any
    ) -> Iterator[list[Any]]:
        asked = {
            "left": validate.one_of(left, "The left checkpoint", names),
            "right": validate.one_of(right, "The right checkpoint", names),
            "prompts": held_out(validate.whole(count, "The number of prompts", 1, validate.PROMPTS)),
            "seed": validate.whole(seed, "The seed", 0, validate.SEED),
            "guidance": validate.number(guidance, "The guidance", 1, validate.GUIDANCE),
        }
        session_state.running, session_state.stop = True, False
        try:
            with context.jobs.doing("a run over many prompts") as job:
                for found in run(context.models, context.scorer, **asked, stopped=lambda: session_state.stop):
                    job.at(f"prompt {found.done} of {len(found.prompts)}")
                    yield [found, status_line(found), differences.counts(found), "" if not found.done else gr.skip()]
        finally:
            session_state.running = False

    on_model(
        context,
        [go.click],
        on_run,
        [session, left, right, count, seed, guidance],
        [state, status, counts, pairs],
        status=status,
        api_name="many",
    )
    stop.click(with_user_errors(on_stop), session, status, show_progress="hidden", queue=False, api_name="stop_many")
    drawn: dict[str, Any] = {"inputs": [state, which], "outputs": pairs, "show_progress_on": pairs}
    show.click(with_user_errors(on_show), **drawn, api_name="differences")
    which.input(with_user_errors(on_which), **drawn, **PRIVATE)


def on_stop(session_state: Session) -> str:
    session_state.ask_to_stop("run over prompts")
    return "Stopping: the prompts at hand are finished first …"


def on_show(found: PairedRun | None, which: Any) -> str:
    """Return the prompts on which the two differ."""
    side = WHICH[validate.one_of(which, "The choice of prompts", list(WHICH))]
    if found is None or not found.done:
        raise ValueError(NOTHING)
    return differences.pairs(found, side)


def on_which(found: PairedRun | None, which: Any) -> Any:
    """Return the prompts that were chosen, where there are any to choose from."""
    return gr.skip() if found is None or not found.done else on_show(found, which)


def status_line(found: PairedRun) -> str:
    """Say how far the run is."""
    whose = f"{inline(found.left.name)} and {inline(found.right.name)}"
    noise = "" if found.same_noise else OTHER_NOISE
    at = f"{found.done} of {len(found.prompts)} prompts"
    if found.stopped:
        return f"{whose}: stopped after {at}.{noise}"
    return f"{whose}: {at} {'done.' if found.done == len(found.prompts) else '…'}{noise}"
