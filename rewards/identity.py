"""Says which scorer one is: its name, options and weights as plain values, to be saved, compared and shown."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import re
from collections.abc import Mapping
from typing import Any, TypedDict

#: Names of options that are no one else's business, the one list: `token`, `api_key`, `my_password`, and not
#: `max_tokens` or `token_file`.
SECRET = re.compile(
    r"^(?:.*[_-])?(?:token|secret|pass(?:word|wd|phrase)|credentials?|auth(?:orization)?|bearer|cookie"
    r"|(?:api|access|private|secret)[_-]?key)$",
    re.IGNORECASE,
)

#: Options that change where and how fast a scorer works, and not what it scores.
RUNNING = frozenset(
    {
        "batch_size",
        "cache",
        "compress",
        "concurrency",
        "device",
        "parallel",
        "retries",
        "threads",
        "timeout",
        "token_file",
        "url",
    }
)


class Identity(TypedDict):
    """Holds what two scorers have in common when their scores may be compared. All values are plain JSON."""

    name: str
    """The registry's name, or the path of a function of one's own."""
    options: dict[str, Any]
    """The options, without secrets and without those that change only where and how fast it works."""
    weights: dict[str, float] | None
    """The parts' weights, for a weighted sum."""


def identity(name: str, options: Mapping[str, Any], weights: Mapping[str, float] | None = None) -> Identity:
    """Put an identity together from a scorer's options as they were given."""
    known: dict[str, Any] = _identifying(options)
    return {"name": name, "options": known, "weights": None if weights is None else dict(weights)}


def fingerprint(one: Identity) -> str:
    """Return 16 hexadecimal digits that two identities share only if they are the same."""
    text = json.dumps(one, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def describe(one: Identity) -> str:
    """Write an identity as a part of a sentence."""
    options = ", ".join(f"{key}={value!r}" for key, value in one["options"].items())
    weights = f" with the weights {one['weights']}" if one["weights"] is not None else ""
    return f"{one['name']!r} ({options or 'no options'}){weights}"


def hide_secrets(value: Any) -> Any:
    """Return options as plain values for JSON, those with a secret's name hidden."""
    if isinstance(value, Mapping):
        return {str(key): "(hidden)" if SECRET.search(str(key)) else hide_secrets(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [hide_secrets(item) for item in value]
    return value if _is_plain(value) else repr(value)


def _identifying(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {str(key): item for key, item in value.items()}
        return {key: _identifying(item) for key, item in kept.items() if key not in RUNNING and not SECRET.search(key)}
    if isinstance(value, (list, tuple)):
        return [_identifying(item) for item in value]
    return value if _is_plain(value) else _kind(value)


def _kind(value: Any) -> str:
    """Name an object without its address in memory, which is another one in each process."""
    if isinstance(value, float):
        return repr(value)
    named = value if inspect.isroutine(value) or inspect.isclass(value) else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int, bool, type(None))) or (isinstance(value, float) and math.isfinite(value))
