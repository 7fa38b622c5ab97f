"""`t2i-gcpo train`: options -> generator, reward, prompts and trainer; evaluate, train, evaluate again."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from rewards.registry import own_functions
from t2i_gcpo.commands.options import build
from t2i_gcpo.commands.options.arguments import dump, load, parse, to_mapping
from t2i_gcpo.commands.options.build import build_trainer
from t2i_gcpo.commands.options.config import TrainConfig
from t2i_gcpo.data.prompts import limit, read
from t2i_gcpo.evaluation.evaluate import EvalResult, evaluate, pick
from t2i_gcpo.records import Prompt
from t2i_gcpo.reports import run_report as report
from t2i_gcpo.reports.run import AFTER, BEFORE
from t2i_gcpo.reports.tables import print_evaluation
from t2i_gcpo.training import checkpoint
from t2i_gcpo.training import tracker as tracking
from t2i_gcpo.training.callbacks.pictures import Pictures
from t2i_gcpo.training.callbacks.reward_hacking import Watch
from t2i_gcpo.training.trainer import Trainer
from t2i_gcpo.utils.pictures import before_after

#: Columns of the tables of scores, the trained model's first.
SIDES = ("after", "before")
#: Images in samples/before_after.png.
SHOWN = 24


def main(argv: list[str]) -> int:
    command = parse(argv)
    if command.print_config:
        print(dump(command.settings), end="")
        return 0
    return 130 if run(command.settings, resume=command.resume).interrupted else 0


def run(config: TrainConfig, *, resume: bool = False) -> Trainer:
    """A training run with everything around it. ValueError where the folder holds another run, or, with `resume`, none like this."""
    folder = Path(config.output_dir)
    if resume:
        checkpoint.check_resumable(to_mapping(load(folder / tracking.CONFIG)), to_mapping(config))
        _announce_code(config, folder / tracking.CONFIG)
    else:
        tracking.check_unused(folder)
    # All that may fail for a wrong option comes before the folder is written to.
    training, validation, test = (
        read(source) for source in (config.prompts.train, config.prompts.validation, config.prompts.test)
    )
    test = limit(test, config.evaluate.test_limit, repeat=True)
    trainer = build_trainer(config, training, validation, test)
    trainer.generator.check_prompts([*validation, *test, *filter(None, [config.sampling.negative_prompt])])
    tracking.prepare_run(folder, dump(config), resume=resume)
    checkpoint.clean(folder)
    if resume and checkpoint.newest(folder) is not None:
        trainer.resume()
        print(f"resumed {folder} at step {trainer.step_number}")
    before_file, after_file = folder / BEFORE, folder / AFTER
    before = None
    if config.evaluate.before and trainer.step_number == 0:
        before = _evaluate(config, trainer, test, name=config.generator.checkpoint)
        before.save(before_file)
    elif before_file.is_file():
        before = EvalResult.load(before_file)

    with _tracker(config, trainer) as tracker:
        trainer.tracker = tracker
        if trainer.step_number == 0:
            for callback in trainer.callbacks:
                if isinstance(callback, Pictures) and callback.every:
                    callback.draw(trainer, 0)
        trainer.train()
    last = folder / checkpoint.FOLDER / f"step_{trainer.step_number:06d}"
    if config.evaluate.after and not trainer.interrupted:
        after = _evaluate(config, trainer, test, name=str(last))
        after.save(after_file)
        # An evaluation of a run that was resumed with another test set or noise cannot be paired with this one.
        same = (
            before is not None
            and before.seed == after.seed
            and [row.text for row in before.rows] == [row.text for row in after.rows]
        )
        print_evaluation(after, before if same else None, names=SIDES)
        for name in after.held_out:
            paired = before.under(name) if same and before is not None and name in before.held_out else None
            print_evaluation(after.under(name), paired, names=SIDES)
        if same and before is not None:
            _before_after(before, after, folder / "samples" / report.BEFORE_AFTER)
    print(f"wrote {report.write(folder)}; the last checkpoint is {last}")
    return trainer


def _announce_code(config: TrainConfig, file: Path) -> None:
    """Say, before anything is imported, which Python code a run's own options name: the folder may be somebody else's."""
    named = [*own_functions(config.reward.name, config.reward.options), *config.watch.rewards]
    for name in dict.fromkeys(name for name in named if ":" in name):
        print(
            f"note: {file} names the reward {name}; resuming imports and runs that Python code, so go on only with a "
            "run whose reward you know",
            file=sys.stderr,
            flush=True,
        )


def _tracker(config: TrainConfig, trainer: Trainer) -> tracking.Tracker:
    return tracking.Tracker(
        config.output_dir,
        steps=config.steps,
        start_step=trainer.step_number,
        config=to_mapping(config),
        **asdict(config.logging),
    )


def _evaluate(config: TrainConfig, trainer: Trainer, prompts: list[Prompt], *, name: str) -> EvalResult:
    watch = next(callback for callback in trainer.callbacks if isinstance(callback, Watch))
    return evaluate(
        trainer.generator,
        prompts,
        trainer.reward,
        sampling=build.sampling(config.sampling, guidance=config.evaluate.guidance),
        batch=config.generator.max_batch,
        seed=config.evaluate.seed,
        progress=config.logging.progress,
        keep_images=True,
        checkpoint=name,
        source=config.prompts.test,
        reward_name=config.reward.name,
        held_out=watch.held_out,
    )


def _before_after(before: EvalResult, after: EvalResult, path: Path) -> None:
    """The same prompts and noise before and after. Nothing where the run was resumed: the images before are not kept on disk."""
    if before.images is None or after.images is None:
        return
    rows = pick(after, SHOWN)
    path.parent.mkdir(parents=True, exist_ok=True)
    before_after(
        before.images[rows],
        after.images[rows],
        [after.rows[k].text for k in rows],
        scores_before=[before.rows[k].score for k in rows],
        scores_after=[after.rows[k].score for k in rows],
        title="Test prompts before and after training, same noise",
    ).save(path)
