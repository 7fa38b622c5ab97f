"""`bench ranks` counts what several processes send one another for an update, against the least by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import tiny
from helpers.ranks_cases import TESTS
from helpers.training import generator
from t2i_gcpo.cli import main
from t2i_gcpo.planning.memory import exchanged


def test_one_process_is_told_how_to_start_several(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "ranks"]) == 2
    assert "one process exchanges nothing; start several: torchrun" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_send_the_least_and_their_padding(tmp_path: Path) -> None:
    tiny.checkpoint(tmp_path / "model")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    bench = ["-m", "t2i_gcpo.cli", "bench", "ranks", "--checkpoint", str(tmp_path / "model"), "--pairs", "2"]
    done = subprocess.run(
        [*torchrun, *bench, "--out", str(tmp_path / "ranks.json")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("ranks: ours against") == 1, "one process prints"
    numbers = json.loads((tmp_path / "ranks.json").read_text())
    trained = sum(parameter.numel() for parameter in generator().trainable_parameters())
    assert numbers["settings"]["trained_parameters"] == trained
    # Half of 4 bytes of gradients and half of 4 bytes of weights of each parameter.
    assert numbers["sent"]["baseline"] == pytest.approx(trained * (4 + 4) / 2 / 1e6)
    assert 1 <= numbers["sent"]["ratio"] < 1.01 and numbers["calls"]["ours"] == 2
    planned = exchanged([parameter.numel() for parameter in generator().trainable_parameters()], gpus=2)
    assert numbers["exchange_memory"]["baseline"] == pytest.approx(sum(planned.values()) / 1e6)
    assert 0.75 < numbers["exchange_memory"]["ratio"] <= 1.02
