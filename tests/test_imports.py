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
MATHS = ["generators.tokens.sampling", "generators.tokens.logprobs", "losses", "advantages", "credit"]
#: Rooms by floor; a module imports its own floor and those below, never above. `rewards` lies below all.
FLOORS = [
    "records utils",
    "generators.tokens credit advantages losses",
    "algorithms generators data",
    "evaluation heatmap",
    "training text",
    "reports planning",
    "commands cli",
    "study demo bench pretrain",
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
#: Hands on names of every floor, lazily.
FACES = {"t2i_gcpo"}


def room(module: str) -> str:
    """`t2i_gcpo.generators.tokens.sampling` -> `generators.tokens`, the longest name on a floor.

    KeyError where there is none.
    """
    parts = module.split(".")[1:]
    names = (".".join(parts[:k]) for k in range(len(parts), 0, -1))
    return next((name for name in names if name in FLOOR_OF), parts[0])


def modules(package: Path) -> dict[str, Path]:
    """Dotted name -> file, of every module of a package."""
    names = {}
    for path in sorted(package.rglob("*.py")):
        parts = (package.name, *path.relative_to(package).with_suffix("").parts)
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imported(path: Path, *, package: str) -> set[str]:
    """Dotted names that a source file imports, wherever in the file.

    Relative imports are resolved against `package`.
    """
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
    source = (
        "import torch.nn as nn\nfrom t2i_gcpo import credit\ndef f():\n    from "
        ".losses import kl\n    from . import optim\n"
    )
    (tmp_path / "x.py").write_text(source)
    assert imported(tmp_path / "x.py", package="t2i_gcpo") == {
        "torch.nn",
        "t2i_gcpo.credit",
        "t2i_gcpo.losses.kl",
        "t2i_gcpo.optim",
    }


@pytest.mark.parametrize("name", MATHS)
def test_the_maths_imports_torch_and_what_lies_below(name: str) -> None:
    below = {"t2i_gcpo.records", *(f"t2i_gcpo.{other}" for other in MATHS[: MATHS.index(name)])}
    path = ROOT / (name.replace(".", "/") + ".py")
    for target in imported(path, package="t2i_gcpo"):
        if target.split(".")[0] == "t2i_gcpo":
            assert any(f"{target}.".startswith(f"{module}.") for module in below), f"{name} imports {target}"
        else:
            assert target.split(".")[0] in {"torch", "einops", *sys.stdlib_module_names}, f"{name} imports {target}"


def edges(package: Path) -> dict[str, set[str]]:
    """Module -> the modules of the same package that it imports, wherever in the file.

    But for its own package's `__init__`.
    """
    files = modules(package)
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        own_package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        targets = set()
        for target in imported(path, package=own_package):
            while target and target not in files:
                target = target.rpartition(".")[0]
            targets.add(target)
        graph[name] = targets - {"", name, package.name}
    return graph


def test_imports_point_down() -> None:
    graph = edges(ROOT)
    assert len(graph) > 150
    for name, targets in graph.items():
        if name in FACES:
            continue
        assert room(name) in FLOOR_OF, f"{name} is new: put its room on a floor of FLOORS"
        for target in targets:
            assert FLOOR_OF[room(target)] <= FLOOR_OF[room(name)], f"{name} imports {target}, which lies above it"


@pytest.mark.parametrize("package", [ROOT, ROOT.parent / "rewards"], ids=lambda path: path.name)
def test_no_module_imports_itself_by_way_of_others(package: Path) -> None:
    graph, done = edges(package), set[str]()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize(("package", "most"), [(ROOT, 12), (ROOT.parent / "rewards", 6)])
def test_modules_lie_in_rooms(package: Path, most: int) -> None:
    assert len(list(package.glob("*.py"))) <= most


@pytest.mark.parametrize("package", [ROOT, ROOT.parent / "rewards"], ids=lambda path: path.name)
def test_every_room_has_a_charter(package: Path) -> None:
    """A folder without `__init__.py` would not be packaged; its docstring says what is at home there."""
    folders = {path.parent for path in package.rglob("*.py")}
    for folder in folders:
        text = (folder / "__init__.py").read_text(encoding="utf-8")
        assert len(ast.get_docstring(ast.parse(text)) or "") > 40, f"{folder} has no charter"


def test_the_public_names() -> None:
    """In a fresh interpreter, where no other test has imported the submodules."""
    code = (
        "from t2i_gcpo import Trainer, credit, advantages, losses, algorithms, generators, heatmap, prompts, pictures, "
        "curves, tables\nfrom t2i_gcpo import Schedule, CheckpointPlan\nimport t2i_gcpo.generators.janus, "
        "rewards.geneval, rewards\nassert callable(generators.load) and generators.janus.Janus and rewards.load and "
        "rewards.available()\nassert callable(rewards.geneval.judge) and prompts.read and pictures.sample_grid and "
        "curves.draw and tables.markdown\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


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
