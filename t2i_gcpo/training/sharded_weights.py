"""Master weights, gradients and Adam's moments in shards: of N processes each holds and updates one N-th.

The trained parameters themselves are whole on every process, so that sampling and scoring know nothing of this. A
parameter is flattened and cut into N chunks of equal length, the last ones shorter or empty, as DTensor's Shard(0)
does. Gradients are summed once an optimiser step, or after each backward pass; each process gets its own chunks of the
sum (reduce-scatter). The updated chunks then go to all (all-gather). Both run over buckets of parameters: N rows, one
for each process, in which the chunks of a bucket's parameters lie one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from t2i_gcpo.generators.base import ImageGenerator
from t2i_gcpo.training.master_weights import Masters, MasterWeights
from t2i_gcpo.training.optim import clip_to
from t2i_gcpo.training.ranks import Ranks
from t2i_gcpo.utils.finite import all_finite
from t2i_gcpo.utils.processes import Processes

#: Elements of a bucket, but for a parameter that is larger: 256 MB of fp32.
BUCKET = 2**26


@dataclass
class Traffic:
    """Counts what the shards' exchange sends: calls, and bytes that leave this process."""

    calls: int = 0
    bytes: int = 0


class ShardedWeights(Masters):
    """fp32 shards of the trained parameters, one a parameter, which the optimiser updates."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], ranks: Ranks, mesh: DeviceMesh, *, each_pass: bool = False
    ) -> None:
        """parameters: the trained ones by name, the same on every process.

        each_pass: sum the gradients over the processes after each backward pass, and hold no whole fp32 gradients.
        """
        super().__init__()
        self.names, self._trained = list(parameters), list(parameters.values())
        self.ranks, self.mesh, self.each_pass = ranks, mesh, each_pass
        self._shard, self._replicate = mesh.get_group("shard"), mesh.get_group("replicate")
        self._count, self._place = mesh["shard"].size(), mesh["shard"].get_local_rank()
        self._copies = mesh["replicate"].size()
        self.traffic = Traffic()
        self._sums: dict[int, Tensor] = {}  # fp32 sums of the gradients of parameters of lower precision
        # The shard of a matrix is one row, so that the optimiser still tells it from a vector (weight decay).
        self.masters = nn.ParameterList(
            nn.Parameter(_shaped(self._own(p.detach()).float().clone(), p)) for p in self._trained
        )
        self.write_back()  # what the processes loaded is the same to the bit from here on

    # -- the cut -------------------------------------------------------------------------------------------------------

    def _chunk(self, parameter: Tensor) -> int:
        """Return the length of a parameter's chunks."""
        return -(-parameter.numel() // self._count)

    def _own(self, parameter: Tensor) -> Tensor:
        """Return this process's chunk of a parameter, flat."""
        chunk = self._chunk(parameter)
        return parameter.flatten()[self._place * chunk : (self._place + 1) * chunk]

    def _buckets(self) -> Iterator[list[int]]:
        return buckets([(parameter.numel(), parameter.dtype) for parameter in self._trained])

    # -- gradients -----------------------------------------------------------------------------------------------------

    def clear_gradients(self) -> None:
        self._sums.clear()
        for parameter in (*self._trained, *self.masters):
            parameter.grad = None

    def passes(self, own: int) -> int:
        """Return the most passes of any process where each is an exchange: one that has fewer sends no gradient."""
        return max(self.ranks.gather(own)) if self.each_pass else own

    def add_gradients(self) -> None:
        if self.each_pass:
            self._exchange()
            return
        for index, parameter in enumerate(self._trained):
            if parameter.dtype != torch.float32 and parameter.grad is not None:
                if index in self._sums:
                    self._sums[index].add_(parameter.grad)
                else:
                    self._sums[index] = parameter.grad.float()
                parameter.grad = None

    def reduce(self) -> None:
        if not self.each_pass:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Sum the gradients over the processes; each gets its chunks, and a whole gradient is kept nowhere."""
        gradients = [self._sums.get(index, parameter.grad) for index, parameter in enumerate(self._trained)]
        used = self.ranks.sum(torch.tensor([gradient is not None for gradient in gradients]).int())
        del gradients  # or they would outlive their copies in a bucket
        with self.ranks.exchange():
            for bucket in self._buckets():
                if bool(used[bucket].any()):
                    self._reduce_bucket(bucket, used)

    def _reduce_bucket(self, bucket: list[int], used: Tensor) -> None:
        """Sum the gradients of a bucket, which are freed as they are copied into it."""
        lengths = [self._chunk(self._trained[index]) for index in bucket]
        whole = torch.zeros(self._count, sum(lengths), device=self._trained[bucket[0]].device)
        for index, columns in zip(bucket, whole.split(lengths, dim=1), strict=True):
            parameter = self._trained[index]
            gradient = self._sums.pop(index, parameter.grad)
            if gradient is not None:
                _fill(columns, gradient.flatten())
            parameter.grad = gradient = None
        mine = self._reduce_scatter(whole)
        for index, chunk in zip(bucket, mine.split(lengths), strict=True):
            if used[index]:
                master = self.masters[index]
                share = chunk[: master.numel()].view_as(master)
                master.grad = share if master.grad is None else master.grad.add_(share)

    def _reduce_scatter(self, whole: Tensor) -> Tensor:
        mine = torch.empty_like(whole[0])
        with self.ranks.collective():
            dist.reduce_scatter(mine, list(whole), group=self._shard)
            self._count_traffic(whole.numel() - mine.numel(), whole)
            if self._copies > 1:
                dist.all_reduce(mine, group=self._replicate)
                self._count_traffic(2 * mine.numel() * (self._copies - 1) // self._copies, mine)
        return mine

    def clip_gradients(self, max_norm: float) -> Tensor:
        squares = [master.grad.double().square().sum() for master in self.masters if master.grad is not None]
        own = torch.stack(squares).sum().cpu() if squares else torch.zeros((), dtype=torch.float64)
        first = self.ranks.rank // self._count * self._count  # the processes that hold the other shards
        total = torch.stack(self.ranks.gather(own)[first : first + self._count]).sum()
        return clip_to(self.masters, max_norm, total.sqrt().float().to(self._trained[0].device))

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def shards(self, values: Sequence[Tensor | None], kind: str) -> dict[str, Tensor]:
        """Return values of the masters, one shard for each (None: left out), as DTensors named `kind.PARAMETER`."""
        from torch.distributed.tensor import DTensor, Replicate, Shard

        places = [Replicate(), Shard(0)]
        return {
            f"{kind}.{name}": DTensor.from_local(
                value.detach().flatten(), self.mesh, places, run_check=False, shape=p.flatten().shape, stride=(1,)
            )
            for name, p, value in zip(self.names, self._trained, values, strict=True)
            if value is not None
        }

    def cut(self, whole: Tensor, index: int) -> Tensor:
        """Return this process's shard of a tensor of the shape of parameter `index`, in the shape of its master."""
        trained = self._trained[index]
        if whole.shape != trained.shape:
            raise ValueError(
                f"the checkpoint has {self.names[index]} of shape {tuple(whole.shape)}, the generator of shape "
                f"{tuple(trained.shape)}; give it the generator and the LoRA rank that the run began with"
            )
        return _shaped(self._own(whole), trained)

    # -- values --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def write_back(self) -> None:
        self.ranks.wait()  # one may load its files for longer than the others, or fail in the optimiser's step
        with self.ranks.exchange():
            for bucket in self._buckets():
                self._publish_bucket(bucket)

    def _publish_bucket(self, bucket: list[int]) -> None:
        """Send this process's updated chunks of a bucket to all, and write theirs into the trained parameters."""
        lengths = [self._chunk(self._trained[index]) for index in bucket]
        first = self._trained[bucket[0]]
        mine = torch.zeros(sum(lengths), dtype=first.dtype, device=first.device)
        for index, chunk in zip(bucket, mine.split(lengths), strict=True):
            chunk[: self.masters[index].numel()] = self.masters[index].flatten()
        whole = mine.new_empty(self._count, len(mine))
        with self.ranks.collective():
            dist.all_gather(list(whole), mine, group=self._shard)
        self._count_traffic((self._count - 1) * mine.numel(), mine)
        for index, columns in zip(bucket, whole.split(lengths, dim=1), strict=True):
            parameter = self._trained[index]
            parameter.copy_(columns.reshape(-1)[: parameter.numel()].view_as(parameter))

    def finite(self) -> bool:
        own = [master.detach() for master in self.masters]
        return not self.ranks.any(not all_finite(*own, *(parameter.detach() for parameter in self._trained)))

    def _count_traffic(self, elements: int, of: Tensor) -> None:
        self.traffic.calls += 1
        self.traffic.bytes += elements * of.element_size()


def buckets(parameters: Sequence[tuple[int, torch.dtype]]) -> Iterator[list[int]]:
    """Yield the indices of the parameters of each bucket, all of one precision. parameters: elements and precision."""
    bucket: list[int] = []
    filled = 0
    for index, (elements, dtype) in enumerate(parameters):
        if bucket and (parameters[bucket[0]][1] != dtype or filled + elements > BUCKET):
            yield bucket
            bucket, filled = [], 0
        bucket.append(index)
        filled += elements
    if bucket:
        yield bucket


def _shaped(chunk: Tensor, parameter: Tensor) -> Tensor:
    return chunk.view((1, chunk.numel()) if parameter.ndim >= 2 else (chunk.numel(),))


def _fill(columns: Tensor, values: Tensor) -> None:
    """Write a flat tensor into a bucket's columns [N, chunk], row after row; what is left over stays as it is."""
    whole, rest = divmod(len(values), columns.shape[1])
    columns[:whole] = values[: whole * columns.shape[1]].view(whole, -1)
    if rest:
        columns[whole, :rest] = values[-rest:]


def masters_of(generator: ImageGenerator, processes: Processes, *, each_pass: bool = False) -> Masters:
    """Return what the optimiser updates of a generator on this process. ValueError where a parameter has no name.

    each_pass: several processes sum their gradients after each backward pass, not once an optimiser step.
    """
    trained = generator.trainable_parameters()
    if not isinstance(processes, Ranks):
        return MasterWeights(trained)
    names = {id(parameter): name for name, parameter in generator.policy.named_parameters()}
    unnamed = [parameter for parameter in trained if id(parameter) not in names]
    if unnamed:
        raise ValueError(
            f"{len(unnamed)} trained parameters are none of the generator's policy; several "
            "processes find them by their names in it"
        )
    named = {names[id(parameter)]: parameter for parameter in trained}
    return ShardedWeights(named, processes, processes.mesh(generator.device), each_pass=each_pass)
