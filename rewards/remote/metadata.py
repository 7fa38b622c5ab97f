"""Reads what a reward server says of itself, and tells one scorer from another."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rewards.identity import Identity, describe, fingerprint
from rewards.remote.exchange import clean
from rewards.remote.protocol import PROTOCOL, Limits


@dataclass(frozen=True)
class About:
    """Holds one server's /metadata."""

    url: str
    identity: Identity
    images: int
    """Images of a request at most."""
    waiting: int
    """Pixels of all requests together at most."""

    def check_same(self, other: About) -> None:
        """Raise ValueError where another server, or the same one later, has another scorer."""
        if fingerprint(self.identity) == fingerprint(other.identity):
            return
        if self.url == other.url:
            raise ValueError(
                f"reward server {self.url} has come back with another scorer: it was {_shown(self.identity)}, now it "
                f"is {_shown(other.identity)}; serve the first one again, or start a new run"
            )
        raise ValueError(
            f"the reward servers serve different scorers: {self.url} {_shown(self.identity)}, {other.url} "
            f"{_shown(other.identity)}; "
            "a run needs one and the same on all"
        )

    def check_scorer(self, url: str, answer: Mapping[str, Any]) -> None:
        """Raise ValueError where another scorer gave an answer: the server was started anew in between."""
        if answer.get("scorer") != fingerprint(self.identity):
            raise ValueError(
                f"reward server {url} has another scorer than it had, which was {_shown(self.identity)}; serve that "
                "one again, or start a new run"
            )


def read_about(url: str, answer: Mapping[str, Any]) -> About:
    """Read the answer to GET /metadata.

    ValueError, with what is wrong, for one of another protocol or without sense.
    """
    if answer.get("protocol") != PROTOCOL:
        raise ValueError(
            f"reward server {url} speaks protocol {_given(answer.get('protocol'))}, this client {PROTOCOL}; install "
            "the same version of t2i-gcpo on both sides"
        )
    limits = answer.get("limits")
    if not isinstance(limits, Mapping):
        raise _odd(url, "limits", limits, "an object")
    return About(
        url,
        _identity(url, answer.get("identity")),
        _count(url, limits, "images"),
        _count(url, limits, "waiting"),
    )


def _count(url: str, limits: Mapping[str, Any], name: str) -> int:
    count = limits.get(name, vars(Limits())[name])
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise _odd(url, f"limits.{name}", count, "a whole number of at least 1")
    return count


def _identity(url: str, given: Any) -> Identity:
    if not isinstance(given, Mapping):
        raise _odd(url, "identity", given, "an object with name, options and weights")
    name, options, weights = given.get("name"), given.get("options"), given.get("weights")
    if not isinstance(name, str) or not name or clean(name) != name:
        raise _odd(url, "identity.name", name, "a short printable text")
    if not isinstance(options, dict):
        raise _odd(url, "identity.options", options, "an object")
    if weights is not None and not (isinstance(weights, dict) and all(map(_is_number, weights.values()))):
        raise _odd(url, "identity.weights", weights, "null, or an object with finite numbers")
    identity: Identity = {"name": name, "options": options, "weights": weights}
    try:
        fingerprint(identity)
    except (ValueError, RecursionError) as error:
        raise _odd(url, "identity.options", options, "plain JSON with finite numbers") from error
    return identity


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _odd(url: str, field: str, given: Any, expected: str) -> ValueError:
    return ValueError(
        f"reward server {url}: {field!r} of its /metadata is {_given(given)}; it must be {expected}. Is it a server of "
        "t2i-gcpo serve-rewards?"
    )


def _given(value: Any) -> str:
    try:
        return clean(json.dumps(value))
    except (ValueError, RecursionError):
        return type(value).__name__


def _shown(identity: Identity) -> str:
    return clean(describe(identity))
