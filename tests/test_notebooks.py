"""The notebooks: each .ipynb is its .py executed, without errors or traces of the machine.

And the .py run from top to bottom.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

from t2i_gcpo.reports import tables
from t2i_gcpo.study import results as study_results

ROOT = Path(__file__).parent.parent
NAMES = ("01_quickstart", "02_token_credit", "03_rewards", "04_grpo_dapo_gcpo", "05_chain_of_thought")
LARGEST = 1_500_000
"""Bytes of an .ipynb."""
LONGEST = 8
"""Lines of a function in a notebook; what is longer belongs in the library."""
ABSOLUTE = re.compile(r"(?<![\w.:/\]])(?:/\w[\w.-]*/[\w.-]+|[A-Z]:\\\w+)")


def _executor() -> ModuleType:
    spec = importlib.util.spec_from_file_location("execute", ROOT / "notebooks/execute.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


execute = _executor()


def committed(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(notebook: nbformat.NotebookNode) -> list[str]:
    """All that the outputs say: streams, tables, and whatever else is no picture."""
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    data = [value for output in outputs for kind, value in output.get("data", {}).items() if kind != "image/png"]
    return [output.text for output in outputs if output.output_type == "stream"] + [str(value) for value in data]


def test_all_are_here() -> None:
    found = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert found == set(NAMES) == {path.stem for path in (ROOT / "notebooks").glob("[0-9]*.py")}


@pytest.mark.parametrize("name", NAMES)
def test_the_ipynb_is_the_py(name: str) -> None:
    source, notebook = execute.read(ROOT / "notebooks" / f"{name}.py"), committed(name)
    assert [(cell.id, cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.id, cell.cell_type, cell.source) for cell in source.cells
    ], "execute it again: make notebooks"


@pytest.mark.parametrize("name", NAMES)
def test_the_ipynb_was_executed(name: str) -> None:
    notebook = committed(name)
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "each cell once, in order"
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    markdown = sum("text/markdown" in output.get("data", {}) for output in outputs)
    assert pictures >= 2 and markdown >= 3


@pytest.mark.parametrize("name", NAMES)
def test_the_ipynb_is_small_and_tells_nothing_of_the_machine(name: str) -> None:
    assert (ROOT / "notebooks" / f"{name}.ipynb").stat().st_size <= LARGEST
    notebook = committed(name)
    found = [
        path
        for text in [*texts(notebook), *(cell.source for cell in code(notebook))]
        for path in ABSOLUTE.findall(text)
    ]
    assert not found


@pytest.mark.parametrize("text", ["wrote /home/me/run", "(/tmp/x.py:3)", r"at C:\Users", "'/opt/venv/lib'"])
def test_absolute_paths_are_seen(text: str) -> None:
    assert ABSOLUTE.search(text)


@pytest.mark.parametrize(
    "text", ["runs/first/config.yaml", "https://arxiv.org/abs/2605.29198", "p with / p without", "-A / (B T)"]
)
def test_other_slashes_are_no_paths(text: str) -> None:
    assert not ABSOLUTE.search(text)


@pytest.mark.parametrize("name", NAMES)
def test_functions_are_short(name: str) -> None:
    tree = ast.parse((ROOT / "notebooks" / f"{name}.py").read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert not [f.name for f in functions if (f.end_lineno or f.lineno) - f.lineno >= LONGEST]


@pytest.mark.parametrize(
    ("name", "study"),
    [
        ("01_quickstart", "quickstart"),
        ("04_grpo_dapo_gcpo", "quickstart"),
        ("04_grpo_dapo_gcpo", "tune"),
        ("04_grpo_dapo_gcpo", "shapes"),
    ],
)
def test_committed_results_are_shown_as_they_are(name: str, study: str) -> None:
    """A result that changed in docs/results needs the notebook executed again."""
    file = ROOT / "docs/results" / study / "results.json"
    shown = "\n".join(texts(committed(name)))
    if not file.is_file():
        assert f"{file.relative_to(ROOT).as_posix()} is not there" in shown
        return
    groups = [row for row in json.loads(file.read_text(encoding="utf-8"))["groups"] if row["difference"] is not None]
    rows = study_results.table(groups)
    assert rows and tables.markdown(study_results.COLUMNS, rows) in shown


def test_localisation_is_shown_as_it_is() -> None:
    found = json.loads((ROOT / "docs/results/credit_janus_mini.json").read_text(encoding="utf-8"))
    kl = next(one for one in found["maps"] if one["map"] == "kl")["share_of_weights"]["rank"]
    assert f"| kl | {tables.with_interval(kl['mean'], kl['ci95'])} |" in "\n".join(texts(committed("02_token_credit")))


@pytest.mark.parametrize(
    "name", [name if name == "02_token_credit" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
@pytest.mark.timeout(1200)
def test_the_py_runs(name: str, tmp_path: Path) -> None:
    """In a kernel of its own, in an empty folder.

    The notebooks' own assertions compare hand computations with the library.
    """
    if name == "05_chain_of_thought":
        pytest.importorskip("trl", reason="TRL is not installed (pip install 't2i-gcpo[text]')")
    notebook = execute.execute(ROOT / "notebooks" / f"{name}.py", tmp_path)
    assert all(cell.execution_count for cell in code(notebook))
    assert not list(tmp_path.iterdir()), "runs go to a temporary folder of their own"


def test_the_quickstart_shows_a_run_that_gains_on_enough_images_to_say_so() -> None:
    told = "\n".join(texts(committed("01_quickstart")))
    found = re.search(r"n = (\d+) images of (\d+) prompts, one seed of training:\n\+0\.\d+ \[([+-]0\.\d+), ", told)
    assert found is not None and int(found[1]) >= 240 and int(found[2]) >= 100
    assert float(found[3]) > 0, "the interval is above 0"
