"""Lists the benchmarks by name: which file, how many images a prompt, which scorer, and which mean is the number that
is reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from t2i_gcpo.data import benchmark_files
from t2i_gcpo.records import Prompt


@dataclass(frozen=True)
class Benchmark:
    """Says how one benchmark is run."""

    name: str
    files: tuple[str, ...]
    """The official files' names, all of which make the benchmark."""
    prompts: int
    """Prompts in the official files of the version in `source`."""
    images: int
    """Images a prompt in published numbers."""
    reward: str
    """The registered scorer that it is run with unless another is named."""
    options: Mapping[str, Any]
    """Options of that scorer."""
    number: Literal["mean over tasks", "mean over images"]
    """How the number that is reported comes from the images' scores."""
    source: str
    """Where the files are, and which version's prompts were counted."""
    layouts: tuple[str, ...] = field(default=())
    """Further folders of images that its own scripts read, beside GenEval's (`layout.py`)."""

    def read(self, path: Path) -> list[Prompt]:
        """Read the prompts of an official file, or of a folder that holds all of them.

        FileNotFoundError for a missing file; ValueError, with line and content, for a file that is not this
        benchmark's.
        """
        if not path.is_dir():
            return benchmark_files.read(path, self.name)
        missing = [name for name in self.files if not (path / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"the folder {path} has no {', '.join(missing)}; {self.name} is made of: {', '.join(self.files)}"
            )
        return [prompt for name in self.files for prompt in benchmark_files.read(path / name, self.name)]


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "geneval",
            ("evaluation_metadata.jsonl",),
            prompts=553,
            images=4,
            reward="geneval",
            options={"detector": "mask2former", "score": "strict"},
            number="mean over tasks",
            source="github.com/djghosh13/geneval, prompts/, commit af4902f (2310.11513)",
        ),
        Benchmark(
            "dpg",
            ("dpg_bench.csv",),
            prompts=1065,
            images=4,
            reward="vlm_judge",
            options={"ask": "questions", "failure": "mark"},
            number="mean over images",
            source="github.com/TencentQQGYLab/ELLA, dpg_bench/, commit 3c228f1 (2403.05135)",
            layouts=("dpg",),
        ),
        Benchmark(
            "compbench",
            tuple(f"{category}_val.txt" for category in benchmark_files.COMPBENCH_CATEGORIES),
            prompts=2400,
            images=10,
            reward="vlm_judge",
            options={"template": "vqascore", "failure": "mark"},
            number="mean over tasks",
            source="github.com/Karine-Huang/T2I-CompBench, examples/dataset/, commit 1b70949 (2307.06350)",
            layouts=("compbench",),
        ),
        Benchmark(
            "drawbench",
            ("drawbench_data.csv",),
            prompts=200,
            images=1,
            reward="image_reward",
            options={},
            number="mean over images",
            source="github.com/krennic999/STAGE, data/, commit 579e5ce (DrawBench is of 2205.11487)",
        ),
        Benchmark(
            "parti",
            ("PartiPrompts.tsv",),
            prompts=1632,
            images=1,
            reward="hps",
            options={"version": "v2.1"},
            number="mean over images",
            source="github.com/google-research/parti, commit 5a65797 (2206.10789)",
        ),
        Benchmark(
            "ocr",
            ("ocr_len_buckets.csv",),
            prompts=1018,
            images=1,
            reward="ocr",
            options={},
            number="mean over images",
            source="github.com/krennic999/STAGE, data/, commit 579e5ce (the prompts are flow_grpo's, 2505.05470)",
        ),
    )
}


def find(name: str) -> Benchmark:
    """Return a benchmark by its name. ValueError, listing them, for an unknown one."""
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {name!r}; available: {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
