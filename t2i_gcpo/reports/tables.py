"""Evaluations as tables: for the terminal (rich), and as plain rows for Markdown and HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from t2i_gcpo.evaluation.intervals import Estimates, Interval
from t2i_gcpo.utils.markup import cell, one_line

if TYPE_CHECKING:
    from t2i_gcpo.evaluation.causal_agreement import Agreement
    from t2i_gcpo.evaluation.credit_location import CreditResult
    from t2i_gcpo.evaluation.evaluate import EvalResult

OVERALL = "overall"
#: What "overall" and the brackets mean; stands below every table of evaluations.
NOTE = "overall: mean over the tasks; in brackets: 95 % bootstrap interval, clustered by prompt"
PAIRED_NOTE = "difference: same prompts, same noise, compared image by image"


def number(value: float | None, *, signed: bool = False, digits: int = 3) -> str:
    """0.123; 1.2e+08 from a million up; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) >= 1e6:
        return f"{value:+.1e}" if signed else f"{value:.1e}"
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def with_interval(value: float, interval: Interval, *, signed: bool = False) -> str:
    """0.512 [0.470, 0.555]."""
    if not all(map(math.isfinite, interval)):
        return number(value, signed=signed)
    low, high = (number(bound, signed=signed) for bound in interval)
    return f"{number(value, signed=signed)} [{low}, {high}]"


def evaluation_rows(
    result: EvalResult, other: EvalResult | None = None, *, names: tuple[str, str] = ("score", "against")
) -> tuple[list[str], list[list[str]]]:
    """Header and rows, one per task and the overall last.

    With `other`: also its scores, and the paired difference result - other.
    """
    from t2i_gcpo.evaluation.evaluate import paired_difference

    header = ["task", "images", names[0]]
    columns: list[tuple[Estimates, bool]] = [(result.estimates, False)]
    if other is not None:
        header = ["task", "images", names[1], names[0], "difference"]
        columns = [(other.estimates, False), (result.estimates, False), (paired_difference(other, result), True)]
    rows = [
        [task, str(result.estimates.n_by_task[task])]
        + [with_interval(e.by_task[task], e.by_task_ci95[task], signed=signed) for e, signed in columns]
        for task in result.by_task
    ]
    total = [with_interval(e.overall, e.ci95, signed=signed) for e, signed in columns]
    return header, [*rows, [OVERALL, str(result.estimates.n), *total]]


def print_evaluation(
    result: EvalResult, other: EvalResult | None = None, *, names: tuple[str, str] = ("score", "against")
) -> None:
    """Print the scores by task, and with `other` the paired differences.

    `names` are the columns of `result` and `other`.
    """
    header, rows = evaluation_rows(result, other, names=names)
    title = (
        f"{result.checkpoint} on {result.prompts}: {result.reward}, guidance "
        f"{result.sampling.guidance:g}, seed {result.seed}"
    )
    print_table(header, rows, title=title + (f"; against {other.checkpoint}" if other is not None else ""))
    failed = result.failed + (0 if other is None else other.failed)
    lines = [NOTE, *([PAIRED_NOTE] if other is not None else [])]
    print_note("; ".join(lines) + (f"; {failed} images failed to be scored and are left out" if failed else ""))


def credit_rows(result: CreditResult) -> tuple[list[str], list[list[str]]]:
    """Header and rows, one a map: how well its order finds the objects."""
    header = ["map", "AUROC", "less entropy's", "pointing game", "AUROC, begins"]
    signed = "auroc_less_entropy"
    return header, [
        [m.name, *(with_interval(e.overall, e.ci95, signed=name == signed) for name, e in m.measures.items())]
        for m in result.maps
    ]


def credit_share_rows(result: CreditResult) -> tuple[list[str], list[list[str]]]:
    """Header and rows, one a map: the share of its weights on the objects, by normalisation."""
    return ["map", *result.maps[0].shares], [
        [m.name, *(with_interval(e.overall, e.ci95) for e in m.shares.values())] for m in result.maps
    ]


def print_credit(result: CreditResult) -> None:
    print_table(*credit_rows(result), title="Where credit lies: against the cells of the objects that the prompt names")
    print_table(
        *credit_share_rows(result), title="How much of it: share of the weights on those cells, by normalisation"
    )
    print_note(
        f"{result.images} images, {result.left_out} without such an object left out; such objects fill "
        f"{result.object_cells:.1%} of the cells, begin in {result.begin_cells:.1%}; the mean over the tasks; in "
        "brackets: 95 % bootstrap interval, clustered by prompt"
    )
    print_note(
        "AUROC and pointing game see the order of the values alone, so that all normalisations tie; what they "
        "change is how much credit lies "
        "there. AUROC, begins: against the cell of each object that was sampled first"
    )
    if result.truth is not None:
        print_table(*agreement_rows(result.truth, "map"), title="Against what each token does to the reward")
        print_note(agreement_note(result.truth))


def agreement_rows(result: Agreement, name: str = "rule") -> tuple[list[str], list[list[str]]]:
    """Header and rows, one a rule or map: how well its weights agree with the measured influence."""
    from t2i_gcpo.evaluation.causal_agreement import MEASURES

    header = [name, *(measure.replace("_", " ") for measure in MEASURES)]
    return header, [
        [rule, *(with_interval(one.overall, one.ci95) for one in each.values())] for rule, each in result.rules.items()
    ]


def agreement_note(result: Agreement) -> str:
    """Say what the columns mean, of how many images they are, and how sure the influence itself is."""
    from t2i_gcpo.evaluation.causal_agreement import MEASURES

    again = with_interval(result.reliability.overall, result.reliability.ci95)
    columns = "; ".join(f"{name.replace('_', ' ')}: {meaning}" for name, meaning in MEASURES.items())
    decided, varies = (with_interval(one.overall, one.ci95) for one in (result.decided, result.reward_variance))
    told = "" if result.told else ". THE FORMER IS NOT TOLD FROM 0: all that the table says may be noise; measure more"
    return (
        f"{columns}\nThe tokens of an image decide a variance of {decided}, as far as the measured ones tell; that of "
        f"the reward under a prompt is {varies}{told}\n"
        f"{result.images} images with an influence, {result.without} without; {result.influenced:.1%} of the measured "
        f"tokens have one, and {result.half_tokens:.1%} hold half of it; {result.about['images_finished']:,} images "
        f"were finished for it. The two halves of the completions agree by {again}. In brackets: 95 % interval over "
        "prompts"
    )


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """Print a table: in a terminal cells fold, elsewhere (a log, a pipe) it is as wide as it needs to be."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(one_line(title)) or None, title_justify="left")
    for k, name in enumerate(header):
        table.add_column(escape(one_line(name)), justify="right" if k else "left", overflow="fold")
    for row in rows:
        table.add_row(
            *(escape(one_line(text)) for text in row),
            style="bold" if row[0] == OVERALL or row[0].startswith("mean") else "",
        )
    console = Console()
    width = console.width if console.is_terminal else max(console.width, Console(width=1000).measure(table).maximum)
    Console(width=width).print(table)


def print_note(text: str) -> None:
    from rich.console import Console

    Console().print(text, style="dim", markup=False, highlight=False, soft_wrap=True)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown; names in it stay what they are, whatever letters they have."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(cell, cells)) + " |"

    return "\n".join([line(header), line(["---"] * len(header)), *map(line, rows)]) + "\n"


def duration(seconds: float) -> str:
    """90 -> "1.5 min"."""
    unit, size = next((u, s) for u, s in (("h", 3600), ("min", 60), ("s", 1)) if seconds >= s or s == 1)
    return f"{seconds / size:.1f} {unit}"
