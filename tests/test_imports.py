"""Who may import whom, read from the sources, and what importing the packages costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

import t2i_gcpo

ROOT = Path(t2i_gcpo.__file__).parent
OWN = {"t2i_gcpo", "rewards"}
#: The maths, lowest first: each may import those before it, records, and torch and einops.
MATHS = ["sampling", "logprobs", "losses", "advantages", "credit"]
#: Modules of t2i_gcpo by floor; a module imports its own floor and those below, never above.
FLOORS = [
    {
        "records",
        "nested",
        "files",
        "pictures",
        "clock",
        "precision",
        "statistics",
        "interrupt",
        "plans",
        "variety",
        "unmasking",
        "masked_policies",
        "localisation",
        *MATHS,
    },
    {"algorithms", "generators", "prompts", "optim", "checkpoint"},
    {"rollout", "update", "tracking", "config"},
    {
        "trainer",
        "evaluate",
        "credit_evaluation",
        "tables",
        "heatmap",
        "monitor",
        "watch",
        "arguments",
        "build",
        "command_options",
    },
    {"run_folder", "curves", "pages", "phases", "report"},
    {"cli", "train_command", "sample_command", "heatmap_command", "evaluate_command", "compare", "bench", "doctor"}
    | {"study", "study_file", "study_rows", "study_results", "serve_command", "score_command", "picture_files"}
    | {"export_command", "demo"},
    {"reference"},
]
#: The embedded world: its prompts lie below `prompts`, its pre-training above the generators.
APART = {"shapes", "__init__"}


def imported(path: Path, *, package: str) -> set[str]:
    """Dotted names that a source file imports, wherever in the file. Relative imports are resolved against `package`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], node.module or ""]).strip(
                    "."
                )
                if node.level
                else node.module or ""
            )
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def test_the_reader_of_imports_sees_all_forms(tmp_path: Path) -> None:
    source = "import torch.nn as nn\nfrom t2i_gcpo import credit\ndef f():\n    from .losses import kl\n    from . import optim\n"
    (tmp_path / "x.py").write_text(source)
    assert imported(tmp_path / "x.py", package="t2i_gcpo") == {
        "torch.nn",
        "t2i_gcpo.credit",
        "t2i_gcpo.losses.kl",
        "t2i_gcpo.optim",
    }


@pytest.mark.parametrize("name", MATHS)
def test_the_maths_imports_torch_and_what_lies_below(name: str) -> None:
    below = {"records", *MATHS[: MATHS.index(name)]}
    for target in imported(ROOT / f"{name}.py", package="t2i_gcpo"):
        top, *rest = target.split(".")
        if top == "t2i_gcpo":
            assert rest and rest[0] in below, f"{name}.py imports {target}"
        else:
            assert top in {"torch", "einops", *sys.stdlib_module_names}, f"{name}.py imports {target}"


def test_imports_point_down() -> None:
    floor_of = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    for path in sorted(ROOT.rglob("*.py")):
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if own in APART:
            continue
        assert own in floor_of, f"{own}.py is new: put it on a floor of FLOORS"
        package = ".".join(("t2i_gcpo", *path.relative_to(ROOT).parts[:-1]))
        for target in imported(path, package=package):
            parts = target.split(".")
            if parts[0] == "t2i_gcpo" and len(parts) > 1 and parts[1] in floor_of:
                assert floor_of[parts[1]] <= floor_of[own], (
                    f"{path.relative_to(ROOT)} imports {target}, which lies above it"
                )


def test_rewards_never_imports_t2i_gcpo() -> None:
    sources = sorted((ROOT.parent / "rewards").rglob("*.py"))
    assert sources
    for path in sources:
        assert not {name for name in imported(path, package="rewards") if name.split(".")[0] == "t2i_gcpo"}, path


@pytest.mark.parametrize("package", ["t2i_gcpo", "rewards", "t2i_gcpo.cli"])
def test_importing_is_quick(package: str) -> None:
    """No heavy library comes with it, and none is needed to print the help."""
    heavy = {
        "torch",
        "transformers",
        "diffusers",
        "gradio",
        "torchvision",
        "open_clip",
        "matplotlib",
        "scipy",
        "tensorboard",
        "tyro",
    }
    heavy -= {"torch"} if package == "rewards" else set()  # types of its protocol
    code = f"import sys, {package}; print(*sorted({heavy!r} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []


def test_another_package_of_the_name_rewards_is_found_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def found(folder: Path | None) -> None:
        spec = None if folder is None else ModuleSpec("rewards", None, is_package=True)
        if spec is not None and folder is not None:
            spec.submodule_search_locations = [str(folder)]
        monkeypatch.setattr(t2i_gcpo, "find_spec", lambda name: spec)

    found(tmp_path)
    with pytest.raises(ImportError, match="pip uninstall rewards") as caught:
        t2i_gcpo._check_rewards_package()
    assert str(tmp_path) in str(caught.value)
    found(None)
    with pytest.raises(ImportError, match="is missing"):
        t2i_gcpo._check_rewards_package()
    found(ROOT.parent / "rewards")
    t2i_gcpo._check_rewards_package()
