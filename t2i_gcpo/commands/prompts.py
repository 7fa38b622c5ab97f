"""Write the embedded prompts, or their vocabulary, to a file: `t2i-gcpo prompts`."""

from __future__ import annotations

import argparse
import json

from t2i_gcpo.commands.options.number_types import count
from t2i_gcpo.commands.options.paths import home_path
from t2i_gcpo.data.prompts import SHAPES, limit, read
from t2i_gcpo.utils.destination import check_file
from t2i_gcpo.utils.files import write_atomically

#: Suffixes of files that hold one JSON object a line.
JSON_LINES = (".jsonl", ".ndjson", ".json")


def main(argv: list[str]) -> int:
    """Write a split as GenEval's JSON lines, or the vocabulary with one word a line."""
    args = parser().parse_args(argv)
    if args.source == f"{SHAPES}vocabulary":
        from t2i_gcpo.data.shapes.prompts import vocabulary

        lines, what = vocabulary(), "words"
    else:
        prompts = limit(read(args.source), args.limit)
        if args.out.suffix.lower() not in JSON_LINES:  # the suffix says how the file is read back
            raise ValueError(
                f"--out is {args.out}: prompts are written as JSON lines; "
                f"name a file that ends in {' or '.join(JSON_LINES)}"
            )
        lines, what = [json.dumps({**p.metadata, "prompt": p.text}, ensure_ascii=False) for p in prompts], "prompts"
    check_file(args.out)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out, "\n".join(lines) + "\n")
    print(f"wrote {len(lines)} {what} to {args.out}")
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="t2i-gcpo prompts", description=main.__doc__)
    parser.add_argument("source", help="shapes:train, shapes:val, shapes:test, shapes:vocabulary, or a prompt file")
    parser.add_argument("--out", required=True, type=home_path, help="file to write")
    parser.add_argument(
        "--limit", type=count, default=0, help="prompts to write, the tasks in equal parts; 0 writes all"
    )
    return parser
