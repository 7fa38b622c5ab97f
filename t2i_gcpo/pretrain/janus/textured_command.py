"""`t2i-gcpo pretrain textured`: train `janus-textured` from nothing, the autoregressive generator of textured scenes.

Its work folder is laid out as that of `t2i-gcpo pretrain janus`, and the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse

from t2i_gcpo.pretrain.janus.command import train
from t2i_gcpo.pretrain.stages import add_work_options


def main(argv: list[str] | None = None) -> int:
    """Train both stages, or go on with them, and write the checkpoint."""
    return train(parser().parse_args(argv), "janus-textured")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="t2i-gcpo pretrain textured", description=__doc__)
    add_work_options(parser, "runs/pretrain_textured", seed="seed of both stages ")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
