"""The options of a scorer: each takes the type that the scorer declares for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from t2i_gcpo.commands.options.values import convert, parameters
from t2i_gcpo.utils.secret_options import is_secret
from t2i_gcpo.utils.yaml_files import plain


def scorer_options(name: str, options: Mapping[str, Any], where: str = "reward") -> dict[str, Any]:
    """Turn the texts of a scorer's options into values. ValueError, naming the option, for one of another type.

    options: name -> `Scalar`, list or mapping of them, or a value. Those of a scorer of one's own (`module:callable`)
    are what YAML makes of the text, since nothing of it is imported here; a name that no scorer has is left for
    `rewards.load` to refuse.
    """
    from rewards.registry import REWARDS, find

    declared = parameters(find(name)) if name in REWARDS else {}
    values = {}
    for key, tree in options.items():
        if name == "composite" and key == "rewards" and isinstance(tree, Mapping):
            values[key] = {label: _part(label, part, f"{where}.rewards.{label}") for label, part in tree.items()}
            continue
        try:
            values[key] = value = convert(tree, declared.get(key, (Any,)))
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError("it must be a finite number")
        except ValueError as error:
            shown = "(hidden)" if is_secret(key) else repr(plain(tree))
            raise ValueError(f"{where}.{key} is {shown}; {error}") from error
    return values


def _part(label: str, tree: Any, where: str) -> Any:
    """The settings of one scorer of a composite: its name, its weight and its own options."""
    if not isinstance(tree, Mapping):
        return plain(tree)
    own: dict[str, Any] = dict(tree)
    named = {key: own.pop(key) for key in ("name", "weight") if key in own}
    name = plain(named["name"]) if "name" in named else label
    weight = plain(named["weight"]) if "weight" in named else 1.0
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise ValueError(f"{where}.weight is {weight!r}; it must be a number")
    return {**plain(named), **scorer_options(str(name), own, where)}
