"""The one reader and writer of YAML: strict, bounded, and with the text of each value as it was written.

What a value means is decided by the declared type of its option, so `load_scalars` keeps the text (`7e12345` is a
revision for one option and no number for another). Where no type is declared, `Scalar.value` is what YAML 1.2's core
schema makes of it: true and false, whole numbers, numbers (1e-4 too), null, and text for all else, `yes`, `off` and
dates included.

Keys that come twice, aliases that grow beyond `MAX_VALUES`, cycles and tags are refused. Nothing that is loaded
executes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

#: Values that a file may hold, aliases counted as often as they are used; the largest of our own files has some
#: hundred.
MAX_VALUES = 20_000
MAX_BYTES = 2**20
MAX_DEPTH = 32
#: Digits of a whole number; torch and NumPy take no more than 19 anyway.
MAX_DIGITS = 400

_CORE = {
    "null": (r"(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "bool": (r"(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    "int": (r"[-+]?[0-9]+$|0o[0-7]+$|0x[0-9a-fA-F]+$", list("-+0123456789")),
    "float": (
        r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$",
        list("-+.0123456789"),
    ),
    "merge": (r"<<$", ["<"]),
}


class _Loader(yaml.SafeLoader):
    """Knows YAML 1.2's core types: YAML 1.1 reads 1e-4 as text, `off` as false and 1:30 as ninety."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader` or a reader of YAML 1.1 would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, (_pattern, _first) in _CORE.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(_pattern), _first)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_CORE["float"][0]), _CORE["float"][1])


@dataclass(frozen=True)
class Scalar:
    """Holds one value of a YAML file."""

    text: str
    """The text as it was written, without quotes."""
    quoted: bool = False

    @property
    def is_null(self) -> bool:
        """Tell whether it stands for no value: null, ~ or nothing at all, without quotes."""
        return not self.quoted and self._tag() == "null"

    @property
    def value(self) -> Any:
        """Return what the core schema makes of it."""
        match "str" if self.quoted else self._tag():
            case "null":
                return None
            case "bool":
                return self.text.lower() == "true"
            case "int":
                return int(self.text, 0) if self.text[:2] in ("0o", "0x") else int(self.text)
            case "float":
                return float(self.text.replace(".", "", 1) if self.text[-1].isalpha() else self.text)
        return self.text

    def _tag(self) -> str:
        names = (name for name, (pattern, _) in _CORE.items() if name != "merge" and re.match(pattern, self.text))
        return next(names, "str")


def load(path: str | Path) -> Any:
    """Read a file as plain values. Errors: as of `load_scalars`."""
    return plain(load_scalars(path))


def load_scalars(path: str | Path) -> Any:
    """Read a file as nested dicts and lists of `Scalar`; an empty file is a null.

    OSError where it cannot be read; ValueError, naming the file and, where there is one, the line, for anything else.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path} is larger than {MAX_BYTES} bytes; options take some kilobytes")
        return parse_scalars(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file: {error}") from error


def parse_scalars(text: str) -> Any:
    """Read a text as nested dicts and lists of `Scalar`. yaml.YAMLError for a mistake in it."""
    _check_depth(text)
    node = yaml.compose(text, Loader=_Loader)
    return Scalar("") if node is None else _Reader().read(node)


def _check_depth(text: str) -> None:
    """Refuse what is nested too deeply for the composer, which calls itself for each level."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            line = event.start_mark.line + 1 if event.start_mark else "?"
            raise yaml.YAMLError(f"more than {MAX_DEPTH} levels in line {line}")


def plain(tree: Any) -> Any:
    """Replace each `Scalar` of nested dicts and lists by its value."""
    if isinstance(tree, Mapping):
        return {key: plain(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [plain(value) for value in tree]
    return tree.value if isinstance(tree, Scalar) else tree


def dump(mapping: Mapping[str, Any]) -> str:
    """Write plain values as YAML text."""
    return yaml.dump(mapping, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def flow(tree: Any) -> str:
    """Write nested dicts, lists and `Scalar` on one line, quoted where they were quoted.

    `parse_scalars` gives them back.
    """
    return yaml.serialize(_node(tree), Dumper=_Dumper, width=2**31, allow_unicode=True).strip().removesuffix("\n...")


def _node(tree: Any) -> yaml.Node:
    if isinstance(tree, Mapping):
        pairs = [(_node(Scalar(key, quoted=True)), _node(value)) for key, value in tree.items()]
        return yaml.MappingNode("tag:yaml.org,2002:map", pairs, flow_style=True)
    if isinstance(tree, list):
        return yaml.SequenceNode("tag:yaml.org,2002:seq", [_node(value) for value in tree], flow_style=True)
    quoted = tree.quoted or tree.text != tree.text.strip()
    return yaml.ScalarNode(
        f"tag:yaml.org,2002:{'str' if quoted else tree._tag()}", tree.text, style='"' if quoted else None
    )


class _Reader:
    """Turns one document's nodes into dicts, lists and scalars, and counts them."""

    def __init__(self) -> None:
        self.count = 0
        self.above: list[yaml.Node] = []
        """The nodes that the present one lies in."""

    def read(self, node: yaml.Node) -> Any:
        self.count += 1
        if self.count > MAX_VALUES:
            raise _error(node, f"more than {MAX_VALUES} values, aliases counted as often as they are used")
        if any(node is other for other in self.above):
            raise _error(node, "an alias stands inside of what it stands for")
        self.above.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node)
            if isinstance(node, yaml.SequenceNode):
                _check_tag(node, "seq")
                return [self.read(item) for item in node.value]
            _check_tag(node, "str", "merge", *_CORE)
            if node.tag.endswith(":int") and len(node.value) > MAX_DIGITS:
                raise _error(node, f"a whole number of {len(node.value)} digits; at most {MAX_DIGITS} are read")
            return Scalar(node.value, quoted=isinstance(node, yaml.ScalarNode) and node.style is not None)
        finally:
            self.above.pop()

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        _check_tag(node, "map")
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _error(key, "a key must be a plain text")
            if key.tag.endswith(":merge") and key.style is None:
                for mapping in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    other = self.read(mapping)
                    if not isinstance(other, dict):
                        raise _error(key, "`<<` takes a mapping, or a list of mappings")
                    merged = {**other, **merged}
                continue
            if key.value in own:
                raise _error(key, f"{key.value!r} is there twice")
            own[key.value] = self.read(value)
        return {**merged, **own}


def _check_tag(node: yaml.Node, *allowed: str) -> None:
    if node.tag.removeprefix("tag:yaml.org,2002:") not in allowed:
        raise _error(node, f"the tag {node.tag} has no meaning here")


def _error(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
