"""What a checkpoint holds of an updater, whole or in shards, and how any number of processes reads either.

    trainer.pt       one process: its state has `weights`, in the order of the parameters, and `optimizer`
    shards/          several: torch.distributed.checkpoint of `weights.NAME`, `exp_avg.NAME`, `exp_avg_sq.NAME`, flat,
                     and of `step.NAME`; each process writes and reads its own part

Their number may be another when the run goes on.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2i_gcpo.training.master_weights import Masters, MasterWeights
from t2i_gcpo.training.sharded_weights import ShardedWeights
from t2i_gcpo.training.writing import SHARDS, Shards
from t2i_gcpo.utils.processes import Processes

MOMENTS = ("exp_avg", "exp_avg_sq")
WEIGHTS, STEP = "weights", "step"
_OTHER_MODEL = "give it the generator and the LoRA rank that the run began with"


def whole_state(weights: Masters, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the part of a state that belongs into trainer.pt: all for one process, nothing for several."""
    if isinstance(weights, ShardedWeights):
        return {}
    return {"weights": weights.values(), "optimizer": optimizer.state_dict()}


def plan_shards(
    folder: Path, weights: Masters, optimizer: torch.optim.Optimizer, processes: Processes, *, copied: bool
) -> Shards | None:
    """Return what this process writes into `folder`/shards; every process calls it. None for one process.

    copied: what it writes is as it is now, whenever it is written.
    """
    if not isinstance(weights, ShardedWeights):
        return None
    from t2i_gcpo.training.shard_write import ShardWrite  # its libraries take seconds to load

    return ShardWrite(folder / SHARDS, _shards(weights, optimizer), processes, copied=copied)


def _shards(weights: ShardedWeights, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    states = [optimizer.state.get(master, {}) for master in weights.masters]
    named = weights.shards(weights.values(), WEIGHTS)
    for moment in MOMENTS:
        named |= weights.shards([state.get(moment) for state in states], moment)
    steps = zip(weights.names, states, strict=True)
    return named | {f"{STEP}.{name}": state[STEP].cpu() for name, state in steps if STEP in state}


def load(state: Mapping[str, Any], weights: Masters, optimizer: torch.optim.Optimizer, names: Sequence[str]) -> None:
    """Set weights and optimiser to a state: that of trainer.pt, where it names shards those.

    names: of the trained parameters. ValueError where they are those of another model.
    """
    if "shards" in state:
        _load_shards(Path(state["shards"]), weights, optimizer, names)
    elif isinstance(weights, ShardedWeights):
        _load_cut(state, weights, optimizer)
    elif isinstance(weights, MasterWeights):
        weights.load_values(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
    weights.write_back()
    if not weights.finite():
        raise ValueError("the weights of the checkpoint are not finite; go on from an earlier one")


@torch.no_grad()
def _load_cut(state: Mapping[str, Any], weights: ShardedWeights, optimizer: torch.optim.Optimizer) -> None:
    """Take this process's shards out of the whole state of one process."""
    values = state["weights"]
    if len(values) != len(weights.masters):
        raise ValueError(
            f"the checkpoint holds {len(values)} weights, the generator trains {len(weights.masters)}; {_OTHER_MODEL}"
        )
    for index, (master, value) in enumerate(zip(weights.masters, values, strict=True)):
        master.copy_(weights.cut(value, index))
    place = {id(master): index for index, master in enumerate(weights.masters)}
    order = [place[id(master)] for group in optimizer.param_groups for master in group["params"]]
    states = {
        k: {name: weights.cut(v, order[k]) if name in MOMENTS else v for name, v in moments.items()}
        for k, moments in state["optimizer"]["state"].items()
    }
    optimizer.load_state_dict({**state["optimizer"], "state": states})


@torch.no_grad()
def _load_shards(folder: Path, weights: Masters, optimizer: torch.optim.Optimizer, names: Sequence[str]) -> None:
    """Read this process's part of a sharded state: its shards, or all of it."""
    import torch.distributed.checkpoint as dcp

    stored = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    theirs = {key.partition(".")[2] for key in stored if key.startswith(f"{WEIGHTS}.")}
    if theirs != set(names):
        other = min(theirs ^ set(names))
        raise ValueError(
            f"the checkpoint holds {len(theirs)} weights, the generator trains {len(names)}, and {other} is in one of "
            f"them alone; {_OTHER_MODEL}"
        )
    order = dict(zip(map(id, weights.masters), names, strict=True))
    params = [(master, order[id(master)]) for group in optimizer.param_groups for master in group["params"]]
    moments = {
        k: {moment: torch.zeros_like(master) for moment in MOMENTS} | {STEP: torch.zeros(())}
        for k, (master, name) in enumerate(params)
        if f"{STEP}.{name}" in stored
    }
    by_name = {name: moments.get(k, {}) for k, (_, name) in enumerate(params)}
    wanted = _wanted(weights, names, by_name)
    for key, tensor in wanted.items():
        known: Any = stored[key]
        if known.size != tensor.shape:
            raise ValueError(f"the checkpoint has {key} of another size than the generator; {_OTHER_MODEL}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(wanted, checkpoint_id=folder, no_dist=not isinstance(weights, ShardedWeights))
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


def _wanted(weights: Masters, names: Sequence[str], by_name: Mapping[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return what is read into: views of the masters and of the moments, by the names in the file."""
    kinds: dict[str, list[Tensor | None]] = {m: [by_name[name].get(m) for name in names] for m in MOMENTS}
    kinds[WEIGHTS] = [*weights.values()]
    wanted: dict[str, Tensor] = {f"{STEP}.{name}": state[STEP] for name, state in by_name.items() if state}
    for kind, values in kinds.items():
        if isinstance(weights, ShardedWeights):
            wanted |= weights.shards(values, kind)
        else:
            pairs = zip(names, values, strict=True)
            wanted |= {f"{kind}.{name}": value.view(-1) for name, value in pairs if value is not None}
    return wanted
