"""Evaluate, train and evaluate again, with what the options of `t2i-gcpo train` describe."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from rewards.registry import own_functions
from t2i_gcpo.commands import device_choices, out_of_memory
from t2i_gcpo.commands.options import build
from t2i_gcpo.commands.options.arguments import dump, load, parse, to_mapping
from t2i_gcpo.commands.options.build import build_trainer
from t2i_gcpo.commands.options.config import TrainConfig
from t2i_gcpo.data.formats import read_named
from t2i_gcpo.data.prompts import limit
from t2i_gcpo.evaluation import kept_images
from t2i_gcpo.evaluation.evaluate import EvalResult, evaluate, pick
from t2i_gcpo.records import Prompt
from t2i_gcpo.reports import run_report as report
from t2i_gcpo.reports.run import AFTER, BEFORE
from t2i_gcpo.reports.tables import print_evaluation
from t2i_gcpo.training import checkpoint, restarts
from t2i_gcpo.training import tracker as tracking
from t2i_gcpo.training.callbacks.pictures import Pictures
from t2i_gcpo.training.callbacks.reward_hacking import Watch
from t2i_gcpo.training.launch import heard_once, is_first
from t2i_gcpo.training.ranks import torchrun
from t2i_gcpo.training.resume import expects_checkpoint
from t2i_gcpo.training.same_run import check_alike, check_share
from t2i_gcpo.training.saving import resume_command
from t2i_gcpo.training.shared_folder import check_shared
from t2i_gcpo.training.trainer import IN_USE, Trainer
from t2i_gcpo.utils.destination import check_folder
from t2i_gcpo.utils.interrupt import STATUS, Terminated, ended_by_signal, on_save_request
from t2i_gcpo.utils.lock import locked
from t2i_gcpo.utils.nested import flatten
from t2i_gcpo.utils.pictures import before_after, write_png
from t2i_gcpo.utils.processes import ALONE, Processes

#: Columns of the tables of scores, the trained model's first.
SIDES = ("after", "before")
#: What a run folder holds besides files.
FOLDERS = (checkpoint.FOLDER, "samples", "heatmaps", "watch", "tensorboard", kept_images.BEFORE, kept_images.AFTER)
#: Options that may be others on each process: its device, and the reward server of its machine.
OWN = ("generator.device", "reward.url", "reward.token_file")
#: Images in samples/before_after.png.
SHOWN = 24


def main(argv: list[str]) -> int:
    with heard_once():
        command = parse(argv)
    if command.print_config:
        if is_first():
            print(dump(command.settings), end="")
        return 0
    timeout = command.settings.ranks.timeout
    with on_save_request(lambda: None), torchrun(timeout=timeout, quiet=True) as processes:
        common = {k: v for k, v in flatten(to_mapping(command.settings)).items() if k not in OWN}
        check_alike(processes, {"options": {**common, "resume": command.resume}})
        resume = command.resume or restarts.goes_on(Path(command.settings.output_dir), processes)
        # Outside the training there is nothing to save on request, and nothing to end for.
        by = run(command.settings, resume=resume, processes=processes).interrupted_by
    return 0 if by is None else STATUS[by]


def run(config: TrainConfig, *, resume: bool = False, processes: Processes = ALONE) -> Trainer:
    """Train, with everything around it.

    ValueError, with nothing written, where the folder holds another run or is in use, and, with `resume`, where it
    holds none like this.
    """
    folder = Path(config.output_dir)
    main = processes.is_main  # it alone locks and writes
    with contextlib.ExitStack() as stack:
        if resume and main:
            stack.enter_context(locked(folder, remedy=IN_USE))
        elif main:
            tracking.check_unused(folder)
        processes.wait()
        # All that may fail for a wrong option comes before the folder is written to.
        config, trainer, test, before = _checked(config, folder, resume=resume, processes=processes)
        processes.wait()
        if main and not resume:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder, remedy=IN_USE))
        check_shared(folder, processes)
        if main:
            tracking.prepare_run(folder, dump(config), resume=resume)
            restarts.note(folder)
            checkpoint.clean(folder)
        processes.wait()
        if resume and main:
            lost = "" if trainer.step_number else ": it was ended before its first checkpoint, and begins again"
            print(f"resumed {folder} at step {trainer.step_number}{lost}")
        with ended_by_signal():
            try:
                # The training itself finishes its step and saves.
                with out_of_memory.advised(config, trainer):
                    _run(config, trainer, test, before)
            except Terminated as own:
                processes.failed(own)
                trainer.interrupted_by = own.by
                if main:
                    print(f"{own.by}: ended {_where(trainer)}; go on with: {resume_command(folder)}")
        return trainer


def _checked(
    config: TrainConfig, folder: Path, *, resume: bool, processes: Processes
) -> tuple[TrainConfig, Trainer, list[Prompt], EvalResult | None]:
    """Build the trainer, of a resumed run at its newest checkpoint; with it the options without what they left to the
    device, the test prompts, and their scores before training.

    ValueError where anything cannot be used. Nothing is written.
    """
    if resume:
        old = load(folder / tracking.CONFIG)
        checkpoint.check_resumable(to_mapping(old), to_mapping(config))
        if processes.is_main:
            _announce_code(config, folder / tracking.CONFIG)
        rows = tracking.read_metrics(folder)
    if processes.is_main:
        _check_room(folder)
    tracking.check_boards(config.logging)
    # All that may fail for a wrong option comes before the folder is written to.
    training, validation, test = (
        read_named(source, format=config.prompts.format, column=config.prompts.column)
        for source in (config.prompts.train, config.prompts.validation, config.prompts.test)
    )
    test = limit(test, config.evaluate.test_limit, repeat=True)
    check_share(config.prompts_per_step, processes)
    held_out = {"validation prompts": validation, "test prompts": test}  # the trainer compares those it trains on
    check_alike(processes, {kind: [[row.text, row.metadata] for row in prompts] for kind, prompts in held_out.items()})
    scored = build.scorers(config, training, validation, test)
    config, chosen = device_choices.settle(config, before=old if resume else None, processes=processes)
    if chosen and processes.is_main:
        print(chosen)
    with out_of_memory.while_loading(config, processes.count):
        trainer = build_trainer(config, training, validation, scored, processes)
    trainer.config = to_mapping(config)
    trainer.generator.check_prompts([*validation, *test, *filter(None, [config.sampling.negative_prompt])])
    going_on = resume and (expects_checkpoint(folder, rows, old.checkpoint) or (folder / AFTER).exists())
    before = _known_before(folder) if going_on or not config.evaluate.before else None
    if going_on:
        with out_of_memory.while_loading(config, processes.count):
            trainer.resume()
    return config, trainer, test, before


def _check_room(folder: Path) -> None:
    """Check, by writing there, that everything that a run leaves can be written. ValueError where it cannot."""
    check_folder(folder, tracking.CONFIG, tracking.METRICS, BEFORE, AFTER, report.NAME, option="--output-dir")
    for part in FOLDERS:
        check_folder(folder / part, option="--output-dir")


def _known_before(folder: Path) -> EvalResult | None:
    try:
        return EvalResult.load(folder / BEFORE) if (folder / BEFORE).exists() else None
    except ValueError as error:
        raise ValueError(f"{error}; remove it to go on without the scores before training") from error


def _run(config: TrainConfig, trainer: Trainer, test: list[Prompt], before: EvalResult | None) -> None:
    """Evaluate, train, evaluate again and report. `before`: the scores before training, where they are known."""
    folder = Path(config.output_dir)
    if config.evaluate.before and trainer.step_number == 0:
        before = _evaluate(config, trainer, test, name=config.generator.checkpoint)
        if trainer.processes.is_main:
            before.save(folder / BEFORE)
            _keep(config, before, folder / kept_images.BEFORE)

    with _tracker(config, trainer) as tracker:
        trainer.tracker = tracker
        if trainer.step_number == 0:
            for callback in trainer.callbacks:
                if isinstance(callback, Pictures) and callback.every:
                    callback.draw(trainer, 0)
        trainer.train()
    after = None
    if config.evaluate.after and not trainer.interrupted:
        after = _evaluate(config, trainer, test, name=str(_last(trainer)))
    if trainer.processes.is_main:
        _report(config, trainer, before, after)


def _last(trainer: Trainer) -> Path:
    """Return the folder of the last checkpoint."""
    return trainer.output_dir / checkpoint.FOLDER / f"step_{trainer.step_number:06d}"


def _report(config: TrainConfig, trainer: Trainer, before: EvalResult | None, after: EvalResult | None) -> None:
    """Write and print the scores after training, with those before, and the report."""
    folder = trainer.output_dir
    if after is not None:
        after.save(folder / AFTER)
        _keep(config, after, folder / kept_images.AFTER)
        # An evaluation of a run that was resumed with another test set or noise cannot be paired with this one.
        same = (
            before is not None
            and before.seed == after.seed
            and [row.text for row in before.rows] == [row.text for row in after.rows]
        )
        try:
            if same and before is not None:
                _before_after(before, after, folder)
        finally:  # the numbers are worth more than the pictures
            print_evaluation(after, before if same else None, names=SIDES)
            for name in after.held_out:
                paired = before.under(name) if same and before is not None and name in before.held_out else None
                print_evaluation(after.under(name), paired, names=SIDES)
    print(f"wrote {report.write(folder)}; the last checkpoint is {_last(trainer)}")


def _where(trainer: Trainer) -> str:
    """Return where a run is that is not in a step, as a part of a sentence."""
    if trainer.step_number == 0:
        return "before the first step"
    return f"after step {trainer.step_number} of {trainer.steps}, whose checkpoint is saved"


def _announce_code(config: TrainConfig, file: Path) -> None:
    """Say, before anything is imported, which Python code a run's own options name: the folder may be somebody
    else's."""
    named = [*own_functions(config.reward.name, config.reward.options), *config.watch.rewards]
    for name in dict.fromkeys(name for name in named if ":" in name):
        print(
            f"note: {file} names the reward {name}; resuming imports and runs that Python code, so go on only with a "
            "run whose reward you know",
            file=sys.stderr,
            flush=True,
        )


def _tracker(config: TrainConfig, trainer: Trainer) -> tracking.Tracker:
    if not trainer.processes.is_main:
        return tracking.SilentTracker(config.output_dir)
    return tracking.Tracker(
        config.output_dir,
        steps=config.steps,
        start_step=trainer.step_number,
        config=to_mapping(config),
        logging=config.logging,
    )


def _evaluate(config: TrainConfig, trainer: Trainer, prompts: list[Prompt], *, name: str) -> EvalResult:
    watch = next(callback for callback in trainer.callbacks if isinstance(callback, Watch))
    return evaluate(
        trainer.generator,
        prompts,
        trainer.reward,
        sampling=build.sampling(config.sampling, guidance=config.evaluate.guidance),
        batch=config.generator.rows_at_once,
        seed=config.evaluate.seed,
        progress=config.logging.progress,
        keep_images=True,
        checkpoint=name,
        source=config.prompts.test,
        reward_name=config.reward.name,
        held_out=watch.held_out,
        processes=trainer.processes,
    )


def _keep(config: TrainConfig, result: EvalResult, folder: Path) -> None:
    """Write the images of an evaluation, where they are to be kept."""
    if config.evaluate.keep_images:
        kept_images.write(result, folder)


def _before_after(before: EvalResult, after: EvalResult, folder: Path) -> None:
    """Draw the same prompts and noise before and after training.

    Draws nothing where the run was resumed without the images before (`evaluate.keep_images`).
    """
    rows = pick(after, SHOWN)
    images = kept_images.read(before, rows, folder / kept_images.BEFORE)
    if images is None:
        return
    path = folder / "samples" / report.BEFORE_AFTER
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = before_after(
        images,
        after.kept_images()[rows],
        [after.rows[k].text for k in rows],
        scores_before=[before.rows[k].score for k in rows],
        scores_after=[after.rows[k].score for k in rows],
        title="Test prompts before and after training, same noise",
    )
    write_png(path, picture)
