"""Build the tab Inspect: a sampled group, and GCPO's credit beside GRPO's over one of its images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from t2i_gcpo.data.shapes.grammar import parts
from t2i_gcpo.demo import html_parts, validate
from t2i_gcpo.demo.context import FIRST_PROMPT, PRIVATE, DemoContext, random_prompt
from t2i_gcpo.demo.errors import with_user_errors
from t2i_gcpo.demo.queueing import on_model
from t2i_gcpo.demo.sessions import inspection
from t2i_gcpo.demo.sessions.inspection import NORMALIZATIONS, Inspection
from t2i_gcpo.heatmap.files import write
from t2i_gcpo.utils.markup import inline

HELP = (
    "GCPO gives an image's tokens credit by how much the prompt matters to them: the log-probability under the "
    "prompt against that under "
    "a contrast. GRPO gives all tokens of an image the same. Red pushes a token up, blue pushes it down."
)
NOTHING = "Sample a group of images first."
NULL, WITHOUT, OWN = "no prompt", "the prompt without a part", "a negative prompt"


def tab(context: DemoContext) -> None:
    """Lay the tab out, inside a `gr.Blocks`."""
    names = context.models.names
    state = gr.State(None)
    gr.Markdown(HELP)
    with gr.Row():
        prompt = gr.Textbox(FIRST_PROMPT, label="Prompt", scale=5, min_width=300, max_lines=2)
        checkpoint = gr.Dropdown(names, value=names[0], label="Checkpoint", min_width=130)
        seed = gr.Number(0, label="Seed", precision=0, min_width=110)
    with gr.Row(equal_height=True):
        num = gr.Slider(1, validate.IMAGES, 4, step=1, label="Images", min_width=170)
        guidance = gr.Slider(1, validate.GUIDANCE, 2, step=0.5, label="Guidance", min_width=170)
        other = gr.Button("Another prompt", min_width=130)
        go = gr.Button("Sample a group", variant="primary", min_width=130)
    status = gr.Markdown(elem_id="t2i-status-inspect")
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            gallery = gr.Gallery(
                label="Click an image", columns=4, height="auto", object_fit="contain", format="png", interactive=False,
                allow_preview=False, buttons=[], elem_id="t2i-group", elem_classes="t2i-pixels",
            )  # fmt: skip
            verdict = gr.HTML()
        with gr.Column(scale=2, min_width=280):
            kind = gr.Dropdown(["advantage"], value="advantage", label="Map", info="What is drawn over the image")
            with gr.Row():
                divergence = gr.Dropdown(["kl"], value="kl", label="Divergence", min_width=120)
                normalization = gr.Dropdown(list(NORMALIZATIONS), value="rank", label="Normalisation", min_width=120)
            contrast = gr.Radio([NULL, WITHOUT, OWN], value=NULL, label="Contrast the prompt with")
            part = gr.Dropdown([], label="Part left out", visible=False)
            with gr.Row(visible=False) as own_row:
                negative = gr.Textbox(label="Negative prompt", min_width=180, scale=3)
                apply = gr.Button("Contrast", min_width=90)
    legend = gr.HTML()
    with gr.Row():
        gcpo = _map("GCPO", "t2i-gcpo")
        grpo = _map("GRPO", "t2i-grpo")
        with gr.Column(min_width=280):
            cell = gr.HTML()
    with gr.Row():
        export = gr.Button("Export this picture (PNG, HTML, npz)", min_width=200)
        files = gr.File(label="Files", file_count="multiple", visible=False, min_width=280)

    drawn = [legend, gcpo, grpo, cell]
    rules = [kind, divergence, normalization]

    @with_user_errors
    def on_sample(prompt: str, name: str, seed: float, num: float, guidance: float) -> Iterator[list[Any]]:
        asked = context.scorer.prompt(validate.prompt_text(prompt))
        count = validate.whole(num, "The number of images", 1, validate.IMAGES)
        generator = context.models.get(validate.one_of(name, "The checkpoint", names))
        generator.check_prompts([asked])  # before the status says that it is sampled
        yield [gr.skip(), f"Sampling “{asked.text}” …", *[gr.skip()] * (len(sampled) - 2)]
        with context.jobs.doing("a sampled group"):
            group = inspection.sample(
                generator,
                name,
                context.scorer,
                asked,
                seed=validate.whole(seed, "The seed", 0, validate.SEED),
                num=count,
                guidance=validate.number(guidance, "The guidance", 1, validate.GUIDANCE),
            )
        yield [*show_group(group), *draw(group, group.first_kind)]

    def contrasted(group: Inspection | None, negative: str | None, kind: str) -> list[Any]:
        group = needed(group)
        with context.jobs.doing("another contrast"):
            group = inspection.contrasted(group, context.models.get(group.checkpoint), negative)
        return [group, status_line(group), *choices(group, kind), *draw(group, kind)]

    @with_user_errors
    def on_how(group: Inspection | None, how: str, part: str | None, kind: str) -> list[Any]:
        if how == OWN:  # waits for the text
            told = gr.skip() if group is None else status_line(group)
            return [gr.skip(), told, *[gr.skip()] * (len(changed) - 2)]
        return contrasted(group, without(needed(group), part) if how == WITHOUT else None, kind)

    @with_user_errors
    def on_own(group: Inspection | None, text: str, kind: str) -> list[Any]:
        return contrasted(group, validate.prompt_text(text, what="The negative prompt"), kind)

    sampled = [state, status, gallery, verdict, *rules, contrast, part, own_row, files, *drawn]
    on_model(
        context,
        [go.click, prompt.submit],
        on_sample,
        [prompt, checkpoint, seed, num, guidance],
        sampled,
        status=status,
        api_name="inspect",
    )
    quick: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last"}
    gr.on(
        [divergence.input, normalization.input],
        with_user_errors(on_rule),
        [state, *rules],
        [state, *drawn],
        api_name="reweigh",
        **quick,
    )
    kind.input(with_user_errors(on_kind), [state, kind], drawn, api_name="map", **quick)
    gallery.select(with_user_errors(on_image), [state, kind], [state, *drawn], **quick, **PRIVATE)
    for picture in (gcpo, grpo):
        picture.select(with_user_errors(on_click), [state, kind], [state, *drawn], **quick, **PRIVATE)
    contrast.input(
        lambda how: [gr.update(visible=how == WITHOUT), gr.update(visible=how == OWN)],
        contrast,
        [part, own_row],
        show_progress="hidden",
        **PRIVATE,
    )
    changed = [state, status, *rules, *drawn]
    again: dict[str, Any] = {"outputs": changed, "status": status}
    on_model(context, [contrast.input, part.input], on_how, [state, contrast, part, kind], **again, **PRIVATE)
    on_model(context, [apply.click, negative.submit], on_own, [state, negative, kind], **again, api_name="contrast")
    export.click(with_user_errors(on_export), [state, kind], files, show_progress_on=files, api_name="export")
    other.click(lambda: random_prompt(context), None, prompt, show_progress="hidden", **PRIVATE)


def _map(name: str, elem_id: str) -> gr.Image:
    return gr.Image(
        label=name, format="png", type="pil", interactive=False, buttons=["download"], elem_id=elem_id, min_width=260,
        elem_classes="t2i-pixels",
    )  # fmt: skip


def needed(group: Inspection | None) -> Inspection:
    if group is None:
        raise ValueError(NOTHING)
    return group


def show_group(group: Inspection) -> list[Any]:
    """Return state, status, gallery, verdicts, choices of maps and rules, and the contrast at the null prompt."""
    captions = [inspection.caption(group, k) for k in range(len(group.maps))]
    value = [(html_parts.enlarged(image), caption) for image, caption in zip(group.maps.images, captions, strict=True)]
    pieces = list(parts(group.prompt))
    return [
        group,
        status_line(group),
        gr.update(value=value, selected_index=group.image),
        html_parts.verdict_table(group.image_scores),
        *choices(group, group.first_kind),
        NULL,
        gr.update(choices=pieces, value=pieces[0] if pieces else None, visible=False),
        gr.update(visible=False),
        gr.update(value=None, visible=False),
    ]


def status_line(group: Inspection) -> str:
    text = f"“{inline(group.prompt)}” by {inline(group.checkpoint)}."
    if group.maps.advantages is None:
        why = group.image_scores.why_not or "an advantage compares an image with its siblings, and there is one image"
        return f"{text} There are no advantages: {inline(why)}. The map shows the weights."
    if not group.maps.advantages.any():
        return (
            f"{text} The images scored alike, so every advantage is 0 and nothing would "
            "be learnt; the map shows the weights."
        )
    return text


def choices(group: Inspection, kind: str) -> list[Any]:
    """Return the maps and rules that the numbers at hand allow, with those chosen that are in force."""
    return [
        gr.update(choices=group.kinds, value=kind if kind in group.kinds else group.first_kind),
        gr.update(choices=group.divergences, value=group.recipe.divergence),
        gr.update(value=group.recipe.normalization),
    ]


def draw(group: Inspection, kind: str) -> list[Any]:
    """Return the legend, the two pictures, and the clicked cell's numbers."""
    kind = kind if kind in group.kinds else group.first_kind
    own, flat = inspection.pictures(group, kind)
    by_rule = flat is not None
    return [
        inspection.legend(group, kind),
        gr.update(value=own, label=f"GCPO, image {group.image + 1}" if by_rule else f"image {group.image + 1}: {kind}"),
        gr.update(value=flat, label=f"GRPO, image {group.image + 1}", visible=by_rule),
        inspection.cell_table(group),
    ]


def on_rule(group: Inspection | None, kind: str, divergence: str, normalization: str) -> list[Any]:
    group = needed(group)
    validate.one_of(divergence, "The divergence", group.divergences)
    validate.one_of(normalization, "The normalisation", NORMALIZATIONS)
    group = inspection.reweighed(group, divergence, normalization)
    return [group, *draw(group, kind)]


def on_kind(group: Inspection | None, kind: str) -> list[Any]:
    return draw(needed(group), validate.one_of(kind, "The map", needed(group).kinds))


def on_image(group: Inspection | None, kind: str, event: gr.EventData) -> list[Any]:
    group = needed(group)
    group = replace(group, image=validate.whole(validate.clicked(event), "The image", 0, len(group.maps) - 1))
    return [group, *draw(group, kind)]


def on_click(group: Inspection | None, kind: str, event: gr.EventData) -> list[Any]:
    group = needed(group)
    x, y = (
        validate.number(value, "The place of the click", 0, 10**6) for value in validate.pair(validate.clicked(event))
    )
    group = replace(group, cell=inspection.at(group, x, y))
    return [group, *draw(group, kind)]


def without(group: Inspection, part: str | None) -> str:
    """Return the prompt without one of its parts."""
    text = group.prompt
    pieces = parts(text)
    if not pieces:
        raise ValueError(f"The prompt “{text}” has one part only; contrast it with a negative prompt instead.")
    return pieces[validate.one_of(part, "The part", list(pieces))]


def on_export(group: Inspection | None, kind: str) -> Any:
    """Write the present maps of the whole group, as `t2i-gcpo heatmap` does."""
    group = needed(group)
    paths = write(group.maps, tempfile.mkdtemp(prefix="t2i-gcpo-"), "heatmap", kind=kind)
    return gr.update(value=[str(path) for path in paths], visible=True)
