"""A torchrun that starts its processes again goes on with the run folder that it began, and with no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2i_gcpo.training import restarts
from t2i_gcpo.utils.processes import ALONE


def test_the_same_torchrun_goes_on_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    restarts.note(tmp_path)
    assert not restarts.goes_on(tmp_path, ALONE)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert restarts.goes_on(tmp_path, ALONE)
    assert not restarts.goes_on(tmp_path / "empty", ALONE)
    monkeypatch.setattr(restarts.os, "getppid", lambda: 1)
    assert not restarts.goes_on(tmp_path, ALONE), "another torchrun"


def test_without_torchrun_nothing_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    restarts.note(tmp_path)
    assert not list(tmp_path.iterdir())
