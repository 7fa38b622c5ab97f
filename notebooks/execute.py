"""Execute the notebooks: notebooks/NAME.py (percent format) -> notebooks/NAME.ipynb, with outputs.

python notebooks/execute.py                  # all
python notebooks/execute.py 02_token_credit  # some
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
TIMEOUT = 1800
"""Of one cell, seconds."""
QUIET = {"PYTHONWARNINGS": "ignore:IProgress not found"}
"""tqdm misses ipywidgets, which the notebooks do not need."""


def read(source: Path) -> nbformat.NotebookNode:
    """A notebook without outputs. Its cells have fixed ids, so that executing it again changes the outputs alone."""
    notebook = jupytext.read(source)
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for k, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{k:02d}", nbformat.from_dict({})
    return notebook


def execute(source: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs, run in a kernel of this Python whose working directory is `folder`.

    nbclient.exceptions.CellExecutionError where a cell raises.
    """
    notebook = read(source)
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name=KERNEL["name"],
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute(env=os.environ | QUIET)
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if "image/png" in output.get("data", {}):
            output.data.pop("image/jpeg", None)  # PIL's pictures come in both formats
    return notebook


def main(names: list[str]) -> None:
    for source in [HERE / f"{name}.py" for name in names] or sorted(HERE.glob("[0-9]*.py")):
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(source, Path(folder))
        target = source.with_suffix(".ipynb")
        nbformat.write(notebook, target)
        print(f"wrote {target.relative_to(HERE.parent)}, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
