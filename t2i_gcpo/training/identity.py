"""Says what makes a run this one: its options, the generator that it began with, its scorer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from t2i_gcpo.training.resume import built_options, fingerprint
from t2i_gcpo.training.settings import RunSettings


class RunIdentity:
    """Holds what a resumed run must share with the run that it goes on from."""

    def __init__(
        self, policy: nn.Module, scorer: Mapping[str, Any] | None, settings: RunSettings, *, balanced: bool
    ) -> None:
        """policy: as the run begins with it. scorer: the reward's identity, None where it has none."""
        groups = {
            "algorithm": asdict(settings.algorithm),
            "sampling": asdict(settings.sampling),
            "optim": asdict(settings.optim),
        }
        own = {"negative_prompt": settings.negative_prompt, "balanced": balanced}
        names = ("distribution", "prompts_per_step", "epochs", "minibatches", "seed")
        loop = {name: vars(settings.loop)[name] for name in names}
        self.options: dict[str, Any] = {**groups, **own, **loop}
        """The options that decide what is trained on what, nested."""
        self.scorer = None if scorer is None else {**scorer}
        self.generator = fingerprint(policy)

    def state(self, config: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return it as a checkpoint holds it. config: the options of the command's run."""
        built = built_options(config)
        return {"options": self.options, "config": built, "generator": self.generator, "scorer": self.scorer}
