"""Options that are never written anywhere: not into config.yaml, a report, a results file, a board or the terminal.

They come from the environment or a file when a run is resumed (for a reward server: T2I_GCPO_REWARD_TOKEN).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: The last part of the option's dotted name, e.g. of `reward.token`; the one list.
SECRET = ("token", "password", "secret", "api_key", "access_key")


def is_secret(name: str) -> bool:
    """Tell whether an option's value is secret. `name`: dotted or not."""
    return name.rpartition(".")[2].replace("-", "_").lower() in SECRET


def without_secrets(value: Any) -> Any:
    """Copy nested mappings and lists without the secret options."""
    if isinstance(value, Mapping):
        return {key: without_secrets(item) for key, item in value.items() if not is_secret(str(key))}
    return [without_secrets(item) for item in value] if isinstance(value, list) else value
