"""The options of `t2i-gcpo train`: the groups that its components own, and those of the command itself.

Each option is declared once, with its type, default, range and help text: the attribute docstrings are the help of
`t2i-gcpo train --help`. Groups nest, so that `--optim.lr 1e-5` on the command line is `optim: {lr: 1e-5}` in a YAML
(`arguments.py` turns one into the other). The options of the loop itself have no group: `TrainConfig` is a
`LoopOptions`.

Options of one algorithm are a row of the table in `algorithms/table.py`; `--algorithm.name` picks the row, and the
other `--algorithm.*` options change single choices in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from t2i_gcpo.algorithms import TABLE, Algorithm
from t2i_gcpo.data.options import PromptsConfig
from t2i_gcpo.training.options import (
    DEFAULT_ALGORITHM,
    CheckpointConfig,
    LoggingConfig,
    LoopOptions,
    OptimConfig,
    PicturesConfig,
    RanksConfig,
    SamplingConfig,
    WatchConfig,
)
from t2i_gcpo.utils.checks import above_zero, at_least, declared

#: Rows that are sampled at once where there is no plan to choose by.
ROWS = 64


@dataclass(frozen=True)
class GeneratorConfig:
    """The image generator and which of its parameters are trained."""

    checkpoint: str = "janus-mini"
    """An embedded checkpoint (janus-mini), a folder (a run's checkpoints/step_N included), a name on the Hugging Face
    hub, or a published shape with random weights (random:janus-pro-1b), for dry runs."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    layers: int = 0
    """Random weights: layers of the model, to try a run on a small machine; 0 is as published."""
    width: int = 0
    """Random weights: hidden width of the model, a multiple of 32, with its other parts made small; 0 is as
    published."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the weights and the forward pass; log-probs are fp32 in any case."""
    decode_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the image decoder: auto is bfloat16 on a CPU with instructions for it (some 1.6 times as fast;
    pixels move by about 3 of 255), else that of the weights."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU if there is one."""
    compile: Literal["auto", "on", "graphs", "off"] = "auto"
    """Compile the decode step (25 to 40 s at the start): auto does so where a C++ compiler or GPU is there and the run
    is long enough; graphs also records Janus' step as a CUDA graph, which was not tried on a GPU."""
    lora_rank: int = 0
    """Rank of LoRA adapters on the language model's projections; 0 trains all its parameters, and merges adapters that
    the checkpoint has."""
    lora_alpha: float = 32.0
    """LoRA's scale: the adapters' output is multiplied by alpha / rank."""
    merge_adapters: Literal["auto", "on", "off"] = "auto"
    """Add LoRA adapters to the weights while images are sampled: faster, and the adapted weights exist twice; auto does
    so in float32, as bfloat16 would round the adapters' share away."""
    gradient_checkpointing: Literal["auto"] | bool = "auto"
    """Recompute activations in the backward pass: less memory, about a third more time. Masked generators then hold
    those of one sampling step at a time. auto is false on a CPU, and on a GPU where the update's peak by
    `t2i-gcpo plan` fits into the memory that is free; config.yaml has what was chosen."""
    head_chunk: int = 0
    """Janus: tokens whose logits exist at once when log-probs are computed; it changes memory and time alone. 0 is 128
    on a CPU, and on a GPU as many, up to 1,024, as fit by `t2i-gcpo plan`; config.yaml has what was chosen."""
    max_batch: int = 0
    """Rows sampled or decoded in one forward pass; images do not depend on it. 0 is 64 on a CPU, and on a GPU as many,
    up to 64, as fit by `t2i-gcpo plan`; config.yaml has what was chosen."""
    masked_policy: Literal["commit_step", "transition", "transition_remask", "remask", "key_steps"] = "commit_step"
    """Masked generators: which probability of an image is trained. docs/likelihoods.md says what is exact and what a
    surrogate."""
    masked_passes: int = 0
    """Masked generators: forward passes of an update, fewer than the sampling steps for less work; 0 takes as many as
    the likelihood says."""
    fold_passes: bool = False
    """Masked generators: score all passes in one batch, for speed on a GPU; the activations of all of them exist at
    once."""

    def __post_init__(self) -> None:
        declared(self, "generator.")
        at_least(0, "generator.", layers=self.layers, width=self.width, lora_rank=self.lora_rank)
        above_zero("generator.", lora_alpha=self.lora_alpha)
        at_least(
            0, "generator.", masked_passes=self.masked_passes, head_chunk=self.head_chunk, max_batch=self.max_batch
        )

    @property
    def rows_at_once(self) -> int:
        """Return `max_batch`, or `ROWS` where it is left to a device that nothing was planned for."""
        return self.max_batch or ROWS


@dataclass(frozen=True)
class RewardConfig:
    """The scorer of the images."""

    name: str = "geneval"
    """A registered reward. Its own options are `--reward.KEY VALUE`, in a YAML further keys of `reward`, e.g.
    `detector: shapes`."""
    options: Annotated[dict[str, Any], tyro.conf.Suppress] = field(default_factory=lambda: {"detector": "shapes"})
    """Keyword arguments of the scorer; `arguments.py` collects them."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Scores on prompts that are not trained on."""

    every: int = 50
    """Steps between scores on the validation prompts; 0 switches them off."""
    limit: int = 96
    """Validation prompts an evaluation, the tasks in equal parts; 0 takes all."""
    before: bool = True
    """Score the test prompts before the first step (eval_before.json)."""
    after: bool = True
    """Score the test prompts after the last step (eval_after.json)."""
    test_limit: int = 0
    """Test prompts before and after, the tasks in equal parts; 0 takes all."""
    keep_images: bool = True
    """Keep the test images of both evaluations in the run folder (test_images/before, test_images/after): report.html
    and `t2i-gcpo compare` show those whose verdict changed."""
    guidance: float | None = None
    """Guidance scale of the evaluation; null takes that of the rollout."""
    seed: int = 0
    """Noise of the evaluations and pictures: runs of different `seed` share it unless this is set, so that they are
    compared on the same noise; `t2i-gcpo eval --seed` takes it to repeat eval_after.json."""

    def __post_init__(self) -> None:
        declared(self, "evaluate.")
        at_least(0, "evaluate.", every=self.every, limit=self.limit, test_limit=self.test_limit)
        at_least(0, "evaluate.", guidance=self.guidance, seed=self.seed)


@dataclass(frozen=True)
class TrainConfig(LoopOptions):
    """Every option of a training run."""

    algorithm: Algorithm = field(default_factory=lambda: TABLE[DEFAULT_ALGORITHM])
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    ranks: RanksConfig = field(default_factory=RanksConfig)

    output_dir: str = "runs/train"
    """The run folder: config.yaml, metrics.jsonl, report.html, samples/, heatmaps/, test_images/ and
    checkpoints/step_N/."""

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise ValueError("output_dir is empty; name a folder, e.g. --output-dir runs/first")
        super().__post_init__()
        self.check_rollout(self.algorithm)
