"""What a command prints cannot make it fail: a narrow encoding, a closed pipe, a full disk, no stream at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from t2i_gcpo.utils.terminal import check_argument

#: A command that prints what no ASCII terminal has, much of it, as text and as a table, and then does something.
PROBE = """
import sys
from pathlib import Path
from types import ModuleType

from t2i_gcpo import cli

def main(argv):
    from t2i_gcpo.reports.tables import print_note, print_table
    print("– … ✓ 日本 \\U0001f600 \\udc80", flush=True)
    print_table(["task"], [["日本"]])
    print_note("a – b")
    print("日本", file=sys.stderr, flush=True)
    for _ in range(20_000):
        print("a line of a long table")
    Path(argv[0]).write_text("done")

module = ModuleType("probe_command")
module.main = main
sys.modules["probe_command"] = module
cli.COMMANDS["probe"] = ("probe_command:main", "a probe")
sys.exit(cli.main(["probe", sys.argv[1]]))
"""


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, **more}


def test_characters_that_the_encoding_lacks_are_spelled_out(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(tmp_path / "mark")],
        capture_output=True,
        check=False,
        env=environment(PYTHONIOENCODING="ascii"),
    )
    assert done.returncode == 0 and (tmp_path / "mark").read_text() == "done"
    shown = done.stdout.decode("ascii")
    assert shown.startswith("- ... + \\u65e5\\u672c \\U0001f600 \\udc80\n")
    assert "| \\u65e5\\u672c" in shown and "a - b" in shown
    assert done.stderr.decode("ascii") == "\\u65e5\\u672c\n"


def test_half_a_character_does_not_stop_a_unicode_terminal(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(tmp_path / "mark")],
        capture_output=True,
        check=False,
        env=environment(PYTHONIOENCODING="utf-8"),
    )
    assert done.returncode == 0 and done.stdout.decode("utf-8").startswith("– … ✓ 日本 😀 \\udc80\n")


def test_a_reader_that_is_gone_is_no_error(tmp_path: Path) -> None:
    """As `| head -0` does it, for both streams."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(tmp_path / "mark")], stdout=write, stderr=write, check=False
    )
    os.close(write)
    assert done.returncode == 0 and (tmp_path / "mark").read_text() == "done"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_output_that_is_lost_is_told_at_the_end(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", PROBE, str(tmp_path / "mark")], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1 and (tmp_path / "mark").read_text() == "done"
    assert "what this command printed could not be written" in done.stderr.decode()


def test_without_any_stream(tmp_path: Path) -> None:
    line = 'exec "$0" -c "$1" "$2" >&- 2>&-'
    done = subprocess.run(["sh", "-c", line, sys.executable, PROBE, str(tmp_path / "mark")], check=False)
    assert done.returncode == 0 and (tmp_path / "mark").read_text() == "done"


def test_an_argument_that_is_no_text() -> None:
    check_argument("日本 –")
    with pytest.raises(ValueError, match=r"'.udce6.udc97' is no text.*PYTHONUTF8=1"):
        check_argument("\udce6\udc97")
