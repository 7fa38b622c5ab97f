"""`t2i-gcpo compare`: curves, a table and a report of several runs.

Runs that differ in their seed alone are one group.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t2i_gcpo.reports import curves, group_pairs, side_by_side
from t2i_gcpo.reports import html_page as pages
from t2i_gcpo.reports.run import Run
from t2i_gcpo.reports.tables import (
    NOTE,
    PAIRED_NOTE,
    duration,
    markdown,
    number,
    print_note,
    print_table,
    with_interval,
)
from t2i_gcpo.utils.files import write_atomically
from t2i_gcpo.utils.json_files import finite_or_none
from t2i_gcpo.utils.markup import cell

#: Key in table.json -> column title; those that a group's mean row averages over its runs.
AVERAGED = {
    "images_sampled": "images",
    "seconds": "time",
    "validation_final": "val. final",
    "validation_best": "val. best",
    "before": "test before",
    "after": "test after",
    "difference": "difference",
    "kl": "KL",
}
_COUNTED = ("images_sampled", "seconds")
#: What a comparison is written to.
FILES = ("curves.png", "table.json", "table.md", "report.html")
COLUMNS = ["group", "run", "seed", "steps", *AVERAGED.values()]
EXPLAINED = (
    "images: sampled in training, discarded ones included; val. best: at the step in brackets; KL: to the reference "
    "at the last step, nats a token; "
    f"test: {NOTE}; {PAIRED_NOTE}; mean rows: mean and standard deviation over the runs of a group"
)


def write(grouped: Mapping[str, Sequence[Run]], out: Path) -> list[Path]:
    """Write the four files, then print the table; returns the files' paths."""
    data = {label: [numbers(run) for run in members] for label, members in grouped.items()}
    rows = table(data)
    note = warning(grouped)
    compared = group_pairs.differences(grouped)
    try:
        return _write(grouped, data, rows, note, compared, out)
    finally:  # what cannot be written can still be read
        print_table(COLUMNS, rows)
        for text in filter(None, [EXPLAINED, group_pairs.budget(grouped), *(one.sentence() for one in compared), note]):
            print_note(text)


def _write(
    grouped: Mapping[str, Sequence[Run]],
    data: Mapping[str, Sequence[Mapping[str, Any]]],
    rows: Sequence[Sequence[str]],
    note: str,
    compared: Sequence[group_pairs.Difference],
    out: Path,
) -> list[Path]:
    """Write the four files and return their paths.

    data: the numbers of the runs; rows: the table's; note: a warning, or ""; compared: the groups with each other.
    """
    paths = [out / name for name in FILES]
    figure = curves.draw(grouped, x="images_sampled")
    write_atomically(paths[0], lambda file: figure.savefig(file, format="png", dpi=140))
    means = {label: {key: mean(members, key) for key in AVERAGED} for label, members in data.items()}
    spent = group_pairs.budget(grouped)
    content = {
        "runs": [{"group": label, **row} for label, members in data.items() for row in members],
        "groups": means,
        "differences": [one.to_json() for one in compared],
        "budget": spent,
    }
    write_atomically(paths[1], json.dumps(content, indent=1, allow_nan=False) + "\n")
    pairs = markdown(group_pairs.HEADER, [one.row() for one in compared]) if compared else ""
    notes = [EXPLAINED, cell(spent), pairs.strip(), cell(note)]
    write_atomically(paths[2], markdown(COLUMNS, rows) + "".join(f"\n{text}\n" for text in notes if text))
    parts = [
        *(pages.paragraph(one.sentence(), "lead" if len(compared) == 1 else "") for one in compared),
        pages.paragraph(spent) if spent else "",
        pages.paragraph(note, "warning") if note else "",
        pages.table(COLUMNS, rows),
        pages.paragraph(EXPLAINED, "faint"),
        *_each_other(compared),
        *group_pairs.pictures(grouped),
        pages.heading("Curves"),
        curves.figure(figure, "Over images sampled, discarded ones included. Thick: mean of a group; thin: its runs."),
        *_side_by_side(grouped),
        pages.heading("Runs"),
        *(
            pages.details(f"{label}: {run.path}", _options(run))
            for label, members in grouped.items()
            for run in members
        ),
    ]
    write_atomically(paths[3], pages.page("Comparison of " + ", ".join(grouped), parts))
    return paths


def _each_other(compared: Sequence[group_pairs.Difference]) -> list[str]:
    """Show the differences of more than two groups as a table."""
    if len(compared) < 2:
        return []
    rows = [one.row() for one in compared]
    return [pages.heading("The groups with each other"), pages.table(group_pairs.HEADER, rows)]


def _side_by_side(grouped: Mapping[str, Sequence[Run]]) -> list[str]:
    """Show the fixed prompts of the first run of each group, where all have drawn some."""
    found = side_by_side.heatmaps({label: members[0] for label, members in grouped.items()})
    pictures = [pages.picture(data, words) for words, data in found]
    return [pages.heading("Credit of the tokens, side by side"), *pictures] if pictures else []


def numbers(run: Run) -> dict[str, Any]:
    """What the table says of one run; None where the run has it not."""
    best = run.best("validation/overall")
    difference, reason = run.difference()
    return {
        "run": str(run.path),
        "algorithm": run.algorithm,
        "seed": run.config.get("seed"),
        "steps": run.step,
        "images_sampled": run.last("images_sampled"),
        "seconds": run.seconds(),
        "validation_final": run.last("validation/overall"),
        "validation_best": best and best[1],
        "validation_best_step": best and best[0],
        "before": run.before and finite_or_none(run.before.overall),
        "before_ci95": run.before and list(map(finite_or_none, run.before.ci95)),
        "after": run.after and finite_or_none(run.after.overall),
        "after_ci95": run.after and list(map(finite_or_none, run.after.ci95)),
        "difference": difference and finite_or_none(difference.overall),
        "difference_ci95": difference and list(map(finite_or_none, difference.ci95)),
        "no_difference": reason or None,
        "kl": run.last("kl"),
    }


def mean(members: Sequence[Mapping[str, Any]], key: str) -> dict[str, float | int | None]:
    """Mean, standard deviation (ddof 1) and number of the runs of a group that have the number."""
    values = [row[key] for row in members if row[key] is not None]
    return {
        "mean": statistics.fmean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
    }


def table(data: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[list[str]]:
    """Rows of text below COLUMNS: each run, and a mean row below a group of several."""
    rows = []
    for label, members in data.items():
        rows += [_row(label, row) for row in members]
        if len(members) > 1:
            cells = [_mean_cell(key, mean(members, key), len(members)) for key in AVERAGED]
            rows.append([f"mean of {label}", f"{len(members)} runs", "", "", *cells])
    return rows


def _row(label: str, row: Mapping[str, Any]) -> list[str]:
    best = number(row["validation_best"]) + (
        "" if row["validation_best"] is None else f" ({row['validation_best_step']})"
    )
    return [
        label,
        Path(row["run"]).resolve().name,
        number(None) if row["seed"] is None else str(row["seed"]),
        str(row["steps"]),
        _count("images_sampled", row["images_sampled"]),
        _count("seconds", row["seconds"]),
        number(row["validation_final"]),
        best,
        _bracketed(row, "before"),
        _bracketed(row, "after"),
        _bracketed(row, "difference", signed=True),
        number(row["kl"], digits=4),
    ]


def _bracketed(row: Mapping[str, Any], key: str, *, signed: bool = False) -> str:
    if row[key] is None:
        return number(None)
    low, high = (math.nan if bound is None else bound for bound in row[f"{key}_ci95"])
    return with_interval(row[key], (low, high), signed=signed)


def _count(key: str, value: float | None) -> str:
    if value is None:
        return number(None)
    return duration(value) if key == "seconds" else f"{value:,.0f}"


def _mean_cell(key: str, found: Mapping[str, Any], runs: int) -> str:
    if found["mean"] is None or key in _COUNTED:
        return _count(key, found["mean"])
    text = number(found["mean"], signed=key == "difference", digits=4 if key == "kl" else 3)
    text += "" if found["std"] is None else f" ± {number(found['std'], digits=4 if key == 'kl' else 3)}"
    return text + ("" if found["n"] == runs else f" ({found['n']} of {runs})")


def warning(grouped: Mapping[str, Sequence[Run]]) -> str:
    """Says so where the runs' test scores do not speak about the same thing."""
    results = [found for members in grouped.values() for run in members for found in (run.before, run.after) if found]
    seen: dict[str, set[Any]] = {
        "prompts": {r.prompts for r in results},
        "reward": {r.reward for r in results},
        "images": {r.n for r in results},
        "guidance": {r.sampling.guidance for r in results},
        "temperature": {r.sampling.temperature for r in results},
        # The runs of a study each have images of their own; groups must have the same ones.
        "seed": {
            "+".join(map(str, sorted({found.seed for run in members for found in (run.before, run.after) if found})))
            for members in grouped.values()
        }
        - {""},
    }
    differing = [f"{name} ({', '.join(map(str, sorted(values)))})" for name, values in seen.items() if len(values) > 1]
    return (
        f"The test scores are not comparable without a thought: they differ in {'; '.join(differing)}."
        if differing
        else ""
    )


def _options(run: Run) -> str:
    return "\n".join(f"{name}: {value}" for name, value in run.config.items()) or "no config.yaml"
