"""The parts of `bench gpu`, each of which adds its rows: what the card allows, rollout, drift, update and a whole step.

B rows, T tokens.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from t2i_gcpo.algorithms import resolve, token_advantages
from t2i_gcpo.bench import gpu_memory, plain_loop
from t2i_gcpo.bench.gpu_bench import Bench
from t2i_gcpo.bench.gpu_report import GIB
from t2i_gcpo.bench.measure import seconds
from t2i_gcpo.generators.janus.adapter import Janus
from t2i_gcpo.planning.choices import choose
from t2i_gcpo.records import Rollout
from t2i_gcpo.training.options import LoopOptions, OptimConfig
from t2i_gcpo.training.updater import Updater
from t2i_gcpo.utils.clock import Clock
from t2i_gcpo.utils.device import free_memory

#: Bytes that are copied to measure the bandwidth, on a GPU and on a CPU.
COPIED = {"cuda": GIB, "cpu": 64 * 2**20}
DRIFT_SEEDS = 3


def choose_chunk(bench: Bench) -> None:
    """Let as many logits exist at once as a run on this GPU would; on a CPU it stays as it is."""
    free = free_memory(bench.device)
    if free is not None:
        work = bench.work(min(bench.options.images), resolve("gcpo", group_size=bench.options.group_size))
        chosen = choose(bench.planned, work, free, gradient_checkpointing=False, max_batch=False)
        bench.generator.scorer.head_chunk = chosen.head_chunk
    bench.report.settings["head_chunk"] = bench.generator.scorer.head_chunk


def measure_bandwidth(bench: Bench) -> float:
    """Measure the bytes a second that a copy moves, reading and writing."""
    source = torch.ones(COPIED.get(bench.device.type, COPIED["cpu"]), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    target.copy_(source)
    rate = 2 * source.numel() / min(seconds(lambda: target.copy_(source), bench.device) for _ in range(10))
    bench.add("machine", "copy bandwidth", 0, rate / 1e9, "GB/s")
    return rate


def bytes_per_token(generator: Janus, images: int, prompt: int) -> int:
    """Return the bytes that a step of the rollout must read on average: weights once, keys and values of all rows."""
    model, text = generator.model, generator.model.config.text_config
    embeddings = generator.model.model.language_model.get_input_embeddings().weight
    read = [*model.model.language_model.parameters(), *model.model.generation_head.parameters()]
    weights = sum(p.numel() * p.element_size() for p in read if p is not embeddings)
    columns = prompt + math.prod(generator.grid) / 2
    head = text.head_dim or text.hidden_size // text.num_attention_heads
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * head * embeddings.element_size()
    return int(weights + 2 * images * columns * cache)


def rollouts(bench: Bench, images: int, bandwidth: float) -> None:
    """Time the loops, and work out the floor."""
    generator, prompts, how = bench.generator, bench.prompts(images), bench.sampling()
    steps, width = generator.sampler.steps, plain_loop.encoded(generator, prompts, 1).ids.shape[1]
    scale, unit = 1e3 / bench.tokens, "ms a token"

    def ours(*, fused: bool, one_piece: bool, row: bool, graphs: bool = False) -> Rollout:
        before = steps.fused_attention, steps.keys_in_one_piece, steps.row_attention, steps.graphs
        steps.fused_attention, steps.keys_in_one_piece = fused, one_piece
        steps.row_attention, steps.graphs = row, graphs
        generator.compiles.choice = bench.compile
        try:
            return generator.sample(prompts, how)
        finally:
            generator.compiles.choice = False
            steps.fused_attention, steps.keys_in_one_piece, steps.row_attention, steps.graphs = before

    work = bench.work(images, resolve("grpo", group_size=how.group_size))
    planned = gpu_memory.rollout_bytes(bench.planned, work)
    plain = lambda: plain_loop.sample(generator, prompts, how)  # noqa: E731
    fused = bench.device.type != "cpu"
    bench.time("rollout", "the paper's loop", images, plain, unit=unit, scale=scale)
    bench.time("rollout", "ours, keys side by side", images, lambda: ours(fused=True, one_piece=False, row=False),
               unit=unit, scale=scale)  # fmt: skip
    if steps.row_attention:
        bench.time("rollout", "ours, masked attention", images, lambda: ours(fused=True, one_piece=True, row=False),
                   unit=unit, scale=scale)  # fmt: skip
    bench.time("rollout", "ours", images, lambda: ours(fused=fused, one_piece=fused, row=steps.row_attention),
               unit=unit, scale=scale, planned=planned)  # fmt: skip
    if steps.row_attention and bench.compile:
        graphs = lambda: ours(fused=fused, one_piece=fused, row=True, graphs=True)  # noqa: E731
        bench.time("rollout", "ours, CUDA graphs", images, graphs, unit=unit, scale=scale)
    floor = bytes_per_token(generator, images, width) / bandwidth
    bench.add("rollout", "floor of the bandwidth", images, 1e3 * floor, unit)


@torch.no_grad()
def drift(bench: Bench, images: int) -> None:
    """Compare the log-probs of sampling with those of the training forward, by seed."""
    for seed in range(DRIFT_SEEDS):
        rollout = bench.generator.sample(bench.prompts(images), bench.sampling(seed))
        parts = torch.arange(rollout.batch).split(bench.options.micro_batch)
        scored = torch.cat([bench.generator.token_logprobs(rollout.rows(part), distribution="guided")
                            for part in parts])  # fmt: skip
        difference = (scored - rollout.logprob_behaviour).abs()
        note = f"largest {float(difference.max()):.3g}"
        bench.add("drift", f"mean, seed {seed}", images, float(difference.mean()), "nats a token", note=note)


def updates(bench: Bench) -> None:
    """Time the forward and backward pass of a micro-batch, with and without checkpointed activations."""
    size, generator = bench.options.micro_batch, bench.generator
    group = bench.options.group_size
    rollout = generator.sample(bench.prompts(-(-size // group) * group), bench.sampling())
    rows = rollout.rows(torch.arange(size))

    def both_passes() -> None:
        generator.training_scores(rows, distribution="guided").logprob.mean().backward()
        generator.policy.zero_grad(set_to_none=True)

    algorithm = resolve("gcpo", group_size=group)
    planned = [gpu_memory.passes_bytes(bench.planned, bench.work(rollout.batch, algorithm, checkpointing=on))
               for on in (False, True)]  # fmt: skip
    bench.time("update", "forward and backward", size, both_passes, unit="s", scale=1.0, planned=planned[0])
    generator.weights.checkpoint_activations()
    generator.gradient_checkpointing = True
    bench.time("update", "with gradient checkpointing", size, both_passes, unit="s", scale=1.0, planned=planned[1])
    generator.gradient_checkpointing = False


def steps(bench: Bench, images: int) -> None:
    """Time whole steps: GCPO, GRPO, and the paper's written plainly; decoding and a trivial reward included."""
    generator, prompts, how = bench.generator, bench.prompts(images), bench.sampling()
    loop = LoopOptions(micro_batch=bench.options.micro_batch)
    optim = OptimConfig(lr=1e-9, warmup_steps=0)  # as good as no change: every call does the same work
    generator.keep_reference()

    def step(name: str, updater: Updater) -> None:
        generator.compiles.choice = bench.compile
        rollout = generator.sample(prompts, replace(how, contrast=updater.algorithm.needs_contrast))
        generator.compiles.choice = False
        targets = token_advantages(updater.algorithm, rollout, redness(generator.decode(rollout.tokens)))
        updater.update(rollout, targets, Clock(bench.device), torch.Generator())

    for name in ("grpo", "gcpo"):
        updater = Updater(generator, resolve(name, group_size=how.group_size), loop, optim)
        bench.time("step", name, images, lambda name=name, updater=updater: step(name, updater),  # type: ignore[misc]
                   unit="s", scale=1.0)  # fmt: skip
        if name == "gcpo":
            phases(bench, images, updater)
        del updater
    plain = plain_loop.PlainStep(generator, how, micro_batch=loop.micro_batch, lr=optim.lr, kl_coef=0.03)
    bench.time("step", "the paper's, written plainly", images, lambda: plain(prompts, redness), unit="s", scale=1.0)


def phases(bench: Bench, images: int, updater: Updater) -> None:
    """Set the peak of each phase of a step against the plan's."""
    generator, prompts, algorithm = bench.generator, bench.prompts(images), updater.algorithm
    how = replace(bench.sampling(), contrast=algorithm.needs_contrast)

    def update(rollout: Rollout) -> None:
        targets = token_advantages(algorithm, rollout, torch.arange(rollout.batch) / rollout.batch)
        updater.update(rollout, targets, Clock(bench.device), torch.Generator())

    def sample() -> Rollout:
        generator.compiles.choice = bench.compile
        try:
            return generator.sample(prompts, how)
        finally:
            generator.compiles.choice = False

    if bench.over("memory", "phases of a step", images, "GiB"):
        return
    rows: list[gpu_memory.Measured] = []
    with bench.failing("memory", "phases of a step", images, "GiB"):
        rows = gpu_memory.phases(updater, bench.planned, bench.work(images, algorithm), sample, update)
    for row in rows:
        planned, measured = row.planned / GIB, None if row.measured is None else row.measured / GIB
        ratio = None if measured is None else planned / measured
        note = "on a CPU not told apart from the rest of the process" if measured is None else ""
        what = row.phase if row.phase == "state" else f"{row.phase}, beyond the state"
        bench.add("memory", what, images, measured, "GiB", planned_gib=planned, ratio=ratio, note=note)


def redness(images: Tensor) -> Tensor:
    """Score images [B, 3, H, W] by their red channel: B numbers in [0, 1], on the host."""
    return images[:, 0].float().mean(dim=(1, 2)).cpu() / 255
