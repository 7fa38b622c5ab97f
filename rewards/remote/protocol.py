"""What a reward server and its client say to each other: JSON, pictures as base64 PNG. Nothing that is sent can run.

    request   {"images": [PNG, ...], "prompts": [text, ...], "metadata": [{...}, ...]}
    answer    {"scores": [number, ...], "parts": {name: [number, ...]}}, null for a number that is not finite
    error     {"error": sentence}

B images of one size, H, W their sides.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rewards.base import RewardOutput

#: Of the format above. Both sides must speak the same.
PROTOCOL = 1

SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Signature, length and name of the first chunk, width, height, bit depth, colour type.
_HEADER = struct.Struct(">8sI4sIIBB")
_EIGHT_BIT_RGB = (8, 2)


@dataclass(frozen=True)
class Limits:
    """The most that a server takes."""

    body: int = 64 * 2**20
    """Bytes of a request."""
    images: int = 256
    """Images of a request."""
    pixels: int = 2048**2
    """Pixels of an image."""
    prompt: int = 8192
    """Characters of a prompt."""
    depth: int = 32
    """Nesting of a request's JSON."""
    waiting: int = 2**28
    """Pixels of all requests that are being read or scored: three bytes each."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"the limit {name} is {value}; it must be at least 1")


class TooLarge(ValueError):
    """A request beyond the server's limits."""


def encode_png(image: Tensor, *, level: int = 1) -> bytes:
    """An image [3, H, W] uint8 as a PNG, lossless. `level`: zlib's, 0 (stored) to 9."""
    rows = image.permute(1, 2, 0).contiguous().cpu().numpy()
    height, width, _ = rows.shape
    # A filter type before each row: 0, the row as it is. Choosing filters takes longer than sending the rest.
    data = np.concatenate([np.zeros((height, 1), np.uint8), rows.reshape(height, -1)], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, *_EIGHT_BIT_RGB, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(data, level)), (b"IEND", b""))
    return SIGNATURE + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def png_size(data: bytes, where: str) -> tuple[int, int]:
    """(width, height) from the header, before anything is unpacked. ValueError for anything but an 8-bit RGB PNG."""
    if len(data) < _HEADER.size or not data.startswith(SIGNATURE):
        raise ValueError(f"{where} is no PNG; send base64 of an 8-bit RGB PNG")
    _, length, name, width, height, depth, colors = _HEADER.unpack_from(data)
    if (length, name) != (13, b"IHDR") or not width or not height:
        raise ValueError(f"{where} is a damaged PNG; send base64 of an 8-bit RGB PNG")
    if (depth, colors) != _EIGHT_BIT_RGB:
        raise ValueError(f"{where} is a PNG of {depth} bits and colour type {colors}; convert it to 8-bit RGB")
    return width, height


def decode_png(data: bytes, where: str) -> Tensor:
    """[3, H, W] uint8. ValueError for a damaged picture. Check its size before."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            pixels = np.array(picture.convert("RGB"))
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise ValueError(f"{where} is a damaged PNG: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


@dataclass(frozen=True)
class Request:
    """What a client sent, checked; its pictures are still packed."""

    pictures: tuple[bytes, ...]
    size: tuple[int, int]
    """(width, height) of each."""
    prompts: list[str]
    metadata: list[dict[str, Any]]

    @property
    def pixels(self) -> int:
        return len(self.pictures) * self.size[0] * self.size[1]

    def images(self) -> Tensor:
        """[B, 3, H, W] uint8. ValueError for a damaged picture."""
        return torch.stack([decode_png(data, f"images[{k}]") for k, data in enumerate(self.pictures)])


def write_request(
    images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]], *, level: int
) -> bytes:
    """ValueError for metadata that JSON cannot hold."""
    pictures = [base64.b64encode(encode_png(image, level=level)).decode("ascii") for image in images]
    request = {"images": pictures, "prompts": list(prompts), "metadata": list(metadata)}
    try:
        return json.dumps(request, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"the prompts' metadata cannot be sent to a reward server: {error}; it must be plain JSON: texts, finite numbers, "
            "booleans, null, lists, objects with text keys"
        ) from error


def read_request(body: bytes, limits: Limits) -> Request:
    """ValueError where it is not a request as above, TooLarge where it is too much of one. No picture is unpacked."""
    data = _json_object(body, limits.depth)
    pictures = data.get("images")
    if not isinstance(pictures, list) or not pictures:
        raise ValueError('"images" is missing or empty; it must be a list of base64 PNGs')
    if len(pictures) > limits.images:
        raise TooLarge(f"{len(pictures)} images in a request; at most {limits.images} are taken, send several requests")
    prompts = _rows(data.get("prompts"), len(pictures), "prompts")
    metadata = _rows(data.get("metadata") or [None] * len(pictures), len(pictures), "metadata")
    for k, prompt in enumerate(prompts):
        _check_prompt(prompt, f"prompts[{k}]", limits.prompt)
    for k, row in enumerate(metadata):
        if row is not None and not isinstance(row, dict):
            raise ValueError(f"metadata[{k}] is {type(row).__name__}; it must be an object or null")
    packed, sizes = [], []
    for k, text in enumerate(pictures):
        packed.append(_base64(text, f"images[{k}]"))
        sizes.append(_checked_size(packed[-1], f"images[{k}]", limits))
    if len(set(sizes)) > 1:
        raise ValueError("the images of a request must have one size; send a request for each size")
    request = Request(tuple(packed), sizes[0], prompts, [row or {} for row in metadata])
    if request.pixels > limits.waiting:
        raise TooLarge(
            f"the images have {request.pixels} pixels together; at most {limits.waiting} are taken, send fewer"
        )
    return request


def write_answer(output: RewardOutput) -> dict[str, Any]:
    return {
        "scores": _numbers(output.scores),
        "parts": {name: _numbers(values) for name, values in output.parts.items()},
    }


def read_answer(data: Any, batch: int) -> RewardOutput:
    """ValueError where it is no answer for `batch` images."""
    parts = data.get("parts", {}) if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(parts, dict):
        raise ValueError(f"the answer is no object with scores and parts, but {type(data).__name__}")
    return RewardOutput(
        _tensor(data.get("scores"), batch, "scores"), {k: _tensor(v, batch, k) for k, v in parts.items()}
    )


def _json_object(body: bytes, depth: int) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no number in JSON; send null")

    try:
        data = json.loads(body.decode("utf-8"), parse_constant=refuse)
    except RecursionError as error:
        raise ValueError(f"the JSON is nested deeper than {depth} levels") from error
    except UnicodeDecodeError as error:
        raise ValueError("the request is not UTF-8 text; send JSON") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"the request is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"the request is a JSON {type(data).__name__}; send an object with images and prompts")
    level: list[Any] = [data]
    for _ in range(depth):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return data
    raise ValueError(f"the JSON is nested deeper than {depth} levels")


def _rows(value: Any, count: int, name: str) -> list[Any]:
    if not isinstance(value, list) or len(value) != count:
        given = f"{len(value)} entries" if isinstance(value, list) else type(value).__name__
        raise ValueError(f'"{name}" must be a list with one entry for each of the {count} images; got {given}')
    return value


def _check_prompt(prompt: Any, where: str, most: int) -> None:
    if not isinstance(prompt, str):
        raise ValueError(f"{where} is {type(prompt).__name__}; it must be a text")
    if len(prompt) > most:
        raise TooLarge(f"{where} has {len(prompt)} characters; at most {most} are taken")
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} holds half of a surrogate pair, which is no text") from error


def _base64(text: Any, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise ValueError(f"{where} is not base64; send base64 of an 8-bit RGB PNG") from error


def _checked_size(data: bytes, where: str, limits: Limits) -> tuple[int, int]:
    width, height = png_size(data, where)
    if width * height > limits.pixels:
        raise TooLarge(f"{where} is {width} x {height}, {width * height} pixels; at most {limits.pixels} are taken")
    return width, height


def _numbers(values: Tensor) -> list[float | None]:
    # A float32 as a double, written in full: it comes back as the same float32.
    return [value if math.isfinite(value) else None for value in values.detach().float().cpu().tolist()]


def _tensor(values: Any, batch: int, name: str) -> Tensor:
    if not isinstance(values, list) or len(values) != batch:
        given = f"{len(values)} values" if isinstance(values, list) else type(values).__name__
        raise ValueError(f"the answer's {name} are {given} for {batch} images")
    if any(value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))) for value in values):
        raise ValueError(f"the answer's {name} are not all numbers")
    return torch.tensor([math.nan if value is None else float(value) for value in values], dtype=torch.float32)


class Refusal(Exception):
    """An answer with an error status."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
