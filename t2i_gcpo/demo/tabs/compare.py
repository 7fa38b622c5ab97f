"""Build the tab Compare: every checkpoint on one prompt and seed, a slider between two, a blind vote."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from t2i_gcpo.demo import html_parts, validate
from t2i_gcpo.demo.context import FIRST_PROMPT, MODEL, PRIVATE, DemoContext, random_prompt
from t2i_gcpo.demo.errors import with_user_errors
from t2i_gcpo.demo.sessions.blind_vote import LETTERS, NO_PREFERENCE, Comparison, Tally, generate
from t2i_gcpo.utils.markup import inline

HELP = (
    "The same prompt and the same noise for every checkpoint: image 1 differs from image 1 by the weights "
    "alone. ✓ and ✗ are "
    "GenEval's rules, clause by clause."
)
LONELY = (
    " There is only one checkpoint here: name more with `t2i-gcpo demo --checkpoint base=janus-mini --checkpoint "
    "gcpo=runs/x/checkpoints/step_000060`."
)


def tab(context: DemoContext) -> None:
    """Lay the tab out, inside a `gr.Blocks`."""
    names = context.models.compared
    several = len(names) > 1
    comparison, tally = gr.State(None), gr.State(None)
    gr.Markdown(HELP + ("" if several else LONELY))
    with gr.Row():
        prompt = gr.Textbox(FIRST_PROMPT, label="Prompt", scale=5, min_width=300, max_lines=2)
        seed = gr.Number(0, label="Seed", precision=0, min_width=110)
    with gr.Row(equal_height=True):
        num = gr.Slider(1, validate.IMAGES, 4, step=1, label="Images", min_width=170)
        guidance = gr.Slider(1, validate.GUIDANCE, 2, step=0.5, label="Guidance", min_width=170)
        other = gr.Button("Another prompt", min_width=130)
        go = gr.Button("Generate", variant="primary", min_width=130)
    blind = gr.Checkbox(False, label="Blind: hide the names until I have voted", visible=several)
    status = gr.Markdown(elem_id="t2i-status-compare")
    galleries, verdicts = [], []
    with gr.Row():
        for name in names:
            with gr.Column(min_width=250):
                galleries.append(_gallery(name))
                verdicts.append(gr.HTML())
    with gr.Row(visible=False) as ballot:
        options = [*LETTERS[: len(names)], NO_PREFERENCE]
        choice = gr.Radio(options, label="Which images show the prompt best?", min_width=280, scale=3)
        vote = gr.Button("Vote", variant="primary", min_width=120)
    count = gr.HTML()
    with gr.Column(visible=several):
        with gr.Row():
            left = gr.Dropdown(names, value=names[0], label="Left", min_width=140)
            right = gr.Dropdown(names, value=names[-1], label="Right", min_width=140)
            number = gr.Slider(1, validate.IMAGES, 1, step=1, label="Image", min_width=140)
        slider = gr.ImageSlider(
            label="Left | right", format="png", interactive=False, max_height=400, elem_classes="t2i-pixels"
        )

    @with_user_errors
    def on_generate(prompt: str, seed: float, num: float, guidance: float, blind: bool) -> Iterator[list[Any]]:
        for current in generate(
            context.models,
            context.scorer,
            context.scorer.prompt(validate.prompt_text(prompt)),
            seed=validate.whole(seed, "The seed", 0, validate.SEED),
            num=validate.whole(num, "The number of images", 1, validate.IMAGES),
            guidance=validate.number(guidance, "The guidance", 1, validate.GUIDANCE),
            blind=bool(blind),
            names=names,
            shuffle=context.shuffle,
        ):
            yield show(current)

    @with_user_errors
    def on_vote(current: Comparison | None, votes: Tally | None, choice: str | None) -> list[Any]:
        if current is None:
            raise ValueError("There is nothing to vote on yet: generate images first.")
        current, winner = current.vote(choice)
        votes = (votes or Tally()).add(winner, current.names)
        return [votes, tally_table(votes, names), *show(current)]

    shown = [comparison, status, *galleries, *verdicts, ballot, choice, left, right]
    pair: dict[str, Any] = {
        "fn": with_user_errors(slide),
        "inputs": [comparison, left, right, number],
        "outputs": slider,
        "show_progress": "hidden",
    }
    gr.on(
        [go.click, prompt.submit],
        on_generate,
        [prompt, seed, num, guidance, blind],
        shown,
        show_progress_on=status,
        api_name="compare",
        **MODEL,
    ).success(**pair, **PRIVATE)
    vote.click(
        on_vote, [comparison, tally, choice], [tally, count, *shown], show_progress="hidden", api_name="vote"
    ).success(**pair, **PRIVATE)
    gr.on([left.input, right.input, number.input], **pair, api_name="slide")
    for gallery in galleries:
        gallery.select(with_user_errors(picked), None, number, show_progress="hidden", **PRIVATE).then(
            **pair, **PRIVATE
        )
    other.click(lambda: random_prompt(context), None, prompt, show_progress="hidden", **PRIVATE)


def _gallery(name: str) -> gr.Gallery:
    return gr.Gallery(
        label=name,
        columns=2,
        height="auto",
        object_fit="contain",
        format="png",
        interactive=False,
        allow_preview=False,
        buttons=[],
        elem_classes="t2i-pixels",
    )


def show(current: Comparison) -> list[Any]:
    """Return what each output of the tab becomes.

    State, status, galleries, verdicts, ballot, choice, and the two ends of the slider.
    """
    galleries, tables = [], []
    for name, label in zip(current.names, current.labels, strict=True):
        pictures, image_scores = current.images.get(name), current.image_scores.get(name)
        if pictures is None or image_scores is None:
            galleries.append(gr.update(value=[], label=label))
            tables.append("")
            continue
        captions = ["" if current.hidden else image_scores.caption(k) for k in range(len(pictures))]
        value = [(html_parts.enlarged(picture), caption) for picture, caption in zip(pictures, captions, strict=True)]
        galleries.append(gr.update(value=value, label=label))
        tables.append("" if current.hidden else html_parts.verdict_table(image_scores))
    labels = current.labels
    return [
        current,
        status_line(current),
        *galleries,
        *tables,
        gr.update(visible=current.complete and current.hidden),
        gr.update(value=None) if current.hidden else gr.skip(),
        gr.update(choices=labels, value=labels[0]),
        gr.update(choices=labels, value=labels[-1]),
    ]


def status_line(current: Comparison) -> str:
    if not current.complete:
        return f"“{inline(current.prompt.text)}”: {len(current.images)} of {len(current.names)} checkpoints done …"
    if current.hidden:
        return f"“{inline(current.prompt.text)}”: names and verdicts are hidden until you have voted."
    voted = "" if current.voted is None else f" You voted for {inline(current.voted)}."
    return f"“{inline(current.prompt.text)}”: done.{voted}"


def slide(current: Comparison | None, left: str, right: str, number: float) -> Any:
    """Return the pair of pictures for the slider, or None where they are not there."""
    if current is None or not current.complete:
        return None
    last = min(len(pictures) for pictures in current.images.values())
    image = min(validate.whole(number, "The image", 1, validate.IMAGES), last)  # the label says which
    sides = []
    for label in (left, right):
        name = current.names[current.labels.index(validate.one_of(label, "The checkpoint", current.labels))]
        sides.append(html_parts.enlarged(current.images[name][image - 1], html_parts.LARGE))
    return gr.update(value=tuple(sides), label=f"{left} | {right}, image {image} of {last}")


def picked(event: gr.EventData) -> int:
    """Return the number of the image that was clicked, from 1."""
    return validate.whole(validate.clicked(event), "The image", 0, validate.IMAGES - 1) + 1


def tally_table(votes: Tally, names: list[str]) -> str:
    """Return the votes of this session as a table."""
    rows = [[name, str(votes.votes.get(name, 0)), str(votes.shown.get(name, 0))] for name in names]
    rows.append([NO_PREFERENCE, str(votes.undecided), ""])
    return html_parts.table(["your votes", "won", "of"], rows, numbers=(1, 2))
