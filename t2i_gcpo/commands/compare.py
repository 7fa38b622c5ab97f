"""Draw curves, a table and a report of several runs: `t2i-gcpo compare`."""

from __future__ import annotations

import argparse

from t2i_gcpo.commands.options.paths import home_path
from t2i_gcpo.reports.comparison import FILES, write
from t2i_gcpo.reports.run import groups, read
from t2i_gcpo.utils.destination import check_folder


def main(argv: list[str]) -> int:
    """Write curves.png, table.json, table.md and report.html of several runs, and print the table."""
    args = parser().parse_args(argv)
    check_folder(args.out, *FILES)
    grouped = groups([read(path) for path in args.runs])
    args.out.mkdir(parents=True, exist_ok=True)
    for path in write(grouped, args.out):
        print(f"wrote {path}")
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="t2i-gcpo compare", description=main.__doc__)
    parser.add_argument("--runs", required=True, nargs="+", type=home_path, help="output folders of t2i-gcpo train")
    parser.add_argument("--out", required=True, type=home_path, help="folder to write to")
    return parser
