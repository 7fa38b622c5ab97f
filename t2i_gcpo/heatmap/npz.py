"""Arrays out of a heatmap's npz. The file may come from anybody: what it claims is checked before anything is read.

A zip's table and the first bytes of each array say how large everything will be. Only when all sizes are allowed and
fit one another are the arrays read; what they hold then is checked once more.

B images, T = rows * columns tokens, H, W pixels.
"""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

#: Bytes of all arrays of a file together, unpacked.
MOST_BYTES = 2**30
#: Pixels of a picture's side.
MOST_PIXELS = 8192
#: A picture's longer side, in units of its shorter.
MOST_ELONGATED = 32
#: Letters of a prompt or label.
MOST_LETTERS = 20_000
#: Tokens of all images together, and arrays of a file.
MOST_TOKENS, MOST_ARRAYS = 2**22, 64
STATS = "stats/"

#: Array -> what it is made of and its axes. B and T are the same for all; text is of any length.
AXES: dict[str, tuple[str, tuple[str | int, ...]]] = {
    "images": ("uint8", ("B", 3, "H", "W")),
    "tokens": ("int64", ("B", "T")),
    "commit_step": ("int64", ("B", "T")),
    "logprob_positive": ("float32", ("B", "T")),
    "logprob_negative": ("float32", ("B", "T")),
    "logprob_behaviour": ("float32", ("B", "T")),
    "logprob_reference": ("float32", ("B", "T")),
    "weights": ("float32", ("B", "T")),
    "advantages": ("float32", ("B", "T")),
    "sequence_advantages": ("float32", ("B",)),
    "scores": ("float32", ("B",)),
    "prompts": ("text", ("B",)),
    "negative_prompts": ("text", ("B",)),
    "labels": ("text", ("B",)),
    "grid": ("int64", (2,)),
    "recipe": ("text", ()),
}
#: Any array below `STATS`.
STAT: tuple[str, tuple[str | int, ...]] = ("float32", ("B", "T"))
#: What a file must hold; the rest may be missing.
NEEDED = ("images", "weights", "grid")
#: Kind of numbers -> the kinds that numpy may have stored it as, by their letters.
KINDS = {"uint8": "u", "int64": "iu", "float32": "f", "text": "U"}

#: What zipfile, zlib and numpy raise over files that are cut, changed or encrypted, besides ValueError.
_DAMAGE = (
    OSError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    OverflowError,
    MemoryError,
    SyntaxError,
    tokenize.TokenError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


class Header(NamedTuple):
    """What an array claims to be."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int
    """Bytes of the header itself."""

    @property
    def bytes(self) -> int:
        """How long the array is by its header, the header included."""
        return self.start + math.prod(self.shape) * self.dtype.itemsize


def read(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a heatmap by name, `stats/...` among them. ValueError says what is wrong with the file."""
    if not path.is_file():
        raise ValueError("it is no file")
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive)
            headers = {name: _header(archive, info) for name, info in members.items()}
            check(headers)
            arrays = {name: _array(archive, members[name], header) for name, header in headers.items()}
    except _DAMAGE as error:
        raise ValueError(f"it is damaged ({error})") from error
    check_values(arrays)
    return arrays


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return name of the array -> its entry in the zip.

    ValueError for names that are not known, twice there, or too large.
    """
    members: dict[str, zipfile.ZipInfo] = {}
    if len(archive.infolist()) > MOST_ARRAYS:
        raise ValueError(f"it holds {len(archive.infolist())} arrays; at most {MOST_ARRAYS} are read")
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name == info.filename or not (name in AXES or name.startswith(STATS)):
            raise ValueError(f"it holds {info.filename!r}, which is no part of a heatmap")
        if name in members:
            raise ValueError(f"it holds {name} twice")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name} is packed in a way that numpy does not write")
        members[name] = info
    missing = [name for name in NEEDED if name not in members]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    total = sum(info.file_size for info in members.values())
    if total > MOST_BYTES:
        raise ValueError(f"it unpacks to {total / 2**30:.1f} GiB; at most {MOST_BYTES / 2**30:g} are read")
    return members


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Header:
    """Return what an array claims to be.

    ValueError for anything but numbers and text, or for another size than the zip's table says.
    """
    with archive.open(info) as file:
        header = _parse_header(file)
    if header.dtype.hasobject or header.bytes != info.file_size:
        raise ValueError(
            f"{info.filename} claims {header.bytes} bytes as an array of shape {list(header.shape)} and type "
            f"{header.dtype}, but has {info.file_size}"
        )
    return header


def _parse_header(file: IO[bytes]) -> Header:
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(file)
    if version not in readers:
        raise ValueError(f"an array of format {version}, which t2i-gcpo does not write")
    shape, _, dtype = readers[version](file)
    if any(side < 0 for side in shape):
        raise ValueError(f"an array of shape {list(shape)}")
    return Header(tuple(map(int, shape)), dtype, file.tell())


def check(headers: dict[str, Header]) -> None:
    """Check that the arrays are of the right kinds and fit one another. ValueError says which does not, and why."""
    sizes: dict[str, int] = {}
    for name, header in headers.items():
        kind, axes = STAT if name.startswith(STATS) else AXES[name]
        if header.dtype.kind not in KINDS[kind]:
            raise ValueError(f"{name} is of type {header.dtype}; it must be {kind}")
        if len(header.shape) != len(axes):
            raise ValueError(f"{name} is of shape {list(header.shape)}; it must be {_shown(axes)}")
        for axis, size in zip(axes, header.shape, strict=True):
            wanted = axis if isinstance(axis, int) else sizes.setdefault(axis, size)
            if size != wanted:
                raise ValueError(
                    f"{name} is of shape {list(header.shape)}; it must be {_shown(axes)}"
                    + ("" if isinstance(axis, int) else f", with {axis} = {wanted} as of the others")
                )
        if header.dtype.kind == "U" and header.dtype.itemsize > 4 * MOST_LETTERS:
            raise ValueError(f"{name} has texts of {header.dtype.itemsize // 4} letters; at most {MOST_LETTERS}")
    empty = [axis for axis, size in sizes.items() if size < 1]
    if empty:
        raise ValueError(f"its arrays are empty: {', '.join(f'{axis} = 0' for axis in empty)}")
    if sizes["B"] * sizes["T"] > MOST_TOKENS:
        raise ValueError(f"it has {sizes['B'] * sizes['T']:,} tokens; at most {MOST_TOKENS:,} are read")
    low, high = sorted((sizes["H"], sizes["W"]))
    if high > MOST_PIXELS or high > MOST_ELONGATED * low:
        raise ValueError(
            f"its images are {sizes['H']} x {sizes['W']} pixels; allowed are {MOST_PIXELS} a side, and "
            f"{MOST_ELONGATED} times as long as wide"
        )


def check_values(arrays: dict[str, np.ndarray]) -> None:
    """Check the grid, the tokens and their steps, which other arrays are indexed and laid out by.

    ValueError says what is wrong.
    """
    rows, columns = arrays["grid"].tolist()
    length = arrays["weights"].shape[1]
    if rows < 1 or columns < 1 or rows * columns != length:
        raise ValueError(f"its grid is {rows} x {columns}, which does not make the {length} tokens of an image")
    if "tokens" in arrays and int(arrays["tokens"].min()) < 0:
        raise ValueError(f"its tokens begin at {int(arrays['tokens'].min())}; tokens count from 0")
    if "commit_step" in arrays:
        first, last = int(arrays["commit_step"].min()), int(arrays["commit_step"].max())
        if first < 0 or last >= length:
            raise ValueError(f"its steps span {first} to {last}; allowed are steps from 0 to {length - 1}")


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, header: Header) -> np.ndarray:
    """Read one array, of the size that its header was checked for, in this machine's byte order."""
    with archive.open(info) as file:
        values = npy.read_array(file, allow_pickle=False)
    kind = (STAT if info.filename.startswith(STATS) else AXES[info.filename.removesuffix(".npy")])[0]
    if values.shape != header.shape:
        raise ValueError(f"{info.filename} changed while it was read")
    if kind == "text":
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    return np.ascontiguousarray(values, dtype=kind)


def _shown(axes: tuple[str | int, ...]) -> str:
    return f"[{', '.join(map(str, axes))}]"
