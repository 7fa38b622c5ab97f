"""Lets a person stop a long job of their own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Session:
    """Is one person's long job: the only thing that two of their clicks share while one of them runs."""

    running: bool = False
    stop: bool = False

    def ask_to_stop(self, what: str) -> None:
        """Ask the job to end after the part that it is at. ValueError: none is running."""
        if not self.running:
            raise ValueError(f"No {what} of yours is running.")
        self.stop = True
