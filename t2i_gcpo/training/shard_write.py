"""Writes what several processes hold in shards, each its part, with torch.distributed.checkpoint.

Its own `save` exchanges messages while it writes. Here the processes agree before and after, in the main thread, and
each may write its part in a thread of its own; the files are those of `save`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from t2i_gcpo.utils.processes import Processes


class ShardWrite:
    """Writes one process's part of tensors that are sharded over all."""

    def __init__(self, folder: Path, tensors: dict[str, Tensor], processes: Processes, *, copied: bool) -> None:
        """Agree with the others on who writes what. tensors: DTensors, and what all have alike, by name.

        copied: take a copy of what is written into the host's memory now.
        """
        self.folder, self.processes = folder, processes
        self._planner, self._writer = _Planner(), FileSystemWriter(folder)
        self._results: list[WriteResult] = []
        self._planner.set_up_planner(tensors, self._writer.storage_meta(), processes.is_main)
        self._writer.set_up_storage_writer(processes.is_main)
        plans: Any = processes.gather(self._writer.prepare_local_plan(self._planner.create_local_plan()))
        if processes.is_main:
            plans, self._metadata = self._planner.create_global_plan(plans)
            plans = self._writer.prepare_global_plan(plans)
        self._plan = self._planner.finish_plan(processes.from_main(plans)[processes.rank])
        if copied:
            self._planner.copy(self._plan.items)

    def write(self) -> list[Path]:
        """Write this process's files, and return them."""
        self._results = self._writer.write_data(self._plan, self._planner).wait()
        self._planner.forget()
        return sorted(self.folder.glob(f"{self._plan.storage_data.prefix}*"))

    def conclude(self) -> list[Path]:
        """Write on the main process what describes the files of all, and return that."""
        results = self.processes.gather(self._results)
        if not self.processes.is_main:
            return []
        self._writer.finish(self._metadata, results)
        return [self.folder / ".metadata"]


class _Planner(DefaultSavePlanner):
    """Hands out the tensors, or their copies of an earlier moment."""

    def __init__(self) -> None:
        super().__init__()
        self._copies: dict[MetadataIndex, Tensor] = {}

    def copy(self, items: list[WriteItem]) -> None:
        self._copies = {item.index: self.lookup_object(item.index).to("cpu", copy=True) for item in items}
        self.state_dict = {}

    def lookup_object(self, index: MetadataIndex) -> Any:
        return self._copies[index] if self._copies else super().lookup_object(index)

    def forget(self) -> None:
        """Let go of what was written."""
        self._copies, self.state_dict = {}, {}
