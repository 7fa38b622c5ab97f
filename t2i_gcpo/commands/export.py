"""Save what training changed in a checkpoint: as a small delta to its base, or as a whole model with a card."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from t2i_gcpo import generators
from t2i_gcpo.commands.model_card import card
from t2i_gcpo.commands.options.paths import home_path
from t2i_gcpo.generators import deltas
from t2i_gcpo.generators.base import ImageGenerator
from t2i_gcpo.generators.checkpoints import MODEL_FILES, locate
from t2i_gcpo.reports import run as run_folder
from t2i_gcpo.training import checkpoint as checkpoints
from t2i_gcpo.training.tracker import CONFIG, METRICS
from t2i_gcpo.utils.destination import check_folder
from t2i_gcpo.utils.files import disk_errors, write_atomically

CARD = "README.md"


def main(argv: list[str]) -> int:
    """Write the difference of a tuned checkpoint to the one that its training started from, or the model itself.

    OUT/delta.safetensors holds the difference in float16, OUT/delta.json the base, the run's options, seed, step and
    scores. With --merged, OUT is a model that transformers or diffusers loads without this package, adapters added to
    the weights, with a model card.
    """
    args = parser().parse_args(argv)
    if args.merged:
        return _merged(args.checkpoint, args.out, args.dtype)
    if args.against is None:
        raise ValueError("export needs --against, the checkpoint that the training started from, or --merged")
    check_folder(args.out, deltas.WEIGHTS, deltas.ABOUT)
    _check_no_model(args.out, but=(deltas.WEIGHTS, deltas.ABOUT))
    base, tuned = locate(args.against), generators.load(args.checkpoint)
    if base.adapter is not None or base.delta is not None:
        raise ValueError(f"--against is {args.against}, an adapter or delta; name a whole model, e.g. janus-mini")
    path = write(args.out, tuned, generators.load(args.against), about=provenance(args.checkpoint))
    size = sum(file.stat().st_size for file in path.iterdir())
    print(
        f"wrote {path}: {size / 2**20:.2f} MiB against {base.name}; load it with --checkpoint {shlex.quote(str(path))}"
    )
    return 0


def _merged(name: str, out: Path, dtype: str) -> int:
    """Write the whole model of a checkpoint, and its card."""
    check_folder(out, CARD)
    _check_no_model(out)
    tuned = generators.load(name, dtype=dtype)
    base = tuned.base
    if tuned.has_lora:
        tuned.merge_lora()
    out.mkdir(parents=True, exist_ok=True)
    with disk_errors(out):
        tuned.save(out)
    source = base.folder if base is not None and base.adapter is None else None if base is None else base.adapter
    about = provenance(name if source is None else source)
    started = about.get("config", {}).get("generator.checkpoint", base.name if base is not None else name)
    write_atomically(out / CARD, card(out.name, str(started), about))
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"wrote {out}: {size / 2**20:.1f} MiB, a whole model, and {CARD}")
    return 0


def _check_no_model(out: Path, *, but: Sequence[str] = ()) -> None:
    """Check that a folder holds no weights that would be written over, or that a delta beside them would hide.

    ValueError names such a file. but: names of an earlier export, which may be replaced.
    """
    there = [path.name for path in sorted(out.glob("*.safetensors")) if path.name not in but]
    there += [name for name in MODEL_FILES if (out / name).is_file()]
    if there:
        raise ValueError(f"--out: {out} holds a model already ({there[0]}); name another folder, or remove that one")


def write(out: str | Path, tuned: ImageGenerator, base: ImageGenerator, *, about: dict[str, Any]) -> Path:
    """Write the delta of two generators that `generators.load` made; LoRA adapters of `tuned` are merged.

    ValueError: they are of different models or differ in more than the policy, or `base` was not loaded from a
    checkpoint.
    """
    origin = base.base
    if origin is None:
        raise ValueError("a delta needs the name of its base: load the base with generators.load")
    if tuned.has_lora:
        tuned.merge_lora()
    delta = deltas.difference(base.policy, tuned.policy)
    if not delta:
        raise ValueError(f"the two checkpoints have the same policy: there is nothing to export (base {origin.name})")
    _check_decoders(tuned, base)
    named = about | ({"revision": origin.revision} if origin.revision else {})
    return deltas.save(out, delta, base=origin.name, base_folder=origin.folder, about=named)


def _check_decoders(tuned: ImageGenerator, base: ImageGenerator) -> None:
    """Check that the same tokens become the same picture, for a delta holds the policy alone."""
    length = base.grid[0] * base.grid[1]
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(base.codebook_size, (1, length), generator=rng)
    if not torch.equal(tuned.decode(tokens).cpu(), base.decode(tokens).cpu()):
        raise ValueError(
            "the two checkpoints decode the same tokens to different pictures: their image decoders differ, and a "
            "delta holds the policy's weights alone; name the checkpoint that the training started from"
        )


def provenance(path: str | Path) -> dict[str, Any]:
    """Return where the checkpoint RUN/checkpoints/step_N comes from, as its run folder says; {} for other folders."""
    path = Path(path)
    run = path.absolute().parent.parent
    if path.absolute().parent.name != checkpoints.FOLDER or not ((run / CONFIG).is_file() or (run / METRICS).is_file()):
        return {}
    source, step = run_folder.read(run), checkpoints.step_of(path.absolute())
    row = next((row for row in source.metrics if row["step"] == step), {})
    scores: dict[str, Any] = {"validation": row.get("validation/overall")}
    for name, result in (("test_before", source.before), ("test_after", source.after)):
        # eval_after.json speaks of the last checkpoint alone.
        if result is not None and (name == "test_before" or step == source.step):
            scores[name] = {
                "overall": result.overall,
                "ci95": list(result.ci95),
                "n": result.n,
                "prompts": result.prompts,
            }
    return {
        "algorithm": source.algorithm,
        "seed": source.config.get("seed"),
        "step": step,
        "images_sampled": row.get("images_sampled"),
        "scores": {name: value for name, value in scores.items() if value is not None},
        "config": source.config,
    }


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="t2i-gcpo export", description=main.__doc__)
    add = parser.add_argument
    add("--checkpoint", required=True, help="the tuned checkpoint, e.g. runs/x/checkpoints/step_000120")
    add("--against", help="the checkpoint that the training started from, e.g. janus-mini")
    add("--merged", action="store_true", help="write the whole model and a model card instead of a delta")
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="of a merged model (default: %(default)s)")
    add("--out", required=True, type=home_path, help="folder to write to")
    return parser
