"""Files that are replaced as a whole, and JSON files that are read back with a sentence for what is wrong."""

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from helpers.limits import no_file_above
from t2i_gcpo.utils import files
from t2i_gcpo.utils.files import disk_errors, no_room, sync, write_atomically
from t2i_gcpo.utils.json_files import finite_or_none, read_json, read_json_lines

# -- writing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["größer\n", "größer\n".encode(), lambda file: file.write("größer\n".encode())])
def test_a_file_is_replaced_as_a_whole(tmp_path, content):
    path = tmp_path / "a.txt"
    path.write_text("old", encoding="utf-8")
    assert write_atomically(path, content) == path
    assert path.read_bytes() == "größer\n".encode()
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_failure_half_way_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.pt"
    write_atomically(path, lambda file: torch.save({"a": torch.ones(3)}, file))

    def fail(file):
        file.write(b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_atomically(path, fail)
    assert torch.load(path, weights_only=True)["a"].tolist() == [1, 1, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "a.txt"
    target.write_text("old")
    (tmp_path / "link.txt").symlink_to(target)
    write_atomically(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink() and target.read_text() == "new"


def test_a_pipe_is_written_to_directly():
    command = "from t2i_gcpo.utils.files import write_atomically; write_atomically('/dev/stdout', 'hello')"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == "hello"


def test_the_standard_output_is_written_to_where_it_stands_in_a_file(tmp_path):
    command = (
        "print('a', flush=True); from t2i_gcpo.utils.files import write_atomically "
        "as w; w('/dev/stdout', ''); print('b')"
    )
    with (tmp_path / "log").open("w") as log:
        subprocess.run([sys.executable, "-c", command], stdout=log, check=True)
    assert (tmp_path / "log").read_text().endswith("b\n")


TENSORS = {"a": torch.zeros(100_000)}


def torch_path(path):
    with disk_errors(path):
        torch.save(TENSORS, path)


def safetensors_path(path):
    with disk_errors(path):
        save_file(TENSORS, path)


#: What writes more than a file may have -> the number of the error; torch names none where it writes to a path.
WRITERS = {
    "text": (lambda path: write_atomically(path, "x" * 400_000), errno.EFBIG),
    "torch": (lambda path: write_atomically(path, lambda file: torch.save(TENSORS, file)), errno.EFBIG),
    "safetensors": (safetensors_path, errno.EFBIG),
    "torch, to a path": (torch_path, errno.ENOSPC),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_no_room_is_an_os_error_that_names_the_file_whoever_writes(tmp_path, writer):
    write, number = WRITERS[writer]
    path = tmp_path / "out"
    path.write_text("old")
    with pytest.raises(OSError, match="free some space") as caught, no_file_above(100_000):
        write(path)
    assert caught.value.filename == str(path) and caught.value.errno == number
    if writer in ("text", "torch"):
        assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_other_errors_are_no_full_disk():
    assert no_room(OSError(errno.EIO, "input/output error")) is None
    assert no_room(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert no_room(KeyboardInterrupt()) is None
    error = RuntimeError("a library's own words")
    error.__cause__ = OSError(errno.EDQUOT, "Disk quota exceeded")
    assert no_room(error) == errno.EDQUOT
    with pytest.raises(ZeroDivisionError), disk_errors(Path("a")):
        raise ZeroDivisionError


def test_the_old_file_is_never_written_into(tmp_path):
    """Whoever has it open, or a second name for it, keeps what it held: the name alone changes hands."""
    path, other = tmp_path / "a.txt", tmp_path / "b.txt"
    path.write_text("old")
    os.link(path, other)
    with path.open() as reader:
        write_atomically(path, "new")
        assert reader.read() == other.read_text() == "old" and path.read_text() == "new"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EISDIR, errno.EINVAL])
def test_a_folder_that_cannot_be_opened_is_not_synced(tmp_path, monkeypatch, number):
    real = os.open

    def closed(path, *rest, **options):
        if os.path.isdir(path):
            raise OSError(number, os.strerror(number))
        return real(path, *rest, **options)

    monkeypatch.setattr(files.os, "open", closed)
    write_atomically(tmp_path / "a.txt", "a")
    assert (tmp_path / "a.txt").read_text() == "a"
    monkeypatch.setattr(files.os.path, "isdir", lambda path: True)
    with pytest.raises(OSError):
        files.sync(tmp_path / "a.txt")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF])
def test_a_file_system_that_cannot_sync_folders_is_used_as_it_is(tmp_path, monkeypatch, number):
    fsync = os.fsync

    def cifs(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", cifs)
    write_atomically(tmp_path / "a.txt", "a")
    assert (tmp_path / "a.txt").read_text() == "a"


def test_a_disk_that_fails_is_no_such_file_system(tmp_path, monkeypatch):
    def broken(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        sync(tmp_path)


# -- JSON --------------------------------------------------------------------------------------------------------------

SHAPE = {"step": int, "score": (float, None), "files": {str: {"bytes": int}}, "names": [str]}
GOOD = {"step": 3, "score": 0.5, "files": {"a": {"bytes": 1, "sha256": "x"}}, "names": ["a"], "more": [1, None]}


def test_a_file_of_the_shape_is_returned_as_it_is(tmp_path):
    path = tmp_path / "a.json"
    for value in (GOOD, {**GOOD, "score": None}, {**GOOD, "score": 1, "files": {}, "names": []}):
        path.write_text(json.dumps(value))
        assert read_json(path, SHAPE) == value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "a.json is null; it must be a mapping"),
        ([], "a.json is empty; it must be a mapping"),
        ([1], "a.json is a list of 1; it must be a mapping"),
        ({}, "a.json has no 'step'"),
        ({**GOOD, "step": True}, "a.json: step is true; it must be a whole number"),
        ({**GOOD, "step": 1.0}, "a.json: step is 1.0; it must be a whole number"),
        ({**GOOD, "score": "x"}, 'a.json: score is "x"; it must be a number'),
        ({**GOOD, "files": None}, "a.json: files is null; it must be a mapping"),
        ({**GOOD, "files": {"a": {}}}, "a.json: files: a has no 'bytes'"),
        ({**GOOD, "names": ["a", 3]}, "a.json: names: entry 1 is 3; it must be a text"),
    ],
)
def test_another_shape_is_named(tmp_path, value, message):
    (tmp_path / "a.json").write_text(json.dumps(value))
    with pytest.raises(ValueError) as caught:
        read_json(tmp_path / "a.json", SHAPE)
    assert str(caught.value) == f"{tmp_path}/{message}"


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b'{"step": 1', b"\xff\xfe", b"\x00" * 50, b"[" * 100_000, b'{"a": NaN}', b'{"a": 1e999}', b"-Infinity",
     b"1" * 5000, b'{"a": 1} {"a": 2}'],
)  # fmt: skip
def test_damage_is_named_with_the_file(tmp_path, data):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.json.*(not valid JSON|damaged)"):
        read_json(tmp_path / "a.json")


def test_only_a_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 1}\n\n{"step": 2}\n{"step": 3, "name": "gr\xc3')
    assert read_json_lines(path, {"step": int}) == [{"step": 1}, {"step": 2}]
    with pytest.raises(ValueError, match="damaged"):
        read_json_lines(path, {"step": int}, torn=False)
    for data, message in [
        (b'{"step": 1}\n{"st\n{"step": 2}\n', "line 2: not valid JSON"),
        (b'{"step": 1}\nnull\n', "line 2 is null; it must be a mapping"),
        (b'{"step": 1}\n{"name": 2}\n', "line 2 has no 'step'"),
        (b'{"step": \xff}\n{"step": 2}\n', "damaged: byte 9"),
    ]:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            read_json_lines(path, {"step": int})


def test_numbers_that_json_has_no_name_for_are_null():
    assert [finite_or_none(value) for value in (1.5, math.nan, math.inf, -math.inf)] == [1.5, None, None, None]
