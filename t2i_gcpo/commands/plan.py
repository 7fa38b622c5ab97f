"""Say what a run needs before it is started: memory by part, time at least, and whether it fits on a card."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from t2i_gcpo import generators
from t2i_gcpo.commands.options import build
from t2i_gcpo.commands.options.arguments import parse
from t2i_gcpo.commands.options.config import TrainConfig
from t2i_gcpo.commands.options.number_types import count, positive
from t2i_gcpo.commands.options.paths import home_path
from t2i_gcpo.data.formats import read_named
from t2i_gcpo.generators import merging
from t2i_gcpo.planning import cards
from t2i_gcpo.planning.advice import Change, advise
from t2i_gcpo.planning.cards import Card
from t2i_gcpo.planning.models import PassOptions
from t2i_gcpo.planning.plan import Plan, load, plan
from t2i_gcpo.planning.sources import Source, find
from t2i_gcpo.planning.workload import Workload, branches
from t2i_gcpo.records import Prompt, Sampling
from t2i_gcpo.utils.destination import check_file
from t2i_gcpo.utils.files import write_atomically

#: Columns of a prompt whose tokenizer is not here: a frame of some 14 tokens, and a sentence of 30 words.
USUAL_COLUMNS = 64
GB = cards.GB


def main(argv: list[str]) -> int:
    """Plan a run of `t2i-gcpo train` without loading a weight. The options of train follow those of plan."""
    args, options = parser().parse_known_args(argv)
    config = parse(options).settings
    chosen = [cards.card(name) for name in args.card] or list(cards.CARDS.values())
    if args.out is not None:
        check_file(args.out)
    source = find(config.generator.checkpoint, layers=config.generator.layers, width=config.generator.width)
    columns, about = prompt_columns(source, config, args.prompt_columns)
    work = workload(config, source, columns=columns, gpus=args.gpus)
    models = {work.options.dtype: load(source, work.options.dtype)}
    made = plan(models[work.options.dtype], work)
    advice = {card.name: [] if made.fits(card) else advise(source, work, card, models) for card in chosen}
    measured = measured_peak(config, source) if args.measure else None
    if args.out is not None:
        names = {"checkpoint": config.generator.checkpoint, "sizes_from": source.note, "prompt_columns": columns}
        content = to_json(made, chosen, advice, {**names, "gpus": args.gpus}, measured)
        write_atomically(args.out, json.dumps(content, indent=1) + "\n")
    show(Console(soft_wrap=True), made, chosen, advice, [source.note, about], measured)
    return 0


# -- from the options of a run to a workload ---------------------------------------------------------------------------


def workload(config: TrainConfig, source: Source, *, columns: int, gpus: int = 1) -> Workload:
    """Return what a run asks of its model. gpus: cards that the images and the optimiser's state are shared out to."""
    options, sampling = config.generator, build.sampling(config.sampling)
    sampling = Sampling.of(
        sampling, contrast=config.algorithm.needs_contrast, stats=(*config.algorithm.needed_stats, "entropy")
    )
    folded, negative_text = branches(sampling, config.sampling.negative_prompt)
    passes = PassOptions(
        dtype=generators.as_dtype(options.dtype),
        distribution=config.distribution,
        guidance=sampling.guidance,
        lora_rank=options.lora_rank,
        gradient_checkpointing=options.gradient_checkpointing,
        prompt_columns=columns,
        sampling_steps=sampling.unmasking.steps,
        masked_policy=options.masked_policy,
        masked_passes=options.masked_passes,
        fold_passes=options.fold_passes,
        order=sampling.unmasking.order,
        schedule=sampling.unmasking.schedule,
    )
    return Workload(
        steps=config.steps,
        prompts=config.prompts_per_step,
        group=config.algorithm.group_size,
        micro_batch=config.micro_batch,
        max_batch=options.max_batch,
        updates=config.epochs * config.minibatches,
        epochs=config.epochs,
        branches=folded,
        negative_text=negative_text,
        kl_always=config.kl_always(config.algorithm) or config.algorithm.entropy_reward_coef > 0,
        kl_every=config.kl_every,
        compile=build.COMPILE[options.compile],
        on_cpu=options.device == "cpu",
        merged=merging.pays(options.merge_adapters, passes.dtype),
        options=passes,
        moving_reference=config.optim.reference_every > 0,
        validation_every=config.evaluate.every,
        validation_images=config.evaluate.limit,
        gpus=gpus,
    )


def prompt_columns(source: Source, config: TrainConfig, given: int) -> tuple[int, str]:
    """Return the columns of the longest prompt, and where the number is from; 0 for models that encode texts apart."""
    if source.kind != "janus":
        return 0, "texts are encoded apart"
    if given:
        return given, f"prompts of {given} tokens, as given"
    try:
        prompts = training_prompts(config)
    except (ValueError, OSError):
        prompts = []
    if source.published or not prompts:
        return USUAL_COLUMNS, f"prompts of {USUAL_COLUMNS} tokens, frame included; --prompt-columns says otherwise"
    import torch

    from t2i_gcpo.generators.janus.prompts import PromptEncoder
    from t2i_gcpo.planning.janus import processor

    encoder = PromptEncoder(processor(source), torch.device("cpu"))
    width = int(encoder.encode([prompt.text for prompt in prompts]).ids.shape[1])
    return width, f"prompts of at most {width} tokens, counted"


def training_prompts(config: TrainConfig) -> list[Prompt]:
    return read_named(config.prompts.train, format=config.prompts.format, column=config.prompts.column)


def measured_peak(config: TrainConfig, source: Source) -> int:
    """Run the first steps, and return the bytes that they held at most. ValueError: no weights to run with."""
    from t2i_gcpo.commands.plan_measure import measure

    if source.published:
        raise ValueError(
            f"--measure runs the model, and {config.generator.checkpoint} is not on this machine; measure with "
            f"--generator.checkpoint {source.random.name if source.random else ''}"
        )
    return int(measure(config, source.kind, training_prompts(config))["peak"])


# -- what is shown -----------------------------------------------------------------------------------------------------


def to_json(
    made: Plan, chosen: list[Card], advice: dict[str, list[Change]], about: dict[str, Any], measured: int | None
) -> dict[str, Any]:
    """Return the plan as plain values; bytes, FLOPs, seconds and hours."""
    return {
        **about,
        "parameters": made.parameters,
        "memory": {phase.name: {**phase.parts, "total": phase.total} for phase in made.phases},
        "peak": {"phase": made.peak.name, "bytes": made.peak.total},
        "measured_peak": measured,
        "step": {name: asdict(work) for name, work in made.work.items()},
        "checkpoint": made.checkpoint,
        "sent_a_step": made.sent,
        "cards": {
            card.name: {
                "memory": card.memory,
                "usable": card.usable,
                "bandwidth": card.bandwidth,
                "flops_per_second": card.rate,
                "matrix_share": cards.MATRIX_SHARE,
                "source": card.source,
                "step_seconds": made.step_seconds(card),
                "hours": made.hours(card),
                "fits": made.fits(card),
                "changes": [asdict(change) for change in advice[card.name]],
            }
            for card in chosen
        },
    }


def show(
    console: Console,
    made: Plan,
    chosen: list[Card],
    advice: dict[str, list[Change]],
    notes: list[str],
    measured: int | None,
) -> None:
    """Print the tables of memory and time, and what to change where the run does not fit."""
    for note in notes:
        console.print(note, highlight=False)
    counts = ", ".join(f"{name} {number / 1e6:,.1f}" for name, number in made.parameters.items())
    console.print(f"million parameters: {counts}", highlight=False)
    console.print(memory_table(made))
    if measured is not None:
        console.print(
            f"measured peak {measured / GB:.3f} GB, planned {made.peak.total / GB:.3f} GB, "
            f"{made.peak.total / measured - 1:+.1%}",
            highlight=False,
        )
    if made.sent:
        console.print(
            f"Each card sends at least {made.sent / GB:.3f} GB a step to the others: gradients in fp32, and new "
            "weights. The time for that is in no table.",
            highlight=False,
        )
    console.print(time_table(made, chosen))
    console.print(
        f"Least times: at {cards.MATRIX_SHARE:.0%} of the card's rate in bfloat16, or at its full bandwidth. Scorers, "
        f"and the evaluations of the test prompts, are in neither table. A checkpoint takes "
        f"{made.checkpoint / GB:.2f} GB.",
        highlight=False,
    )
    for card in chosen:
        if made.fits(card):
            continue
        console.print(
            f"{card.name}: {made.peak.total / GB:.1f} GB in the phase {made.peak.name} do not fit into the "
            f"{card.usable / GB:.0f} GB that a run can use",
            highlight=False,
        )
        for change in advice[card.name]:
            options = " ".join(f"{name} {value}" for name, value in change.options.items())
            console.print(f"  {options}: {change.peak / GB:.1f} GB, {change.hours:.1f} h", highlight=False)
        if not advice[card.name]:
            console.print("  no change of batches, precision or adapters makes it fit", highlight=False)


def memory_table(made: Plan) -> Table:
    table = Table(
        title="memory at the peak of each phase, GB", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("part", no_wrap=True)
    for phase in made.phases:
        table.add_column(phase.name + ("*" if phase is made.peak else ""), justify="right", no_wrap=True)
    for part in dict.fromkeys(part for phase in made.phases for part in phase.parts):
        sizes = [phase.parts.get(part, 0) for phase in made.phases]
        if any(sizes):
            table.add_row(part, *(f"{size / GB:.3f}" if size else "" for size in sizes))
    table.add_row("all", *(f"{phase.total / GB:.3f}" for phase in made.phases))
    return table


def time_table(made: Plan, chosen: list[Card]) -> Table:
    table = Table(title="least seconds of a step by card", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("card", *made.work, "step", "hours", "fits"):
        table.add_column(column, justify="left" if column == "card" else "right", no_wrap=True)
    for card in chosen:
        seconds = made.step_seconds(card)
        cells = [f"{value:.3f}" for value in (*seconds.values(), sum(seconds.values()))]
        table.add_row(card.name, *cells, f"{made.hours(card):.1f}", "yes" if made.fits(card) else "no")
    return table


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="t2i-gcpo plan",
        usage="t2i-gcpo plan [--config FILE] [--card NAME] [--gpus N] [--prompt-columns N] [--measure] [--out FILE] "
        "[OPTIONS OF TRAIN]",
        description=main.__doc__,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--card", action="append", default=[], help=f"{', '.join(cards.CARDS)}; may stand several times (default: all)")
    add(
        "--gpus",
        type=positive,
        default=1,
        help="cards that share the images of a step, and masters, moments and gradients (default: %(default)s)",
    )
    add(
        "--prompt-columns",
        type=count,
        default=0,
        help=f"tokens of the longest prompt; 0 counts them, or takes {USUAL_COLUMNS} where there is no tokenizer",
    )
    add("--measure", action="store_true", help="run two steps as well, and measure their peak")
    add("--out", type=home_path, help="JSON file to write")
    return parser
