"""What the documentation shows works.

Its Python runs, its YAML is accepted, its links lead somewhere, its tables are complete.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import rewards
from helpers import pages
from helpers.pages import DOCS, PAGES, ROOT
from rewards.models.torchvision_mend import mend
from t2i_gcpo import generators, heatmap
from t2i_gcpo.algorithms import resolve, token_advantages
from t2i_gcpo.commands.options import build
from t2i_gcpo.commands.options.arguments import load
from t2i_gcpo.records import Sampling, ScoredRollout

#: Pages with Python that runs in seconds; that of the README trains (below).
QUICK = [page for page in PAGES if page.parent == DOCS and pages.blocks(page, "python")]


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that a reader works in: Python finds the files there."""
    mend()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(generators, "ADAPTERS", dict(generators.ADAPTERS))
    return tmp_path


def trained_heatmap(folder: Path) -> None:
    """What the page on heatmaps reads: a file that a run has written."""
    generator = generators.load("janus-mini")
    rollout = generator.sample(["a photo of a star"], Sampling(group_size=2, guidance=2.0))
    scored = ScoredRollout(rollout, generator.decode(rollout.tokens), torch.tensor([1.0, 0.0]))
    gcpo = resolve("gcpo", group_size=2)
    targets = token_advantages(gcpo, rollout, scored.scores)
    heatmap.save(folder / "runs/quickstart/heatmaps", "step_000020_trained", scored, targets, algorithm=gcpo)


@pytest.mark.parametrize("page", QUICK, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path, reader: Path) -> None:
    if page.name == "heatmaps.md":
        trained_heatmap(reader)
    if page.name == "text.md":
        pytest.importorskip("trl", reason="TRL is not installed (pip install 't2i-gcpo[text]')")
    assert pages.run(page, reader) >= 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_python_of_the_readme_runs(reader: Path) -> None:
    """As it stands there: it trains twice on the embedded generator."""
    assert pages.run(ROOT / "README.md", reader) == 2
    assert (reader / "runs/first/checkpoints/step_000005").is_dir() and (reader / "runs/red/metrics.jsonl").is_file()


def test_the_blocks_are_found() -> None:
    names = {page.name for page in QUICK}
    assert names >= {"adding_a_generator.md", "adding_a_reward.md", "heatmaps.md", "method.md", "rewards.md"}
    assert set(pages.files(DOCS / "adding_a_reward.md")) == {"symmetry.py", "brightness.py"}


def test_the_yaml_of_the_pages_are_configurations(tmp_path: Path) -> None:
    path, checked = tmp_path / "page.yaml", 0
    for page in PAGES:
        for code in pages.blocks(page, "yaml"):
            path.write_text(code, encoding="utf-8")
            load(path)
            checked += 1
    assert checked >= 4


def test_the_yaml_of_the_rewards_page_says_what_the_page_says(tmp_path: Path) -> None:
    found = [(tmp_path / f"{k}.yaml", code) for k, code in enumerate(pages.blocks(DOCS / "rewards.md", "yaml"))]
    for path, code in found:
        path.write_text(code)
    mixture, remote, watched = (load(path) for path, _ in found)
    assert build.reward(mixture.reward).weights == {"clip": 0.5, "geneval": 0.5}  # type: ignore[attr-defined]
    assert mixture.algorithm.normalize_parts
    assert remote.reward.options == {"url": ["http://127.0.0.1:8765", "http://127.0.0.1:8766"], "timeout": 120}
    assert set(build.held_out(watched.watch)) == {"geneval"} and watched.watch.every == 2


LINKS = pages.matching(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def test_the_links_are_seen() -> None:
    assert {"README.md", "CONTRIBUTING.md", "index.md"} <= {page.name for page in LINKS}
    assert sum(map(len, LINKS.values())) > 80


@pages.each(LINKS)
def test_links_lead_to_files(page: Path) -> None:
    """On GitHub; where they lead in the site, and their anchors, are checked by its build (test_docs_site.py)."""
    for link in LINKS[page]:
        assert (page.parent / link).exists(), link


def test_every_scorer_has_a_row() -> None:
    text = (DOCS / "rewards.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE)
    assert rows == rewards.available(), "a row a registered scorer, in the order of their names"


def test_the_home_page_names_every_page() -> None:
    named = set(re.findall(r"\]\(([a-z_]+\.md)", (DOCS / "index.md").read_text(encoding="utf-8")))
    assert named == {page.name for page in DOCS.glob("*.md")} - {"index.md"}


def test_each_picture_of_the_docs_is_drawn_by_make_figures() -> None:
    script = (pages.DOCS / "figures.sh").read_text(encoding="utf-8")
    drawn = [path for ending in ("png", "gif") for path in pages.DOCS.rglob(f"*.{ending}")]
    assert len(drawn) > 10
    for path in drawn:
        curves = path.name == "curves.png"
        name = path.parent.name if curves else path.stem
        assert re.search(rf"\b{name}\b", script), f"no line of docs/figures.sh draws {path}"
