"""Defines what a reward server and its client send each other: JSON, pictures as base64 PNG.

Nothing that is sent can run.

    POST /score   {"images": [PNG, ...], "prompts": [text, ...], "metadata": [{...}, ...]}
    answer        {"scores": [number, ...], "parts": {name: [number, ...]}, "scorer": text}
    POST /check   {"prompts": [text, ...], "metadata": [{...}, ...]}, to ask whether prompts can be scored
    error         {"error": sentence}, with "index" where it is about one prompt

A number that is not finite is null. B images of one size, H, W their sides.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import torch
from torch import Tensor

from rewards.base import RewardOutput
from rewards.remote.png import decode_png, encode_png, png_size

#: Of the format above. Both sides must speak the same.
PROTOCOL = 2

#: Parts of an answer at most, and characters of a part's name.
MOST_PARTS, MOST_NAME = 4096, 200
#: Reasons of an image at most, and their length.
MOST_REASONS, MOST_REASON = 64, 500


@dataclass(frozen=True)
class Limits:
    """Holds the most that a server takes."""

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
    waiting: int = 2**27
    """Pixels of all requests that are being read or scored: three bytes each."""
    together: int = 2**24
    """Pixels of one call of the scorer, or else one image: twelve bytes each as float, and scorers make several
    copies."""
    arrival: int = 120
    """Seconds in which a whole request must arrive."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"the limit {name} is {value}; it must be at least 1")


class TooLarge(ValueError):
    """Says that a request is beyond the server's limits."""


class Refusal(Exception):
    """Stands for an answer with an error status. `more`: what the answer holds beside the sentence."""

    def __init__(self, status: HTTPStatus, sentence: str, **more: Any) -> None:
        super().__init__(sentence)
        self.status = status
        self.more = more


@dataclass(frozen=True)
class Request:
    """Holds what a client sent, checked; its pictures are still packed."""

    pictures: tuple[bytes, ...]
    size: tuple[int, int]
    """(width, height) of each."""
    prompts: list[str]
    metadata: list[dict[str, Any]]

    @property
    def pixels(self) -> int:
        """Count the pixels of all pictures."""
        return len(self.pictures) * self.size[0] * self.size[1]

    def images(self) -> Tensor:
        """Unpack the pictures to [B, 3, H, W] uint8. ValueError for a damaged picture."""
        width, height = self.size
        images = torch.empty(len(self.pictures), 3, height, width, dtype=torch.uint8)
        for k, data in enumerate(self.pictures):
            images[k] = decode_png(data, f"images[{k}]")
        return images


def write_request(
    images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]], *, level: int
) -> bytes:
    """Write the body of POST /score. ValueError for metadata that JSON cannot hold."""
    pictures = [base64.b64encode(encode_png(image, level=level)).decode("ascii") for image in images]
    return _json({"images": pictures, "prompts": list(prompts), "metadata": list(metadata)})


def write_check(prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> bytes:
    """Write the body of POST /check. ValueError for metadata that JSON cannot hold."""
    return _json({"prompts": list(prompts), "metadata": list(metadata)})


def read_request(body: bytes | bytearray, limits: Limits) -> Request:
    """Read the body of POST /score; no picture is unpacked.

    ValueError where it is none, TooLarge where it is too much of one.
    """
    data = _json_object(body, limits.depth)
    pictures = data.get("images")
    if not isinstance(pictures, list) or not pictures:
        raise ValueError('"images" is missing or empty; it must be a list of base64 PNGs')
    if len(pictures) > limits.images:
        raise TooLarge(f"{len(pictures)} images in a request; at most {limits.images} are taken, send several requests")
    prompts, metadata = _prompts_and_metadata(data, len(pictures), "images", limits)
    packed, sizes = [], []
    for k, text in enumerate(pictures):
        packed.append(_base64(text, f"images[{k}]"))
        sizes.append(_checked_size(packed[-1], f"images[{k}]", limits))
    if len(set(sizes)) > 1:
        raise ValueError("the images of a request must have one size; send a request for each size")
    request = Request(tuple(packed), sizes[0], prompts, metadata)
    if request.pixels > limits.waiting:
        raise TooLarge(
            f"the images have {request.pixels} pixels together; at most {limits.waiting} are taken, send fewer"
        )
    return request


def read_check(body: bytes | bytearray, limits: Limits) -> tuple[list[str], list[dict[str, Any]]]:
    """Read the body of POST /check: prompts and metadata. Errors as of `read_request`."""
    data = _json_object(body, limits.depth)
    if not isinstance(data.get("prompts"), list):
        raise ValueError('"prompts" is missing; it must be a list of texts')
    return _prompts_and_metadata(data, len(data["prompts"]), "prompts", limits)


def write_answer(output: RewardOutput, scorer: str) -> dict[str, Any]:
    """Return the content of an answer. `scorer`: the fingerprint of the scorer's identity."""
    parts = {name: _numbers(values) for name, values in output.parts.items()}
    answer = {"scores": _numbers(output.scores), "parts": parts, "scorer": scorer}
    return answer | ({"reasons": output.reasons} if any(output.reasons) else {})


def read_answer(data: Any, batch: int) -> RewardOutput:
    """Read an answer to POST /score. ValueError where it is no answer for `batch` images."""
    parts = data.get("parts", {}) if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(parts, dict):
        raise ValueError(f"the answer is no object with scores and parts, but {type(data).__name__}")
    if len(parts) > MOST_PARTS or not all(name.isprintable() and len(name) <= MOST_NAME for name in parts):
        raise ValueError(
            f"the answer has {len(parts)} parts; at most {MOST_PARTS} are taken, with printable names of up to "
            f"{MOST_NAME} characters"
        )
    return RewardOutput(
        _tensor(data.get("scores"), batch, "scores"),
        {k: _tensor(v, batch, k) for k, v in parts.items()},
        _reasons(data.get("reasons", []), batch),
    )


def _reasons(given: Any, batch: int) -> tuple[tuple[str, ...], ...]:
    """Return the reasons of an answer, () where it has none. ValueError: they are no lines of text for each image."""
    if given == []:
        return ()
    whole = isinstance(given, list) and len(given) == batch and all(isinstance(lines, list) for lines in given)
    texts = [line for lines in given for line in lines] if whole else [None]
    if not all(isinstance(line, str) and line.isprintable() and len(line) <= MOST_REASON for line in texts):
        raise ValueError(
            f"the answer's reasons are no lists of printable lines of up to {MOST_REASON} characters, one list for "
            f"each of the {batch} images"
        )
    if any(len(lines) > MOST_REASONS for lines in given):
        raise ValueError(f"the answer has more than {MOST_REASONS} reasons for an image")
    return tuple(tuple(lines) for lines in given)


def _json(content: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(content, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"the prompts' metadata cannot be sent to a reward server: {error}; it must be plain JSON: texts, finite "
            "numbers, booleans, null, lists, objects with text keys"
        ) from error


def _json_object(body: bytes | bytearray, depth: int) -> dict[str, Any]:
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


def _prompts_and_metadata(
    data: Mapping[str, Any], count: int, what: str, limits: Limits
) -> tuple[list[str], list[dict[str, Any]]]:
    prompts = _rows(data.get("prompts"), count, "prompts", what)
    metadata = _rows(data.get("metadata") or [None] * count, count, "metadata", what)
    for k, prompt in enumerate(prompts):
        _check_prompt(prompt, f"prompts[{k}]", limits.prompt)
    for k, row in enumerate(metadata):
        if row is not None and not isinstance(row, dict):
            raise ValueError(f"metadata[{k}] is {type(row).__name__}; it must be an object or null")
    return prompts, [row or {} for row in metadata]


def _rows(value: Any, count: int, name: str, what: str) -> list[Any]:
    if not isinstance(value, list) or len(value) != count:
        given = f"{len(value)} entries" if isinstance(value, list) else type(value).__name__
        raise ValueError(f'"{name}" must be a list with one entry for each of the {count} {what}; got {given}')
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
    try:
        numbers = [math.nan if value is None else float(value) for value in values]
    except OverflowError as error:
        raise ValueError(f"the answer's {name} hold a number that is too large") from error
    return torch.tensor(numbers, dtype=torch.float32)
