"""`t2i-gcpo pretrain amused`: train `amused-mini` from nothing but janus-mini's VQ model.

The work folder holds `masked/state.pt` (written atomically, so that the same command goes on where it was stopped) and
`masked/log.jsonl`; at the end it holds `amused-mini/` in diffusers' layout, with a model card.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from t2i_gcpo.commands.options.number_types import count, positive
from t2i_gcpo.evaluation.intervals import in_words
from t2i_gcpo.generators.amused.parts import AmusedParts
from t2i_gcpo.generators.janus.adapter import Janus
from t2i_gcpo.pretrain.amused import card as masked_card
from t2i_gcpo.pretrain.amused.model import MaskedModelShape, build_amused, start_from_patches
from t2i_gcpo.pretrain.amused.train import MaskedSettings, MaskedTrainer
from t2i_gcpo.pretrain.janus.codes import patch_codes
from t2i_gcpo.pretrain.janus.model import VQSettings
from t2i_gcpo.pretrain.stages import Stage, add_work_options, prepare
from t2i_gcpo.utils.device import pick_device

#: Whose VQ model it shares.
TOKENIZER = "janus-mini"


def pretrain(work: Path, settings: MaskedSettings, *, every: int = 20, validate_every: int = 200) -> AmusedParts:
    """Return the trained parts, from the work folder if they are there already."""
    janus = Janus.load(TOKENIZER, compile=False)
    parts, codes = build_amused(MaskedModelShape(), janus.model.model.vqmodel, settings.seed), patch_codes(VQSettings())
    start_from_patches(parts.transformer, codes)
    trainer = MaskedTrainer(settings, parts, codes)
    stage = Stage(work / "masked", "masked transformer", settings.steps, settings)
    return stage.run(trainer, every=every, validate_every=validate_every)


def main(argv: list[str] | None = None) -> int:
    """Train the masked transformer, or go on with it, and write the checkpoint."""
    options = parser().parse_args(argv)
    prepare(options)
    settings = MaskedSettings(
        seed=options.seed,
        steps=options.steps,
        batch=options.batch,
        device=str(pick_device(options.device)),
        workers=options.workers,
    )
    parts = pretrain(options.out, settings)
    folder = options.out / "amused-mini"
    folder.mkdir(parents=True, exist_ok=True)
    parts.save(folder)
    result = masked_card.write(folder, options.out)
    print(f"shapes:test {in_words(result.overall, result.ci95, result.n)}")
    print(f"wrote {folder}; use it with --checkpoint {folder}")
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="t2i-gcpo pretrain amused", description=__doc__)
    add_work_options(parser, "runs/pretrain_amused", steps=MaskedSettings.steps)
    add = parser.add_argument
    add("--batch", type=positive, default=MaskedSettings.batch, help="scenes of a step (default: %(default)s)")
    add("--device", default=MaskedSettings.device, help="cpu, cuda, cuda:1, mps, or auto (default: %(default)s)")
    add(
        "--workers",
        type=count,
        default=0,
        help="processes that draw the scenes beside the training (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
