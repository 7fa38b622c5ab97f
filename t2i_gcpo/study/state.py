"""Tell what the folder of a trial holds.

That is nothing, a run that is not finished, a finished one, another run, or something damaged.
"""

from __future__ import annotations

from typing import Literal

from t2i_gcpo.commands.options.arguments import load, to_mapping
from t2i_gcpo.evaluation.evaluate import EvalResult
from t2i_gcpo.reports import run as run_folder
from t2i_gcpo.study.spec import Trial, settings
from t2i_gcpo.training.checkpoint import check_resumable
from t2i_gcpo.training.tracker import CONFIG, check_unused, read_metrics
from t2i_gcpo.utils.nested import flatten

State = Literal["new", "unfinished", "finished"]

#: Options that decide what is compared before and after: `train --resume` lets them change, and the two could not be
#: paired then.
PAIRED = ("prompts.test", "evaluate.test_limit", "evaluate.guidance", "evaluate.seed")


def damage(trial: Trial) -> str | None:
    """Return what keeps the trial's folder from being read, with what to do, or None.

    The other trials can do without it.
    """
    try:
        if (trial.folder / CONFIG).is_file():
            settings(["--config", str(trial.folder / CONFIG)], str(trial.folder / CONFIG))
        else:
            check_unused(trial.folder)
        read_metrics(trial.folder)
        if (trial.folder / run_folder.BEFORE).exists():
            EvalResult.load(trial.folder / run_folder.BEFORE)
    except (ValueError, OSError) as error:
        return f"{error}; mend it, or remove {trial.folder} to train it again"
    return None


def state(trial: Trial) -> State:
    """Return what is in the trial's folder. ValueError where that is another training than the trial's."""
    if not (trial.folder / CONFIG).is_file():
        check_unused(trial.folder)
        return "new"
    theirs, ours = load(trial.folder / CONFIG), trial.settings
    remedy = "name another --out, or remove the trial's folder"
    try:
        check_resumable(to_mapping(theirs), to_mapping(ours))
    except ValueError as error:
        raise ValueError(f"{trial.folder} holds a run with other options ({remedy}): {error}") from error
    before, after = flatten(to_mapping(theirs)), flatten(to_mapping(ours))
    changed = [f"{name}: {before[name]!r} -> {after[name]!r}" for name in PAIRED if before[name] != after[name]]
    if changed and (trial.folder / run_folder.BEFORE).is_file():
        raise ValueError(
            f"{trial.folder} was evaluated before training with other options ({', '.join(changed)}); {remedy}"
        )
    rows = read_metrics(trial.folder)
    steps = int(rows[-1]["step"]) if rows else 0
    if steps > ours.steps:
        raise ValueError(f"{trial.folder} has {steps} steps already and the study wants {ours.steps}; {remedy}")
    file = trial.folder / run_folder.AFTER
    # A run that went on to more steps still has the evaluation of its former end; kl_stop and max_images end one before
    # its last step.
    images = rows[-1].get("images_sampled", 0) if rows else 0
    over = steps == ours.steps or ours.kl_stop is not None or 0 < ours.max_images <= images
    try:
        if over and file.exists() and EvalResult.load(file).checkpoint.endswith(f"step_{steps:06d}"):
            return "finished"
    except (ValueError, OSError):  # a resumed run evaluates again
        pass
    return "unfinished"
