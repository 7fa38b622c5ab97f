"""Heatmaps of anybody: sizes are checked before anything is read.

Shapes against each other before anything is drawn.
"""

from __future__ import annotations

import json
import random
import resource
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.limits import no_file_above
from t2i_gcpo import cli
from t2i_gcpo.heatmap import Heatmap, Recipe, npz
from t2i_gcpo.heatmap.files import write
from t2i_gcpo.utils.pictures import blank, font, wrap

B, T = 2, 16
GOOD: dict[str, Any] = {
    "images": np.full((B, 3, 8, 8), 100, np.uint8),
    "tokens": np.zeros((B, T), np.int64),
    "commit_step": np.tile(np.arange(T), (B, 1)),
    "logprob_positive": np.full((B, T), -1.0, np.float32),
    "logprob_negative": np.full((B, T), -2.0, np.float32),
    "logprob_behaviour": np.full((B, T), -1.0, np.float32),
    "weights": np.ones((B, T), np.float32),
    "scores": np.array([1.0, np.nan], np.float32),
    "prompts": np.array(["a", "b"]),
    "grid": np.array([4, 4]),
    "stats/entropy": np.ones((B, T), np.float32),
    "recipe": np.array(Recipe().dumps()),
}


def saved(folder: Path, **changes: Any) -> Path:
    """An npz of GOOD with other arrays; None leaves one out."""
    path = folder / "x.npz"
    np.savez_compressed(path, **{name: value for name, value in (GOOD | changes).items() if value is not None})
    return path


def message(path: Path) -> str:
    with pytest.raises(ValueError, match="is not a heatmap that t2i-gcpo wrote") as error:
        Heatmap.load(path)
    assert str(path) in str(error.value)
    return str(error.value)


def test_a_good_file_is_read_and_drawn(tmp_path: Path) -> None:
    loaded = Heatmap.load(saved(tmp_path))
    assert loaded.grid == (4, 4) and loaded.recipe == Recipe() and list(loaded.stats) == ["entropy"]
    assert loaded.draw().width > 0
    # Other widths of numbers, and the other byte order, are the same numbers.
    swapped: dict[str, Any] = {
        name: value.astype(value.dtype.newbyteorder(">")) for name, value in GOOD.items() if value.dtype.kind in "fiU"
    }
    again = Heatmap.load(saved(tmp_path, **(swapped | {"weights": np.ones((B, T), np.float64)})))
    assert again.draw().tobytes() == loaded.draw().tobytes() and again.weights.dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"grid": np.array([0, 0])}, "its grid is 0 x 0, which does not make the 16 tokens"),
        ({"grid": np.array([-4, -4])}, "its grid is -4 x -4"),
        ({"grid": np.array([-8, -8])}, "its grid is -8 x -8"),
        ({"grid": np.array([2, 4])}, "its grid is 2 x 4"),
        ({"grid": np.array([2**62, 4])}, "which does not make the 16 tokens"),
        ({"grid": np.array([4, 4, 1])}, "grid is of shape [3]; it must be [2]"),
        ({"grid": np.array([4.0, 4.0])}, "grid is of type float64; it must be int64"),
        ({"grid": np.array("4x4")}, "grid is of type <U3"),
        ({"tokens": np.zeros((B, T + 1), np.int64)}, "commit_step is of shape [2, 16]; it must be [B, T], with T = 17"),
        ({"tokens": np.full((B, T), -1)}, "its tokens begin at -1"),
        ({"tokens": np.full((B, T), 2**64 - 1, np.uint64)}, "its tokens begin at -1"),
        ({"commit_step": np.full((B, T), T)}, "steps span 16 to 16"),
        ({"commit_step": np.full((B, T), 2**62)}, "steps from 0 to 15"),
        ({"images": np.zeros((B, 3, 8, 8), np.float32)}, "images is of type float32; it must be uint8"),
        ({"images": np.zeros((B, 1, 8, 8), np.uint8)}, "images is of shape [2, 1, 8, 8]; it must be [B, 3, H, W]"),
        ({"images": np.zeros((B, 3, 8, 0), np.uint8)}, "its arrays are empty: W = 0"),
        ({"images": np.zeros((B, 3, 1, 9000), np.uint8)}, "its images are 1 x 9000 pixels"),
        ({"images": np.zeros((B, 3, 400, 1), np.uint8)}, "32 times as long as wide"),
        ({"images": np.zeros((1, 3, 8, 8), np.uint8)}, "with B = 1 as of the others"),
        ({"weights": np.ones((B, T), complex)}, "weights is of type complex128"),
        ({"weights": np.ones(B * T, np.float32)}, "weights is of shape [32]; it must be [B, T]"),
        ({"weights": None}, "it lacks weights"),
        ({"prompts": np.array(["a"])}, "prompts is of shape [1]"),
        ({"prompts": np.array([1, 2])}, "prompts is of type int64; it must be text"),
        ({"prompts": np.array(["a", "b" * 30_000])}, "texts of 30000 letters"),
        ({"stats/entropy": np.ones((B, 3), np.float32)}, "stats/entropy is of shape [2, 3]"),
        ({"extra": np.ones(3)}, "it holds 'extra.npy', which is no part of a heatmap"),
        ({f"stats/{k}": np.ones((B, T), np.float32) for k in range(70)}, "at most 64 are read"),
        ({"recipe": np.array("[]")}, "its recipe is empty; it must be a mapping"),
        ({"recipe": np.array("{")}, "its recipe is not valid JSON"),
        ({"recipe": np.array("[" * 9999)}, "its recipe is not valid JSON"),
        ({"recipe": np.array('{"top": "much"}')}, 'its recipe: top is "much"; it must be a number'),
        ({"recipe": np.array('{"top": NaN}')}, "top"),
        ({"recipe": np.array('{"credit": "magic"}')}, "magic"),
        ({"recipe": np.array(["{}"])}, "recipe is of shape [1]; it must be []"),
    ],
)
def test_shapes_are_checked_against_each_other(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    shown = message(saved(tmp_path, **changes))
    assert expected in shown, shown


def header(shape: str, descr: str = "'<f4'") -> bytes:
    """The first bytes of an npy file that claims any shape and type."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (len(text) + 10) % 64 + 1 - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def crafted(folder: Path, name: str, content: bytes, **options: Any) -> Path:
    """An npz of GOOD whose array `name` is `content`."""
    path = saved(folder, **{name: None})
    with zipfile.ZipFile(path, "a", **options) as archive:
        archive.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (header("(1000000, 1000000)"), "claims 4000000000"),
        (header("(10000000000000000000000000,)"), "claims 4"),
        (header("(-1, 5)"), "an array of shape [-1, 5]"),
        (header("(2, 16)", "'|O'"), "weights.npy claims"),
        (header("(2, 16)", "[('a', '<f4'), ('b', '<f4')]"), "weights"),
        (header("(2, 16)", "'<f4'")[:20], ""),
        (header("(" * 4000 + ")" * 4000), ""),
        (header("(2, 16)", "__import__('os').getcwd()"), ""),
        (b"", ""),
        (b"\x93NUMPY\x07\x00", "an array of format (7, 0)"),
        (b"\x80\x04\x95", ""),
    ],
)
def test_headers_that_claim_too_much_or_nothing(tmp_path: Path, content: bytes, expected: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert expected in message(crafted(tmp_path, "weights", content))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "nothing large was allocated (KiB)"


def test_a_small_file_that_expands_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In small, for speed: 64 MiB where 16 are allowed; and a zip whose table says less than it holds."""
    monkeypatch.setattr(npz, "MOST_BYTES", 2**24)
    path = saved(tmp_path, weights=None)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights.npy", header("(2, 8388608)") + bytes(2**26))
    assert path.stat().st_size < 2**17
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_, **__: pytest.fail("something was unpacked"))
    assert "it unpacks to 0.1 GiB; at most 0.015625 are read" in message(path)
    monkeypatch.undo()

    liar = crafted(tmp_path, "weights", header("(2, 16)") + bytes(2**20), compression=zipfile.ZIP_DEFLATED)
    content = bytearray(liar.read_bytes())
    whole = len(header("(2, 16)")) + 2**20
    at = content.rindex(whole.to_bytes(4, "little"))
    content[at : at + 4] = (len(header("(2, 16)")) + 128).to_bytes(4, "little")
    liar.write_bytes(content)
    assert message(liar)


def test_other_packings_and_names(tmp_path: Path) -> None:
    lzma = crafted(tmp_path, "weights", header("(2, 16)") + bytes(128), compression=zipfile.ZIP_LZMA)
    assert "packed in a way that numpy does not write" in message(lzma)
    twice = saved(tmp_path)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(twice, "a") as archive:
        archive.writestr("weights.npy", header("(2, 16)") + bytes(128))
    assert "it holds weights twice" in message(twice)
    (tmp_path / "folder.npz").mkdir()
    assert "it is no file" in message(tmp_path / "folder.npz")
    with pytest.raises(ValueError, match=r"there is no file .*nothing\.npz"):
        Heatmap.load(tmp_path / "nothing.npz")


def test_any_change_of_bytes_is_read_or_refused(tmp_path: Path) -> None:
    """Nothing but a ValueError, whichever bytes are changed or cut off."""
    good = saved(tmp_path).read_bytes()
    rng, path, refused = random.Random(0), tmp_path / "fuzz.npz", []
    for k in range(400):
        content = bytearray(good)
        for _ in range(rng.randint(1, 8)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content[: rng.randrange(len(content))] if k % 4 == 0 else content)
        try:
            Heatmap.load(path)
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 100 and all(str(path) in text for text in refused)


@pytest.mark.parametrize(
    "change",
    [
        lambda shape: shape.replace("2", "3"),
        lambda shape: shape.replace("16", "0"),
        lambda shape: "()",
        lambda shape: "(2, 16, 1)",
        lambda shape: "2, 16",
        lambda shape: "(True, 16)",
        lambda shape: "('a',)",
    ],
)
def test_any_shape_in_a_header_is_read_or_refused(tmp_path: Path, change: Callable[[str], str]) -> None:
    assert message(crafted(tmp_path, "weights", header(change("(2, 16)")) + bytes(128)))


def test_a_full_disk_leaves_the_heatmap_that_was_there(tmp_path: Path) -> None:
    loaded = Heatmap.load(saved(tmp_path))
    paths = write(loaded, tmp_path, "map")
    before = {path: path.read_bytes() for path in paths}
    with pytest.raises(OSError, match="map.png"), no_file_above(100):
        write(loaded, tmp_path, "map")
    paths[0].unlink()
    paths[0].symlink_to("/dev/null")
    with pytest.raises(OSError, match="map.html"), no_file_above(len(before[paths[1]])):
        write(loaded, tmp_path, "map")
    assert all(path.read_bytes() == before[path] for path in paths[1:])


def test_the_command_says_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path, grid=np.array([-4, -4]))
    assert cli.main(["heatmap", "--npz", str(path), "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and "its grid is -4 x -4" in shown and not (tmp_path / "out" / "heatmap.png").exists()


def test_many_small_images_are_not_drawn_as_one_huge_picture(tmp_path: Path) -> None:
    count = 20_000
    arrays = {
        name: np.repeat(values[:1], count, axis=0) for name, values in GOOD.items() if values.ndim and name != "grid"
    }
    arrays["images"] = np.zeros((count, 3, 1, 1), np.uint8)
    loaded = Heatmap.load(saved(tmp_path, **arrays))
    with pytest.raises(ValueError, match="draw fewer images at once"):
        loaded.draw()
    with pytest.raises(ValueError, match="at most"):
        blank(2**20, 2**20)


def test_a_text_of_any_length_is_wrapped_at_once() -> None:
    """One letter after the other was taken off: minutes for a prompt without a space."""
    start = time.monotonic()
    lines = wrap("W" * 20_000, 300)
    assert time.monotonic() - start < 2 and len(lines) == 1 and lines[0].endswith("…") and len(lines[0]) > 10
    assert font(13).getlength(lines[0]) <= 300 < font(13).getlength("W" + lines[0])
    assert wrap("word " * 20_000, 300)[-1].endswith("…") and len(wrap("word " * 20_000, 300)) == 3
    assert wrap("a few words", 300) == ["a few words"]


def test_only_the_names_of_steps_are_steps_of_a_run(tmp_path: Path) -> None:
    from t2i_gcpo.heatmap import over_steps

    (tmp_path / "heatmaps").mkdir()
    data = saved(tmp_path).read_bytes()
    for name in ("step_000001", "step_²", "step_x", "step_000002_trained", "step_"):
        (tmp_path / "heatmaps" / f"{name}.npz").write_bytes(data)
    assert over_steps(tmp_path).labels.tolist() == ["step 1"]  # type: ignore[union-attr]


def test_what_the_reader_knows_is_what_a_heatmap_holds() -> None:
    """A field that is added to `Heatmap` must be one that its file may hold."""
    fields = set(Heatmap.__dataclass_fields__) - {"stats"}
    assert fields == set(npz.AXES) and json.loads(Recipe().dumps()).keys() == Recipe.__dataclass_fields__.keys()
