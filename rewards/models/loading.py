"""Keeps threads from loading models at the same time: a lazy import of transformers or diffusers fails where another
thread is at one of its own, e.g. with "cannot import name 'JanusForConditionalGeneration'".
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

#: Held while a model is loaded, whichever it is; a loader may load another one.
LOADING = threading.RLock()

Loader = TypeVar("Loader", bound=Callable[..., Any])


def one_at_a_time(loader: Loader) -> Loader:
    """Make a function wait for every other one that loads a model in another thread."""

    @functools.wraps(loader)
    def waiting(*args: Any, **kwargs: Any) -> Any:
        with LOADING:
            return loader(*args, **kwargs)

    return waiting  # type: ignore[return-value]
