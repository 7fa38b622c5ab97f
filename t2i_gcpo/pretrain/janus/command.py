"""`t2i-gcpo pretrain janus`: train `janus-mini` from nothing, its VQ model first and its language model then.

The work folder holds, for each stage, `state.pt` (written atomically, so that the same command goes on where it was
stopped) and `log.jsonl`; at the end it holds `janus-mini/` in hub layout.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from rewards.models.torchvision_mend import mend
from t2i_gcpo.pretrain.janus.model import LanguageModelShape, save_processor
from t2i_gcpo.pretrain.stages import Stage, add_work_options
from t2i_gcpo.utils.destination import check_folder


def pretrain_vq(work: Path, seed: int, language_width: int) -> Any:
    """Return the trained VQ model, from the work folder if it is there already."""
    from t2i_gcpo.pretrain.janus.model import VQSettings
    from t2i_gcpo.pretrain.janus.vq import VQTrainer, train_vq

    settings = VQSettings(seed=seed)
    trainer = VQTrainer(settings, language_width)
    stage = Stage(work / "vq", "VQ model", settings.steps, settings)
    stage.resume(trainer)
    return train_vq(trainer, stage.on_step(trainer, every=10))


def pretrain_language(work: Path, seed: int, vq: Any, shape: LanguageModelShape, vq_settings: Any) -> Any:
    """Return the trained `JanusForConditionalGeneration`, from the work folder if it is there already."""
    from transformers import AutoTokenizer

    from t2i_gcpo.pretrain.janus.language import LanguageSettings, LanguageTrainer, build_janus
    from t2i_gcpo.pretrain.janus.vq import patch_codes

    settings = LanguageSettings(seed=seed)
    processor = work / "processor"
    save_processor(processor)
    tokenizer = AutoTokenizer.from_pretrained(processor, local_files_only=True, trust_remote_code=False)
    model = build_janus(vq_settings, shape, seed, vq)
    trainer = LanguageTrainer(settings, model, tokenizer, patch_codes(vq_settings))
    stage = Stage(work / "language", "language model", settings.steps, settings)
    stage.resume(trainer)
    report = stage.on_step(trainer, every=20)
    while trainer.step_number < settings.steps:
        metrics = trainer.step()
        if trainer.step_number % 200 == 0 or trainer.step_number == settings.steps:
            metrics["validation_loss"] = trainer.validation_loss()
        report(trainer.step_number, metrics)
    return trainer.finished()


def main(argv: list[str] | None = None) -> int:
    """Train both stages, or go on with them, and write the checkpoint."""
    options = parser().parse_args(argv)
    check_folder(options.out)
    if options.threads:
        torch.set_num_threads(options.threads)
    mend()  # transformers imports torchvision
    from t2i_gcpo.pretrain.janus.model import VQSettings

    shape = LanguageModelShape()
    vq = pretrain_vq(options.out, options.seed, shape.width)
    model = pretrain_language(options.out, options.seed, vq, shape, VQSettings(seed=options.seed))
    folder = options.out / "janus-mini"
    model.save_pretrained(folder)
    save_processor(folder)
    from t2i_gcpo.pretrain.janus import card

    result = card.write(folder, options.out)
    low, high = result.ci95
    print(f"shapes:test {result.overall:.3f} ({low:.3f} to {high:.3f}, n = {result.n})")
    print(f"wrote {folder}; use it with --checkpoint {folder}")
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="t2i-gcpo pretrain janus", description=__doc__)
    add_work_options(parser, "runs/pretrain", seed="seed of both stages ")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
