"""Two machines with two processes each: shards within a machine, and every machine has them all (replicate x shard)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from helpers import ranks_cases
from helpers.ranks_cases import TESTS, Result, metrics, run
from helpers.training import distance, weights

SCRIPT = Path(ranks_cases.__file__)
CASES = ["gcpo", "dapo"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def on_nodes(folder: Path, address: str, prefixes: Sequence[Sequence[str]], interfaces: Sequence[str]) -> None:
    """Run the cases under one torchrun a node; a prefix puts a command onto its node."""
    started = []
    for node, (prefix, interface) in enumerate(zip(prefixes, interfaces, strict=True)):
        how = ["--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", "2"]
        how += ["--master-addr", address, "--master-port", "29517"]
        command = [*prefix, sys.executable, "-m", "torch.distributed.run", *how, str(SCRIPT), str(folder), *CASES]
        paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
        environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": interface}
        started.append(subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ))  # fmt: skip
    try:
        for process in started:
            said, _ = process.communicate(timeout=400)
            assert process.returncode == 0, said[-3000:]
    finally:
        for process in started:
            process.kill()


def check(folder: Path, tmp_path: Path) -> None:
    """The run is that of one process, and each process has the half of the masters and moments."""
    for case in CASES:
        one = run(case, tmp_path / "one" / case)
        many = Result(**torch.load(folder / f"{case}.pt"))
        start = weights(ranks_cases.make(case, tmp_path / "start" / case).generator)  # type: ignore[arg-type]
        print(f"{case}: weights differ by {distance(one.weights, many.weights):.1e}")
        assert distance(one.weights, many.weights) < 1e-5 < 1e-3 < distance(one.weights, start)
        losses = [[row["loss"] for row in metrics(where / case)] for where in (tmp_path / "one", folder)]
        assert losses[1] == pytest.approx(losses[0], abs=1e-6)
        assert one.scores == pytest.approx(many.scores, abs=1e-6)
        assert len(many.own_bytes) == 4
        assert all(0.5 <= size / one.own_bytes[0] <= 0.55 for size in many.own_bytes), many.own_bytes


def test_two_torchruns_on_one_machine(tmp_path: Path) -> None:
    on_nodes(tmp_path / "many", "127.0.0.1", [[], []], ["lo", "lo"])
    check(tmp_path / "many", tmp_path)


@pytest.fixture
def namespaces() -> Iterator[list[str]]:
    """Two network namespaces that reach each other over a pair of veth devices, and nothing else."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("namespaces of the network need root and iproute2")
    names = [f"t2i_{os.getpid()}_{side}" for side in "ab"]

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "veth0", "netns", names[0], "type", "veth", "peer", "name", "veth0", "netns", names[1])
        for number, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.201.0.{number}/24", "dev", "veth0")
            for device in ("lo", "veth0"):
                ip("-n", name, "link", "set", device, "up")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine makes no namespaces: {error.stderr.decode().strip()}")
    try:
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def sent(namespace: str) -> int:
    """Bytes that went out over the pair's end in a namespace."""
    read = ["ip", "netns", "exec", namespace, "cat", "/sys/class/net/veth0/statistics/tx_bytes"]
    done = subprocess.run(read, capture_output=True, text=True, check=False)
    if done.returncode:
        read[-1] = "/proc/net/dev"
        lines = subprocess.run(read, capture_output=True, text=True, check=True).stdout.splitlines()
        return int(next(line for line in lines if "veth0:" in line).split(":")[1].split()[8])
    return int(done.stdout)


def test_two_namespaces_that_a_cable_joins(namespaces: list[str], tmp_path: Path) -> None:
    before = [sent(name) for name in namespaces]
    prefixes = [["ip", "netns", "exec", name] for name in namespaces]
    on_nodes(tmp_path / "many", "10.201.0.1", prefixes, ["veth0", "veth0"])
    used = [sent(name) - start for name, start in zip(namespaces, before, strict=True)]
    print(f"bytes over the cable: {used}")
    trained = sum(weight.numel() for weight in run("gcpo", tmp_path / "size").weights)
    # An update adds up the two machines' shards: 4 bytes of each parameter, once in either direction.
    assert min(used) > len(CASES) * ranks_cases.STEPS * 4 * trained
    check(tmp_path / "many", tmp_path)
