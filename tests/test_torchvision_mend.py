"""torchvision beside a CPU build of torch: mended after its one error, left alone otherwise."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types

import pytest

from rewards.models import torchvision_mend


def run(code: str) -> str:
    """Run code in a fresh interpreter, because an import can be tried only once in a process."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_after_mending_torchvision_and_what_needs_it_import() -> None:
    result = run(
        "from rewards.models.torchvision_mend import mend\n"
        "first, second = mend(), mend()\n"
        "import torchvision\n"
        "from torchvision.transforms import InterpolationMode\n"
        "from transformers import JanusForConditionalGeneration\n"
        "print(torchvision.__version__, second)"
    )
    assert result.endswith("False"), "a second call finds a torchvision that imports"


class FakeImport:
    """Stands in for `importlib.import_module`: raises the given errors in turn, then succeeds."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self, name: str) -> types.ModuleType:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return types.ModuleType(name)


@pytest.fixture
def defined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Schemas that the mender defines, without touching torch's real registry."""
    schemas: list[str] = []
    library = types.SimpleNamespace(define=schemas.append)
    monkeypatch.setattr(torchvision_mend.torch.library, "Library", lambda name, kind: library)
    return schemas


def patch_import(monkeypatch: pytest.MonkeyPatch, fake: FakeImport) -> None:
    monkeypatch.setattr(torchvision_mend, "importlib", types.SimpleNamespace(import_module=fake))
    assert importlib.import_module is not fake


def test_a_matching_pair_never_reaches_the_mending(monkeypatch: pytest.MonkeyPatch, defined: list[str]) -> None:
    fake = FakeImport()
    patch_import(monkeypatch, fake)
    assert torchvision_mend.mend() is False
    assert defined == [] and fake.calls == 1


def test_the_exact_error_is_mended_and_half_imported_modules_are_dropped(
    monkeypatch: pytest.MonkeyPatch, defined: list[str]
) -> None:
    fake = FakeImport(RuntimeError("operator torchvision::nms does not exist"))
    patch_import(monkeypatch, fake)
    modules = {"torchvision": 1, "torchvision.ops": 2, "torchvision_other": 3, "torch": 4}
    monkeypatch.setattr(torchvision_mend, "sys", types.SimpleNamespace(modules=modules))
    assert torchvision_mend.mend() is True
    assert [schema.split("(")[0] for schema in defined] == ["nms", "qnms"] and fake.calls == 2
    assert set(modules) == {"torchvision_other", "torch"}


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA error: out of memory"), ImportError("broken"), ModuleNotFoundError("no PIL", name="PIL")],
)
def test_any_other_error_is_raised(monkeypatch: pytest.MonkeyPatch, defined: list[str], error: BaseException) -> None:
    patch_import(monkeypatch, FakeImport(error))
    with pytest.raises(type(error), match=str(error)):
        torchvision_mend.mend()
    assert defined == []


def test_no_torchvision_is_nothing_to_mend(monkeypatch: pytest.MonkeyPatch, defined: list[str]) -> None:
    patch_import(monkeypatch, FakeImport(ModuleNotFoundError("No module named 'torchvision'", name="torchvision")))
    assert torchvision_mend.mend() is False
    assert defined == []
