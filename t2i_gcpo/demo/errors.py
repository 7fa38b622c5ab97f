"""Show a person's mistake as a sentence on the page; a defect keeps its traceback in the terminal."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import contextmanager
from html import escape
from typing import Any

import gradio as gr

from t2i_gcpo.generators.vocabulary import UnknownWordsError
from t2i_gcpo.utils.markup import one_line

#: What the library raises for mistakes and for what the machine lacks; everything else is a defect.
USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError)


def with_user_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an event handler, so that the page can show its errors; the handler may be a generator."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def rounds(*args: Any, **kwargs: Any) -> Any:
            with _as_page_errors():
                yield from function(*args, **kwargs)

        return rounds

    @functools.wraps(function)
    def once(*args: Any, **kwargs: Any) -> Any:
        with _as_page_errors():
            return function(*args, **kwargs)

    return once


@contextmanager
def _as_page_errors() -> Any:
    try:
        yield
    except USER_ERRORS as error:
        told = error.suggestion() if isinstance(error, UnknownWordsError) else one_line(error)
        text = escape(told, quote=False)  # Gradio shows the text of an error as HTML
        raise gr.Error(text[:1].upper() + text[1:], print_exception=False) from error
