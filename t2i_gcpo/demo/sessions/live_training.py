"""Train several algorithms from the same start on the same prompts, a step of each in turn, while one looks on.

Each writes an ordinary run folder, as `t2i-gcpo train` does, so that it can be opened again, resumed and compared.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from t2i_gcpo.algorithms import resolve
from t2i_gcpo.commands import train as train_command
from t2i_gcpo.commands.device_choices import settle
from t2i_gcpo.commands.options import arguments
from t2i_gcpo.commands.options.config import (
    EvaluateConfig,
    GeneratorConfig,
    LoggingConfig,
    PicturesConfig,
    PromptsConfig,
    RewardConfig,
    TrainConfig,
)
from t2i_gcpo.demo.context import DemoContext
from t2i_gcpo.records import Prompt
from t2i_gcpo.training.callbacks.pictures import Pictures
from t2i_gcpo.training.options import CheckpointConfig, OptimConfig
from t2i_gcpo.training.tracker import Tracker, prepare_run
from t2i_gcpo.training.trainer import Trainer
from t2i_gcpo.utils.files import write_atomically

#: Row of the table of algorithms that is trained here -> what the page calls it.
ALGORITHMS = {"grpo": "GRPO", "gcpo": "GCPO", "gcpo_shuffled": "control: GCPO, shuffled", "dapo": "DAPO"}
#: Folder below the context's runs.
FOLDER = "live"
STOPPED = "stopped in the demo"
#: Prompts of the pictures, of how many candidates, and images of each.
PICTURED, CANDIDATES, PICTURED_GROUP = 2, 6, 4


@dataclass(frozen=True)
class Plan:
    """Says what is trained, in ranges that `validate` has checked."""

    algorithms: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    checkpoint: str
    steps: int
    prompts_per_step: int
    group_size: int
    lr: float
    seed: int


@dataclass(frozen=True)
class Progress:
    """Says how far the training is."""

    folder: Path
    runs: dict[str, Path]
    """Algorithm -> its run folder."""
    step: int
    """Steps that all algorithms have done."""
    steps: int
    now: str
    """What goes on, in words."""


def prompts_of(context: DemoContext, chosen: str, own: Sequence[str]) -> tuple[Prompt, ...]:
    """Return the prompts of a task of ShapeScenes ("all": of all six), or one's own.

    ValueError, naming them: prompts that cannot be scored.
    """
    from t2i_gcpo.data.shapes.prompts import split

    if not own:
        return tuple(prompt for prompt in split("train") if chosen in ("all", prompt.task))
    prompts = tuple(context.scorer.prompt(text) for text in own)
    unscored = [prompt.text for prompt in prompts if not context.scorer.can_score(prompt)]
    if unscored:
        raise ValueError(
            f"the reward {context.scorer.name} cannot score {', '.join(f'“{text}”' for text in unscored[:3])}"
            f"{f' and {len(unscored) - 3} more' if len(unscored) > 3 else ''}; write prompts like “a red circle "
            f"and a blue star”"
        )
    return prompts


def train(context: DemoContext, plan: Plan, stopped: Callable[[], bool]) -> Iterator[Progress]:
    """Train, and yield after each picture and step.

    `stopped()` is asked between steps; what was trained is saved then, and also when an error ends it or nobody takes
    the next value.
    """
    if not context.training.acquire(blocking=False):
        raise ValueError("Another training is going on; wait until it has ended.")
    try:
        yield from _train(context, plan, lambda: stopped() or context.closing.is_set())
    finally:
        context.training.release()


def _train(context: DemoContext, plan: Plan, stopped: Callable[[], bool]) -> Iterator[Progress]:
    folder = _new_folder(context.runs / FOLDER)
    prompt_file = folder / "prompts.jsonl"
    lines = [json.dumps({**prompt.metadata, "prompt": prompt.text}, ensure_ascii=False) for prompt in plan.prompts]
    write_atomically(prompt_file, "\n".join(lines) + "\n")
    runs = {name: folder / name for name in plan.algorithms}

    trainers: dict[str, Trainer] = {}

    def progress(now: str) -> Progress:
        return Progress(folder, runs, min((t.step_number for t in trainers.values()), default=0), plan.steps, now)

    yield progress("loading the checkpoint")
    with ExitStack() as stack:
        for name, run in runs.items():
            config, _ = settle(_config(context, plan, name, run, prompt_file))
            trainer = train_command.build_trainer(config, list(plan.prompts), list(plan.prompts))
            prepare_run(run, arguments.dump(config))
            trainer.tracker = stack.enter_context(Tracker(run, steps=plan.steps, logging=config.logging))
            trainers[name] = trainer
        rounds = {name: trainer.iterate() for name, trainer in trainers.items()}
        try:
            chosen: list[int] | None = None  # by the first: all begin alike
            for name, trainer in trainers.items():
                for callback in trainer.callbacks:
                    if isinstance(callback, Pictures):
                        callback.chosen = chosen
                        callback.draw(trainer, 0)
                        chosen = callback.chosen
                yield progress(f"{ALGORITHMS.get(name, name)}: pictures before the first step")
            for step in range(1, plan.steps + 1):
                for name, steps in rounds.items():
                    if stopped():
                        return
                    next(steps)
                    yield progress(f"step {step} of {plan.steps}: {ALGORITHMS.get(name, name)}")
        finally:
            for name, trainer in trainers.items():
                if trainer.step_number < plan.steps:
                    trainer.stop(STOPPED)
                for _ in rounds[name]:  # saves, where that is not done
                    pass


def _new_folder(parent: Path) -> Path:
    """Make the folder `parent`/<date-time>, with a number where two begin in one second."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    for number in range(1, 100):
        folder = parent / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise OSError(f"there are 100 folders {parent / stamp}* already; try again in a second")


def _config(context: DemoContext, plan: Plan, algorithm: str, run: Path, prompt_file: Path) -> TrainConfig:
    reward = RewardConfig() if context.scorer.name == RewardConfig.name else RewardConfig(context.scorer.name, {})
    source = str(prompt_file)
    return TrainConfig(
        algorithm=resolve(algorithm, group_size=plan.group_size),
        generator=GeneratorConfig(
            checkpoint=context.models.checkpoints[plan.checkpoint],
            device=str(context.models.device),
            dtype=context.models.dtype,  # type: ignore[arg-type]
            compile="off",
        ),
        reward=reward,
        prompts=PromptsConfig(train=source, validation=source, test=source),
        optim=OptimConfig(lr=plan.lr, warmup_steps=0),
        logging=LoggingConfig(tensorboard=False, progress=False),
        checkpoint=CheckpointConfig(every=0),
        evaluate=EvaluateConfig(every=0, before=False, after=False),
        pictures=PicturesConfig(every=1, prompts=PICTURED, candidates=CANDIDATES, group=PICTURED_GROUP),
        output_dir=str(run),
        steps=plan.steps,
        prompts_per_step=plan.prompts_per_step,
        seed=plan.seed,
    )
