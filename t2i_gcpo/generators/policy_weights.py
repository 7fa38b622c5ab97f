"""Decides which weights are trained and what the reference is: full fine-tuning of one submodule, or LoRA on it."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t2i_gcpo.generators import snapshot
from t2i_gcpo.generators.integrity import check_finite, reading, tensor_sizes

#: The projections of a Llama block.
LLAMA_TARGETS: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


#: peft's name of an adapter's weights.
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def check_one_dtype(module: nn.Module, path: str) -> None:
    """Raise a ValueError where the weights of a trained part differ in precision: its layers would refuse each other's
    results, or cast every one of them."""
    of_dtype: dict[torch.dtype, list[str]] = {}
    for name, parameter in module.named_parameters():
        of_dtype.setdefault(parameter.dtype, []).append(name)
    if len(of_dtype) > 1:
        parts = [f"{len(names)} in {str(dtype).removeprefix('torch.')} such as {names[0]}"
                 for dtype, names in of_dtype.items()]  # fmt: skip
        raise ValueError(
            f"the weights of {path} have several dtypes: {', '.join(parts)}; put the model into one (model.to(dtype)), "
            "or load it with generators.load, which does"
        )


class PolicyWeights:
    """The trained submodule of a model. Everything else in the model is frozen."""

    def __init__(self, model: nn.Module, path: str) -> None:
        """`path` is the submodule's dotted name in `model`, e.g. "model.language_model"."""
        self.model = model
        self.path = path
        self.module: nn.Module = model.get_submodule(path)
        check_one_dtype(self.module, path)
        self.peft: Any = None
        self._reference: list[Tensor] | None = None  # the trained parameters' values
        model.requires_grad_(False)
        self.module.requires_grad_(True)

    def unwrapped(self) -> nn.Module:
        """Return the submodule itself, also where `module` is a DDP wrapper around it."""
        inner = getattr(self.module, "module", None)
        return inner if isinstance(inner, nn.Module) else self.module

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the policy's trained parameters (with LoRA its adapters'), in a fixed order."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    def add_lora(self, rank: int, alpha: float, targets: Sequence[str], seed: int) -> None:
        """Put LoRA adapters (2106.09685) on the linear layers named `targets` in the submodule, and freeze the rest.

        No dropout: it would draw another model for re-scoring than for sampling. ValueError: there are adapters already
        of another shape, a rank or alpha that is not above 0, or a target that matches nothing.
        """
        from peft import LoraConfig, get_peft_model

        if self.peft is not None:
            present = self.peft.peft_config["default"]
            if (present.r, present.lora_alpha) == (rank, alpha):
                return  # loaded from an adapter checkpoint: go on training it
            raise ValueError(
                f"the model has LoRA adapters of rank {present.r} and alpha {present.lora_alpha}, asked for are {rank} "
                f"and {alpha}; ask for the same, or merge the present ones first (merge_lora)"
            )
        if not 1 <= rank or not 0 < alpha < math.inf:
            raise ValueError(f"LoRA's rank is {rank} and its alpha {alpha}; both must be finite and above 0")
        self._check_targets(targets)
        # Bare names would also match the vision tower's projections: name the way from the top.
        pattern = rf"{re.escape(self.path)}\..*\.({'|'.join(targets)})"
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=pattern, bias="none")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            # Swaps the layers in place; `model` stays the same object. The adapters get the model's dtype: their fp32
            # masters are the optimiser's, and fp32 layers in a bf16 model would cast each activation.
            self.peft = get_peft_model(self.model, config, autocast_adapter_dtype=False)

    def _check_targets(self, targets: Sequence[str]) -> None:
        """Raise ValueError where a target matches no linear layer: its layers would be left out, and nobody told."""
        linear = [name for name, part in self.module.named_modules() if isinstance(part, nn.Linear)]
        there = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
        if isinstance(targets, str) or not targets:
            raise ValueError(f"the LoRA targets are {targets!r}; pass a sequence of names of layers, which are {there}")
        try:
            patterns = {target: re.compile(rf".*\.({target})") for target in targets}
        except re.error as error:
            raise ValueError(f"the LoRA targets {', '.join(targets)} are no regular expressions: {error}") from error
        without = [name for name, one in patterns.items() if not any(one.fullmatch(f".{name}") for name in linear)]
        if without:
            raise ValueError(
                f"no linear layer of {self.path} has a name that ends in one of the LoRA targets {', '.join(without)}; "
                f"there are {there}"
            )

    def load_lora(self, folder: Path, device: torch.device) -> None:
        """Put a saved adapter on the model, trainable.

        ValueError: its files are damaged, or not those of this model's adapters.
        """
        from peft import PeftModel, get_peft_model_state_dict

        saved = set(tensor_sizes(folder / ADAPTER_WEIGHTS))
        with reading(folder, "the LoRA adapter"):
            self.peft = PeftModel.from_pretrained(
                self.model, str(folder), is_trainable=True, torch_device=str(device), autocast_adapter_dtype=False
            )
            wanted = set(get_peft_model_state_dict(self.peft, save_embedding_layers=False))
        if saved != wanted:
            raise ValueError(
                f"the LoRA adapter in {folder} does not fit its base: {len(wanted - saved)} of its weights are "
                f"missing, {len(saved - wanted)} belong to no part of it, such as {min(saved ^ wanted)}"
            )
        check_finite(self.module, f"the LoRA adapter in {folder}")

    def save_lora(self, folder: Path, *, base: str, revision: str | None) -> None:
        config = self.peft.peft_config["default"]
        config.base_model_name_or_path, config.revision = base, revision
        # "auto" would ask the hub whether the vocabulary was changed
        self.peft.save_pretrained(str(folder), save_embedding_layers=False)

    def snapshot(self) -> PolicyWeights:
        """Return a copy to be saved. What is trained is copied, and what else is saved is in the host's memory."""
        whole = self.model if self.peft is None else self.peft
        copies = snapshot.of_modules(whole, only_trained=self.peft is not None)  # an adapter's base is not written
        twin = copy.copy(self)
        twin.model, twin.peft = copies[self.model], None if self.peft is None else copies[self.peft]
        twin.module, twin._reference = copies[self.unwrapped()], None
        return twin

    def merge_lora(self) -> None:
        """Add the adapters to the weights, and train these from here on."""
        if self.peft is None:
            raise ValueError("there are no LoRA adapters to merge")
        self.peft.merge_and_unload()
        self.peft = self._reference = None
        self.module.requires_grad_(True)

    def checkpoint_activations(self) -> None:
        """Keep only each layer's input for the backward pass; acts in train mode alone."""
        module: Any = self.module
        if hasattr(module, "activation_checkpointing_enable"):  # its name in newer versions of transformers
            module.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        else:
            module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def keep_reference(self) -> None:
        """Keep the trained parameters as they are now for `reference()`.

        Adapters that are new add nothing to the base, which then is the reference, and nothing is copied.
        """
        new = self.peft is not None and not any(bool(p.any()) for name, p in self.module.named_parameters()
                                                if ".lora_B." in name)  # fmt: skip
        self._reference = None if new else [p.detach().clone() for p in self.trainable_parameters()]

    def park_reference(self) -> None:
        """Hold what `keep_reference()` kept in the host's memory between uses, for one that is used now and then."""
        if self._reference is not None:
            self._reference = [value.cpu() for value in self._reference]

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the submodule is the one that `keep_reference()` kept, and has no gradients.

        Without that call it is the base without its adapters, with LoRA; else ValueError.
        """
        if self._reference is None and self.peft is None:
            raise ValueError("no reference was kept; call keep_reference() before training, or train with LoRA")
        kept = self.peft.disable_adapter() if self._reference is None else self._exchanged(self._reference)
        with torch.no_grad(), kept:
            yield

    @contextmanager
    def _exchanged(self, values: Sequence[Tensor]) -> Iterator[None]:
        """Inside, the trained parameters have other values. These come to the parameters' device where they are not."""
        parameters = self.trainable_parameters()
        trained = [parameter.data for parameter in parameters]
        try:
            for parameter, value in zip(parameters, values, strict=True):
                parameter.data = value.to(parameter.device)
            yield
        finally:
            for parameter, value in zip(parameters, trained, strict=True):
                parameter.data = value
