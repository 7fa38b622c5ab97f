"""Holds what the tabs share: the checkpoints, the scorer, where runs are; and how events that use a model queue up."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t2i_gcpo.demo.jobs import Jobs
from t2i_gcpo.demo.models import Models
from t2i_gcpo.demo.scoring import Scorer

#: Options of an event that uses a model: one at a time for all sessions, in the order of the clicks; the progress
#: covers no result.
MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
#: Options of an event that is of no use to a script.
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
FIRST_PROMPT = "a photo of a star above a circle"


@dataclass(frozen=True)
class DemoContext:
    models: Models
    scorer: Scorer
    runs: Path
    """Folder below which the tab Runs looks for run folders, and the live training writes its own."""
    shuffle: random.Random
    """What the order of a blind comparison, and random prompts, are drawn from."""
    only_runs: bool = False
    """Open no run folder but those below `runs`."""
    closing: threading.Event = field(default_factory=threading.Event)
    """Set when the demo is told to end: a live training then saves after its step."""
    training: threading.Lock = field(default_factory=threading.Lock)
    """Held while a live training goes on."""
    jobs: Jobs = field(default_factory=Jobs)
    """Which job uses a model now."""


def random_prompt(context: DemoContext) -> str:
    """Return a prompt of the test split: its combination was in no training prompt."""
    from t2i_gcpo.data.shapes.prompts import TASKS, split

    task = context.shuffle.choice(TASKS)
    return context.shuffle.choice([prompt for prompt in split("test") if prompt.task == task]).text
