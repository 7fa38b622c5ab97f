"""`t2i-gcpo bench NAME`: measure our code and a plain baseline in one process, or where a run's time went.

A benchmark is a row of `BENCHMARKS`, a module with two functions: `add_arguments(parser)` and `run(options, console) ->
Report`. Each one with a baseline checks that both sides compute the same thing before it times them.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
from collections.abc import Sequence
from pathlib import Path

from t2i_gcpo.commands.options.number_types import positive, seed
from t2i_gcpo.commands.options.paths import home_path
from t2i_gcpo.utils.destination import check_file

__all__ = ["BENCHMARKS", "main", "parser", "parsers", "positive", "seed"]

#: Name -> (module, one line of help).
BENCHMARKS: dict[str, tuple[str, str]] = {
    "rollout": (
        "t2i_gcpo.bench.rollout",
        "sampling speed against transformers' generate or diffusers' pipeline, images/s",
    ),
    "step": ("t2i_gcpo.bench.step", "what a GCPO update costs over a GRPO update on the same rollout"),
    "credit": ("t2i_gcpo.bench.credit", "token weights of a whole batch against one image at a time"),
    "logprob": ("t2i_gcpo.bench.logprob", "memory and time of token log-probs against a full log-softmax"),
    "rewards": ("t2i_gcpo.bench.rewards", "the clip reward on a batch against one picture after the other, images/s"),
    "geneval": ("t2i_gcpo.bench.geneval", "what GenEval's verdict on ShapeScenes costs beside the sampling"),
    "remote": ("t2i_gcpo.bench.remote", "scoring over HTTP on the loopback interface against scoring in the process"),
    "memory": (
        "t2i_gcpo.bench.memory",
        "peak memory of a masked generator's update at many sampling steps against one",
    ),
    "policies": ("t2i_gcpo.bench.policies", "what the likelihoods of a masked generator cost, against commit_step"),
    "text": ("t2i_gcpo.bench.text", "what a step of GCPOTrainer costs over one of TRL's GRPOTrainer"),
    "gpu": ("t2i_gcpo.bench.gpu", "Janus-Pro on this machine in one go: rollout, update, drift, a whole step"),
    "ranks": ("t2i_gcpo.bench.ranks", "what several processes send one another for an update, against the least"),
    "phases": ("t2i_gcpo.bench.phases", "where the steps of a run spent their time"),
}

#: Benchmarks that write a folder, with a table beside the JSON; they run on a GPU unless told otherwise.
IN_FOLDER: tuple[str, ...] = ("gpu",)

USAGE = """usage: t2i-gcpo bench NAME [OPTIONS]

Measure our code and a plain baseline side by side; prints a table, and with --out FILE.json writes the numbers.

benchmarks:
{benchmarks}

`t2i-gcpo bench NAME --help` lists a benchmark's options."""


def usage() -> str:
    width = max(map(len, BENCHMARKS))
    lines = (f"  {name:<{width}}  {text}" for name, (_, text) in BENCHMARKS.items())
    return USAGE.format(benchmarks="\n".join(lines))


def main(argv: Sequence[str]) -> int:
    """Run one benchmark; exit status 0. ValueError for an unknown name, or settings that cannot be measured."""
    if argv and argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    names = ", ".join(BENCHMARKS)
    if not argv or argv[0].startswith("-"):
        raise ValueError(f"name the benchmark first: t2i-gcpo bench NAME [OPTIONS]; there are {names}")
    name, rest = argv[0], list(argv[1:])
    if name not in BENCHMARKS:
        close = difflib.get_close_matches(name, BENCHMARKS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"there is no benchmark {name!r}{hint} Benchmarks: {names}")
    module = importlib.import_module(BENCHMARKS[name][0])
    options = parser(name).parse_args(rest)
    if vars(options).get("pairs", 2) < 2:  # a benchmark that measures nothing anew has no pairs
        raise ValueError(f"--pairs is {options.pairs}; a spread needs at least 2")
    out: Path | None = options.out
    if out is not None and name in IN_FOLDER:
        out = out / f"{name}.json"
    if out is not None:
        check_file(out)

    import torch
    from rich.console import Console

    from t2i_gcpo.training.launch import is_first
    from t2i_gcpo.utils.files import write_atomically

    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:  # a wrong name, or a build of torch without it
        raise ValueError(f"--device {options.device} cannot be used: {error}") from error
    console = Console(quiet=not is_first())
    threads = torch.get_num_threads()
    try:
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        report = module.run(options, console)
        numbers = json.dumps(report.to_json(), indent=2, allow_nan=False)  # in here, as it tells the number of threads
    finally:
        torch.set_num_threads(threads)
    try:
        if out is not None and is_first():
            out.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(out, numbers + "\n")
            if name in IN_FOLDER:
                write_atomically(out.with_suffix(".md"), report.markdown())
    finally:  # what cannot be written can still be read
        console.print(report.table())
    if out is not None and is_first():
        console.print(f"wrote {out}", highlight=False, soft_wrap=True)
    return 0


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of every benchmark, by its name."""
    return {name: parser(name) for name in BENCHMARKS}


def parser(name: str) -> argparse.ArgumentParser:
    """Build the parser of one benchmark: its own options, and those that all have."""
    path, text = BENCHMARKS[name]
    parser = argparse.ArgumentParser(
        prog=f"t2i-gcpo bench {name}", description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    importlib.import_module(path).add_arguments(parser)
    parser.add_argument(
        "--threads", type=positive, default=None, help="threads of torch on the CPU; None: torch's choice"
    )
    device = "cuda" if name in IN_FOLDER else "cpu"
    parser.add_argument("--device", default=device, help="device of all sides, e.g. cuda")
    parser.add_argument("--seed", type=seed, default=0, help="seed of all random inputs")
    written = "folder for the JSON and a table" if name in IN_FOLDER else "JSON file to write"
    parser.add_argument("--out", type=home_path, default=None, help=written)
    return parser
