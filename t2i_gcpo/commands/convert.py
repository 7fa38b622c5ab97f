"""Convert a checkpoint of Janus between its authors' layout and that of transformers."""

from __future__ import annotations

import argparse
import shutil

from t2i_gcpo.commands.options.paths import home_path
from t2i_gcpo.utils.destination import check_folder
from t2i_gcpo.utils.files import ASIDE, disk_errors


def main(argv: list[str]) -> int:
    """Write a checkpoint of Janus in the layout that it has not: the authors' (deepseek-ai), or that of transformers.

    Every weight keeps its bits. What transformers has no place for is kept beside the converted weights, so that the
    way back loses nothing.
    """
    from t2i_gcpo.generators.janus import conversion

    args = parser().parse_args(argv)
    folder, out = args.checkpoint, args.out
    if not folder.is_dir():
        raise ValueError(
            f"--checkpoint: there is no folder {folder}; download the repository first, and name its folder"
        )
    if out.is_file():
        raise ValueError(f"--out: {out} is a file; name a folder")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"--out: {out} is not empty; name a new folder")
    check_folder(out)
    before = conversion.layout(folder)
    aside = out.with_name(f"{ASIDE}{out.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        with disk_errors(out):
            conversion.convert(folder, aside)
        if out.exists():
            out.rmdir()
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    after = "transformers" if before == "original" else "original"
    print(f"wrote {out} in the layout {after}; {folder} has the layout {before}")
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="t2i-gcpo convert", description=main.__doc__)
    parser.add_argument(
        "--checkpoint", required=True, type=home_path, help="folder of the checkpoint, in either layout"
    )
    parser.add_argument("--out", required=True, type=home_path, help="folder to write, new or empty")
    return parser
