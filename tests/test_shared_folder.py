"""A run folder that only some processes see is refused before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.ranks_memory import Alike
from t2i_gcpo.training import shared_folder
from t2i_gcpo.training.shared_folder import NOTE, check_shared


class Second(Alike):
    """Stands for the second of two processes; `written` does what the first one does before they wait."""

    def __init__(self, written: Any) -> None:
        super().__init__(2)
        self.rank, self._written = 1, written

    def from_main(self, item: Any) -> Any:
        self.token = item
        return item

    def wait(self) -> None:
        self._written(self.token)

    def gather(self, item: Any) -> list[Any]:
        return [None, item]


def test_the_main_process_leaves_nothing(tmp_path: Path) -> None:
    check_shared(tmp_path, Alike(2))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_the_other_process_sees(tmp_path: Path) -> None:
    check_shared(tmp_path, Second(lambda token: (tmp_path / NOTE).write_text(token)))


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_of_its_own(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one with what an earlier start left there."""
    monkeypatch.setattr(shared_folder, "PATIENCE", 0.0)
    if there:
        (tmp_path / NOTE).write_text("another token")
    with pytest.raises(ValueError, match=rf"not seen by rank 1 \(.*:{tmp_path}\); name a folder on a disk that all"):
        check_shared(tmp_path, Second(lambda token: None))
