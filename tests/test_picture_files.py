"""Picture files are read as a viewer shows them, and what is left out of them is said."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2i_gcpo.utils.picture_files import FRAMES, TRANSPARENT, read_picture

RED, BLUE, BLACK, WHITE = [255, 0, 0], [0, 0, 255], [0, 0, 0], [255, 255, 255]


def halves() -> Image.Image:
    """20 wide, 10 high: red on the left, black on the right."""
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[:, :10, 0] = 255
    return Image.fromarray(pixels)


def ends(path: Path) -> tuple[list[int], list[int], tuple[str, ...]]:
    """The first and the last pixel, and the notes."""
    pixels, notes = read_picture(path)
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
    return pixels[0, 0].tolist(), pixels[-1, -1].tolist(), notes


def test_16_bits_of_grey_are_scaled(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    pixels, notes = read_picture(tmp_path / "grey.png")
    assert pixels.mean() / 255 == pytest.approx(0.5, abs=1e-3) and notes == ()
    assert pixels[0, 0].tolist() == BLACK and pixels[-1, -1].tolist() == WHITE


@pytest.mark.parametrize(
    ("orientation", "first", "last"),
    [(1, RED, BLACK), (2, BLACK, RED), (3, BLACK, RED), (8, BLACK, RED), (6, RED, BLACK)],
)
def test_the_camera_s_orientation_is_applied(
    tmp_path: Path, orientation: int, first: list[int], last: list[int]
) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    halves().save(tmp_path / "photo.png", exif=exif)
    assert ends(tmp_path / "photo.png") == (first, last, ())
    assert read_picture(tmp_path / "photo.png")[0].shape[:2] == ((20, 10) if orientation > 4 else (10, 20))


def test_transparent_pixels_are_laid_on_white(tmp_path: Path) -> None:
    palette = halves().convert("P")
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((0, 0)))
    assert ends(tmp_path / "palette.png") == (WHITE, BLACK, (TRANSPARENT,))
    alpha = halves().convert("RGBA")
    alpha.putalpha(Image.fromarray(np.repeat(np.array([[0] * 10 + [255] * 10], np.uint8), 10, axis=0)))
    alpha.save(tmp_path / "alpha.png")
    assert ends(tmp_path / "alpha.png") == (WHITE, BLACK, (TRANSPARENT,))
    halves().convert("RGBA").save(tmp_path / "opaque.png")
    assert ends(tmp_path / "opaque.png") == (RED, BLACK, ())


def test_the_colours_of_print(tmp_path: Path) -> None:
    halves().convert("CMYK").save(tmp_path / "print.jpg", quality=100)
    pixels, notes = read_picture(tmp_path / "print.jpg")
    assert np.abs(pixels[0, 0].astype(int) - RED).max() < 8 and np.abs(pixels[-1, -1].astype(int)).max() < 8
    assert notes == ()


@pytest.mark.parametrize("ending", ["png", "webp", "gif"])
def test_the_first_frame_is_read(tmp_path: Path, ending: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    more = {"lossless": True} if ending == "webp" else {}
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], **more)
    first, last, notes = ends(tmp_path / f"a.{ending}")
    assert first == last == RED and notes == (FRAMES,)


@pytest.mark.parametrize(("mode", "color"), [("1", 1), ("L", 255), ("LA", (255, 255)), ("P", 255)])
def test_other_plain_kinds(tmp_path: Path, mode: str, color: object) -> None:
    picture = Image.new(mode, (4, 4), color)
    if mode == "P":
        picture.putpalette([255] * 768)
    picture.save(tmp_path / "p.png")
    assert ends(tmp_path / "p.png") == (WHITE, WHITE, ())


def test_what_cannot_be_read_names_the_file(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    for name, content in (("cut.png", data[: len(data) // 2]), ("text.png", b"no picture"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} cannot be read as a picture"):
            read_picture(tmp_path / name)
    Image.new("F", (4, 4)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match=r"float\.tif cannot be read as a picture: its mode is F"):
        read_picture(tmp_path / "float.tif")


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    halves().save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90)
    with pytest.raises(ValueError, match=r"large\.png cannot be read as a picture"):
        read_picture(tmp_path / "large.png")


def test_grey_of_32_bits_is_refused(tmp_path: Path) -> None:
    """Nothing in such a file says which value is white: 255, 65535 or 1."""
    for name, values in (("small", np.full((4, 4), 200)), ("large", np.full((4, 4), 60_000))):
        Image.fromarray(values.astype(np.int32)).save(tmp_path / f"{name}.tiff")
        with pytest.raises(ValueError, match=f"{name}.tiff cannot be read as a picture: its mode is I; save it as PNG"):
            read_picture(tmp_path / f"{name}.tiff")


def test_a_transparent_value_of_16_bit_grey_is_laid_on_white(tmp_path: Path) -> None:
    grey = np.array([[0, 257, 65535], [514, 0, 257]], dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    data = (tmp_path / "grey.png").read_bytes()
    chunk = b"tRNS" + struct.pack(">H", 257)
    at = data.index(b"IDAT") - 4
    clear = struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "grey.png").write_bytes(data[:at] + clear + data[at:])
    pixels, notes = read_picture(tmp_path / "grey.png")
    assert pixels[..., 0].tolist() == [[0, 255, 255], [2, 0, 255]] and notes == (TRANSPARENT,)
