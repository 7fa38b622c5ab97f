"""Records how token weights were made: the options of `Algorithm` that decide them, as the npz keeps them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

from t2i_gcpo.algorithms import Algorithm, resolve
from t2i_gcpo.utils.json_files import check_shape


@dataclass(frozen=True)
class Recipe:
    """Fields as in `Algorithm`, whose docstrings say what they do; the defaults are GCPO's."""

    credit: str = "contrast"
    divergence: str = "kl"
    normalization: str = "rank"
    top: float = Algorithm.top
    mass: float = Algorithm.mass
    floor: float = Algorithm.floor
    normalize_over: str = Algorithm.normalize_over
    cap: float = Algorithm.cap
    token_floor: float = Algorithm.token_floor

    @staticmethod
    def of(algorithm: Algorithm) -> Recipe:
        """Take those options of an algorithm that decide its token weights."""
        return Recipe(
            algorithm.credit,
            algorithm.divergence,
            algorithm.normalization,
            algorithm.top,
            algorithm.mass,
            algorithm.floor,
            algorithm.normalize_over,
            algorithm.cap,
            algorithm.token_floor,
        )

    def algorithm(self) -> Algorithm:
        """Return an algorithm with these choices. ValueError for a value that is not allowed."""
        return resolve("gcpo", **asdict(self))

    def words(self) -> str:
        """Say the choices in words: `contrast kl by rank (top 0.4 carries 0.8)`."""
        if self.credit in ("uniform", "random"):
            return self.credit
        what = self.credit if self.credit in ("entropy", "variance") else f"{self.credit} {self.divergence}"
        limits = [f"tokens below {self.token_floor:g} nats 0"] if self.token_floor else []
        limits += [f"at most {self.cap:g} means"] if self.cap else []
        over = {"image": [], "batch": ["over the batch"], "running": ["over the batches before"]}
        limits += over[self.normalize_over]
        if limits:
            return f"{what}, by size ({', '.join(limits)})"
        share = f" (top {self.top:g} carries {self.mass:g})" if self.normalization == "rank" else ""
        return f"{what}, normalised by {self.normalization}{share}"

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def loads(text: str) -> Recipe:
        """Read what `dumps` wrote; options that it does not name have their defaults. ValueError for anything else."""
        try:
            known = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its recipe is not valid JSON ({error})") from error
        check_shape(known, dict, "its recipe")
        given = {field.name: known[field.name] for field in fields(Recipe) if field.name in known}
        for field in fields(Recipe):
            if field.name in given:
                check_shape(given[field.name], type(field.default), f"its recipe: {field.name}")
        recipe = Recipe(**given)
        recipe.algorithm()  # a value that is not allowed is refused here
        return recipe
