"""What one part asks of another is declared.

Nothing probes our own objects for what they have, and no type is narrowed by an assertion.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import rewards
import t2i_gcpo

PACKAGES = [Path(package.__file__).parent for package in (t2i_gcpo, rewards)]
BUILTINS = ("hasattr", "getattr", "setattr")
#: File -> what hasattr, getattr and setattr are called on there: objects of other libraries, and functions that users
#: wrote.
PROBES: dict[str, set[str]] = {
    "rewards/function.py": {"function", "self.function", "module"},  # a user's function and the file that it is in
    "rewards/geneval/detectors/__init__.py": {"function"},  # a user's detector
    "rewards/models/open_clip_encoder.py": {"inner", "self.tokenizer", "tokenizer"},  # of open_clip or transformers
    "rewards/models/transformers_model.py": {"require('transformers', name)"},
    "t2i_gcpo/bench/measure.py": {"os"},
    "t2i_gcpo/commands/options/reference.py": {"action.type"},  # argparse's
    "t2i_gcpo/generators/__init__.py": {"torch"},
    "t2i_gcpo/generators/decoding.py": {"torch.cpu"},
    "t2i_gcpo/generators/janus/original_config.py": {"config", "published", "text"},  # of transformers
    "t2i_gcpo/generators/janus/prompts.py": {"self.processor"},  # of transformers
    "t2i_gcpo/generators/policy_weights.py": {"module", "self.module"},  # of transformers, or a wrapper like DDP
    "t2i_gcpo/study/command.py": {"os"},
    "t2i_gcpo/utils/picture_files.py": {"picture"},  # Pillow's
    "t2i_gcpo/utils/terminal.py": {"sys"},
}


def probes(tree: ast.AST) -> set[str]:
    """What hasattr, getattr and setattr are called on, but for a module imported by its name."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    asking = [node for node in calls if isinstance(node.func, ast.Name) and node.func.id in BUILTINS]
    asked = {ast.unparse(node.args[0]) for node in asking}
    return {text for text in asked if not text.startswith(("importlib.import_module(", "import_module("))}


def narrowings(tree: ast.AST) -> set[str]:
    """The assertions about a type, or that something is not None."""

    def about_a_type(test: ast.expr) -> bool:
        if isinstance(test, ast.BoolOp):
            return any(map(about_a_type, test.values))
        if isinstance(test, ast.UnaryOp):
            return about_a_type(test.operand)
        if isinstance(test, ast.Call):
            return isinstance(test.func, ast.Name) and test.func.id in ("isinstance", "issubclass", "callable")
        return isinstance(test, ast.Compare) and any(
            isinstance(right, ast.Constant) and right.value is None for right in test.comparators
        )

    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Assert) and about_a_type(node.test)}


def sources() -> dict[str, ast.AST]:
    """File, from the packages' folder -> its syntax tree."""
    paths = [path for package in PACKAGES for path in sorted(package.rglob("*.py"))]
    return {
        path.relative_to(PACKAGES[0].parent).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths
    }


def test_our_own_objects_are_not_probed() -> None:
    """A new entry of PROBES is for what another library or a user made.

    What is ours gets a declared attribute or method.
    """
    asked = {name: objects for name, tree in sources().items() if (objects := probes(tree))}
    assert asked == PROBES


def test_no_type_is_narrowed_by_an_assertion() -> None:
    assert {name: lines for name, tree in sources().items() if (lines := narrowings(tree))} == {}


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("getattr(reward, 'weights', None)", True),
        ("if hasattr(generator, 'compiles'): pass", True),
        ("setattr(self, name, value)", True),
        ("getattr(importlib.import_module(module), name)", False),
        ("vars(options)[name]", False),
    ],
)
def test_a_probe_is_seen(line: str, seen: bool) -> None:
    assert bool(probes(ast.parse(line))) == seen


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("assert isinstance(trainer.reward, Reward)", True),
        ("assert not isinstance(algorithm, str)", True),
        ("assert recipe is not None", True),
        ("assert spec is not None and spec.loader is not None, 'always'", True),
        ("assert left >= 0", False),
        ("if not isinstance(x, str): raise TypeError", False),
    ],
)
def test_a_narrowing_is_seen(line: str, seen: bool) -> None:
    assert bool(narrowings(ast.parse(line))) == seen
