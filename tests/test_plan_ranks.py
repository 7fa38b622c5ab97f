"""What a plan says that a card of several holds, against every tensor of an update by the code that trains."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from helpers import ranks_memory, tiny
from helpers.pages import ROOT
from helpers.ranks_cases import together
from helpers.ranks_memory import GROUP, PROMPTS, Alike, Copying, measure
from t2i_gcpo import generators
from t2i_gcpo.commands import plan as plan_command
from t2i_gcpo.commands.options.arguments import parse
from t2i_gcpo.commands.options.planned import USUAL_COLUMNS, workload
from t2i_gcpo.commands.plan import plans
from t2i_gcpo.planning import cards
from t2i_gcpo.planning.plan import load, plan
from t2i_gcpo.planning.sources import find
from t2i_gcpo.training import sharded_weights

PAGE = ROOT / "docs" / "many_gpus.md"
RECIPES = sorted((ROOT / "configs" / "as_published").glob("*.yaml"))
SAID = re.compile(
    r"# By `t2i-gcpo plan(?: --gpus (\d+))?`, scorers not counted: ([\d.]+) GB and at least ([\d.]+) h on an H100(.*)"
)
TABLE = "| part | 1 process | 8, `update` | 8, `micro_batch` |\n|---|---|---|---|\n"


def planned(folder: str, dtype: str, micro_batch: int, gpus: int, reduce: str = "update") -> dict[str, int]:
    """Return each phase's bytes beside the generator's own weights."""
    prompts = str(gpus * len(PROMPTS))
    options = {"--generator.checkpoint": folder, "--generator.dtype": dtype, "--micro-batch": str(micro_batch),
               "--prompts-per-step": prompts, "--algorithm.group-size": str(GROUP), "--algorithm.kl-coef": "0",
               "--kl-every": "0", "--generator.device": "cpu", "--reduce-gradients": reduce,
               "--generator.compile": "off"}  # as it is measured, without buffers of keys and values  # fmt: skip
    config, source = parse([word for pair in options.items() for word in pair]).settings, find(folder)
    columns = generators.load(folder, compile=False).prompts.encode([prompt.text for prompt in PROMPTS]).ids.shape[1]
    made = plan(load(source, generators.as_dtype(dtype)), workload(config, source, columns=columns, gpus=gpus))
    own = ("policy", "rest of the model")
    return {phase.name: sum(size for part, size in phase.parts.items() if part not in own) for phase in made.phases}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "dtype", "micro_batch", "reduce", "sizes"),
    [
        (2, "float32", 1, "update", {"width": 64}),
        (8, "bfloat16", 1, "update", {"width": 64}),
        (4, "bfloat16", 8, "update", {"width": 64}),
        (8, "bfloat16", 1, "micro_batch", {"width": 64}),
        # Gradients of a pass are more than its activations, as in a large model whose layers are checkpointed.
        (8, "bfloat16", 1, "micro_batch", {"width": 256, "layers": 6}),
    ],
)
def test_each_phase_holds_what_the_plan_says(
    count: int,
    dtype: str,
    micro_batch: int,
    reduce: str,
    sizes: dict[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = str(tiny.checkpoint(tmp_path / "model", **sizes))
    monkeypatch.setattr(sharded_weights, "BUCKET", 30_000)  # several buckets
    monkeypatch.setattr(sharded_weights, "dist", Copying)
    measured = measure(folder, dtype, micro_batch, Alike(count), reduce)
    said = planned(folder, dtype, micro_batch, count, reduce)
    print({phase: (measured[phase], said[phase], round(said[phase] / measured[phase] - 1, 3)) for phase in measured})
    for phase in measured:
        assert said[phase] == pytest.approx(measured[phase], rel=0.05), phase


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_hold_what_the_plan_says(tmp_path: Path) -> None:
    """gloo's copies are its own, and not counted."""
    folder, file = str(tiny.checkpoint(tmp_path / "model", width=64)), tmp_path / "peaks.json"
    done = together(2, Path(ranks_memory.__file__), folder, "bfloat16", "1", file)
    assert done.returncode == 0, done.stderr[-3000:]
    measured, said = json.loads(file.read_text()), planned(folder, "bfloat16", 1, 2)
    print({phase: (measured[phase], said[phase]) for phase in measured})
    assert said["update"] == pytest.approx(measured["update"], rel=0.05)
    for phase in ("exchange", "optimizer"):
        assert 0.75 < measured[phase] / said[phase] <= 1.01, phase


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["gcpo", "dapo"])
def test_the_numbers_of_the_7b_recipes_are_those_of_their_plans(name: str) -> None:
    """The files' own, and the table of the page, by part and in all."""
    path = ROOT / "configs" / f"janus_pro_7b_geneval_{name}.yaml"
    config = parse(["--config", str(path)]).settings
    source = find(config.generator.checkpoint)
    asked = workload(config, source, columns=USUAL_COLUMNS, gpus=8)
    made = plans(config, source, [cards.CARDS["H100"]], asked)[0].plan
    assert f"{made.peak.total / cards.GB:.1f} GB a card at the peak of the phase {made.peak.name}" in path.read_text()
    if name == "gcpo":
        rows = [
            line.strip("| ").split(" | ") for line in PAGE.read_text().split(TABLE)[1].split("\n\n")[0].splitlines()
        ]
        update = next(phase for phase in made.phases if phase.name == "update")
        sizes = [f"{size / cards.GB:.1f}" for size in (*update.parts.values(), update.total, made.sent) if size]
        assert sorted(row[-1] for row in rows) == sorted(sizes)


def test_the_recipes_of_papers_say_what_they_need() -> None:
    assert len(RECIPES) == 5
    assert all(SAID.search(path.read_text(encoding="utf-8")) for path in RECIPES)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_numbers_of_the_recipes_of_papers_are_those_of_their_plans(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On H100s, which hold them, and on RTX 4090s, of which one trains adapters and none a whole model."""
    monkeypatch.setattr(plan_command, "advise", lambda *args: [])  # what to change takes minutes to work out
    said = SAID.search(path.read_text(encoding="utf-8"))
    assert said is not None
    config = parse(["--config", str(path)]).settings
    source = find(config.generator.checkpoint)
    asked = workload(config, source, columns=USUAL_COLUMNS, gpus=int(said[1] or 1))
    large, small = plans(config, source, [cards.CARDS["H100"], cards.CARDS["RTX4090"]], asked)
    numbers = [f"{large.plan.peak.total / cards.GB:.1f}", f"{large.plan.hours(large.card):.1f}"]
    assert large.plan.fits(large.card) and [said[2], said[3]] == numbers
    assert small.plan.fits(small.card) == (" GB and " in said[4])
    if small.plan.fits(small.card):
        held = f"{small.plan.peak.total / cards.GB:.1f} GB and {small.plan.hours(small.card):.1f} h on an RTX 4090"
        assert held in said[4]
