"""`t2i-gcpo pretrain clip`: train `clip-mini`, the scorer of ShapeScenes' pictures and captions, from nothing.

The work folder holds `contrastive/state.pt` (written atomically, so that the same command goes on where it was stopped)
and `contrastive/log.jsonl`; at the end it holds `clip-mini/` in open_clip's layout, with a model card.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from t2i_gcpo.commands.options.number_types import finite, positive
from t2i_gcpo.evaluation.intervals import in_words
from t2i_gcpo.pretrain.clip import card as clip_card
from t2i_gcpo.pretrain.clip.model import ClipShape, build, save
from t2i_gcpo.pretrain.clip.retrieval import CANDIDATES, ROUNDS
from t2i_gcpo.pretrain.clip.train import ClipSettings, ClipTrainer
from t2i_gcpo.pretrain.stages import Stage, add_work_options, prepare


def pretrain(work: Path, settings: ClipSettings, shape: ClipShape, *, every: int = 10) -> Path:
    """Return the folder of the trained model; training goes on from the work folder if there is something."""
    trainer = ClipTrainer(settings, build(shape, settings.seed))
    stage = Stage(work / "contrastive", "CLIP", settings.steps, settings)
    model = stage.run(trainer, every=every)
    folder = work / "clip-mini"
    save(model, shape, folder)
    return folder


def main(argv: list[str] | None = None) -> int:
    """Train the model, or go on with it, and write the checkpoint.

    Exit status 1 where its retrieval is below the bound.
    """
    options = parser().parse_args(argv)
    prepare(options)
    folder = pretrain(options.out, ClipSettings(seed=options.seed, steps=options.steps), ClipShape())
    found = clip_card.write(folder, options.out, rounds=options.rounds)
    top1 = in_words(found.top1.overall, found.top1.ci95, found.top1.n)
    print(
        f"text-to-image retrieval among {CANDIDATES} test scenes: top-1 {top1}, "
        f"the mean over tasks; {found.share:.3f} over all captions alike"
    )
    print(f"wrote {folder}; use it with --reward clip --reward.checkpoint {folder}")
    return int(found.top1.overall < options.bound)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="t2i-gcpo pretrain clip", description=__doc__)
    add_work_options(parser, "runs/pretrain_clip", steps=ClipSettings.steps)
    parser.add_argument(
        "--rounds",
        type=positive,
        default=ROUNDS,
        help="new scenes of each test caption in the measurement (default: %(default)s)",
    )
    parser.add_argument(
        "--bound",
        type=finite,
        default=0.8,
        help=f"least share of captions that find their picture among {CANDIDATES} (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
