"""Turn text into a value by the declared type of its option.

This is done once, in the same way for the command line, a YAML and a scorer's options.

    declared       text                                              becomes
    text           anything, as it is: 7e12345, 2024, no, None       that text
    true, false    true, false, on, off, yes, no in any case         True or False
    number         1e-4, 3; whole numbers without point or exponent  a number
    ... or null    null (in a YAML also ~ and nothing)               None; the text "null" is quoted in a YAML, \\null
                   on the command line

An option without a declared type (of one's own reward function) takes what YAML makes of the text.
"""

from __future__ import annotations

import ast
import inspect
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from t2i_gcpo.utils.yaml_files import Scalar, parse_scalars, plain

TRUTH = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}


def from_argument(text: str) -> Scalar:
    """A word of the command line as a value: `null` is no value, `\\null` the text."""
    if text.lstrip("\\") == "null" and text != "null":
        return Scalar(text[1:], quoted=True)
    return Scalar(text, quoted=text != "null" and Scalar(text).is_null)


def as_argument(scalar: Scalar) -> str:
    """The word of the command line that `from_argument` reads as this value."""
    if scalar.is_null:
        return "null"
    return f"\\{scalar.text}" if scalar.text.lstrip("\\") == "null" else scalar.text


def convert(tree: Any, kinds: Sequence[Any]) -> Any:
    """Make the value of one of the declared `kinds` from a scalar, a list or a mapping; other values stay.

    ValueError: what it must be.

    kinds: the members of a union; Any among them takes what YAML makes of it.
    """
    if isinstance(tree, Scalar):
        return _from_scalar(tree, kinds)
    if not isinstance(tree, (list, Mapping)):
        return tree
    for kind in kinds:
        origin = get_origin(kind) or kind
        if isinstance(tree, list) and _is(origin, Sequence):
            parts = get_args(kind)
            return [convert(item, members(parts[0]) if parts else (Any,)) for item in tree]
        if isinstance(tree, Mapping) and _is(origin, Mapping):
            return plain(tree)
    if Any in kinds:
        return plain(tree)
    raise ValueError(f"it must be {_words(kinds)}")


def _from_scalar(scalar: Scalar, kinds: Sequence[Any]) -> Any:
    text = scalar.text
    if types.NoneType in kinds and scalar.is_null:
        return None
    for kind in kinds:
        if get_origin(kind) is Literal:
            for choice in get_args(kind):
                if str(choice) == text:
                    return choice
    if bool in kinds and text.lower() in TRUTH:
        return TRUTH[text.lower()]
    if int in kinds and _parses(int, text):
        return int(text)
    if float in kinds and _parses(float, text):
        return float(text)
    if str in kinds and not scalar.is_null:
        return text
    if text[:1] in ("{", "[") and any(_is(get_origin(kind) or kind, Mapping, Sequence) for kind in kinds):
        try:
            return convert(parse_scalars(text), kinds)
        except yaml.YAMLError as error:
            raise ValueError(f"it is not YAML: {error}") from error
    if Any in kinds:
        return _from_yaml(scalar)
    if scalar.is_null:
        raise ValueError("null means no value, and this option needs one")
    raise ValueError(f"it must be {_words(kinds)}")


def _from_yaml(scalar: Scalar) -> Any:
    """Return what YAML makes of a text (a list or mapping on one line, too), or the text itself where it is no YAML."""
    if scalar.quoted:
        return scalar.text
    try:
        return plain(parse_scalars(scalar.text))
    except yaml.YAMLError:
        return scalar.text


def _parses(kind: Callable[[str], Any], text: str) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return "_" not in text


def _is(origin: Any, *bases: type) -> bool:
    return isinstance(origin, type) and origin is not str and any(issubclass(origin, base) for base in bases)


def _words(kinds: Sequence[Any]) -> str:
    """The allowed kinds in a reader's words."""
    words: list[str] = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            words += map(str, get_args(kind))
        elif kind in NAMES:
            words.append(NAMES[kind])
        elif _is(get_origin(kind) or kind, Mapping):
            words.append("a mapping")
        elif _is(get_origin(kind) or kind, Sequence):
            words.append("a list")
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    types.NoneType: "null",
    Any: "a value",
}


def members(kind: Any) -> tuple[Any, ...]:
    """The members of a union; of any other type, itself alone."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def parameters(builder: Callable[..., Any]) -> dict[str, tuple[Any, ...]]:
    """Map each argument of a function or class to the members of its declared type.

    A member that is not known while the program runs (imported for type checkers only) stands for Any.
    """
    module = sys.modules[builder.__module__]
    declared = {}
    for name, parameter in inspect.signature(builder).parameters.items():
        annotation = parameter.annotation
        if annotation is parameter.empty:
            declared[name] = (Any,)
        elif isinstance(annotation, str):
            declared[name] = tuple(
                kind for part in _union(annotation) for kind in members(_evaluate(part, vars(module)))
            )
        else:
            declared[name] = members(annotation)
    return declared


def _union(annotation: str) -> list[str]:
    """`"int | None"` -> `["int", "None"]`."""
    expression: ast.expr = ast.parse(annotation, mode="eval").body
    parts: list[str] = []
    while isinstance(expression, ast.BinOp) and isinstance(expression.op, ast.BitOr):
        parts.append(ast.unparse(expression.right))
        expression = expression.left
    return [ast.unparse(expression), *reversed(parts)]


def _evaluate(annotation: str, names: Mapping[str, Any]) -> Any:
    """The type that an annotation names, or Any where a name in it is not imported while the program runs."""
    known = {"Mapping": Mapping, "Sequence": Sequence, "Any": Any, "Literal": Literal, **names}
    try:
        return get_type_hints(types.SimpleNamespace(__annotations__={"kind": annotation}), known)["kind"]
    except NameError:
        return Any
