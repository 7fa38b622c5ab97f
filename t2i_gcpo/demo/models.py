"""Hand out the demo's checkpoints: loaded when first asked for, shared by all sessions, changed by none."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping

import torch

from t2i_gcpo import generators
from t2i_gcpo.algorithms import ALL_STATS
from t2i_gcpo.commands.images_at_once import Drawing, chosen_batch
from t2i_gcpo.commands.options.config import ROWS
from t2i_gcpo.generators.base import ImageGenerator
from t2i_gcpo.generators.checkpoints import Checkpoint, locate, tuned
from t2i_gcpo.records import Sampling

BASE, MASKED = "base", "masked"
#: Name of a tuned checkpoint that ships with the package -> its name in the demo.
_SHOWN = {"janus-mini-grpo": "GRPO", "janus-mini-dapo": "DAPO", "janus-mini-gcpo": "GCPO"}


def named(choices: list[str]) -> dict[str, str]:
    """`NAME=PATH` or `PATH`, as given on the command line -> name -> checkpoint. Nothing given: janus-mini, what
    training made of it, and amused-mini.

    ValueError: the same name twice.
    """
    if not choices:
        return {BASE: "janus-mini", **{_SHOWN[name]: name for name in tuned()}, MASKED: "amused-mini"}
    checkpoints: dict[str, str] = {}
    for choice in choices:
        name, equals, path = choice.partition("=")
        name, path = (name.strip(), path.strip()) if equals else (choice.rstrip("/").rsplit("/", 1)[-1], choice)
        if not name or not path:
            raise ValueError(
                f"--checkpoint is {choice!r}; write NAME=PATH, e.g. gcpo=runs/gcpo/checkpoints/step_000120"
            )
        if name in checkpoints:
            raise ValueError(f"two checkpoints are called {name!r}; write --checkpoint OTHER_NAME={path}")
        checkpoints[name] = path
    return checkpoints


class Models:
    """Hands out generators by name; the `keep` used last stay in memory.

    Sampling and scoring leave a generator as it was, so that sessions may share it; and one job at a time uses one
    (`context.MODEL`).
    """

    def __init__(
        self,
        checkpoints: Mapping[str, str],
        *,
        device: torch.device,
        dtype: str = "float32",
        keep: int = 5,
        compared: list[str] | None = None,
    ) -> None:
        """compared: names of those that the tab Compare begins with (None: all). ValueError: a checkpoint that is
        none."""
        if keep < 1:
            raise ValueError(f"keep is {keep}; it must be at least 1")
        self.checkpoints, self.device, self.dtype, self.keep = dict(checkpoints), device, dtype, keep
        self.compared = list(checkpoints) if compared is None else compared
        self.located: dict[str, Checkpoint] = {}
        for name, path in checkpoints.items():
            try:
                self.located[name] = locate(path)
            except ValueError as error:
                raise ValueError(f"the checkpoint {name}: {error}") from error
        self._loaded: OrderedDict[str, ImageGenerator] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        return list(self.checkpoints)

    def families(self, names: Iterable[str]) -> list[str]:
        """Return the kinds of generators of some checkpoints, each once; the same noise needs the same kind."""
        return list(dict.fromkeys(self.located[name].model_type for name in names))

    def get(self, name: str) -> ImageGenerator:
        """Return the shared generator of a checkpoint. ValueError for an unknown name."""
        if name not in self.checkpoints:
            raise ValueError(f"there is no checkpoint {name!r} here; there are {', '.join(self.names)}")
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = self.fresh(name)
                while len(self._loaded) > self.keep:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(name)
            return self._loaded[name]

    def load(self) -> None:
        """Load as many as stay in memory, in their order."""
        for name in self.names[: self.keep]:
            self.get(name)

    def fresh(self, name: str) -> ImageGenerator:
        """Return a generator that nobody else has, for training."""
        path, drawn = self.checkpoints[name], Drawing([], Sampling(stats=ALL_STATS), ROWS)
        batch = chosen_batch(path, drawn, device=self.device, dtype=self.dtype, compile=False)
        return generators.load(path, device=self.device, dtype=self.dtype, max_batch=batch, compile=False)
