"""Sample images for a prompt: each as a PNG, all in one grid, and what they were drawn with."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from t2i_gcpo.commands.images_at_once import settle_batch
from t2i_gcpo.commands.options.number_types import count, positive
from t2i_gcpo.commands.options.paths import home_path
from t2i_gcpo.commands.options.shared import add_generator_options, add_sampling_options, load_generator, sampling
from t2i_gcpo.data.prompt_files import check_text
from t2i_gcpo.data.prompts import limit, read
from t2i_gcpo.records import Prompt
from t2i_gcpo.utils.destination import check_folder
from t2i_gcpo.utils.files import write_atomically
from t2i_gcpo.utils.pictures import sample_grid, to_picture, write_png

#: Names of the files beside the images.
GRID, SAMPLES = "grid.png", "samples.json"


def main(argv: list[str]) -> int:
    """Sample images and write OUT/000_00.png (prompt, image), OUT/grid.png and OUT/samples.json."""
    args = parser().parse_args(argv)
    check_folder(args.out)
    if args.prompt:
        prompts = [Prompt(check_text(text, "--prompt")) for text in args.prompt]
    else:
        prompts = limit(read(args.prompts), args.limit)
    names = [f"{p:03d}_{g:02d}.png" for p in range(len(prompts)) for g in range(args.num)]
    check_folder(args.out, GRID, SAMPLES, *names)
    drawn = sampling(args, group_size=args.num, contrast=False, stats=())
    args = settle_batch(args, prompts, drawn, images=len(names))
    generator = load_generator(args)
    generator.check_prompts(prompts)
    rollout = generator.sample(prompts, drawn)
    images = generator.decode(rollout.tokens).cpu()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for b, image in enumerate(images):
        p, g = divmod(b, args.num)
        path = args.out / names[b]
        write_png(path, to_picture(image, scale=1))
        rows.append({"file": path.name, "prompt": prompts[p].text, "image": g, "tokens": rollout.tokens[b].tolist()})
    captions = [prompts[b // args.num].text for b in range(len(images))]
    write_png(args.out / GRID, sample_grid(images, captions, columns=max(4, min(args.num, 8))))
    shown = {name: value for name, value in asdict(drawn).items() if name not in ("contrast", "stats")}
    record = {"checkpoint": args.checkpoint, "sampling": shown, "images": rows}
    write_atomically(args.out / SAMPLES, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(f"wrote {len(images)} images, {GRID} and {SAMPLES} to {args.out}")
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="t2i-gcpo sample", description=main.__doc__)
    add_generator_options(parser)
    add_sampling_options(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", action="append", metavar="TEXT", help="a prompt; may be given several times")
    source.add_argument("--prompts", help="a prompt file, or shapes:train, shapes:val, shapes:test")
    add = parser.add_argument
    add(
        "--limit",
        type=count,
        default=8,
        help="prompts taken from --prompts, the tasks in equal parts; 0 takes all (default: %(default)s)",
    )
    add("--num", type=positive, default=4, help="images a prompt (default: %(default)s)")
    add("--out", required=True, type=home_path, help="folder to write to")
    return parser
