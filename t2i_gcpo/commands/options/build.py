"""Build generator, reward and sampling from the options of `t2i-gcpo train`.

This is the last place that knows the option groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewards.base import Reward
from t2i_gcpo.commands.options.config import GeneratorConfig, RewardConfig, SamplingConfig, TrainConfig, WatchConfig
from t2i_gcpo.data.prompts import limit
from t2i_gcpo.evaluation.scorable import check_scorable
from t2i_gcpo.generators.base import ImageGenerator
from t2i_gcpo.generators.compilation import CompileChoice
from t2i_gcpo.records import Prompt, Sampling
from t2i_gcpo.training.callbacks.pictures import Pictures
from t2i_gcpo.training.callbacks.reward_hacking import Watch
from t2i_gcpo.training.callbacks.validation import Validation
from t2i_gcpo.training.trainer import Trainer
from t2i_gcpo.utils.processes import ALONE, Processes

COMPILE: dict[str, CompileChoice] = {"auto": "auto", "on": True, "graphs": "graphs", "off": False}


def generator(options: GeneratorConfig, *, seed: int, processes: Processes = ALONE) -> ImageGenerator:
    """Load the checkpoint, with LoRA adapters where a rank is given, else with those that it has merged.

    seed: of the values of new adapters.
    """
    from t2i_gcpo import generators

    # Only what was asked for, so that a generator that has no such option refuses it.
    own = {name: vars(options)[name] for name in (*generators.MASKED_OPTIONS, *generators.SEQUENTIAL_OPTIONS)
           if vars(options)[name] != vars(GeneratorConfig())[name]}  # fmt: skip
    loaded = generators.load(
        options.checkpoint,
        device=processes.device(options.device),
        dtype=options.dtype,
        revision=options.revision,
        layers=options.layers,
        width=options.width,
        max_batch=options.rows_at_once,
        compile=COMPILE[options.compile],
        gradient_checkpointing=options.gradient_checkpointing is True,  # "auto" is settled in device_choices.py
        decode_dtype=options.decode_dtype,
        merge_adapters=options.merge_adapters,
        **own,
    )
    if options.lora_rank:
        loaded.add_lora(rank=options.lora_rank, alpha=options.lora_alpha, seed=seed)
    elif loaded.has_lora:
        loaded.merge_lora()  # rank 0 trains all parameters, those that came with adapters, too
    return loaded


def reward(options: RewardConfig) -> Reward:
    import rewards

    return rewards.load(options.name, **options.options)


def held_out(options: WatchConfig) -> dict[str, Reward]:
    """Name -> scorer that a run logs and does not train on."""
    import rewards

    return {name: rewards.load(name) for name in options.rewards}


def sampling(options: SamplingConfig, *, guidance: float | None = None) -> Sampling:
    """Return how images are drawn; `guidance` replaces that of the options where it is given."""
    return Sampling.of(options, **({} if guidance is None else {"guidance": guidance}))


@dataclass(frozen=True)
class Scorers:
    """Holds the scorers of a run."""

    reward: Reward
    watched: dict[str, Reward]
    """Name -> scorer that is logged and not trained on."""


def scorers(
    config: TrainConfig, training: list[Prompt], validation: list[Prompt], test: Sequence[Prompt] = ()
) -> Scorers:
    """Load the scorers of a run. ValueError for a prompt that one cannot score; `test`: those of the evaluations."""
    loaded = Scorers(reward(config.reward), held_out(config.watch))
    check_scorable([*training, *validation, *test], loaded.reward)
    check_scorable([*training, *test], *loaded.watched.values())
    return loaded


def build_trainer(
    config: TrainConfig,
    training: list[Prompt],
    validation: list[Prompt],
    scored: Scorers | None = None,
    processes: Processes = ALONE,
) -> Trainer:
    """Build the trainer that the options describe, with its callbacks and without a tracker.

    scored: the run's scorers where they are loaded already. ValueError, before the generator is loaded, for a prompt
    that a scorer cannot score.
    """
    scored = scorers(config, training, validation) if scored is None else scored
    scorer, watched = scored.reward, scored.watched
    evaluation = sampling(config.sampling, guidance=config.evaluate.guidance)
    validate = Validation(
        limit(validation, config.evaluate.limit, repeat=True),
        scorer,
        sampling=evaluation,
        every=config.evaluate.every,
        seed=config.evaluate.seed,
        batch=config.generator.rows_at_once,
    )
    draw = Pictures(
        limit(validation, max(config.pictures.prompts, config.pictures.candidates)),
        scorer,
        sampling=sampling(config.sampling),
        every=config.pictures.every,
        group=min(config.pictures.group, config.algorithm.group_size),
        seed=config.evaluate.seed,
        shown=config.pictures.prompts,
        negative_prompt=config.sampling.negative_prompt,
    )
    watch = Watch(watched, every=config.watch.every)
    return Trainer(
        generator(config.generator, seed=config.seed, processes=processes),
        scorer,
        training,
        config.output_dir,
        algorithm=config.algorithm,
        loop=config,
        sampling=config.sampling,
        optim=config.optim,
        checkpoint=config.checkpoint,
        balanced=config.prompts.balanced,
        callbacks=[watch, validate, draw],
        processes=processes,
    )
