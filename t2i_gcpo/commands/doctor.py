"""Say what is installed, what is missing, and how to repair it: `t2i-gcpo doctor`."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

DISTRIBUTION = "t2i-gcpo"
#: The checkpoint that the defaults of `t2i-gcpo train` start from.
DEFAULT_CHECKPOINT = "janus-mini"
_EXTRA = re.compile(r"extra\s*==\s*['\"]([\w.-]+)['\"]")


@dataclass(frozen=True)
class Finding:
    """A finding is one line of the report."""

    level: Literal["ok", "note", "fail"]
    """note: works without it, or works less well; fail: something will not run."""
    subject: str
    text: str
    remedy: str = ""


def python() -> Iterator[Finding]:
    import t2i_gcpo

    version = platform.python_version()
    yield Finding("ok", "t2i-gcpo", f"{t2i_gcpo.__version__} in {Path(t2i_gcpo.__file__).parent}")
    yield Finding("ok", "python", f"{version} ({sys.executable}), {platform.system()} {platform.machine()}")


def requirements() -> Iterator[Finding]:
    """Check every requirement of the distribution; those of an extra are optional, and reported once an extra."""
    from packaging.requirements import Requirement

    try:
        declared = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            "fail",
            DISTRIBUTION,
            "is not installed, only on the Python path",
            "pip install -e . in the checkout, or make install",
        )
        return
    extras: dict[str, list[str]] = {}
    for text in declared:
        requirement = Requirement(text)
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)
        extra = _EXTRA.search(str(requirement.marker or ""))
        if extra:
            extras.setdefault(extra[1], []).extend([] if fits else [requirement.name])
        elif fits:
            yield Finding("ok", requirement.name, str(version))
        else:
            state = f"is {version}, needed is {requirement.specifier}" if version else "is missing"
            yield Finding("fail", requirement.name, state, f'pip install "{requirement.name}{requirement.specifier}"')
    for name, missing in extras.items():
        if name == "all":
            continue
        if missing:
            yield Finding(
                "note",
                f"[{name}]",
                f"optional part, lacks {', '.join(missing)}",
                f"pip install '{DISTRIBUTION}[{name}]'",
            )
        else:
            yield Finding("ok", f"[{name}]", "optional part, complete")


def torchvision() -> Iterator[Finding]:
    """Check whether torchvision imports beside this torch, by itself or only when repaired."""
    import torch

    from rewards.models.torchvision_mend import mend

    remedy = (
        "install both from one index, e.g. pip install torch torchvision --index-url "
        "https://download.pytorch.org/whl/cpu"
    )
    try:
        mended = mend()
    except Exception as error:  # a report on a broken installation must not break on it
        yield Finding("fail", "torchvision", f"does not import beside torch {torch.__version__}: {error}", remedy)
        return
    if mended:
        text = (
            f"does not fit torch {torch.__version__} (its compiled operators do not load); mended for "
            f"t2i-gcpo, not for other programs"
        )
        yield Finding("note", "torchvision", text, remedy)


def devices() -> Iterator[Finding]:
    import torch

    yield Finding("ok", "cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        yield Finding("ok", f"cuda:{index}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        yield Finding("ok", "mps", "Apple GPU")
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        yield Finding(
            "note", "gpu", "none found; the embedded checkpoints need none, those of 1B parameters and more do"
        )


def compiler() -> Iterator[Finding]:
    """Look for the C++ compiler that torch.compile needs on a CPU."""
    candidates = [os.environ.get("CXX"), "g++", "clang++", "c++"]
    compiler_path = next((path for name in candidates if name and (path := shutil.which(name))), None)
    if compiler_path:
        yield Finding("ok", "c++ compiler", compiler_path)
    else:
        remedy = "install g++ (Debian, Ubuntu: apt install g++; macOS: xcode-select --install)"
        yield Finding("note", "c++ compiler", "none found; sampling on CPU is not compiled, which is slower", remedy)


def checkpoints() -> Iterator[Finding]:
    """Read the header of each embedded weight file, so that a truncated one or a Git LFS pointer shows."""
    from safetensors import SafetensorError, safe_open

    from t2i_gcpo.generators.checkpoints import ASSETS

    folders = sorted(path for path in ASSETS.glob("*") if path.is_dir())
    for folder in folders:
        tensors = 0
        try:
            for file in folder.rglob("*.safetensors"):
                with safe_open(file, framework="np") as weights:
                    tensors += len(weights.keys())
        except (SafetensorError, OSError) as error:
            yield Finding("fail", folder.name, f"{file} cannot be read: {error}", "install t2i-gcpo again")
            continue
        level: Literal["ok", "fail"] = "ok" if tensors else "fail"
        yield Finding(level, folder.name, f"{tensors} tensors in {folder}", "" if tensors else "install t2i-gcpo again")
    if DEFAULT_CHECKPOINT not in [folder.name for folder in folders]:
        yield Finding(
            "fail", DEFAULT_CHECKPOINT, f"the embedded checkpoint is not in {ASSETS}", "install t2i-gcpo again"
        )


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    python,
    requirements,
    torchvision,
    devices,
    compiler,
    checkpoints,
)


def main(argv: list[str]) -> int:
    """Print the report; exit status 0 where everything needed is there, 1 where something will not run."""
    parser().parse_args(argv)
    failed = 0
    for check in CHECKS:
        for finding in check():
            failed += finding.level == "fail"
            print(f"{finding.level:<5} {finding.subject:<18} {finding.text}")
            if finding.remedy:
                print(f"{'':<24} -> {finding.remedy}")
    print(
        "Everything that is needed is there."
        if not failed
        else f"{failed} problem{'s' if failed > 1 else ''} to mend, see above."
    )
    return int(failed > 0)


def parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog="t2i-gcpo doctor", description=__doc__)
