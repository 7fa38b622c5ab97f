"""Read picture files as a viewer shows them: 8 bits a channel, upright, opaque, one frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

#: What lies below transparent pixels.
GROUND = (255, 255, 255)
#: Notes on what a file held besides what is read.
FRAMES = "several frames: the first one is read"
TRANSPARENT = "transparent pixels: they are laid on white"
#: Modes of 16 bits a pixel. Of PIL's 32-bit mode nothing says what is white, but for PNG, which has 16 bits at most.
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
#: Modes that PIL turns into RGB as their formats mean it.
_PLAIN = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")


def read_picture(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read a picture as [H, W, 3] uint8, and notes on what was left out of it.

    16-bit grey is scaled, EXIF's orientation is applied, transparent pixels are laid on white, CMYK becomes RGB, of an
    animation the first frame is read. ValueError, naming the file, where it is damaged, too large, or of a kind that
    has no plain colours.
    """
    try:
        with Image.open(path) as picture:
            return _read(picture)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error


def _read(picture: Image.Image) -> tuple[np.ndarray, tuple[str, ...]]:
    notes = []
    if getattr(picture, "n_frames", 1) > 1:  # PIL's own; formats of one frame lack it
        picture.seek(0)
        notes.append(FRAMES)
    picture.load()
    upright = ImageOps.exif_transpose(picture)
    if upright.mode in _SIXTEEN_BITS or (upright.mode == "I" and picture.format == "PNG"):
        grey = np.asarray(upright).astype(np.int64)
        clear = grey == upright.info.get("transparency", -1)  # PNG's way to say that one value is transparent
        if clear.any():
            notes.append(TRANSPARENT)
        grey = np.where(clear, GROUND[0], np.rint(grey / 257)).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1), tuple(notes)
    if upright.mode not in _PLAIN:
        raise ValueError(f"its mode is {upright.mode}; save it as PNG or JPEG with 8 bits a channel")
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        if np.asarray(rgba)[..., 3].min() < 255:
            notes.append(TRANSPARENT)
        upright = Image.alpha_composite(Image.new("RGBA", rgba.size, (*GROUND, 255)), rgba)
    return np.asarray(upright.convert("RGB")).copy(), tuple(notes)
