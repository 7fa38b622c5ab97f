"""`t2i-gcpo COMMAND`: find the command, run it, turn a user's mistake into one line.

A command is a row of `COMMANDS`; its module is imported when it is called, so `t2i-gcpo --help` is instant. A command's
function takes the arguments after its name and returns an exit status or None.

A ValueError, OSError or ImportError that reaches this file is a message for the user: it is printed as `error: ...` and
the exit status is 2; so is a FloatingPointError (a training that diverged), with status 1. Set T2I_GCPO_TRACEBACK=1 to
see where it came from. Everything else is a defect and keeps its traceback.

No command fails for what it prints: see `utils/terminal.py`.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from t2i_gcpo.utils.terminal import check_argument, lost_output, protect_streams

#: Name -> (function, one line of help).
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("t2i_gcpo.commands.train:main", "fine-tune a generator with GCPO, GRPO or DAPO"),
    "plan": ("t2i_gcpo.commands.plan:main", "say what a run needs before it starts: memory by part, hours, which card"),
    "sample": ("t2i_gcpo.commands.sample:main", "sample images for a prompt"),
    "eval": (
        "t2i_gcpo.commands.evaluate:main",
        "score a checkpoint on held-out prompts, per task, with confidence intervals",
    ),
    "score": ("t2i_gcpo.commands.score:main", "score a folder of images or a run's samples with any scorer"),
    "serve-rewards": (
        "t2i_gcpo.commands.serve_rewards:main",
        "serve a scorer over HTTP, for training runs that score elsewhere",
    ),
    "heatmap": ("t2i_gcpo.commands.heatmap:main", "draw the credit of each token over an image"),
    "credit-alignment": (
        "t2i_gcpo.commands.credit_alignment:main",
        "measure which rule of credit points a batch's gradient best along the true one",
    ),
    "credit-truth": (
        "t2i_gcpo.commands.credit_truth:main",
        "measure what each token does to the reward, and compare the rules of credit with it",
    ),
    "export": (
        "t2i_gcpo.commands.export:main",
        "save what training changed: a small delta to its base, or a whole model with a card",
    ),
    "convert": (
        "t2i_gcpo.commands.convert:main",
        "convert a checkpoint of Janus between its authors' layout and that of transformers",
    ),
    "compare": ("t2i_gcpo.commands.compare:main", "curves, a table and a report of several runs"),
    "text": (
        "t2i_gcpo.commands.text:main",
        "GCPO for chain-of-thought language models: train, eval, heatmap, credit, study",
    ),
    "demo": ("t2i_gcpo.demo:main", "compare, inspect and train in the browser"),
    "study": ("t2i_gcpo.study.command:main", "train several arms with several seeds, pooled in one table"),
    "bench": ("t2i_gcpo.bench:main", "measure speed and memory"),
    "prompts": ("t2i_gcpo.commands.prompts:main", "write the embedded prompts or their vocabulary to a file"),
    "pretrain": (
        "t2i_gcpo.pretrain.command:main",
        "train an embedded checkpoint from scratch: janus, textured, amused, clip or text",
    ),
    "verdicts": ("t2i_gcpo.pretrain.verdicts:main", "check the embedded scorer on rendered and on decoded scenes"),
    "doctor": ("t2i_gcpo.commands.doctor:main", "check the installation"),
}

#: Commands that have commands of their own; their modules have `parsers()`, name -> parser, where others have
#: `parser()`.
GROUPS: tuple[str, ...] = ("bench", "pretrain", "text")

#: Commands that several processes of one torchrun work on together.
SHARED: tuple[str, ...] = ("train", "bench", "text")

USAGE = """usage: t2i-gcpo COMMAND [OPTIONS]
       t2i-gcpo --version

Reinforcement learning with token-level credit for discrete-token text-to-image models.

commands:
{commands}

`t2i-gcpo COMMAND --help` lists a command's options. First run: t2i-gcpo train --config configs/quickstart.yaml"""


def usage() -> str:
    width = max(map(len, COMMANDS))
    return USAGE.format(commands="\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0: done, 1: the command found something wrong, or its output could not be written, 2: a user's mistake, 130:
    interrupted.
    """
    descriptors = protect_streams()
    status = _run(list(sys.argv[1:] if argv is None else argv))
    lost = lost_output(descriptors)
    if lost is not None:
        print(f"error: what this command printed could not be written: {lost}", file=sys.stderr)
    return status or int(lost is not None)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        from t2i_gcpo import __version__

        print(f"t2i-gcpo {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {close[0]}?" if close else "."
        print(f"error: there is no command {name!r}{hint} Commands: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    count = os.environ.get("WORLD_SIZE", "1") if "TORCHELASTIC_RUN_ID" in os.environ else "1"
    if count != "1" and name not in SHARED:  # each would do the whole work, and write the same files
        if os.environ.get("RANK", "0") == "0":
            together = ", ".join(SHARED)
            print(
                f"error: torchrun started {count} processes, and {name} is the work of one; start it without torchrun "
                f"(several work together on {together})",
                file=sys.stderr,
            )
        return 2
    try:
        for argument in arguments:
            check_argument(argument)
        module, function = COMMANDS[name][0].split(":")
        return int(getattr(importlib.import_module(module), function)(rest) or 0)
    except SystemExit as stop:  # argparse and tyro leave this way, their message printed
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except (RuntimeError, MemoryError) as error:
        from t2i_gcpo.utils.device import is_out_of_memory  # it imports torch

        if not is_out_of_memory(error) or os.environ.get("T2I_GCPO_TRACEBACK"):
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        print(
            f"error: the device is out of memory ({reason}); do less at once (--batch), hold the model in bfloat16 "
            "(--dtype bfloat16), or take another device (--device); the command's --help lists those that it has",
            file=sys.stderr,
        )
        return 2
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if os.environ.get("T2I_GCPO_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, FloatingPointError) else 2


if __name__ == "__main__":
    sys.exit(main())
