"""`t2i-gcpo pretrain [NAME]`: which embedded checkpoint to train; each has its own module and options."""

from __future__ import annotations

import argparse
import difflib
import importlib

#: Name -> (function, one line of help).
CHECKPOINTS: dict[str, tuple[str, str]] = {
    "janus": ("t2i_gcpo.pretrain.janus.command:main", "janus-mini, the autoregressive generator (the default)"),
    "textured": (
        "t2i_gcpo.pretrain.janus.textured_command:main",
        "janus-textured, the autoregressive generator of textured scenes",
    ),
    "amused": ("t2i_gcpo.pretrain.amused.command:main", "amused-mini, the masked generator, on janus-mini's VQ model"),
    "clip": ("t2i_gcpo.pretrain.clip.command:main", "clip-mini, the scorer of pictures and captions"),
    "text": ("t2i_gcpo.pretrain.text.command:main", "text-mini, the language model of the arithmetic task"),
}
DEFAULT = "janus"

USAGE = """usage: t2i-gcpo pretrain [NAME] [OPTIONS]

Train an embedded checkpoint from scratch; the same command again goes on where it was stopped.

checkpoints:
{checkpoints}

`t2i-gcpo pretrain NAME --help` lists a checkpoint's options."""


def usage() -> str:
    width = max(map(len, CHECKPOINTS))
    return USAGE.format(checkpoints="\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in CHECKPOINTS.items()))


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of every checkpoint's pre-training, by its name."""
    return {name: importlib.import_module(path.split(":")[0]).parser() for name, (path, _) in CHECKPOINTS.items()}


def main(argv: list[str]) -> int:
    """Train one checkpoint; its command's exit status. ValueError for an unknown name."""
    if argv and argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    name, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (DEFAULT, argv)
    if name not in CHECKPOINTS:
        close = difflib.get_close_matches(name, CHECKPOINTS, n=1)
        hint = f"; did you mean {close[0]}?" if close else "."
        raise ValueError(f"there is no embedded checkpoint {name!r}{hint} Checkpoints: {', '.join(CHECKPOINTS)}")
    module, function = CHECKPOINTS[name][0].split(":")
    return int(getattr(importlib.import_module(module), function)(list(rest)))
