"""What the processes of one run must have in common, looked at before the first rollout."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from t2i_gcpo.utils.nested import flatten
from t2i_gcpo.utils.processes import Processes
from t2i_gcpo.utils.sources import code_hash


def check_share(prompts_per_step: int, processes: Processes) -> None:
    """Raise ValueError where the prompts of a step cannot be dealt out evenly, with the nearest numbers that can."""
    count = processes.count
    if prompts_per_step % count:
        below = prompts_per_step // count * count
        nearest = f"{below} or {below + count}" if below else str(count)
        raise ValueError(
            f"prompts_per_step is {prompts_per_step}, which {count} processes cannot share evenly; use {nearest} "
            "(a prompt's images stay on one process)"
        )


def check_alike(processes: Processes, seen: Mapping[str, Any]) -> None:
    """Raise ValueError where the processes differ in the code or in something of `seen` (name -> plain values)."""
    if processes.count == 1:
        return
    own = {name: _hashes(value) for name, value in seen.items()}
    everybody = processes.gather({**own, "code": _hashes(code_hash())})
    for name, first in everybody[0].items():
        others = [rank for rank, hashes in enumerate(everybody) if hashes[name] != first]
        if others:
            theirs = everybody[others[0]][name]
            parts = sorted(
                part for part in first.keys() | theirs.keys() if part and first.get(part) != theirs.get(part)
            )
            named = f" ({', '.join(parts)})" if parts else ""
            raise ValueError(
                f"{name} of rank {', '.join(map(str, others))} differ from those of rank 0"
                f"{named}; start every process with the same version, "
                "configuration and files"
            )


def _hashes(value: Any) -> dict[str, str]:
    """Return a hash of each part of a mapping by its dotted name, or of another value as a whole, named ""."""
    parts = flatten(value) if isinstance(value, Mapping) else {"": value}
    return {name: _hash(json.dumps(part, sort_keys=True, default=str).encode()) for name, part in parts.items()}


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
