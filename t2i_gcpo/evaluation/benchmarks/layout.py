"""Lays a benchmark's images out so that its own scripts can be run over them.

* GenEval's folders, for every benchmark: 00000/metadata.jsonl with the prompt's row, 00000/samples/0000.png, 0001.png,
  ...
* DPG-Bench's: ITEM_ID.png, four images of a prompt as a grid of 2 x 2.
* T2I-CompBench's: CATEGORY/samples/PROMPT_000000.png, numbered through a category.

A file is complete or not there: it is written aside and renamed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from t2i_gcpo.records import Prompt
from t2i_gcpo.utils.files import write_atomically

#: Bytes of a file's name at most: common file systems allow 255, and a file that is being written has a longer name.
_LONGEST_NAME = 220


def folder_of(images: Path, row: int) -> Path:
    """Return GenEval's folder of the prompt in this row."""
    return images / f"{row:05d}"


def files_of(images: Path, row: int, count: int) -> list[Path]:
    """Return the files of a prompt's images."""
    return [folder_of(images, row) / "samples" / f"{k:04d}.png" for k in range(count)]


def write(path: Path, content: str | bytes) -> None:
    """Replace a file as a whole, its folder made first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


def write_prompt(images: Path, row: int, prompt: Prompt, pixels: Tensor) -> None:
    """Write one prompt's images [G, 3, H, W] uint8, and its row before them."""
    files = files_of(images, row, len(pixels))
    line = json.dumps({**prompt.metadata, "prompt": prompt.text}, ensure_ascii=False)
    write(folder_of(images, row) / "metadata.jsonl", line)
    for file, image in zip(files, pixels.permute(0, 2, 3, 1).cpu().numpy(), strict=True):
        write(file, _png(image))


def read_prompt(images: Path, row: int, count: int) -> Tensor:
    """Read one prompt's images [G, 3, H, W] uint8. ValueError for a file that is damaged."""
    return torch.stack([_read(file) for file in files_of(images, row, count)])


def export(name: str, images: Path, out: Path, prompts: Sequence[Prompt], count: int) -> int:
    """Write the images again in a benchmark's own layout ("dpg", "compbench"); files that are there stay.

    Returns how many there are.
    """
    return _EXPORTS[name](images, out, prompts, count)


def _export_dpg(images: Path, out: Path, prompts: Sequence[Prompt], count: int) -> int:
    """Write grids of 2 x 2; with another number of images a row of them, of which DPG-Bench's script is told by
    PIC_NUM=1 for one.
    """
    for row, prompt in enumerate(prompts):
        file = out / f"{prompt.metadata['item_id']}.png"
        if not file.exists():
            pixels = read_prompt(images, row, count).permute(0, 2, 3, 1).numpy()
            rows = [pixels[:2], pixels[2:]] if count == 4 else [pixels]
            write(file, _png(np.concatenate([np.concatenate(list(part), axis=1) for part in rows], axis=0)))
    return len(prompts)


def _export_compbench(images: Path, out: Path, prompts: Sequence[Prompt], count: int) -> int:
    numbers: dict[str, int] = {}
    for row, prompt in enumerate(prompts):
        folder = out / prompt.task / "samples"
        for source in files_of(images, row, count):
            number = numbers.get(prompt.task, 0)
            numbers[prompt.task] = number + 1
            end = f"_{number:06d}.png"
            # A slash ends a folder's name, and the script takes what stands before the first "_" for the prompt.
            name = prompt.text.replace("/", " ").encode()[: _LONGEST_NAME - len(end)].decode(errors="ignore")
            file = folder / (name + end)
            if not file.exists():
                write(file, source.read_bytes())
    return sum(numbers.values())


_EXPORTS: dict[str, Callable[[Path, Path, Sequence[Prompt], int], int]] = {
    "dpg": _export_dpg,
    "compbench": _export_compbench,
}


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def _read(file: Path) -> Tensor:
    try:
        with Image.open(file) as picture:
            pixels = np.array(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as a picture: {error}; delete it, and it is drawn anew") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)
