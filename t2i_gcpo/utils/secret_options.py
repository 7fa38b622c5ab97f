"""Options that are never written anywhere: not into config.yaml, a report, a results file, a board or the terminal.

Which ones: `rewards.identity.SECRET`. When a run is resumed they come from the environment or a file (for a reward
server: T2I_GCPO_REWARD_TOKEN, or `reward.token_file`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewards.identity import SECRET
from t2i_gcpo.utils.yaml_files import Scalar, flow, parse_scalars

#: What stands for a secret where a command is shown.
HIDDEN = Scalar("(hidden)")


def is_secret(name: str) -> bool:
    """Tell whether an option's value is secret. `name`: dotted or not."""
    return SECRET.search(name.rpartition(".")[2]) is not None


def without_secrets(value: Any) -> Any:
    """Copy nested mappings and lists without the secret options."""
    if isinstance(value, Mapping):
        return {key: without_secrets(item) for key, item in value.items() if not is_secret(str(key))}
    return [without_secrets(item) for item in value] if isinstance(value, list) else value


def masked(argument: str) -> str:
    """Hide what is secret in a word of the command line: `--reward.token=...`, or within `--reward.rewards:={...}`."""
    name, equals, value = argument.partition("=")
    if not equals or not name.startswith("--"):
        return argument
    if is_secret(name.rstrip(":")):
        return f"{name.rstrip(':')}={HIDDEN.text}"
    return f"{name}={flow(_masked(parse_scalars(value)))}" if name.endswith(":") else argument


def _masked(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: HIDDEN if is_secret(str(key)) else _masked(item) for key, item in tree.items()}
    return [_masked(item) for item in tree] if isinstance(tree, list) else tree
