"""`t2i-gcpo pretrain text`: train `text-mini`, a small Llama for the arithmetic task, from nothing.

The work folder holds `language/state.pt` (written atomically, so that the same command goes on where it was stopped)
and `language/log.jsonl`; at the end it holds `text-mini/` in transformers' layout, with a model card.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from t2i_gcpo.evaluation.intervals import in_words
from t2i_gcpo.pretrain.stages import Stage, add_work_options, prepare
from t2i_gcpo.pretrain.text.model import TextShape, build, save, tokenizer
from t2i_gcpo.pretrain.text.train import TextSettings, TextTrainer


def pretrain(work: Path, settings: TextSettings, shape: TextShape, *, every: int = 10) -> Path:
    """Train, or go on from what the work folder holds, and return the folder of the finished model."""
    trainer = TextTrainer(settings, build(shape, settings.seed), tokenizer())
    stage = Stage(work / "language", "language model", settings.end, settings)
    model = stage.run(trainer, every=every)
    folder = work / "text-mini"
    save(model, folder)
    return folder


def main(argv: list[str] | None = None) -> int:
    """Train the model, or go on with it, and write the checkpoint.

    Exit status 1 where it is too weak or too strong to start from.
    """
    options = parser().parse_args(argv)
    prepare(options)
    settings = TextSettings(seed=options.seed, end=options.steps)
    folder = pretrain(options.out, settings, TextShape())
    from t2i_gcpo.pretrain.text import card

    result = card.write(folder, options.out)
    print(f"arithmetic:test {in_words(result.overall, result.ci95, result.n)}")
    print(f"wrote {folder}; use it with --model {folder}")
    return int(not 0.2 <= result.overall <= 0.7)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="t2i-gcpo pretrain text", description=__doc__)
    add_work_options(parser, "runs/pretrain_text", steps=TextSettings.end)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
