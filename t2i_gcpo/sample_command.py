"""`t2i-gcpo sample`: images for a prompt, each as a PNG, all in one grid, and what they were drawn with."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from t2i_gcpo.build import COMPILE, pick_device
from t2i_gcpo.pictures import sample_grid, to_picture
from t2i_gcpo.prompts import limit, read
from t2i_gcpo.records import Prompt, Sampling


def main(argv: list[str]) -> int:
    """Sample images: OUT/000_00.png (prompt, image), OUT/grid.png and OUT/samples.json."""
    args = _parser().parse_args(argv)
    prompts = [Prompt(text) for text in args.prompt] if args.prompt else limit(read(args.prompts), args.limit)
    sampling = Sampling(
        group_size=args.num,
        guidance=args.guidance,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
        contrast=False,
        stats=(),
    )
    from t2i_gcpo import generators

    generator = generators.load(
        args.checkpoint,
        device=pick_device(args.device),
        dtype=args.dtype,
        revision=args.revision,
        max_batch=args.batch,
        compile=COMPILE[args.compile],
    )
    rollout = generator.sample(prompts, sampling)
    images = generator.decode(rollout.tokens).cpu()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for b, image in enumerate(images):
        p, g = divmod(b, args.num)
        path = args.out / f"{p:03d}_{g:02d}.png"
        to_picture(image, scale=1).save(path)
        rows.append({"file": path.name, "prompt": prompts[p].text, "image": g, "tokens": rollout.tokens[b].tolist()})
    captions = [prompts[b // args.num].text for b in range(len(images))]
    sample_grid(images, captions, columns=max(4, min(args.num, 8))).save(args.out / "grid.png")
    drawn = {name: value for name, value in asdict(sampling).items() if name not in ("contrast", "stats")}
    record = {"checkpoint": args.checkpoint, "sampling": drawn, "images": rows}
    (args.out / "samples.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {len(images)} images, grid.png and samples.json to {args.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="t2i-gcpo sample", description=main.__doc__)
    add = parser.add_argument
    add("--checkpoint", required=True, help="embedded name, folder (a run's checkpoints/step_N included) or hub name")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", action="append", help="a prompt; may be given several times")
    source.add_argument("--prompts", help="a prompt file, or shapes:train, shapes:val, shapes:test")
    add(
        "--limit",
        type=int,
        default=8,
        help="prompts taken from --prompts, the tasks in equal parts; 0 takes all (default: %(default)s)",
    )
    add("--num", type=int, default=4, help="images a prompt (default: %(default)s)")
    add("--out", required=True, type=Path, help="folder to write to")
    add("--guidance", type=float, default=2.0, help="classifier-free guidance scale; 1 is none (default: %(default)s)")
    add("--temperature", type=float, default=1.0, help="0 is greedy (default: %(default)s)")
    add("--top-k", type=int, default=0, help="keep the k most likely tokens; 0 keeps all")
    add(
        "--top-p",
        type=float,
        default=1.0,
        help="keep the smallest set of tokens with this much probability; 1 keeps all",
    )
    add("--seed", type=int, default=0, help="the same seed and prompt give the same images (default: %(default)s)")
    add("--batch", type=int, default=64, help="images at once; the images do not depend on it (default: %(default)s)")
    add("--device", default="auto", help="cpu, cuda, ...; auto takes a GPU if there is one")
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="(default: %(default)s)")
    add("--revision", help="branch, tag or commit on the hub")
    add("--compile", default="auto", choices=tuple(COMPILE), help="compile the decode step (default: %(default)s)")
    return parser
