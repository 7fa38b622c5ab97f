"""`t2i-gcpo verdicts`: check the embedded scorer on rendered scenes, before and after the VQ model.

On rendered scenes and after the VQ model has encoded and decoded them?

Half of the scenes are drawn for the prompt they are judged by and must pass; the other half are drawn for another
prompt of the same task, truly violate this one (judged by the objects that were drawn, not by what is detected), and
must fail.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
from torch import Tensor

from rewards.geneval import judge
from rewards.geneval.reward import GenEvalReward
from t2i_gcpo.commands.options.number_types import finite, positive, seed
from t2i_gcpo.commands.options.paths import home_path
from t2i_gcpo.data.shapes.prompts import TASKS, split
from t2i_gcpo.data.shapes.scene import Difficulty, Scene, Style, sample_scene
from t2i_gcpo.records import Prompt
from t2i_gcpo.reports.tables import print_note, print_table
from t2i_gcpo.utils.destination import check_file
from t2i_gcpo.utils.files import write_atomically

if TYPE_CHECKING:
    from t2i_gcpo.generators.janus.adapter import Janus


@dataclass(frozen=True)
class Case:
    """A scene and the prompt it is judged by."""

    prompt: Prompt
    scene: Scene
    passes: bool


def draw_cases(count: int, seed: int, style: Style = "plain") -> list[Case]:
    """Draw `count` cases over the six tasks and the three splits in equal parts, half of them violations."""
    rng, difficulty = random.Random(seed), Difficulty.of_style(style)
    by_task = {task: [p for name in ("train", "val", "test") for p in split(name) if p.task == task] for task in TASKS}
    cases = []
    for k in range(count):
        task = TASKS[k % len(TASKS)]
        prompt = rng.choice(by_task[task])
        passes = k // len(TASKS) % 2 == 0
        scene = sample_scene(prompt.metadata, rng, difficulty)
        while not passes:
            scene = sample_scene(rng.choice(by_task[task]).metadata, rng, difficulty)
            if not judge([thing.detection() for thing in scene.objects], prompt.metadata).correct:
                break
        cases.append(Case(prompt, scene, passes))
    return cases


def agreement(
    cases: Sequence[Case], transform: Callable[[Tensor], Tensor] | None = None
) -> dict[str, dict[str, float]]:
    """Return each task's share of right verdicts on `true` scenes, on `false` ones and on `all`.

    `transform` maps [B, 3, H, W] uint8 to the same.
    """
    reward = GenEvalReward(detector="shapes")
    right: dict[str, dict[bool, list[bool]]] = {task: {True: [], False: []} for task in TASKS}
    for start in range(0, len(cases), 50):
        part = cases[start : start + 50]
        images = torch.from_numpy(np.stack([case.scene.render() for case in part])).permute(0, 3, 1, 2).contiguous()
        if transform is not None:
            images = transform(images)
        verdicts = reward.verdicts(images, [c.prompt.text for c in part], [c.prompt.metadata for c in part])
        for case, verdict in zip(part, verdicts, strict=True):
            right[case.prompt.task][case.passes].append(verdict.correct == case.passes)
    return {
        task: {
            "true": float(np.mean(both[True])),
            "false": float(np.mean(both[False])),
            "all": float(np.mean(both[True] + both[False])),
        }
        for task, both in right.items()
    }


def through_vq(generator: Janus) -> Callable[[Tensor], Tensor]:
    """Encode with Janus' VQ model, and decode as training does."""

    @torch.no_grad()
    def transform(images: Tensor) -> Tensor:
        pixels = images.float() / 127.5 - 1
        codes = generator.model.model.vqmodel.encode(pixels).image_tokens
        return generator.decode(codes.view(len(images), -1))

    return transform


def main(argv: list[str] | None = None) -> int:
    """Print the table; exit status 1 where a task falls below its bound."""
    options = parser().parse_args(argv)
    if options.scenes < 2 * len(TASKS):
        raise ValueError(
            f"--scenes is {options.scenes}; at least {2 * len(TASKS)} give each task a true and a false scene"
        )
    if options.out:
        check_file(options.out)
    transform = None
    if options.checkpoint != "none":  # loaded first, so that a wrong name shows before any scene is judged
        from t2i_gcpo.generators.janus.adapter import Janus

        transform = through_vq(Janus.load(options.checkpoint))
    cases = draw_cases(options.scenes, options.seed, options.style)
    results = {"rendered": agreement(cases)}
    bounds = {"rendered": options.rendered_bound, "decoded": options.decoded_bound}
    if transform is not None:
        results["decoded"] = agreement(cases, transform)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(
            options.out,
            json.dumps({"scenes": len(cases), "seed": options.seed, "style": options.style, **results}, indent=2)
            + "\n",
        )
    kinds = [(kind, part) for kind in results for part in ("true", "false", "all")]
    print_table(
        ["task", *(f"{kind}: {part}" for kind, part in kinds)],
        [[task, *(f"{results[kind][task][part]:.3f}" for kind, part in kinds)] for task in TASKS],
        title=f"right verdicts on {len(cases)} {options.style} scenes, seed {options.seed}",
    )
    low = [
        f"{task} ({kind}) {results[kind][task]['all']:.3f} < {bounds[kind]}"
        for kind in results
        for task in TASKS
        if results[kind][task]["all"] < bounds[kind]
    ]
    if low:
        print_note("below the bound: " + ", ".join(low))
    return int(bool(low))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="t2i-gcpo verdicts", description=__doc__)
    parser.add_argument("--scenes", type=positive, default=2000, help="scenes in all (default: %(default)s)")
    parser.add_argument("--checkpoint", default="janus-mini", help='whose VQ model; "none" checks rendered scenes only')
    parser.add_argument(
        "--style", choices=get_args(Style), default="plain", help="of the scenes (default: %(default)s)"
    )
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument(
        "--rendered-bound", type=finite, default=0.99, help="least share of right verdicts on rendered scenes"
    )
    parser.add_argument("--decoded-bound", type=finite, default=0.95, help="the same after encoding and decoding")
    parser.add_argument("--out", type=home_path, help="JSON file to write")
    return parser
