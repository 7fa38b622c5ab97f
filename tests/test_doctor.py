"""The doctor names what is missing and how to mend it, and its status says whether something will not run."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from t2i_gcpo.commands import doctor
from t2i_gcpo.commands.doctor import Finding
from t2i_gcpo.generators import checkpoints as generator_checkpoints


def by_subject(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.subject: finding for finding in findings}


def test_requirements_are_compared_with_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = [
        "einops>=0.8", "torch>=99", "no_such_package>=2",
        'gradio_none>=6; extra == "demo"', 'einops>=0.8; extra == "text"', 'gradio_none>=6; extra == "all"',
    ]  # fmt: skip
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: declared)
    found = by_subject(doctor.requirements())
    assert found["einops"].level == "ok" and found["[text]"].level == "ok"
    assert found["torch"].level == "fail" and found["torch"].remedy == 'pip install "torch>=99"'
    assert found["no_such_package"].level == "fail" and "missing" in found["no_such_package"].text
    assert found["[demo]"].level == "note" and found["[demo]"].remedy == "pip install 't2i-gcpo[demo]'"
    assert "gradio_none" in found["[demo]"].text and "[all]" not in found


def test_torchvision_mended_broken_and_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    from rewards.models import torchvision_mend

    def broken() -> bool:
        raise RuntimeError("undefined symbol")

    for mend, level in ((lambda: False, None), (lambda: True, "note"), (broken, "fail")):
        monkeypatch.setattr(torchvision_mend, "mend", mend)
        found = list(doctor.torchvision())
        assert [finding.level for finding in found] == ([level] if level else [])
        assert all("pip install torch torchvision" in finding.remedy for finding in found)


def test_a_missing_compiler_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: "/opt/clang++" if name == "clang++" else None)
    assert by_subject(doctor.compiler())["c++ compiler"] == Finding("ok", "c++ compiler", "/opt/clang++")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = by_subject(doctor.compiler())["c++ compiler"]
    assert found.level == "note" and "apt install g++" in found.remedy


def test_embedded_checkpoints_missing_whole_and_truncated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(generator_checkpoints, "ASSETS", tmp_path)
    assert by_subject(doctor.checkpoints())["janus-mini"].level == "fail"
    folder = tmp_path / "janus-mini"
    folder.mkdir()
    assert by_subject(doctor.checkpoints())["janus-mini"].level == "fail", "a folder without weights"
    save_file({"a": np.zeros(8), "b": np.zeros(2)}, folder / "model.safetensors")
    found = by_subject(doctor.checkpoints())["janus-mini"]
    assert found.level == "ok" and found.text.startswith("2 tensors")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    found = by_subject(doctor.checkpoints())["janus-mini"]
    assert found.level == "fail" and "model.safetensors cannot be read" in found.text


def test_the_status_says_whether_something_will_not_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, note, bad = Finding("ok", "a", "1"), Finding("note", "b", "2", "do"), Finding("fail", "c", "3", "mend")
    for findings, status in (([good, note], 0), ([good, bad, note], 1)):
        monkeypatch.setattr(doctor, "CHECKS", [lambda findings=findings: iter(findings)])
        assert doctor.main([]) == status
    shown = capsys.readouterr().out
    assert "fail  c" in shown and "-> mend" in shown and "1 problem to mend" in shown


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """The real checks run through and report this interpreter; whether all is well on it is not a test's to say."""
    found = [finding for check in doctor.CHECKS for finding in check()]
    assert {"python", "torch", "cpu", "c++ compiler", "janus-mini"} <= {finding.subject for finding in found}
    assert {finding.level for finding in found} <= {"ok", "note", "fail"} and all(finding.text for finding in found)
    assert all(finding.remedy for finding in found if finding.level == "fail"), "each problem comes with what to do"
