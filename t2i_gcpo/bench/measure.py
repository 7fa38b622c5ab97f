"""Warm up, time in turns, measure peak memory, take paired ratios with intervals, and report: for all benchmarks."""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

import t2i_gcpo

Side = Callable[[], Any]
Better = Literal["higher", "lower"]

RESAMPLES = 2000
LEVEL = 0.95
MIB = 2**20


@dataclass(frozen=True)
class Ratio:
    """The median of the pairs' ratios, and its interval."""

    value: float
    ci95: tuple[float, float]
    """Percentile interval of the median over bootstrap resamples of the pairs."""


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float], *, seed: int = 0) -> Ratio:
    """Take the median of `numerator[k] / denominator[k]` over pairs k, with a 95 % bootstrap interval over the pairs.

    The median of ratios, not the ratio of medians: the two of a pair were measured one after the other, so a machine
    that slows down for some pairs does not show. ValueError: other than equally many, or none.
    """
    ratios = np.array([n / d for n, d in zip(numerator, denominator, strict=True)])
    if not len(ratios):
        raise ValueError("there are no pairs to take a ratio of")
    resampled = np.random.default_rng(seed).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.median(ratios[resampled], axis=1), [tail, 1 - tail])
    return Ratio(float(np.median(ratios)), (float(low), float(high)))


def seconds(side: Side, device: torch.device) -> float:
    """Measure the wall time of one call, its kernels on a GPU included."""
    _synchronize(device)
    started = time.perf_counter()
    side()
    _synchronize(device)
    return time.perf_counter() - started


def warm_up(sides: Mapping[str, Side], device: torch.device, console: Console, *, calls: int = 1) -> dict[str, float]:
    """Call each side and print how long that took, by name: allocation, caches and compilation fall in here."""
    spent = {name: sum(seconds(side, device) for _ in range(calls)) for name, side in sides.items()}
    parts = ", ".join(f"{name} {value:.2f} s" for name, value in spent.items())
    console.print(f"warm-up (compilation included): {parts}", highlight=False)
    return spent


def interleave(
    sides: Mapping[str, Side], pairs: int, device: torch.device, *, before: Callable[[str], None] | None = None
) -> dict[str, list[float]]:
    """Time each side in each of `pairs` rounds, in seconds.

    A round calls every side once, the next one in reversed order (A B, B A, A B, ...), so that neither drift of the
    machine nor the place in a round favours one. `before(name)` runs before each call, untimed.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    gc.collect()
    gc.freeze()  # the collections between the calls then look at new objects only, and are quick
    try:
        for number in tqdm(range(pairs), desc="measure", unit="pair", leave=False):
            for name in list(sides) if number % 2 == 0 else reversed(list(sides)):
                if before is not None:
                    before(name)
                gc.collect()
                times[name].append(seconds(sides[name], device))
    finally:
        gc.unfreeze()
    return times


def peak_bytes(side: Side, device: torch.device) -> int:
    """Measure the most bytes that one call holds at a time beyond what was held before it; its result counts.

    On a GPU the caching allocator's own record; on the CPU the running sum of every allocation and release that torch's
    profiler saw.
    """
    gc.collect()
    if device.type == "cuda":
        _synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        side()
        _synchronize(device)
        return torch.cuda.max_memory_allocated(device) - held
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = side()
    del result
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted(
        ((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]"), key=lambda change: change[0]
    )
    if not changes:
        raise RuntimeError("torch's profiler recorded no allocation; its memory profiling does not work here")
    return int(max(np.cumsum([size for _, size in changes])))


def check_same(what: str, ours: Any, baseline: Any, *, rtol: float, atol: float) -> None:
    """Raise a RuntimeError where tensors (or sequences of them) are not close: a ratio of times would mean nothing."""
    try:
        torch.testing.assert_close(ours, baseline, rtol=rtol, atol=atol)
    except AssertionError as error:
        raise RuntimeError(f"ours and the baseline do not compute the same {what}: {error}") from error


@dataclass(frozen=True)
class Line:
    """The numbers of one comparison."""

    name: str
    """What is compared; the key of its numbers in the JSON."""
    ours: float
    """Median, in `unit`."""
    baseline: float
    unit: str
    ratio: Ratio
    better: Better
    pairs: int

    def to_json(self) -> dict[str, Any]:
        return {
            "ratio": self.ratio.value,
            "ratio_ci95": list(self.ratio.ci95),
            "better": self.better,
            "ours": self.ours,
            "baseline": self.baseline,
            "unit": self.unit,
            "pairs": self.pairs,
        }


def speed_up(
    name: str, ours: Sequence[float], baseline: Sequence[float], *, work: float, unit: str, seed: int = 0
) -> Line:
    """Make a line in work per second from both sides' seconds: how many times as fast ours is."""
    rate, baseline_rate = (work / statistics.median(times) for times in (ours, baseline))
    return Line(name, rate, baseline_rate, unit, paired_ratio(baseline, ours, seed=seed), "higher", len(ours))


def cost(
    name: str, ours: Sequence[float], baseline: Sequence[float], *, unit: str, scale: float = 1.0, seed: int = 0
) -> Line:
    """Make a line in `scale` times what was measured: ours as a multiple of the baseline."""
    median, baseline_median = (scale * statistics.median(values) for values in (ours, baseline))
    return Line(name, median, baseline_median, unit, paired_ratio(ours, baseline, seed=seed), "lower", len(ours))


@dataclass(frozen=True)
class Report:
    """The result of a benchmark."""

    name: str
    lines: tuple[Line, ...]
    """The first is the headline."""
    baseline: str
    """What ours was measured against, in words."""
    warmup: dict[str, float]
    """Side -> seconds."""
    device: torch.device
    settings: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            **self.lines[0].to_json(),
            "headline": self.lines[0].name,
            **{line.name: line.to_json() for line in self.lines},
            "baseline_is": self.baseline,
            "warmup_s": sum(self.warmup.values()),
            "warmup_by_side_s": self.warmup,
            "settings": self.settings,
            "machine": machine(self.device),
            "versions": versions(),
        }

    def table(self) -> Table:
        table = Table(title=f"{self.name}: ours against {self.baseline}", title_justify="left")
        table.add_column("what", no_wrap=True)
        for column in ("ours", "baseline", "ratio", "95 %", "pairs"):
            table.add_column(column, justify="right")
        table.add_column("better")
        for line in self.lines:
            low, high = line.ratio.ci95
            table.add_row(
                line.name,
                f"{line.ours:.4g} {line.unit}",
                f"{line.baseline:.4g} {line.unit}",
                f"{line.ratio.value:.3f}",
                f"{low:.3f} to {high:.3f}",
                str(line.pairs),
                line.better,
            )
        return table


def machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine as a reader of the numbers wants to know it; the load average tells of other work on it."""
    about: dict[str, Any] = {
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    if hasattr(os, "getloadavg"):
        about["load_average"] = [round(value, 2) for value in os.getloadavg()]
    if device.type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(device)
    return about


def versions() -> dict[str, str]:
    installed = {"python": platform.python_version(), "t2i_gcpo": t2i_gcpo.__version__, "torch": torch.__version__}
    for package in ("transformers", "diffusers", "numpy"):
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = "not installed"
    return installed


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
