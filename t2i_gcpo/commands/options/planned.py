"""Turn the options of a run into what a plan asks: the workload, and the columns of its longest prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from t2i_gcpo import generators
from t2i_gcpo.commands.options import build
from t2i_gcpo.commands.options.config import ROWS, EvaluateConfig, TrainConfig
from t2i_gcpo.data.formats import read_named
from t2i_gcpo.generators import merging
from t2i_gcpo.generators.compilation import CompileChoice
from t2i_gcpo.generators.tokens.branches import Branches
from t2i_gcpo.generators.tokens.logprobs import DEFAULT_CHUNK
from t2i_gcpo.planning.models import PassOptions
from t2i_gcpo.planning.sources import Source
from t2i_gcpo.planning.workload import Workload, branches
from t2i_gcpo.records import Prompt, Sampling

#: Columns of a prompt whose tokenizer is not here: a frame of some 14 tokens, and a sentence of 30 words.
USUAL_COLUMNS = 64
#: Prompts of an evaluation that takes all of a file: more than are sampled at once.
MANY = 10**6


def workload(config: TrainConfig, source: Source, *, columns: int, gpus: int = 1) -> Workload:
    """Return what a run asks of its model, without what it leaves to the device.

    gpus: cards that the images and the optimiser's state are shared out to.
    """
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
        gradient_checkpointing=options.gradient_checkpointing is True,
        head_chunk=options.head_chunk or DEFAULT_CHUNK,
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
        max_batch=options.rows_at_once,
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
        averaged=config.optim.average_decay > 0,
        validation_every=config.evaluate.every,
        validation_images=config.evaluate.limit,
        evaluated=_evaluated(config.evaluate),
        gpus=gpus,
        each_pass=config.reduce_gradients == "micro_batch",
    )


def drawing(
    source: Source,
    drawn: Sampling,
    *,
    images: int,
    dtype: torch.dtype,
    compile: CompileChoice,
    negative: bool,
    columns: int,
) -> Workload:
    """Return what a command that trains nothing asks of its model: to sample, decode and score so many images.

    drawn: how, with the images of a prompt. negative: they are contrasted with a text of their own.
    """
    rank = source.adapter_rank
    passes = PassOptions(
        dtype=dtype,
        distribution="conditional",
        guidance=drawn.guidance,
        lora_rank=rank,
        prompt_columns=columns,
        sampling_steps=drawn.unmasking.steps,
        order=drawn.unmasking.order,
        schedule=drawn.unmasking.schedule,
    )
    return Workload(
        steps=1,
        prompts=-(-images // drawn.group_size),
        group=drawn.group_size,
        micro_batch=1,
        max_batch=ROWS,
        updates=1,
        epochs=1,
        branches=Branches.of(drawn, negative=negative).count,
        negative_text=False,
        kl_always=False,
        kl_every=0,
        compile=compile,
        on_cpu=False,
        merged=merging.pays("auto", dtype),
        options=passes,
        trains=False,
    )


def _evaluated(options: EvaluateConfig) -> int:
    """Return the images of the largest evaluation: one a prompt, of `MANY` prompts where it takes all."""
    sizes = [options.limit] if options.every else []
    sizes += [options.test_limit] if options.before or options.after else []
    return max((size or MANY for size in sizes), default=0)


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
    width = columns_of(source, [prompt.text for prompt in prompts])
    return width, f"prompts of at most {width} tokens, counted"


def columns_of(source: Source, texts: Sequence[str]) -> int:
    """Count the columns of the longest of some prompts; 0 for models that encode texts apart."""
    if source.kind != "janus":
        return 0
    from t2i_gcpo.generators.janus.prompts import PromptEncoder
    from t2i_gcpo.planning.janus import processor

    encoder = PromptEncoder(processor(source), torch.device("cpu"))
    return int(encoder.encode(list(texts)).ids.shape[1])


def training_prompts(config: TrainConfig) -> list[Prompt]:
    return read_named(config.prompts.train, format=config.prompts.format, column=config.prompts.column)
