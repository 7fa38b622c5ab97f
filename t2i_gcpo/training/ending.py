"""What ends a run before its last step, and what asks for a checkpoint in its middle."""

from __future__ import annotations

import warnings

from t2i_gcpo.training.options import LoopOptions
from t2i_gcpo.utils.interrupt import CTRL_C
from t2i_gcpo.utils.processes import Processes


class Ending:
    """Holds the requests of signals and callbacks, and decides about `kl_stop` and steps without any score."""

    def __init__(self) -> None:
        self.reason: str | None = None
        """Why the run ends after the present step, or None."""
        self.interrupted_by: str | None = None
        """What ended the last `train` before its time, "Ctrl-C", "SIGTERM" or "SIGHUP", or None."""
        self.save_requested = False
        """Whether a checkpoint is wanted after the present step."""
        self.all_written = False
        """Whether all processes had written their files of the checkpoint before when they last agreed."""
        self._unscored_steps = 0  # in a row

    def begin(self) -> None:
        """Forget why the last `train` ended."""
        self.reason = self.interrupted_by = None

    def stop(self, reason: str) -> None:
        """Save and end the run after the present step. The first reason counts."""
        self.reason = self.reason or reason

    def interrupt(self, by: str) -> str | None:
        """Stop because of a signal, and return what to tell the user: nothing of one that comes again."""
        news = None
        if by == CTRL_C:
            news = "Ctrl-C: the step is finished and saved first; press it again to stop at once"
        elif self.interrupted_by is None:
            news = f"{by}: the step is finished and saved first"
        self.interrupted_by = self.interrupted_by or by
        self.stop(f"interrupted ({by})")
        return news

    def agree(self, processes: Processes, *, written: bool = False) -> bool:
        """Share the requests of all processes, and return whether a checkpoint is wanted now.

        written: whether this process has written its files of the checkpoint before; see `all_written`.
        """
        mine = (self.reason, self.interrupted_by, self.save_requested, written)
        asked = processes.gather(mine)
        for rank, (reason, interrupted_by, _, _) in enumerate(asked):
            if reason is not None and self.reason is None:
                self.reason = f"rank {rank}: {reason}"
            self.interrupted_by = self.interrupted_by or interrupted_by
        wanted = any(saves for _, _, saves, _ in asked)
        self.save_requested = self.save_requested and not mine[2]  # one that came just now waits for the next step
        self.all_written = all(done for *_, done in asked)
        return wanted or self.reason is not None

    def check_kl(self, kl: float, limit: float | None) -> None:
        """Stop where the KL to the reference, nats a token, is above `limit` (None: never)."""
        if limit is not None and kl > limit:
            self.stop(f"the KL to the reference is {kl:.4g} nats a token, above kl_stop = {limit:g}")

    def count_scores(self, scored: int) -> None:
        """Take note of how many images of a step have a score."""
        self._unscored_steps = 0 if scored else self._unscored_steps + 1

    def check_scores(self, step: int, loop: LoopOptions) -> None:
        """Warn of a step without any score. FloatingPointError after too many of them in a row."""
        if self._unscored_steps == 1:
            warnings.warn(f"no image of step {step} has a score: nothing is learnt from it", stacklevel=2)
        if self._unscored_steps >= loop.max_nonfinite:
            raise FloatingPointError(
                f"no image of the last {self._unscored_steps} steps has a score, and nothing "
                "was learnt from them; mend the scorer"
            )
