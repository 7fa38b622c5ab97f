"""When a run's checkpoints are written, how an error's end saves what was trained, and how a run goes on from one."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

from t2i_gcpo.training import checkpoint as checkpoints
from t2i_gcpo.training.options import CheckpointPlan
from t2i_gcpo.training.progress import Progress
from t2i_gcpo.training.ranks import LostRank
from t2i_gcpo.training.resume import check_same_run, state_problem
from t2i_gcpo.training.updater import Updater
from t2i_gcpo.training.writing import CheckpointWrite
from t2i_gcpo.utils.host_copy import host_copy
from t2i_gcpo.utils.processes import ALONE, Processes


class _Pending:
    """A checkpoint that a thread writes while training goes on."""

    def __init__(self, write: CheckpointWrite, validation: float | None) -> None:
        """validation: the score of its step."""
        self.write, self.validation = write, validation
        # A second Ctrl-C ends the program at once, and the thread with it.
        self.thread = Thread(target=write.write, name="checkpoint", daemon=True)
        self.thread.start()


class Saving:
    """Saves and restores one run: its progress and its updater."""

    def __init__(
        self,
        folder: Path,
        plan: CheckpointPlan,
        updater: Updater,
        progress: Progress,
        identity: Callable[[], dict[str, Any]],
        processes: Processes = ALONE,
    ) -> None:
        """`identity()` returns what a resumed run must share with the run that it goes on from."""
        self.folder, self.plan = folder, plan
        self.updater, self.progress, self.identity = updater, progress, identity
        self.processes = processes
        self.validation: float | None = None
        """The present step's score on the validation prompts, where there is one."""
        self.saved_step: int | None = None
        """Step of the newest checkpoint that this object wrote or read."""
        self._pending: _Pending | None = None
        self._not_written = False  # whether the last checkpoint could not be written

    def state(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on."""
        state = {**self.progress.state(), "updater": self.updater.state_dict(), "validation": self.validation}
        return {**state, **self.identity()}

    def save(self) -> Path:
        """Write the checkpoint of the present step: a folder that `--checkpoint` takes, and that `resume` goes on from.

        FloatingPointError, with nothing written, where the weights, or the log-probs that they give, are not finite.
        """
        self.finish()
        write = self._begin(copied=False)
        write.write()
        return self._made_whole(write)

    def _begin(self, *, copied: bool) -> CheckpointWrite:
        """Begin the checkpoint of the present step. copied: it is written while training goes on."""
        self.updater.check_usable()
        state, copies_model = self.state(), copied and self.processes.is_main
        return CheckpointWrite(
            self.folder,
            self.progress.step,
            state=host_copy(state) if copies_model else state,
            save_model=self.updater.model_writer(copied=copies_model),
            plan_shards=partial(self.updater.plan_shards, copied=copied),
            processes=self.processes,
        )

    def _made_whole(self, write: CheckpointWrite) -> Path:
        self._not_written = True
        path = write.finish()
        self._not_written = False
        self.saved_step = write.step
        return path

    @property
    def written(self) -> bool:
        """Say whether this process has written its files of a checkpoint that is not whole yet."""
        return self._pending is not None and not self._pending.thread.is_alive()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, where there is one, and make it whole. All processes call it.

        OSError and others as of a checkpoint that is written at once.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.thread.join()
            self._made_whole(pending.write)
            self._tidy(pending.write.step, pending.validation)

    def leave(self) -> None:
        """Finish what is being written where that takes no other process: they may be anywhere."""
        if self.processes.count == 1:
            self.finish()

    def after_step(self, validation: float | None, *, wanted: bool, written: bool, last: bool) -> None:
        """Save where the plan, a best score or the run (`wanted`) asks for it, and remove what is not kept any more.

        written: all processes have written their files of the checkpoint before. last: no step follows.
        """
        if written or validation is not None:  # which is compared with the best that is saved
            self.finish()
        self.validation = validation
        plan, step = self.plan, self.progress.step
        best = self.processes.from_main(checkpoints.best(self.folder) if self.processes.is_main else None)
        is_best = plan.keep_best and validation is not None and (best is None or validation > best[1])
        due = bool(plan.every) and step % plan.every == 0
        if not (due or is_best or wanted):
            return
        if plan.asynchronous and not last:
            self.finish()
            self._pending = _Pending(self._begin(copied=True), validation)
        else:
            self.save()
            self._tidy(step, validation)

    def _tidy(self, step: int, validation: float | None) -> None:
        """Note the score of the checkpoint of `step`, and remove those that are not kept any more."""
        self._keep_best(step, validation)
        if self.processes.is_main:
            checkpoints.prune(self.folder, self.plan.keep, keep_best=self.plan.keep_best, step=step)

    def _keep_best(self, step: int, validation: float | None) -> None:
        if self.processes.is_main and self.plan.keep_best and validation is not None:
            checkpoints.record_best(self.folder, step, validation)

    def rescue(self, error: BaseException, before: dict[str, Any]) -> str | None:
        """Save what was trained before an error ends the run, and return what to tell the user of it.

        before: the progress as it was when the step began.
        """
        if isinstance(error, LostRank):
            self._pending = None
            return None  # nothing can be saved without it
        if isinstance(error, FloatingPointError):
            self.updater.guard.in_a_row = 0  # the resumed run draws other images, and may try as often
        elif self.progress.step == 0:
            return None  # nothing to lose
        elif self.progress.step == before["step"] and not self.updater.incomplete:
            self.progress.set(before)  # nothing was learnt from this step: the resumed run repeats it
        not_written = self._not_written
        try:
            if self.saved_step != self.progress.step or isinstance(error, FloatingPointError):
                self.save()
        except FloatingPointError as useless:
            what = str(useless).partition(";")[0]
            return f"Its weights were not saved ({what}); the checkpoints before it are as they were"
        except Exception as own:  # it must not hide the first error
            second = self.processes.failed(own)
            again = not_written and isinstance(second, OSError) and not isinstance(second, LostRank)
            return None if again or str(second) == str(error) else str(second)
        return self.how_to_go_on()

    def how_to_go_on(self) -> str:
        return f"The checkpoint is saved; go on with: {resume_command(self.folder)}"

    def resume(self, path: str | Path | None, steps: int) -> None:
        """Load a checkpoint (None: the newest whole one), into a run of `steps` steps. ValueError as of the trainer."""
        self.finish()
        state = self._state(path)
        problem = state_problem(state)
        if problem:
            raise ValueError(f"{path} cannot be resumed from: {problem}")
        check_same_run(state, self.identity(), steps)
        self.updater.load_state_dict(state["updater"])
        self.progress.set(state)
        self.validation = state["validation"]
        if path is None:
            self.saved_step = self.progress.step
            # The run may have been killed before it noted its best score.
            self._keep_best(self.progress.step, self.validation)

    def _state(self, path: str | Path | None) -> dict[str, Any]:
        """Return the state in a checkpoint (None: the newest whole one, which the main process looks for)."""
        processes = self.processes
        newest = self._newest() if path is None and processes.is_main else None
        where = processes.from_main(path if newest is None else newest[0])
        return newest[1] if newest is not None else checkpoints.load(str(where))

    def _newest(self) -> tuple[Path, dict[str, Any]]:
        newest = checkpoints.newest_state(self.folder, state_problem)
        if newest is None:
            raise ValueError(
                f"{self.folder} holds no whole checkpoint to resume from; start the run anew in another folder"
            )
        return newest


def resume_command(run_dir: str | Path) -> str:
    """Return the command that goes on with a run, quoted for a shell."""
    return shlex.join(["t2i-gcpo", "train", "--output-dir", str(run_dir), "--resume"])
