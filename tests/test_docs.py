"""What the documentation shows works: its Python runs, its YAML is accepted, its commands exist, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import rewards
from rewards.torchvision_mend import mend
from t2i_gcpo import build
from t2i_gcpo.arguments import load
from t2i_gcpo.cli import COMMANDS

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "rewards.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# file: (\S+)\n")


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in a language; "" for those without one."""
    return [code for name, code in BLOCK.findall(page.read_text(encoding="utf-8")) if name == language]


def test_the_python_of_the_rewards_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the page's order; a block that begins with `# file: NAME` is that file, as a reader would save it."""
    mend()
    monkeypatch.chdir(tmp_path)
    ran = 0
    for code in blocks(PAGE, "python"):
        file = FILE.match(code)
        if file is not None:
            (tmp_path / file[1]).write_text(code)
            continue
        exec(compile(code, str(PAGE), "exec"), {"__name__": "example"})
        ran += 1
    assert ran == 2 and {path.name for path in tmp_path.glob("*.py")} == {"symmetry.py", "brightness.py"}


def test_the_yaml_of_the_rewards_page_is_a_configuration(tmp_path: Path) -> None:
    found = [(tmp_path / f"{k}.yaml", code) for k, code in enumerate(blocks(PAGE, "yaml"))]
    assert len(found) == 3
    for path, code in found:
        path.write_text(code)
    mixture, remote, watched = (load(path) for path, _ in found)
    assert build.reward(mixture.reward).weights == {"clip": 0.5, "geneval": 0.5}  # type: ignore[attr-defined]
    assert mixture.algorithm.normalize_parts
    assert remote.reward.options == {"url": ["http://127.0.0.1:8765", "http://127.0.0.1:8766"], "timeout": 120}
    assert set(build.held_out(watched.watch)) == {"geneval"} and watched.watch.every == 2


@pytest.mark.parametrize(
    "page", [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"], ids=lambda page: page.name
)
def test_commands_and_links_exist(page: Path) -> None:
    for code in [*blocks(page, ""), *blocks(page, "bash")]:
        for line in code.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["t2i-gcpo"]:
                assert words[1] in COMMANDS or words[1].startswith("-"), line
                configs = [word for word in words if word.startswith("configs/")]
                assert all((ROOT / config).is_file() for config in configs), line
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


def test_every_scorer_has_a_row() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == rewards.available(), "a row a registered scorer, in the order of their names"
