"""Pictures on disk with the prompts that they were drawn for. Four kinds of folders are known:

* that of `t2i-gcpo sample`: its samples.json names the prompt of each file;
* a run of `t2i-gcpo train`: the samples in its heatmaps/step_N.npz, group by group of steps;
* GenEval's: 00000/metadata.jsonl and 00000/samples/*.png;
* any other: files named ROW.png or ROW_IMAGE.png after the row of their prompt in the prompt file, counted from 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2i_gcpo.data import prompts as prompt_files
from t2i_gcpo.data.formats import Format, read_named
from t2i_gcpo.heatmap import Heatmap
from t2i_gcpo.records import Prompt
from t2i_gcpo.reports import run as run_folder
from t2i_gcpo.reports.run_files import own_file
from t2i_gcpo.training.tracker import CONFIG, METRICS
from t2i_gcpo.utils.json_files import read_json
from t2i_gcpo.utils.picture_files import read_picture

SAMPLES = "samples.json"
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_ROW = re.compile(r"(\d+)(_\d+)?")


@dataclass(frozen=True)
class Picture:
    name: str
    """Its file within the folder."""
    prompt: Prompt
    group: str
    """What it is counted with: its prompt's task, in a run its step."""
    read: Callable[[], tuple[Tensor, tuple[str, ...]]]
    """Read [3, H, W] uint8, and notes on what was left out of the file. ValueError where it is damaged."""

    def pixels(self) -> Tensor:
        """Read [3, H, W] uint8. ValueError where the file is damaged."""
        return self.read()[0]


def find(folder: str | Path, source: str | None = None) -> tuple[list[Picture], str]:
    """The pictures of a folder, and where their prompts' metadata came from ("" for nowhere).

    `source` is a prompt file, or shapes:test and the like. A run takes its own validation prompts where it is None.
    ValueError: no pictures, a picture without a prompt, or a prompt that is not in `source`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; name a folder of images, or a run")
    if (folder / SAMPLES).is_file():
        found = list(_sampled(folder, _by_text(source)))
    elif (folder / CONFIG).is_file() or (folder / METRICS).is_file():
        config = run_folder.read(folder).config
        named: dict[str, Any] = (
            {} if source else {"format": config.get("prompts.format") or "auto", "column": config.get("prompts.column")}
        )
        source = source or config.get("prompts.validation")
        found = list(_of_run(folder, _by_text(source, **named)))
    elif any(folder.glob("*/metadata.jsonl")):
        found = list(_geneval(folder))
    else:
        found = list(_by_row(folder, source))
    if not found:
        raise ValueError(f"{folder} holds no pictures; a run has some where pictures.every is not 0")
    for picture in found:  # what is no text could not be written into a result
        for what, text in (("a file of the name", picture.name), ("the prompt", picture.prompt.text)):
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ValueError(f"{folder} has {what} {text!a}, which is no text in UTF-8; correct it") from error
    return found, source or ""


def _by_text(source: str | None, *, format: Format = "auto", column: str | None = None) -> Callable[[str, str], Prompt]:
    """(text, file) -> its prompt, with the metadata of `source`."""
    read = [] if source is None else read_named(source, format=format, column=column)
    known = None if source is None else {prompt.text: prompt for prompt in read}

    def prompt(text: str, name: str) -> Prompt:
        if known is None:
            return Prompt(text)
        if text not in known:
            raise ValueError(
                f"the prompt of {name}, {text!r}, is not in {source}; name the file that it was taken from"
            )
        return known[text]

    return prompt


def _sampled(folder: Path, prompt: Callable[[str, str], Prompt]) -> Iterator[Picture]:
    path = folder / SAMPLES
    try:
        rows = read_json(path, {"images": [{"file": str, "prompt": str}]})["images"]
    except ValueError as error:
        raise ValueError(f"{path} is not a file of t2i-gcpo sample: {error}") from error
    for row in rows:
        name, owner = row["file"], prompt(row["prompt"], row["file"])
        if own_file(folder, name) is None:
            raise ValueError(f"{path} names {name!r}, which is no file inside {folder}")
        yield Picture(name, owner, owner.task, partial(_read, folder / name))


def _of_run(folder: Path, prompt: Callable[[str, str], Prompt]) -> Iterator[Picture]:
    for path in sorted((folder / "heatmaps").glob("step_*.npz")):
        if path.stem.endswith("_trained"):  # a group that was trained on, another one each time
            continue
        heatmap = Heatmap.load(path)
        for k, text in enumerate(heatmap.prompts.tolist()):
            name = f"heatmaps/{path.name}[{k}]"
            image = torch.from_numpy(heatmap.images[k])
            yield Picture(name, prompt(text, name), path.stem.replace("_", " "), partial(_at_hand, image))


def _geneval(folder: Path) -> Iterator[Picture]:
    for path in sorted(folder.glob("*/metadata.jsonl")):
        (owner,) = prompt_files.read(path)[:1]
        for file in _pictures(path.parent / "samples"):
            yield Picture(str(file.relative_to(folder)), owner, owner.task, partial(_read, file))


def _by_row(folder: Path, source: str | None) -> Iterator[Picture]:
    files = _pictures(folder)
    if source is None and files:
        raise ValueError(f"{folder} has no {SAMPLES}: give the prompts of its images with --prompts FILE")
    prompts: Sequence[Prompt] = prompt_files.read(source) if source is not None else ()
    for file in files:
        row = _ROW.fullmatch(file.stem)
        if row is None or int(row[1]) >= len(prompts):
            raise ValueError(
                f"{file} belongs to no prompt: name images ROW.png or ROW_IMAGE.png after the row of their prompt in "
                f"{source}, 0 to {len(prompts) - 1}"
            )
        owner = prompts[int(row[1])]
        yield Picture(file.name, owner, owner.task, partial(_read, file))


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in ENDINGS and path.is_file())


def _read(path: Path) -> tuple[Tensor, tuple[str, ...]]:
    pixels, notes = read_picture(path)
    return torch.from_numpy(pixels).permute(2, 0, 1), notes


def _at_hand(image: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    return image.clone(), ()
