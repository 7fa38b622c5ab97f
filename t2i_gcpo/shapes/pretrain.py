"""`t2i-gcpo pretrain janus`: train `janus-mini` from nothing, its VQ model first and its language model then.

The work folder holds, for each stage, `state.pt` (written atomically, so that the same command goes on where it was
stopped) and `log.jsonl`; at the end it holds `janus-mini/` in hub layout.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from rewards.torchvision_mend import mend
from t2i_gcpo.shapes.janus_mini import LanguageModelShape, save_processor


def write_atomically(state: Any, path: Path) -> None:
    """`torch.save` that leaves the old file or the new one, never half of one."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


class Stage:
    """A stage's folder: its log, its resumable state, its progress bar."""

    def __init__(self, folder: Path, title: str, total: int, settings: Any, every_seconds: float = 60.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.every_seconds, self.total = folder, every_seconds, total
        self.log_path, self.state_path = folder / "log.jsonl", folder / "state.pt"
        (folder / "settings.json").write_text(json.dumps(asdict(settings), indent=2) + "\n")
        self.bar = tqdm(total=total, desc=title, mininterval=5.0)
        self.saved = self.started = time.monotonic()

    def resume(self, trainer: Any) -> None:
        """Load the state if there is one, and cut the log back to it."""
        if not self.state_path.exists():
            self.log_path.unlink(missing_ok=True)
            return
        trainer.load_state_dict(torch.load(self.state_path, weights_only=False))
        kept = [
            line for line in self.log_path.read_text().splitlines() if json.loads(line)["step"] <= trainer.step_number
        ]
        self.log_path.write_text("".join(f"{line}\n" for line in kept))
        self.bar.update(trainer.step_number)

    def on_step(self, trainer: Any, every: int) -> Callable[[int, Mapping[str, float | Tensor]], None]:
        """Log every `every` steps, save about once a minute and at the end. Metrics of other steps are not read, so a GPU is not waited for."""

        def report(step: int, metrics: Mapping[str, float | Tensor]) -> None:
            self.bar.update(1)
            if step % every == 0 or step == self.total:
                found = {name: float(value) for name, value in metrics.items()}
                row = {"step": step, "seconds": round(time.monotonic() - self.started, 1), **found}
                with self.log_path.open("a") as log:
                    log.write(json.dumps(row) + "\n")
                self.bar.set_postfix({name: f"{value:.4g}" for name, value in found.items()})
            if step == self.total or time.monotonic() - self.saved > self.every_seconds:
                write_atomically(trainer.state_dict(), self.state_path)
                self.saved = time.monotonic()

        return report


def pretrain_vq(work: Path, seed: int, language_width: int) -> Any:
    """The trained VQ model, from the work folder if it is there already."""
    from t2i_gcpo.shapes.vq import VQSettings, VQTrainer, train_vq

    settings = VQSettings(seed=seed)
    trainer = VQTrainer(settings, language_width)
    stage = Stage(work / "vq", "VQ model", settings.steps, settings)
    stage.resume(trainer)
    return train_vq(trainer, stage.on_step(trainer, every=10))


def pretrain_language(work: Path, seed: int, vq: Any, shape: LanguageModelShape, vq_settings: Any) -> Any:
    """The trained `JanusForConditionalGeneration`, from the work folder if it is there already."""
    from transformers import AutoTokenizer

    from t2i_gcpo.shapes.language import LanguageSettings, LanguageTrainer, build_janus
    from t2i_gcpo.shapes.vq import patch_codes

    settings = LanguageSettings(seed=seed)
    processor = work / "processor"
    save_processor(processor)
    tokenizer = AutoTokenizer.from_pretrained(processor, local_files_only=True)
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
    if options.threads:
        torch.set_num_threads(options.threads)
    mend()  # transformers imports torchvision
    from t2i_gcpo.shapes.vq import VQSettings

    shape = LanguageModelShape()
    vq = pretrain_vq(options.out, options.seed, shape.width)
    model = pretrain_language(options.out, options.seed, vq, shape, VQSettings(seed=options.seed))
    folder = options.out / "janus-mini"
    model.save_pretrained(folder)
    save_processor(folder)
    from t2i_gcpo.shapes import card

    result = card.write(folder, options.out)
    low, high = result.ci95
    print(f"shapes:test {result.overall:.3f} ({low:.3f} to {high:.3f}, n = {result.n})")
    print(f"wrote {folder}; use it with --checkpoint {folder}")
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="t2i-gcpo pretrain janus", description=__doc__)
    add_work_options(parser, "runs/pretrain", seed="seed of both stages ")
    return parser


def add_work_options(parser: argparse.ArgumentParser, out: str, *, seed: str = "", steps: int | None = None) -> None:
    """The options of every pre-training. `steps`: their default, where they can be chosen."""
    parser.add_argument("--out", type=Path, default=Path(out), help="work folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help=f"{seed}(default: %(default)s)")
    if steps is not None:
        parser.add_argument("--steps", type=int, default=steps, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves PyTorch's choice")


if __name__ == "__main__":
    raise SystemExit(main())
