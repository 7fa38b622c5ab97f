"""`t2i-gcpo pretrain janus`: train `janus-mini` from nothing, its VQ model first and its language model then.

The work folder holds what each code stands for (`codes.pt`) and, for each stage, `state.pt` (written atomically, so
that the same command goes on where it was stopped) and `log.jsonl`; at the end it holds the checkpoint in hub layout.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.models.torchvision_mend import mend
from t2i_gcpo.evaluation.intervals import in_words
from t2i_gcpo.pretrain.janus.model import VQSettings, save_processor
from t2i_gcpo.pretrain.stages import Stage, add_work_options, prepare, read_state, save_state

if TYPE_CHECKING:
    from torch import Tensor

    from t2i_gcpo.pretrain.janus.recipes import Recipe


def saved_codes(work: Path, settings: VQSettings) -> Tensor:
    """Return what each code stands for, from the work folder if it is there already, for the same settings."""
    from t2i_gcpo.pretrain.janus.codes import patch_codes

    file = work / "codes.pt"
    if file.exists():
        saved = read_state(file)
        if saved["settings"] == asdict(settings):
            codes: Tensor = saved["codes"]
            return codes
    codes = patch_codes(settings)
    work.mkdir(parents=True, exist_ok=True)
    save_state({"settings": asdict(settings), "codes": codes}, file)
    return codes


def pretrain_vq(work: Path, recipe: Recipe, codes: Tensor) -> Any:
    """Return the trained VQ model, from the work folder if it is there already."""
    from t2i_gcpo.pretrain.janus.vq import VQTrainer

    trainer = VQTrainer(recipe.vq, recipe.shape.width, codes)
    stage = Stage(work / "vq", "VQ model", recipe.vq.steps, recipe.vq)
    return stage.run(trainer, every=10)


def pretrain_language(work: Path, recipe: Recipe, codes: Tensor, vq: Any) -> Any:
    """Return the trained `JanusForConditionalGeneration`, from the work folder if it is there already."""
    from transformers import AutoTokenizer

    from t2i_gcpo.pretrain.janus.language import LanguageTrainer
    from t2i_gcpo.pretrain.janus.model import build_janus

    settings = recipe.language
    processor = work / "processor"
    save_processor(processor)
    tokenizer = AutoTokenizer.from_pretrained(processor, local_files_only=True, trust_remote_code=False)
    model = build_janus(recipe.vq, recipe.shape, settings.seed, vq)
    trainer = LanguageTrainer(settings, model, tokenizer, codes)
    stage = Stage(work / "language", "language model", settings.steps, settings)
    return stage.run(trainer, every=20, validate_every=200)


def main(argv: list[str] | None = None) -> int:
    """Train both stages of `janus-mini`, or go on with them, and write the checkpoint."""
    return train(parser().parse_args(argv), "janus-mini")


def train(options: argparse.Namespace, name: str) -> int:
    """Train both stages of a checkpoint, or go on with them, and write it; the command's exit status."""
    prepare(options)
    mend()  # transformers imports torchvision
    from t2i_gcpo.pretrain.janus import card
    from t2i_gcpo.pretrain.janus.recipes import RECIPES

    recipe = RECIPES[name].seeded(options.seed)
    codes = saved_codes(options.out, recipe.vq)
    vq = pretrain_vq(options.out, recipe, codes)
    model = pretrain_language(options.out, recipe, codes, vq)
    folder = options.out / recipe.name
    model.save_pretrained(folder)
    save_processor(folder)
    result = card.write(folder, options.out, recipe, codes)
    print(f"shapes:test {in_words(result.overall, result.ci95, result.n)}")
    print(f"wrote {folder}; use it with --checkpoint {folder}")
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="t2i-gcpo pretrain janus", description=__doc__)
    add_work_options(parser, "runs/pretrain", seed="seed of both stages ")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
