"""Checks before a run goes on: is the state whole, is it of this run, and should there be one at all.

Nothing is written here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rewards.identity import Identity, describe, hide_secrets
from t2i_gcpo.algorithms import Algorithm
from t2i_gcpo.records import Sampling
from t2i_gcpo.training import checkpoint
from t2i_gcpo.training.options import CheckpointPlan, Schedule
from t2i_gcpo.utils.finite import all_finite

#: Groups of a run's options that the trainer gets as objects: what is compared of them is what the options say.
BUILT = ("generator", "reward", "prompts")
#: Key of a state -> the types it may have.
_STATE: dict[str, type | tuple[type, ...]] = {
    "step": int,
    "images_sampled": int,
    "images_scored": int,
    "rng": Tensor,
    "prompts": dict,
    "updater": dict,
    "validation": (float, int, type(None)),
    "options": dict,
    "config": dict,
    "generator": str,
    "scorer": (dict, type(None)),
}
_UPDATER: dict[str, type | tuple[type, ...]] = {
    "updates": int,
    "skipped_in_a_row": int,
    "skipped_in_all": int,
}
#: What it has besides, where it was written by one process; with several it names their shards.
_WHOLE: dict[str, type | tuple[type, ...]] = {"weights": list, "optimizer": dict}
#: Values of each parameter that tell two generators apart.
_SAMPLED_VALUES = 16


def state_problem(state: Mapping[str, Any]) -> str | None:
    """Return why a checkpoint's state cannot be gone on from, as a sentence, or None."""
    problem = _wrong_keys(state, _STATE, "its state")
    if problem:
        return problem
    updater = state["updater"]
    problem = _wrong_keys(updater, _UPDATER if "shards" in updater else {**_WHOLE, **_UPDATER}, "its updater's state")
    if problem:
        return problem
    if "shards" not in updater and not all_finite(*updater["weights"]):  # those in shards are looked at when loaded
        return "its weights are not finite"
    return None


def _wrong_keys(state: Mapping[str, Any], types: Mapping[str, type | tuple[type, ...]], what: str) -> str | None:
    for key, expected in types.items():
        if key not in state:
            return f"{what} has no {key!r}"
        if not isinstance(state[key], expected):
            return f"{what} has a {type(state[key]).__name__} as {key!r}"
    return None


def check_same_run(state: Mapping[str, Any], own: Mapping[str, Any], steps: int) -> None:
    """Raise ValueError where a state is that of another run, or of more than `steps` steps.

    `own`: the run's state as it is now.
    """
    checkpoint.check_resumable(_with_newer_options(state["options"]), own["options"])
    shared = [name for name in state["config"] if name in own["config"]]
    checkpoint.check_resumable(
        {name: state["config"][name] for name in shared},
        {name: _known(own["config"][name], state["config"][name], name) for name in shared},
    )
    if state["generator"] != own["generator"]:
        raise ValueError(
            "the checkpoint is of a run that began with another generator than the one that was loaded now; give it "
            "the generator that the run began with, as it was then"
        )
    theirs, ours = state["scorer"], own["scorer"]
    if theirs is not None and ours is not None and theirs != ours:
        raise ValueError(
            f"the run was rewarded by {_described(theirs)}, and now the reward is {_described(ours)}; "
            "go on with the same scorer, or start a new run"
        )
    if state["step"] > steps:
        raise ValueError(
            f"the run has {state['step']} steps already, and steps is {steps}; ask for at "
            f"least as many (--steps {state['step']})"
        )


def _with_newer_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a state, with the defaults of those that came into the code after it was written.

    An option's default is what the code did before there was the option.
    """
    defaults = {"algorithm": asdict(Algorithm()), "sampling": asdict(Sampling()), "optim": asdict(Schedule())}
    return {**options, **{name: {**group, **options.get(name, {})} for name, group in defaults.items()}}


def _known(group: Mapping[str, Any], before: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the options of a group that a state knows too: groups are written in full, so the others are newer.

    A scorer's options are not: one that is new there was given to the run that goes on.
    """
    return {key: value for key, value in group.items() if name == "reward" or key in before}


def _described(scorer: Mapping[str, Any]) -> str:
    return describe(Identity(name=scorer["name"], options=scorer["options"], weights=scorer["weights"]))


def built_options(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the groups of a run's options that say what the trainer was built with, without secrets."""
    return {name: hide_secrets(config[name]) for name in BUILT if config and name in config}


@torch.no_grad()
def fingerprint(policy: nn.Module) -> str:
    """Return 16 hexadecimal digits by which the weights that a run begins with are known again, on any device.

    The first values of every parameter are enough: another training moves all of them. The first matrices of LoRA are
    left out: they are drawn anew, and count for nothing until the second ones, which begin as zeros, are trained.
    """
    values = [
        parameter.detach().flatten()[:_SAMPLED_VALUES].float().cpu()
        for name, parameter in policy.named_parameters()
        if ".lora_A." not in name
    ]
    return hashlib.sha256(torch.cat(values).numpy().tobytes()).hexdigest()[:16]


def expects_checkpoint(run_dir: str | Path, rows: list[dict[str, Any]], plan: CheckpointPlan) -> bool:
    """Return whether a run that logged `rows` has written a checkpoint.

    If not, going on means to begin again, and nothing is lost.

    A run that is killed before its first checkpoint has none; one whose checkpoints were damaged or removed had some.
    """
    folder = Path(run_dir) / checkpoint.FOLDER
    if not rows:
        return folder.is_dir() and any(folder.glob("step_*"))
    if not folder.is_dir() or any(folder.glob("step_*")) or (folder / checkpoint.BEST).exists():
        return True
    # The last row may be that of a step whose checkpoint was being written. One that is written while training goes on
    # is whole when the next begins.
    done = [
        row
        for row in rows[:-1]
        if (plan.every and row["step"] % plan.every == 0)
        or (plan.keep_best and row.get("validation/overall") is not None)
    ]
    return len(done) > int(plan.asynchronous)
