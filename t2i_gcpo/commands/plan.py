"""Say what a run needs before it is started: memory by part, time at least, and whether it fits on a card."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from t2i_gcpo.commands.device_choices import LEFT, left_open, settle
from t2i_gcpo.commands.options.arguments import parse
from t2i_gcpo.commands.options.config import TrainConfig
from t2i_gcpo.commands.options.number_types import count, positive
from t2i_gcpo.commands.options.paths import home_path
from t2i_gcpo.commands.options.planned import USUAL_COLUMNS, prompt_columns, training_prompts, workload
from t2i_gcpo.planning import cards
from t2i_gcpo.planning.advice import Change, advise
from t2i_gcpo.planning.cards import Card
from t2i_gcpo.planning.choices import choose
from t2i_gcpo.planning.plan import Plan, load, plan
from t2i_gcpo.planning.sources import Source, find
from t2i_gcpo.planning.workload import Workload
from t2i_gcpo.utils.destination import check_file
from t2i_gcpo.utils.files import write_atomically

GB = cards.GB


@dataclass(frozen=True)
class Outcome:
    """Says what a run is on a card."""

    card: Card
    work: Workload
    """The run with what it left to the device chosen for this card."""
    plan: Plan
    changes: list[Change]
    """What to change where it does not fit."""

    chunked: bool
    """Whether the model scores tokens in chunks."""

    @property
    def chosen(self) -> str:
        """Say what may differ between the cards."""
        options = self.work.options
        chunk = f", head chunk {options.head_chunk}" if self.chunked else ""
        checkpointing = "on" if options.gradient_checkpointing else "off"
        return f"gradient checkpointing {checkpointing}{chunk}, max batch {self.work.max_batch}"


def main(argv: list[str]) -> int:
    """Plan a run of `t2i-gcpo train` without loading a weight. The options of train follow those of plan."""
    args, options = parser().parse_known_args(argv)
    config = parse(options).settings
    chosen = [cards.card(name) for name in args.card] or list(cards.CARDS.values())
    if args.out is not None:
        check_file(args.out)
    if args.measure:
        config, _ = settle(_without_evaluations(config))  # what is measured is this machine's choice
    source = find(config.generator.checkpoint, layers=config.generator.layers, width=config.generator.width)
    columns, about = prompt_columns(source, config, args.prompt_columns)
    outcomes = plans(config, source, chosen, workload(config, source, columns=columns, gpus=args.gpus))
    measured = measured_peak(config, source) if args.measure else None
    if args.out is not None:
        names = {"checkpoint": config.generator.checkpoint, "sizes_from": source.note, "prompt_columns": columns}
        content = to_json(outcomes, {**names, "gpus": args.gpus}, measured)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.out, json.dumps(content, indent=1) + "\n")
    show(Console(soft_wrap=True), outcomes, [source.note, about], measured)
    return 0


def plans(config: TrainConfig, source: Source, chosen: list[Card], work: Workload) -> list[Outcome]:
    """Plan the run on each card, with what it leaves to the device chosen for the card's whole memory."""
    models = {work.options.dtype: load(source, work.options.dtype)}
    model = models[work.options.dtype]
    left = [] if work.on_cpu else left_open(config)
    made: dict[Workload, Plan] = {}
    outcomes = []
    for card in chosen:
        own = choose(model, work, card.memory, **{name: name in left for name in LEFT}).work if left else work
        if own not in made:
            made[own] = plan(model, own)
        changes = [] if made[own].fits(card) else advise(source, own, card, models)
        outcomes.append(Outcome(card, own, made[own], changes, model.chunked_head))
    return outcomes


def _without_evaluations(config: TrainConfig) -> TrainConfig:
    """Return the options of the steps alone, which are what is measured."""
    return replace(config, evaluate=replace(config.evaluate, every=0, before=False, after=False))


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


def to_json(outcomes: list[Outcome], about: dict[str, Any], measured: int | None) -> dict[str, Any]:
    """Return the plan as plain values; bytes, FLOPs, seconds and hours. What stands outside `cards` is of the first."""
    made = outcomes[0].plan
    return {
        **about,
        "parameters": made.parameters,
        "memory": _memory(made),
        "peak": _peak(made),
        "measured_peak": measured,
        "step": {name: asdict(work) for name, work in made.work.items()},
        "logits_of_the_update": made.logits,
        "checkpoint": made.checkpoint,
        "sent_a_step": made.sent,
        "cards": {outcome.card.name: _of_card(outcome) for outcome in outcomes},
    }


def _of_card(outcome: Outcome) -> dict[str, Any]:
    card, made = outcome.card, outcome.plan
    return {
        "memory": card.memory,
        "usable": card.usable,
        "bandwidth": card.bandwidth,
        "flops_per_second": card.rate,
        "matrix_share": cards.MATRIX_SHARE,
        "source": card.source,
        "gradient_checkpointing": outcome.work.options.gradient_checkpointing,
        "head_chunk": outcome.work.options.head_chunk if outcome.chunked else None,
        "max_batch": outcome.work.max_batch,
        "phases": _memory(made),
        "peak": _peak(made),
        "step_seconds": made.step_seconds(card),
        "hours": made.hours(card),
        "fits": made.fits(card),
        "changes": [asdict(change) for change in outcome.changes],
    }


def _memory(made: Plan) -> dict[str, dict[str, int]]:
    return {phase.name: {**phase.parts, "total": phase.total} for phase in made.phases}


def _peak(made: Plan) -> dict[str, Any]:
    return {"phase": made.peak.name, "bytes": made.peak.total}


def show(console: Console, outcomes: list[Outcome], notes: list[str], measured: int | None) -> None:
    """Print the tables of memory and time, and what to change where the run does not fit."""
    made = outcomes[0].plan
    for note in notes:
        console.print(note, highlight=False)
    counts = ", ".join(f"{name} {number / 1e6:,.1f}" for name, number in made.parameters.items())
    console.print(f"million parameters: {counts}", highlight=False)
    for work in dict.fromkeys(outcome.work for outcome in outcomes):
        alike = [outcome for outcome in outcomes if outcome.work == work]
        console.print(memory_table(alike))
        console.print(
            f"Logits hold {alike[0].plan.logits / GB:.3f} GB of the update's activations at most, where they are made.",
            highlight=False,
        )
    if measured is not None:
        console.print(
            f"steps without evaluations: measured peak {measured / GB:.3f} GB, planned {made.peak.total / GB:.3f} GB, "
            f"{made.peak.total / measured - 1:+.1%}",
            highlight=False,
        )
    if made.sent:
        console.print(
            f"Each card sends at least {made.sent / GB:.3f} GB a step to the others: gradients in fp32, and new "
            "weights. The time for that is in no table.",
            highlight=False,
        )
    console.print(time_table(outcomes))
    console.print(
        f"Least times: at {cards.MATRIX_SHARE:.0%} of the card's rate in bfloat16, or at its full bandwidth. Scorers, "
        f"and the evaluations of the test prompts, are in neither table. A checkpoint takes {made.checkpoint / GB:.2f} "
        "GB, and with checkpoint.asynchronous as much of the host's memory while it is written.",
        highlight=False,
    )
    for outcome in outcomes:
        if not outcome.plan.fits(outcome.card):
            _show_changes(console, outcome)


def _show_changes(console: Console, outcome: Outcome) -> None:
    card, peak = outcome.card, outcome.plan.peak
    console.print(
        f"{card.name}: {peak.total / GB:.1f} GB in the phase {peak.name} do not fit into the "
        f"{card.usable / GB:.0f} GB that a run can use",
        highlight=False,
    )
    for change in outcome.changes:
        options = " ".join(f"{name} {value}" for name, value in change.options.items())
        console.print(f"  {options}: {change.peak / GB:.1f} GB, {change.hours:.1f} h", highlight=False)
    if not outcome.changes:
        console.print("  no change of batches, precision or adapters makes it fit", highlight=False)


def memory_table(alike: list[Outcome]) -> Table:
    """Make the table of cards on which the run is the same."""
    made = alike[0].plan
    names = ", ".join(outcome.card.name for outcome in alike)
    title = f"memory at the peak of each phase, GB; {alike[0].chosen} ({names})"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("part", no_wrap=True)
    for phase in made.phases:
        table.add_column(phase.name + ("*" if phase is made.peak else ""), justify="right", no_wrap=True)
    for part in dict.fromkeys(part for phase in made.phases for part in phase.parts):
        sizes = [phase.parts.get(part, 0) for phase in made.phases]
        if any(sizes):
            table.add_row(part, *(f"{size / GB:.3f}" if size else "" for size in sizes))
    table.add_row("all", *(f"{phase.total / GB:.3f}" for phase in made.phases))
    return table


def time_table(outcomes: list[Outcome]) -> Table:
    table = Table(title="least seconds of a step by card", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("card", *outcomes[0].plan.work, "step", "hours", "fits"):
        table.add_column(column, justify="left" if column == "card" else "right", no_wrap=True)
    for outcome in outcomes:
        card, made = outcome.card, outcome.plan
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
