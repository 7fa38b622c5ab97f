"""A base class with what the adapters share: the trained part of a model, LoRA, the reference, saving, compilation.

B rows, T tokens, H, W pixels.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from t2i_gcpo.generators import adapter_base, deltas, merging
from t2i_gcpo.generators.base import ImageGenerator, check_tokens, in_chunks
from t2i_gcpo.generators.checkpoints import ADAPTER, MODEL_FILES, Checkpoint, locate
from t2i_gcpo.generators.compilation import Compilation, CompileChoice
from t2i_gcpo.generators.decoding import DecodeDtype, check_decode_dtype, decoding
from t2i_gcpo.generators.merging import MergeAdapters
from t2i_gcpo.generators.policy_weights import PolicyWeights
from t2i_gcpo.generators.random_models import RandomModel
from t2i_gcpo.generators.tokens.branches import SampledRows
from t2i_gcpo.records import Prompt, Rollout, Sampling

Self = TypeVar("Self", bound="TrainableGenerator")


class TrainableGenerator(ImageGenerator):
    """Train one submodule of a model, the policy, and keep the rest frozen. A base class of adapters.

    A subclass makes, reads and writes its own model (`from_random`, `from_folder`, `save_model`), samples rows, scores
    tokens and decodes them (`decode_rows`).
    """

    lora_targets: ClassVar[tuple[str, ...]]
    """Patterns for the names of the policy's linear layers that `add_lora` puts adapters on."""

    def __init__(
        self,
        model: nn.Module,
        policy: str,
        device: torch.device,
        *,
        base: Checkpoint | None = None,
        max_batch: int | None = None,
        compile: CompileChoice = "auto",
        decode_dtype: DecodeDtype = "auto",
        merge_adapters: MergeAdapters = "auto",
    ) -> None:
        """`policy` is the trained submodule's dotted name in `model`, e.g. "transformer".

        base: the checkpoint that the model comes from; an adapter of LoRA and a delta name it.
        max_batch: rows sampled or decoded at once (None: all); results do not depend on it beyond rounding.
        compile: whether the sampling step is compiled. "auto" compiles where torch can and it pays, "graphs" also
            records Janus' step as a CUDA graph; see `Compilation`.
        decode_dtype: precision of the image decoder; see `decoding`.
        merge_adapters: whether LoRA adapters are in the weights while tokens are sampled; see `merging`.
        ValueError: an unknown choice, max_batch below 1, or compile=True where torch cannot compile.
        """
        if max_batch is not None and max_batch < 1:
            raise ValueError(f"max_batch is {max_batch}; it must be at least 1, or None for all rows at once")
        check_decode_dtype(decode_dtype)
        merging.check_merge_adapters(merge_adapters)
        self.base, self.max_batch, self.decode_dtype = base, max_batch, decode_dtype
        self.merge_adapters: MergeAdapters = merge_adapters
        self.compiles = Compilation(compile, device)
        self.weights = PolicyWeights(model, policy)

    # -- loading and saving --------------------------------------------------------------------------------------------

    @classmethod
    def load(
        cls: type[Self],
        name_or_path: str,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
        **options: Any,
    ) -> Self:
        """Load a checkpoint that is known to be of this class, as `generators.load` does.

        `options` go to `__init__`. ValueError: it is of another kind.
        """
        checkpoint = locate(str(name_or_path), revision=revision)
        if checkpoint.model_type != cls.kind:
            raise ValueError(
                f"{name_or_path} is of model type {checkpoint.model_type!r}, and {cls.__name__} reads {cls.kind!r}; "
                "generators.load chooses the class that fits"
            )
        return cls.from_checkpoint(checkpoint, device=torch.device(device), dtype=dtype, **options)

    @classmethod
    def from_checkpoint(
        cls: type[Self], checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype, **options: Any
    ) -> Self:
        """Load the whole model of a checkpoint, then its delta or its LoRA adapter. `options` go to `__init__`."""
        if checkpoint.random is None:
            generator = cls.from_folder(checkpoint.folder, device=device, dtype=dtype, base=checkpoint, **options)
        else:
            generator = cls.from_random(checkpoint.random, device=device, dtype=dtype, base=checkpoint, **options)
        if checkpoint.delta is not None:
            deltas.apply(generator.policy, checkpoint.delta, checkpoint.folder)
        if checkpoint.adapter is not None:
            adapter_base.check(checkpoint.adapter, checkpoint)
            generator.weights.load_lora(checkpoint.adapter, device)
        return generator

    @classmethod
    @abstractmethod
    def from_folder(cls: type[Self], folder: Path, *, device: torch.device, dtype: torch.dtype, **options: Any) -> Self:
        """Load the whole model in a folder. `options` go to `__init__`."""

    @classmethod
    def from_random(
        cls: type[Self], random: RandomModel, *, device: torch.device, dtype: torch.dtype, **options: Any
    ) -> Self:
        """Make a model of a published shape with random weights. `options` go to `__init__`.

        ValueError where the adapter makes none.
        """
        raise ValueError(
            f"{cls.__name__} makes no models with random weights, so {random.name} cannot be loaded with it"
        )

    def save(self, path: str | Path) -> None:
        """Write a folder that `generators.load` accepts: the whole model, or a LoRA adapter that names its base.

        ValueError: there is LoRA on a model whose base has no name, or the folder holds one kind and would get the
        other: the adapter of the two would be loaded, and the model never.
        """
        path = Path(path)
        others = MODEL_FILES if self.has_lora else (ADAPTER, deltas.ABOUT)
        there = next((name for name in others if (path / name).is_file()), None)
        if there is not None:
            kinds = ("whole model", "adapter") if self.has_lora else ("LoRA adapter or delta", "model")
            raise ValueError(f"{path} holds a {kinds[0]} ({there}); save the {kinds[1]} to another folder")
        path.mkdir(parents=True, exist_ok=True)
        if not self.has_lora:
            self.save_model(path)
        elif self.base is None:
            raise ValueError(
                "a LoRA adapter needs the name of its base: load the model with generators.load, or merge_lora() first"
            )
        else:
            self.weights.save_lora(path, base=self.base.name, revision=self.base.revision)
            adapter_base.write(path, self.base)

    @abstractmethod
    def save_model(self, folder: Path) -> None:
        """Write the whole model, `weights.model`, into an existing folder, in the layout that `from_folder` reads."""

    def snapshot(self: Self) -> Self:
        """Return a copy for `save` alone, whose weights do not change: those that are written are in host memory."""
        twin = copy.copy(self)
        twin.weights = self.weights.snapshot()
        return twin

    # -- the trained weights -------------------------------------------------------------------------------------------

    @property
    def policy(self) -> nn.Module:
        """The trained submodule. Set it to a wrapper of the same module (DDP) to train through that."""
        return self.weights.module

    @policy.setter
    def policy(self, module: nn.Module) -> None:
        self.weights.module = module

    @property
    def has_lora(self) -> bool:
        return self.weights.peft is not None

    def trainable_parameters(self) -> list[nn.Parameter]:
        return self.weights.trainable_parameters()

    def add_lora(
        self, rank: int = 16, alpha: float = 32.0, *, targets: Sequence[str] | None = None, seed: int = 0
    ) -> None:
        """Train LoRA adapters (2106.09685) on the policy's linear layers, and freeze the rest.

        targets: patterns for their names (None: `lora_targets`). Does nothing if a loaded adapter has the same shape.
        ValueError: it has another shape, or `targets` match nothing.
        """
        self.weights.add_lora(rank, alpha, self.lora_targets if targets is None else targets, seed)

    def merge_lora(self) -> None:
        """Add the adapters to the weights, and train these from here on. ValueError where there are none."""
        self.weights.merge_lora()

    def keep_reference(self) -> None:
        self.weights.keep_reference()

    def park_reference(self) -> None:
        """Hold the kept reference in the host's memory between uses."""
        self.weights.park_reference()

    def reference(self) -> AbstractContextManager[None]:
        return self.weights.reference()

    # -- sampling ------------------------------------------------------------------------------------------------------

    def prepare(self, rollouts_ahead: int, rows: int | None = None) -> None:
        """Let compile="auto" know how many rollouts of like size follow, and their size; see `Compilation`."""
        self.compiles.rollouts_ahead, self.compiles.usual_rows = rollouts_ahead, rows

    @contextmanager
    def eval_mode(self) -> Iterator[nn.Module]:
        """Hand out the unwrapped policy in eval mode, for sampling; its adapters may be in the weights.

        Afterwards its mode and its weights are what they were.
        """
        policy = self.weights.unwrapped()
        training = policy.training
        policy.eval()
        try:
            with merging.merged(policy) if merging.pays(self.merge_adapters, self.dtype) else nullcontext():
                yield policy
        finally:
            policy.train(training)

    def as_rollout(
        self, rows: SampledRows, prompts: tuple[Prompt, ...], negatives: tuple[str, ...] | None, sampling: Sampling
    ) -> Rollout:
        """Make a rollout of all B sampled rows; what is left of their records are its statistics.

        Where sampling did not give `logprob_negative` and it is wanted, the tokens are scored under the negative
        prompts.
        """
        records = dict(rows.records)
        rollout = Rollout(
            tokens=rows.tokens,
            logprob_positive=records.pop("positive"),
            logprob_negative=records.pop("negative", None),
            logprob_behaviour=records.pop("behaviour"),
            commit_step=records.pop("commit_step"),
            prompts=prompts,
            grid=self.grid,
            sampling=sampling,
            negative_prompts=negatives,
            stats=records,
        )
        if rollout.logprob_negative is not None or not sampling.contrast:
            return rollout
        negative = in_chunks(
            lambda part: self.token_logprobs(rollout.rows(part), prompt="negative"),
            torch.arange(rollout.batch),
            self.max_batch,
        )
        return replace(rollout, logprob_negative=negative)

    # -- images --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Decode tokens [B, T] int64 to images [B, 3, H, W] uint8 on the model's device.

        ValueError for another T, or indices outside the codebook.
        """
        check_tokens(tokens, self.grid, self.codebook_size)
        with decoding(self.decode_dtype, self.device, self.dtype):
            return in_chunks(self.decode_rows, tokens.to(self.device), self.decode_batch)

    @property
    def decode_batch(self) -> int | None:
        """The number of rows decoded at once (None: all)."""
        return self.max_batch

    @abstractmethod
    def decode_rows(self, tokens: Tensor) -> Tensor:
        """Decode a batch of rows: valid tokens [b, T] on the model's device -> [b, 3, H, W] uint8."""
