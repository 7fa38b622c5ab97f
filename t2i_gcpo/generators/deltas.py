"""Tuned weights as a small folder: the difference to a base checkpoint, of the trained parameters alone.

    DIR/delta.safetensors    parameter of the policy -> tuned - base, float16; parameters that did not move are left out
    DIR/delta.json           the base's name, the size and SHA-256 of its weight files and of the delta's, and where the
                             tuned weights come from

`generators.load` takes such a folder as it takes a LoRA adapter: it loads the base and adds the difference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rewards.models.weights import VARIANTS
from t2i_gcpo.generators.integrity import tensor_sizes
from t2i_gcpo.utils.files import describe, identify, write_atomically
from t2i_gcpo.utils.finite import all_finite
from t2i_gcpo.utils.json_files import check_shape, read_json

WEIGHTS, ABOUT = "delta.safetensors", "delta.json"
DTYPE = torch.float16


def difference(base: nn.Module, tuned: nn.Module) -> dict[str, Tensor]:
    """Return tuned - base of each parameter in float16, on the CPU.

    Parameters whose difference is 0 after rounding are left out. fp32 parameters are subtracted as such.

    ValueError: the modules have other parameters or shapes, or a difference that float16 cannot hold (not finite,
    beyond 65504).
    """
    before, after = dict(base.named_parameters()), dict(tuned.named_parameters())
    shapes = [{name: tuple(p.shape) for name, p in side.items()} for side in (before, after)]
    if shapes[0] != shapes[1]:
        unlike = sorted(
            name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name)
        )
        raise ValueError(
            f"the two checkpoints are not of one model: {len(unlike)} parameters differ in name or shape, e.g. "
            f"{unlike[0]}; name the checkpoint that the training started from"
        )
    found = {}
    for name, parameter in after.items():
        exact = parameter.detach().cpu().float() - before[name].detach().cpu().float()
        rounded = exact.to(DTYPE)
        if not bool(rounded.isfinite().all()):
            raise ValueError(
                f"the difference of {name} does not fit float16: its largest magnitude is {float(exact.abs().max()):g}"
            )
        if bool(rounded.any()):
            found[name] = rounded.contiguous()
    return found


@torch.no_grad()
def add(module: nn.Module, delta: Mapping[str, Tensor]) -> None:
    """Add a difference to the parameters of `module`, in fp32.

    ValueError: it has a parameter that the module lacks, or of another shape.
    """
    parameters = dict(module.named_parameters())
    for name, change in delta.items():
        if name not in parameters or parameters[name].shape != change.shape:
            there = tuple(parameters[name].shape) if name in parameters else "no such parameter"
            raise ValueError(
                f"the delta changes {name} {tuple(change.shape)}, but the base has {there}; it is of another model"
            )
        parameter = parameters[name]
        parameter.copy_(parameter.float() + change.to(parameter.device).float())


def save(
    folder: str | Path, delta: Mapping[str, Tensor], *, base: str, base_folder: Path, about: Mapping[str, Any]
) -> Path:
    """Write a delta. base: the name that finds the base again; base_folder: where its weight files are; about.

    What delta.json says besides.
    """
    from safetensors.torch import save as packed

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, packed(dict(delta)))
    known = {"base": base, "base_files": fingerprint(base_folder), "weights_file": describe(folder / WEIGHTS), **about}
    write_atomically(folder / ABOUT, json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    return folder


def read_about(folder: str | Path) -> dict[str, Any]:
    """Read delta.json. ValueError where it is damaged or names no base."""
    path = Path(folder) / ABOUT
    about: dict[str, Any] = read_json(path)
    for key, shape in (("base", str), ("base_files", dict), ("revision", (str, None)), ("weights_file", dict)):
        if key in about:
            check_shape(about[key], shape, f"{path}: {key}")
    if not about.get("base"):
        raise ValueError(f"{path} names no base checkpoint (key base)")
    return about


def apply(module: nn.Module, folder: Path, base_folder: Path) -> None:
    """Add the delta in `folder` to the policy of its base.

    ValueError: the base's weight files are not those that it was made against, or the delta itself is damaged.
    """
    from safetensors.torch import load_file

    about = read_about(folder)
    if not same_files(about.get("base_files", {}), fingerprint(base_folder)):
        raise ValueError(
            f"the delta in {folder} was made against other weights than those in {base_folder}: "
            "make it anew with t2i-gcpo export, against the present base"
        )
    path = folder / WEIGHTS
    if not path.is_file():
        raise ValueError(f"the delta in {folder} is not whole: there is no {WEIGHTS}")
    if about.get("weights_file", describe(path)) != describe(path):  # absent from deltas of older versions
        raise ValueError(f"the delta in {folder} is damaged: {WEIGHTS} is not the file that {ABOUT} describes")
    tensor_sizes(path)
    delta = load_file(path)
    broken = [name for name, change in delta.items() if not all_finite(change)]
    if broken:
        raise ValueError(f"the delta in {folder} is damaged: {broken[0]} is not finite")
    add(module, delta)


def fingerprint(folder: Path) -> dict[str, dict[str, Any]]:
    """Return weight file -> its bytes and its SHA-256, of files above 64 MiB that of parts all over it.

    A model has its files in the folder itself, or in folders below: what else was put into those of the first kind is
    none of its weights. Nor are the copies in half precision that no model here reads.
    """
    paths = [*folder.glob("*.safetensors")] or [*folder.rglob("*.safetensors")]
    read = sorted(path for path in paths if not any(path.match(variant) for variant in VARIANTS))
    return {path.relative_to(folder).as_posix(): identify(path) for path in read}


def same_files(noted: Mapping[str, Any], present: Mapping[str, Mapping[str, Any]]) -> bool:
    """Say whether the weight files are those that were noted; older versions noted the size alone of large ones."""
    return noted.keys() == present.keys() and all(
        about == present[name] or about == {"bytes": present[name]["bytes"]} for name, about in noted.items()
    )
