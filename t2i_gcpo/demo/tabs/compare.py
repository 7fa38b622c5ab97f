"""Build the tab Compare: checkpoints on one prompt and seed, a slider between two, a blind vote, many prompts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from t2i_gcpo.demo import html_parts, origins, validate
from t2i_gcpo.demo.context import FIRST_PROMPT, PRIVATE, DemoContext, random_prompt
from t2i_gcpo.demo.errors import with_user_errors
from t2i_gcpo.demo.queueing import on_model
from t2i_gcpo.demo.sessions.blind_vote import LETTERS, NO_PREFERENCE, Comparison, Tally, generate
from t2i_gcpo.demo.tabs import many_prompts
from t2i_gcpo.utils.markup import inline

HELP = (
    "The same prompt and the same noise for every checkpoint: image 1 differs from image 1 by the weights alone. ✓ and "
    "✗ are GenEval's rules, clause by clause."
)
LONELY = (
    " There is only one checkpoint here: name more with `t2i-gcpo demo --checkpoint base=janus-mini --checkpoint "
    "gcpo=runs/x/checkpoints/step_000060`."
)
#: What the status says where generators of different kinds stand side by side.
OTHER_NOISE = " These are generators of different kinds, so the noise differs between them."


def tab(context: DemoContext) -> None:
    """Lay the tab out, inside a `gr.Blocks`."""
    names, first = context.models.names, context.models.compared
    several = len(names) > 1
    comparison, tally = gr.State(None), gr.State(None)
    gr.Markdown(HELP + ("" if several else LONELY))
    gr.HTML(origin_table(origins.origins(context.models.located)), elem_id="t2i-origins")
    with gr.Row():
        prompt = gr.Textbox(FIRST_PROMPT, label="Prompt", scale=5, min_width=300, max_lines=2)
        seed = gr.Number(0, label="Seed", precision=0, min_width=110)
    with gr.Row(equal_height=True):
        num = gr.Slider(1, validate.IMAGES, 4, step=1, label="Images", min_width=170)
        guidance = gr.Slider(1, validate.GUIDANCE, 2, step=0.5, label="Guidance", min_width=170)
        other = gr.Button("Another prompt", min_width=130)
        go = gr.Button("Generate", variant="primary", min_width=130)
    chosen = gr.CheckboxGroup(names, value=first, label="Checkpoints", visible=several)
    blind = gr.Checkbox(False, label="Blind: hide the names until I have voted", visible=several)
    status = gr.Markdown(elem_id="t2i-status-compare")
    columns, galleries, verdicts = [], [], []
    with gr.Row():
        for k, name in enumerate(names):
            with gr.Column(min_width=200, visible=k < len(first)) as column:
                columns.append(column)
                galleries.append(_gallery(name))
                verdicts.append(gr.HTML())
    with gr.Row(visible=False) as ballot:
        options = [*LETTERS[: len(first)], NO_PREFERENCE]
        choice = gr.Radio(options, label="Which images show the prompt best?", min_width=280, scale=3)
        vote = gr.Button("Vote", variant="primary", min_width=120)
    count = gr.HTML(elem_id="t2i-votes")
    with gr.Column(visible=several):
        with gr.Row():
            left = gr.Dropdown(first, value=first[0], label="Left", min_width=140)
            right = gr.Dropdown(first, value=first[-1], label="Right", min_width=140)
            number = gr.Slider(1, validate.IMAGES, 1, step=1, label="Image", min_width=140)
        slider = gr.ImageSlider(
            label="Left | right",
            format="png",
            interactive=False,
            max_height=400,
            elem_id="t2i-slider",
            elem_classes="t2i-pixels",
        )

    @with_user_errors
    def on_generate(
        prompt: str, seed: float, num: float, guidance: float, blind: bool, chosen: Any
    ) -> Iterator[list[Any]]:
        some = validate.some_of(chosen, "The checkpoint", names)
        if not some:
            raise ValueError("Tick at least one checkpoint.")
        noise = "" if len(context.models.families(some)) == 1 else OTHER_NOISE
        with context.jobs.doing("a comparison on one prompt") as job:
            for current in generate(
                context.models,
                context.scorer,
                context.scorer.prompt(validate.prompt_text(prompt)),
                seed=validate.whole(seed, "The seed", 0, validate.SEED),
                num=validate.whole(num, "The number of images", 1, validate.IMAGES),
                guidance=validate.number(guidance, "The guidance", 1, validate.GUIDANCE),
                blind=bool(blind),
                names=[name for name in names if name in some],
                shuffle=context.shuffle,
            ):
                job.at(f"checkpoint {len(current.images)} of {len(current.names)}")
                yield show(current, len(names), noise)

    @with_user_errors
    def on_vote(current: Comparison | None, votes: Tally | None, choice: str | None) -> list[Any]:
        if current is None:
            raise ValueError("There is nothing to vote on yet: generate images first.")
        current, winner = current.vote(choice)
        votes = (votes or Tally()).add(winner, current.names)
        noise = "" if len(context.models.families(current.names)) == 1 else OTHER_NOISE
        return [votes, tally_table(votes, names), *show(current, len(names), noise)]

    shown = [comparison, status, *columns, *galleries, *verdicts, ballot, choice, left, right]
    pair: dict[str, Any] = {
        "fn": with_user_errors(slide),
        "inputs": [comparison, left, right, number],
        "outputs": slider,
        "show_progress": "hidden",
    }
    on_model(
        context,
        [go.click, prompt.submit],
        on_generate,
        [prompt, seed, num, guidance, blind, chosen],
        shown,
        status=status,
        api_name="compare",
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
    if several:
        many_prompts.part(context)


def origin_table(found: dict[str, origins.Origin]) -> str:
    """Return what each checkpoint is, and which of their scores are told apart."""
    return html_parts.table(origins.COLUMNS, origins.rows(found), numbers=(2, 3, 4)) + html_parts.faint(
        origins.verdict(found)
    )


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


def show(current: Comparison, most: int | None = None, noise: str = "") -> list[Any]:
    """Return what each output of the tab becomes.

    State, status, columns, galleries, verdicts, ballot, choice, and the two ends of the slider. most: columns of the
    tab (None: one for each checkpoint); noise: what the status says of the noise.
    """
    galleries: list[Any] = []
    tables: list[str] = []
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
    empty = max(0, (most or 0) - len(labels))
    return [
        current,
        status_line(current) + noise,
        *[gr.update(visible=True)] * len(labels),
        *[gr.update(visible=False)] * empty,
        *galleries,
        *[gr.update(value=[])] * empty,
        *tables,
        *[""] * empty,
        gr.update(visible=current.complete and current.hidden),
        gr.update(choices=[*LETTERS[: len(labels)], NO_PREFERENCE], value=None) if current.hidden else gr.skip(),
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
