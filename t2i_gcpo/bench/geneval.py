"""Time GenEval's verdict on ShapeScenes against the sampling of the pictures that it judges.

A training step also computes log-probs and gradients, so the ratio is an upper bound on the scorer's share of a step;
the share in a real run is what `t2i-gcpo bench phases --run RUN` reads. P prompts, G images a prompt, B = P * G.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from torch import Tensor

from rewards.geneval.reward import GenEvalReward
from t2i_gcpo import generators
from t2i_gcpo.bench import positive
from t2i_gcpo.bench.measure import Report, check_same, cost, interleave, warm_up
from t2i_gcpo.commands.options.number_types import finite
from t2i_gcpo.data import prompts as prompt_files
from t2i_gcpo.data.prompts import limit
from t2i_gcpo.generators.compilation import can_compile
from t2i_gcpo.records import Prompt, Sampling
from t2i_gcpo.utils.device import pick_device

BASELINE = "sampling and decoding the same images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", default="janus-mini", help="embedded name, folder or hub repository")
    parser.add_argument("--pairs", type=positive, default=7, help="pairs that are measured")
    parser.add_argument("--prompts", default="shapes:val", help="file of GenEval rows, or shapes:train|val|test")
    parser.add_argument("--num-prompts", type=positive, default=6, help="prompts of a batch")
    parser.add_argument("--group-size", type=positive, default=16, help="images of a prompt")
    parser.add_argument("--guidance", type=finite, default=Sampling.guidance, help="guidance scale")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None,
                        help="compile the sampler; None: where torch can compile")  # fmt: skip


def judge(reward: GenEvalReward, images: Tensor, owners: list[Prompt]) -> Tensor:
    """Return the scores [B] of the images."""
    return reward(images, [prompt.text for prompt in owners], [prompt.metadata for prompt in owners]).scores


def run(options: argparse.Namespace, console: Console) -> Report:
    """Time both. ValueError: no such checkpoint, or no GenEval rows. RuntimeError: a score depends on the batch."""
    device = pick_device(options.device)
    compiled = can_compile(device) if options.compile is None else options.compile
    generator = generators.load(options.checkpoint, device=device, compile=compiled)
    prompts = limit(prompt_files.read(options.prompts), options.num_prompts, repeat=True)
    sampling = Sampling(group_size=options.group_size, guidance=options.guidance, seed=options.seed)
    owners = [prompt for prompt in prompts for _ in range(options.group_size)]
    reward = GenEvalReward(detector="shapes")

    def sample() -> Tensor:
        return generator.decode(generator.sample(prompts, sampling).tokens).cpu()

    images = sample()
    sides = {"ours": lambda: judge(reward, images, owners), "baseline": sample}
    warmup = warm_up(sides, device, console)
    alone = torch.cat([judge(reward, image[None], [owner]) for image, owner in zip(images, owners, strict=True)])
    check_same("scores, all at once and one by one,", sides["ours"](), alone, rtol=0, atol=0)
    console.print("checked: each picture has the score that it has alone", highlight=False)
    times = interleave(sides, options.pairs, device)
    line = cost("verdict", times["ours"], times["baseline"], unit="s", seed=options.seed)
    settings = {
        "checkpoint": options.checkpoint,
        "prompts": options.prompts,
        "num_prompts": len(prompts),
        "group_size": options.group_size,
        "images": len(images),
        "guidance": options.guidance,
        "compiled": compiled,
        "seed": options.seed,
    }
    return Report("geneval", (line,), BASELINE, warmup, device, settings)
