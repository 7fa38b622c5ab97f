"""Time sampling with guidance, in images per second, against transformers' own `generate`.

A masked generator's baseline is diffusers' pipeline: `rollout_masked.py`. The same model, prompts, guidance and number
of images on both sides, no truncation. Ours also keeps what training needs (both log-probs, the behaviour log-prob, the
entropy); `generate` keeps the tokens alone. P prompts, G images a prompt, B = P * G rows, T tokens.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from t2i_gcpo import generators
from t2i_gcpo.bench import positive, rollout_masked
from t2i_gcpo.bench.measure import Report, interleave, speed_up, warm_up
from t2i_gcpo.bench.sampling_workload import any_tokens, batch_size, check_distribution, scored, settings
from t2i_gcpo.commands.options.number_types import finite
from t2i_gcpo.data import prompts as prompt_files
from t2i_gcpo.data.prompts import limit
from t2i_gcpo.generators.amused.adapter import Amused
from t2i_gcpo.generators.compilation import can_compile
from t2i_gcpo.generators.janus.adapter import Janus
from t2i_gcpo.records import Prompt, Rollout, Sampling
from t2i_gcpo.utils.device import pick_device

BASELINE = "transformers' generate"
TIE = 1e-3
"""Logits of a greedy step that are this near one another, in nats, may come out in either order (fp32, guided)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        default="janus-mini",
        help="a Janus or aMUSEd checkpoint: embedded name, folder or hub repository",
    )
    parser.add_argument("--pairs", type=positive, default=7, help="rounds that are measured")
    parser.add_argument("--prompts", default="shapes:val", help="prompt file, or shapes:train|val|test")
    parser.add_argument("--num-prompts", type=positive, default=8, help="prompts of a batch")
    parser.add_argument("--group-size", type=positive, default=8, help="images of a prompt")
    parser.add_argument("--guidance", type=finite, default=Sampling.guidance, help="guidance scale, above 1")
    parser.add_argument("--steps", type=positive, default=12, help="sampling steps of a masked checkpoint")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None,
                        help="measure our compiled sampler; None: where torch can compile")  # fmt: skip


def generate(generator: Janus, prompts: list[Prompt], sampling: Sampling) -> Tensor:
    """Sample tokens [B, T] with `generate`, the baseline, in the row order of `Janus.sample`.

    Temperature 0 is greedy.
    """
    encoded = generator.prompts.encode([prompt.text for prompt in prompts])
    group = sampling.group_size
    choice: dict[str, Any] = {"do_sample": False}
    if sampling.temperature:
        # Without these, transformers' defaults would truncate.
        choice = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
    with torch.random.fork_rng(devices=[generator.device] if generator.device.type == "cuda" else []):
        torch.manual_seed(sampling.seed)
        return generator.model.generate(
            input_ids=encoded.ids.repeat_interleave(group, dim=0),
            attention_mask=encoded.mask.long().repeat_interleave(group, dim=0),
            generation_mode="image",
            guidance_scale=sampling.guidance,
            **choice,
        )


def run(options: argparse.Namespace, console: Console) -> Report:
    """Time both sides.

    ValueError: a checkpoint without a baseline, no guidance, compilation where it cannot be. RuntimeError: the sides
    differ.
    """
    if options.guidance <= 1:
        raise ValueError(f"--guidance is {options.guidance}; the baselines sample with guidance above 1 only")
    device = pick_device(options.device)
    generator = generators.load(options.checkpoint, device=device, compile=options.compile is True)
    if not isinstance(generator, (Amused, Janus)):
        raise ValueError(
            f"{options.checkpoint} is a {generator.kind} checkpoint; there are baselines for janus and amused"
        )
    if isinstance(generator, Janus):
        generator.model.to(generator.device)  # `generate` asks the parts for their device that it does not run
    prompts = limit(prompt_files.read(options.prompts), options.num_prompts, repeat=True)
    compiled = can_compile(device) if options.compile is None else options.compile
    if isinstance(generator, Amused):
        return rollout_masked.measure(options, console, generator, prompts, compiled=compiled)
    sampling = Sampling(group_size=options.group_size, guidance=options.guidance, seed=options.seed)
    batch = batch_size(options, len(prompts))

    def ours(compile: bool, how: Sampling = sampling) -> Rollout:
        generator.compiles.choice = compile
        return generator.sample(prompts, how)

    fastest = "compiled" if compiled else "eager"
    sides = {fastest: lambda: ours(compiled), "baseline": lambda: generate(generator, prompts, sampling)}
    if compiled:
        sides["eager"] = lambda: ours(False)
    tokens = any_tokens(generator, batch, options.seed, device)
    sides["decode"] = lambda: generator.decode(tokens)
    warmup = warm_up(sides, device, console)
    greedy = replace(sampling, temperature=0.0)
    rollouts = {
        name: (ours(flag), ours(flag, greedy)) for name, flag in (("compiled", True), ("eager", False)) if name in sides
    }
    check(generator, rollouts, generate(generator, prompts, sampling), generate(generator, prompts, greedy))
    console.print("checked: same greedy tokens, same distribution when sampling", highlight=False)

    times = interleave(sides, options.pairs, device)
    decoded = {name: [a + b for a, b in zip(spent, times["decode"], strict=True)] for name, spent in times.items()}
    lines = [
        speed_up(name, times[name], times["baseline"], work=batch, unit="images/s", seed=options.seed)
        for name in (("compiled", "eager") if compiled else ("eager",))
    ]
    with_decode = speed_up(
        "with_decode", decoded[fastest], decoded["baseline"], work=batch, unit="images/s", seed=options.seed
    )
    about = settings(options, generator, len(prompts), compiled=compiled)
    return Report("rollout", (*lines, with_decode), BASELINE, warmup, device, about)


def check(generator: Janus, rollouts: dict[str, tuple[Rollout, Rollout]], sampled: Tensor, greedy: Tensor) -> None:
    """Raise a RuntimeError unless our rollouts and the baseline's tokens [B, T] come from one model and distribution.

    rollouts: name -> (sampled, greedy). Greedy sequences are determined up to ties, so each must be a greedy one under
    the teacher-forced guided logits. Of sampled ones the mean log-prob is compared: another temperature, guidance or
    truncation moves it.
    """
    first_sampled, first_greedy = next(iter(rollouts.values()))
    candidates = dict(rollouts)
    candidates["baseline"] = (replace(first_sampled, tokens=sampled), replace(first_greedy, tokens=greedy))
    scores = {}
    for name, (drawn, best) in candidates.items():
        # At temperature 0 the most likely token scores 0, another one -ln(1 + exp(gap)).
        if float(scored(generator, best).min()) < -math.log1p(math.exp(TIE)):
            raise RuntimeError(
                f"the greedy tokens of {name} are not the most likely ones under guidance {best.sampling.guidance}"
            )
        scores[name] = scored(generator, drawn).mean(dim=1)
    theirs = scores.pop("baseline")
    for name, mine in scores.items():
        check_distribution(f"the tokens of {name} and of the baseline", mine, theirs)
