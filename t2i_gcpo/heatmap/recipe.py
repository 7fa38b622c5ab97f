"""How token weights were made: the options of `Algorithm` that decide them, as a record that the npz keeps."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from t2i_gcpo.algorithms import Algorithm, resolve


@dataclass(frozen=True)
class Recipe:
    """Fields as in `Algorithm`, whose docstrings say what they do; the defaults are GCPO's."""

    credit: str = "contrast"
    divergence: str = "kl"
    normalization: str = "rank"
    top: float = Algorithm.top
    mass: float = Algorithm.mass
    floor: float = Algorithm.floor

    @staticmethod
    def of(algorithm: Algorithm) -> Recipe:
        return Recipe(**{field.name: vars(algorithm)[field.name] for field in fields(Recipe)})

    def algorithm(self) -> Algorithm:
        """ValueError for a value that is not allowed."""
        return resolve("gcpo", **asdict(self))

    def words(self) -> str:
        """`contrast kl by rank (top 0.4 carries 0.8)`."""
        if self.credit in ("uniform", "random"):
            return self.credit
        what = "entropy" if self.credit == "entropy" else f"{self.credit} {self.divergence}"
        share = f" (top {self.top:g} carries {self.mass:g})" if self.normalization == "rank" else ""
        return f"{what}, normalised by {self.normalization}{share}"

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def loads(text: str) -> Recipe:
        known: dict[str, Any] = json.loads(text)
        return Recipe(**{field.name: known[field.name] for field in fields(Recipe) if field.name in known})
