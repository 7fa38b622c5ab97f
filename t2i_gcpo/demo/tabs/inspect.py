"""The tab Inspect: a sampled group, and over one of its images the map of GCPO's credit beside GRPO's; a click shows a cell's numbers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from t2i_gcpo.data.shapes.grammar import parts
from t2i_gcpo.demo import html_parts as page
from t2i_gcpo.demo import validate as bounds
from t2i_gcpo.demo.context import FIRST_PROMPT, MODEL, PRIVATE, Desk, random_prompt
from t2i_gcpo.demo.errors import spoken
from t2i_gcpo.demo.sessions import inspection
from t2i_gcpo.demo.sessions.inspection import NORMALIZATIONS, Inspection
from t2i_gcpo.heatmap.files import write

HELP = (
    "GCPO gives an image's tokens credit by how much the prompt matters to them: the log-probability under the prompt against that under "
    "a contrast. GRPO gives all tokens of an image the same. Red pushes a token up, blue pushes it down."
)
NOTHING = "Sample a group of images first."
NULL, WITHOUT, OWN = "no prompt", "the prompt without a part", "a negative prompt"


def tab(desk: Desk) -> None:
    """Lay the tab out, inside a `gr.Blocks`."""
    names = desk.models.names
    state = gr.State(None)
    gr.Markdown(HELP)
    with gr.Row():
        prompt = gr.Textbox(FIRST_PROMPT, label="Prompt", scale=5, min_width=300, max_lines=2)
        checkpoint = gr.Dropdown(names, value=names[0], label="Checkpoint", min_width=130)
        seed = gr.Number(0, label="Seed", precision=0, min_width=110)
    with gr.Row(equal_height=True):
        num = gr.Slider(1, bounds.IMAGES, 4, step=1, label="Images", min_width=170)
        guidance = gr.Slider(1, bounds.GUIDANCE, 2, step=0.5, label="Guidance", min_width=170)
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
    ruled = [kind, divergence, normalization]

    @spoken
    def on_sample(prompt: str, name: str, seed: float, num: float, guidance: float) -> Iterator[list[Any]]:
        asked = desk.judge.prompt(bounds.prompt_text(prompt))
        count = bounds.whole(num, "The number of images", 1, bounds.IMAGES)
        generator = desk.models.get(name)
        generator.check_prompts([asked])  # before the status says that it is sampled
        yield [gr.skip(), f"Sampling “{asked.text}” …", *[gr.skip()] * (len(sampled) - 2)]
        found = inspection.sample(
            generator,
            name,
            desk.judge,
            asked,
            seed=bounds.whole(seed, "The seed", 0, bounds.SEED),
            num=count,
            guidance=bounds.number(guidance, "The guidance", 1, bounds.GUIDANCE),
        )
        yield [*show_group(found), *draw(found, found.first_kind)]

    def contrasted(found: Inspection | None, negative: str | None, kind: str) -> list[Any]:
        found = needed(found)
        found = inspection.contrasted(found, desk.models.get(found.checkpoint), negative)
        return [found, *choices(found, kind), *draw(found, kind)]

    @spoken
    def on_how(found: Inspection | None, how: str, part: str | None, kind: str) -> list[Any]:
        if how == OWN:  # waits for the text
            return [gr.skip()] * len(changed)
        return contrasted(found, without(needed(found), part) if how == WITHOUT else None, kind)

    @spoken
    def on_own(found: Inspection | None, text: str, kind: str) -> list[Any]:
        return contrasted(found, bounds.prompt_text(text, what="The negative prompt"), kind)

    sampled = [state, status, gallery, verdict, *ruled, contrast, part, own_row, files, *drawn]
    gr.on(
        [go.click, prompt.submit],
        on_sample,
        [prompt, checkpoint, seed, num, guidance],
        sampled,
        show_progress_on=status,
        api_name="inspect",
        **MODEL,
    )
    quick: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last"}
    gr.on(
        [divergence.input, normalization.input],
        spoken(on_rule),
        [state, *ruled],
        [state, *drawn],
        api_name="reweigh",
        **quick,
    )
    kind.input(spoken(on_kind), [state, kind], drawn, api_name="map", **quick)
    gallery.select(spoken(on_image), [state, kind], [state, *drawn], **quick, **PRIVATE)
    for picture in (gcpo, grpo):
        picture.select(spoken(on_click), [state, kind], [state, *drawn], **quick, **PRIVATE)
    contrast.input(
        lambda how: [gr.update(visible=how == WITHOUT), gr.update(visible=how == OWN)],
        contrast,
        [part, own_row],
        show_progress="hidden",
        **PRIVATE,
    )
    changed = [state, *ruled, *drawn]
    again: dict[str, Any] = {"outputs": changed, "show_progress_on": status, **MODEL}
    gr.on([contrast.input, part.input], on_how, [state, contrast, part, kind], **again, **PRIVATE)
    gr.on([apply.click, negative.submit], on_own, [state, negative, kind], **again, api_name="contrast")
    export.click(spoken(on_export), [state, kind], files, show_progress_on=files, api_name="export")
    other.click(lambda: random_prompt(desk), None, prompt, show_progress="hidden", **PRIVATE)


def _map(name: str, elem_id: str) -> gr.Image:
    return gr.Image(
        label=name, format="png", type="pil", interactive=False, buttons=["download"], elem_id=elem_id, min_width=260,
        elem_classes="t2i-pixels",
    )  # fmt: skip


def needed(found: Inspection | None) -> Inspection:
    if found is None:
        raise ValueError(NOTHING)
    return found


def show_group(found: Inspection) -> list[Any]:
    """State, status, gallery, verdicts, the choices of maps and rules, and the contrast back at the null prompt."""
    captions = [inspection.caption(found, k) for k in range(len(found.maps))]
    value = [(page.enlarged(image), caption) for image, caption in zip(found.maps.images, captions, strict=True)]
    pieces = list(parts(found.prompt))
    return [
        found,
        status_line(found),
        gr.update(value=value, selected_index=found.image),
        page.verdict_table(found.judged),
        *choices(found, found.first_kind),
        NULL,
        gr.update(choices=pieces, value=pieces[0] if pieces else None, visible=False),
        gr.update(visible=False),
        gr.update(value=None, visible=False),
    ]


def status_line(found: Inspection) -> str:
    text = f"“{found.prompt}” by {found.checkpoint}."
    if found.maps.advantages is None:
        why = found.judged.why_not or "an advantage compares an image with its siblings, and there is one image"
        return f"{text} There are no advantages: {why}. The map shows the weights."
    if not found.maps.advantages.any():
        return f"{text} The images scored alike, so every advantage is 0 and nothing would be learnt; the map shows the weights."
    return text


def choices(found: Inspection, kind: str) -> list[Any]:
    """The maps and rules that the numbers at hand allow, with those chosen that are in force."""
    return [
        gr.update(choices=found.kinds, value=kind if kind in found.kinds else found.first_kind),
        gr.update(choices=found.divergences, value=found.recipe.divergence),
        gr.update(value=found.recipe.normalization),
    ]


def draw(found: Inspection, kind: str) -> list[Any]:
    """Legend, the two pictures, and the clicked cell's numbers."""
    kind = kind if kind in found.kinds else found.first_kind
    own, flat = inspection.pictures(found, kind)
    ruled = flat is not None
    return [
        inspection.legend(found, kind),
        gr.update(value=own, label=f"GCPO, image {found.image + 1}" if ruled else f"image {found.image + 1}: {kind}"),
        gr.update(value=flat, label=f"GRPO, image {found.image + 1}", visible=ruled),
        inspection.cell_table(found),
    ]


def on_rule(found: Inspection | None, kind: str, divergence: str, normalization: str) -> list[Any]:
    found = needed(found)
    bounds.one_of(divergence, "The divergence", found.divergences)
    bounds.one_of(normalization, "The normalisation", NORMALIZATIONS)
    found = inspection.reweighed(found, divergence, normalization)
    return [found, *draw(found, kind)]


def on_kind(found: Inspection | None, kind: str) -> list[Any]:
    return draw(needed(found), bounds.one_of(kind, "The map", needed(found).kinds))


def on_image(found: Inspection | None, kind: str, event: gr.SelectData) -> list[Any]:
    found = replace(needed(found), image=int(event.index))
    return [found, *draw(found, kind)]


def on_click(found: Inspection | None, kind: str, event: gr.SelectData) -> list[Any]:
    found = needed(found)
    found = replace(found, cell=inspection.at(found, *event.index))
    return [found, *draw(found, kind)]


def without(found: Inspection, part: str | None) -> str:
    """The prompt without one of its parts."""
    text = found.prompt
    pieces = parts(text)
    if not pieces:
        raise ValueError(f"The prompt “{text}” has one part only; contrast it with a negative prompt instead.")
    return pieces[bounds.one_of(part, "The part", list(pieces))]


def on_export(found: Inspection | None, kind: str) -> Any:
    """The present maps of the whole group, as `t2i-gcpo heatmap` writes them."""
    found = needed(found)
    paths = write(found.maps, tempfile.mkdtemp(prefix="t2i-gcpo-"), "heatmap", kind=kind)
    return gr.update(value=[str(path) for path in paths], visible=True)
