"""Time the sampling of a masked generator, in images per second, against the loop of diffusers' own pipeline.

The same model, prompts, steps, guidance and batch on both sides, the texts encoded before. The pipeline is eager, ours
eager and compiled. Ours also keeps what training needs (both log-probs, the behaviour log-prob, the entropy, the commit
steps); the pipeline keeps the tokens. P prompts, G images a prompt, B = P * G rows, T tokens, N steps.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from einops import rearrange
from rich.console import Console
from torch import Tensor

from t2i_gcpo.bench.measure import Report, Side, interleave, speed_up, warm_up
from t2i_gcpo.bench.sampling_workload import any_tokens, batch_size, check_distribution, scored, settings
from t2i_gcpo.generators.amused.adapter import Amused
from t2i_gcpo.generators.amused.parts import NULL, Texts
from t2i_gcpo.records import Prompt, Rollout, Sampling, Unmasking
from t2i_gcpo.utils.device import pick_device

BASELINE = "diffusers' AmusedPipeline"


class Pipeline:
    """Sample with diffusers' pipeline, the baseline, with its texts encoded.

    ValueError: a plan of unmasking that AmusedScheduler does not have.
    """

    def __init__(self, generator: Amused, prompts: list[Prompt], sampling: Sampling) -> None:
        from diffusers.pipelines.deprecated.amused.pipeline_amused import AmusedPipeline

        parts = generator.parts
        if (parts.scheduler.config.masking_schedule, "confidence") != (
            sampling.unmasking.schedule,
            sampling.unmasking.order,
        ):
            raise ValueError(
                f"the checkpoint's scheduler has the schedule {parts.scheduler.config.masking_schedule!r} and the "
                "order by confidence; "
                f"the plan here is {sampling.unmasking.schedule!r}, {sampling.unmasking.order!r}"
            )  # fmt: skip
        self.run = AmusedPipeline(parts.vqvae, parts.tokenizer, parts.text_encoder, parts.transformer, parts.scheduler)
        self.run.set_progress_bar_config(disable=True)
        self.sampling, self.mask_token, self.device = sampling, parts.mask_token, generator.device
        rows = [prompt.text for prompt in prompts for _ in range(sampling.group_size)]
        self.texts: Texts = generator.texts(rows)
        self.null: Texts = generator.texts([NULL] * len(rows))

    def __call__(self, watch: Any = None) -> Tensor:
        """Sample tokens [B, T]. `watch(step, timestep, latents)` is called after each step."""
        first, last = self.sampling.unmasking.temperature, 0.0
        latents = self.run(
            prompt_embeds=self.texts.pooled,
            encoder_hidden_states=self.texts.hidden,
            negative_prompt_embeds=self.null.pooled,
            negative_encoder_hidden_states=self.null.hidden,
            num_inference_steps=self.sampling.unmasking.steps,
            guidance_scale=self.sampling.guidance,
            temperature=(first, last),
            generator=torch.Generator(self.device).manual_seed(self.sampling.seed),
            output_type="latent",
            return_dict=False,
            callback=watch,
        )[0]
        return rearrange(latents, "b h w -> b (h w)")

    def rollout(self, like: Rollout) -> Rollout:
        """Sample tokens and the steps that committed them, as a rollout to be scored."""
        commit = torch.full_like(like.commit_step, self.sampling.unmasking.steps)

        def watch(step: int, timestep: Any, latents: Tensor) -> None:
            known = latents.flatten(1) != self.mask_token
            commit[known & (commit == self.sampling.unmasking.steps)] = step

        return replace(like, tokens=self(watch), commit_step=commit)


def measure(
    options: argparse.Namespace, console: Console, generator: Amused, prompts: list[Prompt], *, compiled: bool
) -> Report:
    """Time both sides; `compiled`: measure our compiled sampler too.

    ValueError: a batch of one image. RuntimeError: the sides sample from different distributions.
    """
    device = pick_device(options.device)
    plan = Unmasking(steps=options.steps)
    sampling = Sampling(group_size=options.group_size, guidance=options.guidance, seed=options.seed, unmasking=plan)
    batch = batch_size(options, len(prompts))
    baseline = Pipeline(generator, prompts, sampling)
    tokens = any_tokens(generator, batch, options.seed, device)

    def ours(compile: bool) -> Rollout:
        generator.compiles.choice = compile
        return generator.sample(prompts, sampling)

    kinds = {"compiled": True, "eager": False} if compiled else {"eager": False}
    sides: dict[str, Side] = {name: partial(ours, flag) for name, flag in kinds.items()}
    sides |= {"baseline": baseline, "decode": lambda: generator.decode(tokens)}
    warmup = warm_up(sides, device, console)
    for flag in kinds.values():
        check(generator, rollout := ours(flag), baseline.rollout(rollout))
    console.print("checked: same distribution when sampling", highlight=False)
    times = interleave(sides, options.pairs, device)
    decoded = {name: [a + b for a, b in zip(spent, times["decode"], strict=True)] for name, spent in times.items()}
    fastest = next(iter(kinds))
    lines = tuple(
        speed_up(name, spent[side], spent["baseline"], work=batch, unit="images/s", seed=options.seed)
        for name, side, spent in (*((kind, kind, times) for kind in kinds), ("with_decode", fastest, decoded))
    )
    about = settings(options, generator, len(prompts), compiled=compiled, steps=options.steps)
    return Report("rollout", lines, BASELINE, warmup, device, about)


def check(generator: Amused, ours: Rollout, theirs: Rollout) -> None:
    """Raise a RuntimeError unless both rollouts' mean log-probs are those of samples of one distribution.

    Each token is scored in the state that committed it. Another guidance, temperature, schedule or confidence moves the
    mean.
    """
    mine, other = (scored(generator, rollout).mean(dim=1) for rollout in (ours, theirs))
    check_distribution("our tokens and the baseline's", mine, other)
