"""`report.html` of a run: the verdict, what changed and why, scores, curves, samples, heatmaps and options.

In one file that needs no network.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from t2i_gcpo.evaluation.evaluate import EvalResult
from t2i_gcpo.reports import changes, curves, run_files, verdict
from t2i_gcpo.reports import html_page as pages
from t2i_gcpo.reports import step_times as phases
from t2i_gcpo.reports.run import AFTER, BEFORE, Run, read
from t2i_gcpo.reports.tables import NOTE, PAIRED_NOTE, duration, evaluation_rows, number
from t2i_gcpo.training.callbacks import hard_prompts
from t2i_gcpo.training.callbacks.reward_hacking import FOLDER, WARNINGS, read_warnings
from t2i_gcpo.training.tracker import CONFIG, METRICS
from t2i_gcpo.utils.files import write_atomically
from t2i_gcpo.utils.json_files import read_json

NAME = "report.html"
BEFORE_AFTER = "before_after.png"
"""In samples/: the test prompts before and after training, side by side."""

#: The table of phases begins here.
PHASES_FROM = 11

#: Option -> how the summary calls it.
SUMMARY = {
    "algorithm.name": "algorithm",
    "generator.checkpoint": "generator",
    "generator.lora_rank": "LoRA rank (0: all parameters)",
    "distribution": "trained distribution",
    "reward.name": "reward",
    "prompts.train": "training prompts",
    "prompts.test": "test prompts",
    "prompts_per_step": "prompts a step",
    "algorithm.group_size": "images a prompt",
    "sampling.guidance": "guidance",
    "optim.lr": "learning rate",
    "algorithm.kl_coef": "KL coefficient",
    "steps": "steps",
    "seed": "seed",
}
HOW_TO_READ = (
    "Each cell is one token of the image. Red tokens are made more likely by the update and blue ones less likely; the "
    "stronger the colour, the more credit the token has. An image's cells have the sign of its own advantage A (better "
    "or worse than the other images of its prompt), and the algorithm's token weights spread it over the cells. All "
    "panels of a picture share one scale, which is printed on it."
)


def write(run_dir: str | Path) -> Path:
    """Write RUN/report.html from what the run folder holds so far; returns its path. ValueError where it is no run."""
    run = read(run_dir)
    parts = [
        pages.paragraph(verdict.sentence(run), "lead"),
        _status(run),
        _missing(run),
        *_warnings(run),
        *changes.html(run),
        *_evaluation(run),
        *_curves(run),
        *_samples(run),
        *_heatmaps(run),
        *_phases(run),
        *_options(run),
        *_files(run),
    ]
    path = run.path / NAME
    return write_atomically(path, pages.page(f"{run.algorithm}: {run.name}", parts))


def _status(run: Run) -> str:
    parts = [f"{run.step} of {run.config.get('steps', 'unknown')} steps"]
    images, seconds = run.last("images_sampled"), run.seconds()
    if images is not None:
        parts.append(f"{images:,.0f} images sampled (discarded ones included)")
    if seconds is not None:
        parts.append(duration(seconds))
    return pages.paragraph(", ".join(parts), "faint")


def _missing(run: Run) -> str:
    """What the report would show if the run had it."""
    wanted = {
        CONFIG: bool(run.config),
        METRICS: bool(run.metrics),
        f"{BEFORE} (score before training)": run.before is not None,
        f"{AFTER} (score after training)": run.after is not None,
        "validation scores": bool(run.series("validation/overall")[0]),
        "samples/": bool(run.pictures("samples")),
        "heatmaps/": bool(run.pictures("heatmaps")),
    }
    missing = [name for name, there in wanted.items() if not there]
    refused = sum(run_files.left_out(run.path, folder) for folder in ("samples", "heatmaps"))
    parts = [
        f"Not in the run folder yet: {', '.join(missing)}." if missing else "",
        f"Left out: {refused} pictures that are no whole PNG inside the run." if refused else "",
    ]
    return "\n".join(pages.paragraph(text, "warning") for text in parts if text)


def _warnings(run: Run) -> list[str]:
    """The signs of reward hacking that the run saw, each with its picture."""
    run_files.check_own(run.path, WARNINGS)
    rows = read_warnings(run.path)
    if not rows:
        return []
    parts = [pages.heading("Signs of reward hacking")]
    for row in rows:
        parts.append(pages.paragraph(f"Step {row['step']}: {row['text']}.", "warning"))
    named = dict.fromkeys((f"{FOLDER}/step_000001_trained.png", *(row["picture"] for row in rows if row["picture"])))
    shown = [path for path in (run_files.own_png(run.path, name) for name in named) if path is not None]
    return [*parts, *(pages.picture(path, f"{_step(path)}: images that were trained on") for path in shown)]


def _options(run: Run) -> list[str]:
    if not run.config:
        return []
    rows = [[label, str(run.config[name])] for name, label in SUMMARY.items() if name in run.config]
    text = "\n".join(f"{name}: {value}" for name, value in run.config.items())  # without secrets, which a file may hold
    return [
        pages.heading("Options"),
        pages.table(["option", "value"], rows),
        pages.details("all options (config.yaml)", text),
    ]


def _curves(run: Run) -> list[str]:
    if not run.metrics:
        return []
    caption = "Thin: as logged. Thick: moving average over 5 % of the steps. Validation scores are shown as they are."
    best = run.best("validation/overall")
    if best is not None:
        caption += f" Best validation score: {number(best[1])} at step {best[0]}."
    return [
        pages.heading("Curves"),
        curves.figure(curves.draw({run.algorithm: [run]}), caption),
    ]


def _phases(run: Run) -> list[str]:
    """Without the first steps, in which code is compiled, where there are enough others."""
    first = PHASES_FROM if run.step >= 2 * PHASES_FROM else 1
    found, steps = phases.phases(run, first_step=first)
    if len(found) < 2:  # runs that logged no phases
        return []
    about = f"{steps} steps from step {first} on. {phases.NOTE}"
    table = pages.table(phases.HEADER, phases.table_rows(found))
    return [pages.heading("Where a step's time goes"), table, pages.paragraph(about, "faint")]


def _evaluation(run: Run) -> list[str]:
    result = run.after or run.before
    if result is None:
        return []
    parts = [pages.heading("Scores on the test prompts"), *_scores(result, run)]
    for name in result.held_out:
        before, after = (
            found.under(name) if found is not None and name in found.held_out else None
            for found in (run.before, run.after)
        )
        parts.append(pages.heading(f"The same images under {name}, which was not trained on"))
        parts += _scores(result.under(name), replace(run, before=before, after=after))
    return parts


def _scores(result: EvalResult, run: Run) -> list[str]:
    """One scorer's tables of the run's evaluations."""
    about = (
        f"{result.n} images of {result.prompts or 'the test prompts'}, reward {result.reward or 'of the run'}, "
        f"guidance {result.sampling.guidance:g}, seed {result.seed}"
    )
    difference, reason = run.difference()
    parts = [pages.paragraph(about, "faint")]
    if difference is not None:
        parts += [
            pages.table(*evaluation_rows(result, run.before, names=("after", "before"))),
            pages.paragraph(f"{NOTE}; {PAIRED_NOTE}.", "faint"),
        ]
    else:
        for name, found in (("before", run.before), ("after", run.after)):
            if found is not None:
                parts.append(pages.table(*evaluation_rows(found, names=(name, ""))))
        parts += [pages.paragraph(f"{NOTE}.", "faint"), pages.paragraph(f"No paired difference: {reason}.", "warning")]
    failed = sum(found.failed for found in (run.before, run.after) if found is not None)
    return [
        *parts,
        pages.paragraph(f"{failed} images could not be scored and are left out.", "warning") if failed else "",
    ]


def _samples(run: Run) -> list[str]:
    parts = []
    both, found = run_files.own_png(run.path, f"samples/{BEFORE_AFTER}"), run.pictures("samples")
    if both is not None:
        parts = [
            pages.heading("Before and after"),
            pages.picture(both, "The same prompts and noise, picked without a look at their scores."),
        ]
    if found:
        parts += [pages.heading("Samples"), pages.paragraph(_rule(run), "faint") if _rule(run) else ""]
    for path in dict.fromkeys((*found[:1], *found[-1:])):
        parts.append(
            pages.picture(
                path, f"{_step(path)}; same prompts and noise in each", link=path.relative_to(run.path).as_posix()
            )
        )
    return [*parts, pages.links(found, run.path)]


def _rule(run: Run) -> str:
    """Return how the prompts of the pictures were chosen, "" where they were not."""
    path = run_files.own_file(run.path, hard_prompts.FILE)
    try:
        return "" if path is None else str(read_json(path, hard_prompts.SHAPE)["rule"])
    except ValueError:
        return ""


def _heatmaps(run: Run) -> list[str]:
    found = run.pictures("heatmaps")
    if not found:
        return []
    parts = [pages.heading("Credit of the tokens"), pages.paragraph(HOW_TO_READ)]
    last = [path for path in found if path.name[: len("step_000000")] == found[-1].name[: len("step_000000")]]
    for path in dict.fromkeys((found[0], *last)):
        inspect = run_files.own_file(run.path, path.with_suffix(".html").relative_to(run.path))
        what = (
            "; a group that was trained on, with the very advantages of its update"
            if path.stem.endswith("_trained")
            else ""
        )
        link = inspect or path
        parts.append(pages.picture(path, f"{_step(path)}{what}", link=link.relative_to(run.path).as_posix()))
    interactive = run_files.steps(run.path, "heatmaps", ".html")
    return [
        *parts,
        pages.paragraph("Cell by cell, with each token's numbers:") if interactive else "",
        pages.links(interactive, run.path),
    ]


def _files(run: Run) -> list[str]:
    names = (CONFIG, METRICS, BEFORE, AFTER)
    found = [run.path / name for name in names if (run.path / name).is_file()]
    checkpoints = sorted(path for path in (run.path / "checkpoints").glob("step_*") if path.is_dir())
    return [pages.heading("Files"), pages.links([*found, *checkpoints], run.path)]


def _step(path: Path) -> str:
    """Return how a picture's step is called: step_000010_samples -> "step 10"; of another name the name itself."""
    step = run_files.step_of(path)
    return path.name if step is None else f"step {step}"
