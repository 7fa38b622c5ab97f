"""Print without failing: text that the terminal's encoding lacks is spelled out, a closed pipe swallows the rest.

A run or an evaluation must not end because `| head` has read enough, because a connection is gone, or because a locale
has no "–".
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
from collections.abc import Sequence
from typing import TextIO

#: Name of the error handler below, for `errors=` of a text stream.
SPELL_OUT = "t2i_gcpo.spell_out"
#: What stands for a character that an encoding lacks; all others become \\xe9, \\u65e5 or \\U0001f600.
_PLAIN = {
    "–": "-",
    "—": "-",
    "−": "-",
    "…": "...",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
    "×": "x",
    "·": ".",
    "✓": "+",
    "✗": "x",
    "±": "+/-",
}
#: A reader that is gone: nobody misses what is not written.
_GONE = (errno.EPIPE, errno.EIO, errno.ESHUTDOWN, errno.ECONNRESET)


def _spell_out(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    part = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character) or ascii(character)[1:-1] for character in part), error.end


codecs.register_error(SPELL_OUT, _spell_out)


class Descriptor(io.FileIO):
    """Write to a file descriptor; a write that fails is dropped, and so is everything after it."""

    failure: OSError | None = None
    """Why something was dropped, other than a reader that is gone: a full disk, for one."""
    _dropping = False

    def write(self, data: object, /) -> int:
        """Write bytes; returns how many were taken, all of them where they are dropped."""
        size = memoryview(data).nbytes  # type: ignore[arg-type]
        if self._dropping:
            return size
        try:
            while (written := super().write(data)) is None:  # type: ignore[arg-type]
                select.select([], [self.fileno()], [])  # a pipe that does not block, and is full
            return written
        except OSError as error:
            self._dropping = True
            if error.errno not in _GONE:
                self.failure = error
            return size


def protect_streams() -> list[Descriptor]:
    """Replace the process's own stdout and stderr by streams that cannot fail.

    Those that somebody put in their place are left alone.

    Returns the descriptors below them, which know whether something was lost.
    """
    below = []
    for name, own in (("stdout", sys.__stdout__), ("stderr", sys.__stderr__)):
        now = getattr(sys, name)
        if now is None:  # closed by who started this program
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8", errors=SPELL_OUT))  # noqa: SIM115
        elif now is own and isinstance(now, io.TextIOWrapper):
            now.flush()
            descriptor = Descriptor(now.fileno(), "wb", closefd=False)
            below.append(descriptor)
            setattr(sys, name, _text(descriptor, now))
    return below


def lost_output(descriptors: Sequence[Descriptor]) -> OSError | None:
    """Write out what is left in the streams; returns why something was lost, other than a reader that is gone."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    return next((descriptor.failure for descriptor in descriptors if descriptor.failure is not None), None)


def check_argument(text: str) -> None:
    """Check that an argument of the command line is text.

    ValueError: its bytes mean nothing in the locale's encoding.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        encoding = sys.getfilesystemencoding()
        raise ValueError(
            f"the argument {text!a} is no text in this terminal's encoding, {encoding}; write it in {encoding}, "
            "or set PYTHONUTF8=1 if it is UTF-8"
        ) from error


def _text(descriptor: Descriptor, like: io.TextIOWrapper) -> TextIO:
    return io.TextIOWrapper(
        io.BufferedWriter(descriptor),
        encoding=like.encoding,
        errors=SPELL_OUT,
        line_buffering=like.line_buffering,
        write_through=like.write_through,
    )
