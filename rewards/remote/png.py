"""Packs and unpacks pictures as 8-bit RGB PNGs, and reads their size before anything is unpacked.

H, W a picture's sides.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Signature, length and name of the first chunk, width, height, bit depth, colour type.
_HEADER = struct.Struct(">8sI4sIIBB")
_EIGHT_BIT_RGB = (8, 2)


def encode_png(image: Tensor, *, level: int = 1) -> bytes:
    """Pack an image [3, H, W] uint8 as a PNG, lossless. `level`: zlib's, 0 (stored) to 9."""
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
    """Read (width, height) from the header. ValueError for anything but an 8-bit RGB PNG."""
    if len(data) < _HEADER.size or not data.startswith(SIGNATURE):
        raise ValueError(f"{where} is no PNG; send base64 of an 8-bit RGB PNG")
    _, length, name, width, height, depth, colors = _HEADER.unpack_from(data)
    if (length, name) != (13, b"IHDR") or not width or not height:
        raise ValueError(f"{where} is a damaged PNG; send base64 of an 8-bit RGB PNG")
    if (depth, colors) != _EIGHT_BIT_RGB:
        raise ValueError(f"{where} is a PNG of {depth} bits and colour type {colors}; convert it to 8-bit RGB")
    return width, height


def decode_png(data: bytes, where: str) -> Tensor:
    """Unpack a PNG to [3, H, W] uint8. ValueError for a damaged picture. Check its size before."""
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
