"""Plans: the arithmetic by hand, the traced passes against real ones, and the whole against a measured run."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers import tiny, tiny_amused
from helpers.pages import ROOT
from t2i_gcpo import generators
from t2i_gcpo.bench.measure import peak_bytes
from t2i_gcpo.cli import main
from t2i_gcpo.commands.options.arguments import parse
from t2i_gcpo.commands.options.planned import prompt_columns, training_prompts, workload
from t2i_gcpo.commands.plan import plans
from t2i_gcpo.commands.plan_measure import measure
from t2i_gcpo.planning import advice, cards, memory
from t2i_gcpo.planning.advice import advise
from t2i_gcpo.planning.janus import PlannedJanus
from t2i_gcpo.planning.models import PassOptions
from t2i_gcpo.planning.plan import Plan, load, plan
from t2i_gcpo.planning.sources import find
from t2i_gcpo.planning.trace import META, Trace, in_a_row, on_line, trace
from t2i_gcpo.records import Prompt, Rollout, Sampling, Unmasking
from t2i_gcpo.training import sharded_weights

CPU = torch.device("cpu")


def planned(*options: str) -> Plan:
    """Return the plan of a training with these options."""
    config = parse(options).settings
    source = find(config.generator.checkpoint, layers=config.generator.layers, width=config.generator.width)
    work = workload(config, source, columns=prompt_columns(source, config, 0)[0])
    return plan(load(source, work.options.dtype), work)


# -- the arithmetic ----------------------------------------------------------------------------------------------------


def test_the_state_by_hand() -> None:
    """100 parameters of 2 bytes, all trained: a copy as reference, and 4 fp32 values beside each."""
    full = memory.state(policy=100, frozen=30, trained=100, adapters=0, itemsize=2, fp32=10)
    assert full == memory.State(weights=200, frozen=80, reference=200, masters=400, moments=800, gradients=400)
    lora = memory.state(policy=100, frozen=30, trained=10, adapters=10, itemsize=2)
    assert lora == memory.State(weights=220, frozen=60, reference=0, masters=40, moments=80, gradients=40)
    assert memory.state(policy=100, frozen=0, trained=100, adapters=0, itemsize=4, reference=False) == memory.State(
        weights=400, frozen=0, reference=0, masters=0, moments=800, gradients=400
    )
    moving = memory.state(policy=100, frozen=30, trained=10, adapters=10, itemsize=2, moving=True)
    assert moving.reference == 40
    shared = memory.state(policy=100, frozen=30, trained=100, adapters=0, itemsize=2, gpus=3, averaged=True)
    assert (shared.weights, shared.masters, shared.moments, shared.gradients) == (200, 134, 267, 134)
    assert shared.average == 400 == sum(shared.parts.values()) - sum(replace(shared, average=0).parts.values())


def test_the_exchange_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two buckets, of 60 + 40 and of 90 parameters, between 3 cards.

    Chunks of the first have 20 + 14 parameters: 34 of its sum are a card's, beside two buckets of 102 and the 90
    gradients that are left; then 30, beside two of 90 and the 34.
    """
    monkeypatch.setattr(sharded_weights, "BUCKET", 100)
    assert memory.sent_bytes(trained=100, itemsize=2, gpus=3) == 400
    assert memory.sent_bytes(trained=100, itemsize=2, gpus=1) == 0
    assert memory.sent_bytes(trained=100, itemsize=2, gpus=3, exchanges=3) == (3 * 400 + 200) * 2 // 3 + 1
    assert memory.exchanged([60, 40, 90], gpus=3) == {"gradients": 4 * 90, "buckets": 4 * (2 * 102 + 34)}
    assert memory.exchanged([1, 89, 10], gpus=2) == {"gradients": 0, "buckets": 4 * (2 * 102 + 51)}
    assert memory.exchanged([10, 95], gpus=5) == {"gradients": 4 * 2, "buckets": 4 * (2 * 95 + 19)}
    # After each pass: gradients in bf16, added to shares of 21.
    again = memory.exchanged([10, 95], gpus=5, itemsize=2, earlier=True)
    assert again == {"gradients": 4 * 21, "buckets": 4 * (2 * 95 + 19)}


def test_the_optimizers_scratch_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded_weights, "BUCKET", 100)

    def scratch(sizes: list[int], *, gpus: int = 1, on_cpu: bool = False, copied: bool = False) -> int:
        return memory.optimizer_bytes(sizes, itemsize=2, gpus=gpus, on_cpu=on_cpu, copied=copied)

    assert scratch([60, 90]) == 0 and scratch([60, 90], on_cpu=True) == 8 * 90
    assert scratch([60, 90], copied=True) == 4 * 90
    # The new weights of a bucket: chunks of 20 + 10 + 4 that are sent, and twice those of 3 cards.
    assert scratch([60, 30, 10], gpus=3) == 2 * 34 * (1 + 2 * 3)
    assert scratch([60, 90], gpus=3) == 16 * 30  # the larger tensor's share in fp64, and its squares


@pytest.mark.parametrize("gpus", [1, 2, 8])
def test_a_plan_counts_the_exchange(gpus: int) -> None:
    config = parse(["--generator.device", "cpu", "--minibatches", "2"]).settings
    source = find("janus-mini")
    work = workload(config, source, columns=16, gpus=gpus)
    made = plan(load(source, work.options.dtype), work)
    exchange = {phase.name: phase.parts for phase in made.phases}.get("exchange")
    trained = made.parameters["trained"]
    assert made.sent == 2 * memory.sent_bytes(trained=trained, itemsize=4, gpus=gpus)
    assert (exchange is None) == (gpus == 1)
    if exchange is not None:
        assert exchange["gradients"] == 0, "one bucket, which all gradients are in"
        assert exchange["buckets"] == pytest.approx((2 + 1 / gpus) * 4 * trained, rel=1e-3)


@pytest.mark.parametrize(
    ("several", "itemsize", "kept", "parts"),
    [
        # The gradients of the batch before, and the activations; of a single batch these go as gradients come.
        (True, 4, 80, {"gradients": 400, "activations": 90}),
        (False, 4, 80, {"gradients": 0, "gradients of a pass": 400, "activations": 90 - 80}),
        (False, 4, 480, {"gradients": 0, "activations": 490}),
        # bf16: those of the pass at its end, and the fp32 sums beside them.
        (True, 2, 80, {"gradients": 400, "gradients of a pass": 200, "activations": 90 - 80}),
        (True, 2, 480, {"gradients": 400, "activations": 490}),
        # Turned to fp32 one after the other: 280 bytes of the first, beside all 200 (then 400 beside 60 of the second).
        (False, 2, 80, {"gradients": 4 * 70 + 2 * 100, "activations": 0}),
    ],
)
def test_the_updates_peak_by_hand(several: bool, itemsize: int, kept: int, parts: dict[str, int]) -> None:
    peak = kept + 10
    assert memory.passes([70, 30], itemsize=itemsize, kept=kept, peak=peak, several=several) == parts


def test_the_updates_peak_where_each_pass_is_exchanged_by_hand() -> None:
    """Beside the gradients of a pass there is a card's share of those before."""
    options: dict[str, Any] = {"kept": 80, "peak": 90, "gpus": 4, "each_pass": True}
    gradients = {"gradients of a pass": 200, "activations": 10}
    assert memory.passes([70, 30], itemsize=2, several=True, **options) == {"gradients": 100, **gradients}
    assert memory.passes([70, 30], itemsize=2, several=False, **options) == {"gradients": 0, **gradients}
    assert memory.passes([70, 30], itemsize=4, several=True, **options)["gradients of a pass"] == 400


def test_the_phases_by_hand() -> None:
    """On several cards the share of the sum is held between updates, and whole gradients while they are added up."""
    always = memory.State(weights=0, frozen=0, reference=0, masters=0, moments=0, gradients=70)
    made = memory.phases(
        always, cache=1000, cache_stays=False, sampling=0, decoding=0, scoring=0, update={"gradients": 300, "a": 7},
        exchange={"gradients": 200, "b": 5}, optimizer=5, visiting=6, twice=9,
    )  # fmt: skip
    assert {phase.name: phase.total for phase in made} == {
        "sample": 1079, "decode": 70, "score": 76, "update": 307, "exchange": 205, "optimizer": 75
    }  # fmt: skip


def test_the_least_time_is_that_of_the_slower_of_two() -> None:
    card = cards.Card("x", 10, bandwidth=100.0, rate=1000.0, source="")
    assert card.seconds(flops=450.0, moved=50.0) == 1.0 and card.seconds(flops=45.0, moved=50.0) == 0.5
    assert cards.card("rtx 4090") is cards.CARDS["RTX4090"]
    with pytest.raises(ValueError, match="no card 'V100'; write one of H100, H200"):
        cards.card("V100")


# -- traced passes -----------------------------------------------------------------------------------------------------


def test_a_trace_counts_what_is_held_and_computed() -> None:
    """Two layers of 8 inputs and outputs over 4 rows; each relu keeps its result, the sum 4 bytes."""
    layers = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False), nn.ReLU()).to(META)
    rows = torch.empty(4, 8, device=META)
    counted = trace(lambda: layers(rows).sum(), backward=True)
    assert counted.kept == 2 * 4 * 8 * 4 + 4
    # Forward, the weights' gradients, and that of the second layer's input.
    assert counted.flops == 2 * 4 * 8 * 8 * (2 + 2 + 1)


def test_passes_in_a_row_are_what_a_trace_of_all_of_them_counts() -> None:
    sizes = (40, 8, 24)
    layer, head = (nn.Linear(*shape, device=META).requires_grad_(False) for shape in ((32, 64), (64, 500)))
    inputs = {tokens: torch.zeros(tokens, 32, device=META, requires_grad=True) for tokens in sizes}

    def one(tokens: int) -> torch.Tensor:
        return head(layer(inputs[tokens]).relu()).log_softmax(dim=-1)[:, :1].sum()

    def counted(*passes: int) -> Trace:
        return trace(
            lambda: torch.stack([one(tokens) for tokens in passes]).sum(),
            backward=True,
            parameters=list(inputs.values()),
            codebook=500,
        )

    together, alone = counted(*sizes), [counted(tokens) for tokens in sizes]
    row = in_a_row(alone)
    assert row.flops == together.flops
    for name in ("kept", "peak", "logits", "kept_logits"):
        assert vars(row)[name] == pytest.approx(vars(together)[name], rel=0.01), name
    assert row.peak > alone[0].kept + alone[1].kept + alone[2].kept
    assert on_line(alone[1], alone[0], 0.5).flops == alone[2].flops
    assert in_a_row([alone[0]]) == alone[0]


def test_attention_keeps_no_scores() -> None:
    query, key, value = (torch.empty(2, 3, 64, 8, device=META, requires_grad=True) for _ in range(3))
    counted = trace(lambda: nn.functional.scaled_dot_product_attention(query, key, value), backward=True)
    assert counted.kept == 2 * 3 * 64 * (8 + 1) * 4  # the result, and a sum a query
    assert counted.flops == 7 * 2 * (2 * 3 * 64 * 64 * 8)
    assert nn.functional.scaled_dot_product_attention.__module__ != "t2i_gcpo.planning.trace"  # given back


@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "channels last"])
def test_a_traced_convolution_lays_its_result_out_as_a_real_one(contiguous: bool) -> None:
    """What is permuted before and after it is then copied, or not, as on a device."""
    layer = nn.Conv2d(4, 8, 3, padding=1)

    def strides(device: torch.device) -> list[tuple[int, ...]]:
        pictures = torch.empty(2, 4, 5, 6, device=device)
        if not contiguous:
            pictures = pictures.contiguous(memory_format=torch.channels_last)
        results = []
        layer.to(device)
        trace(lambda: results.append(layer(pictures)) or results[0].sum(), backward=False)
        return [result.stride() for result in results]

    assert strides(CPU) == strides(META)


def rollout(generator: generators.ImageGenerator, prompts: int, group: int) -> Rollout:
    """A rollout of random tokens under guidance 2, half of them committed in each of two steps."""
    length = generator.grid[0] * generator.grid[1]
    tokens = torch.randint(generator.codebook_size, (prompts * group, length))
    zeros, unmasking = torch.zeros(tokens.shape), Unmasking(steps=2, schedule="linear")
    return Rollout(
        tokens=tokens,
        logprob_positive=zeros,
        logprob_negative=zeros,
        logprob_behaviour=zeros,
        commit_step=(torch.arange(length) * 2 // length).expand(len(tokens), -1),
        prompts=tuple(Prompt(text) for text in ("a red circle left of a blue square", "a red star")[:prompts]),
        grid=generator.grid,
        sampling=Sampling(guidance=2.0, group_size=group, seed=0, unmasking=unmasking),
        negative_prompts=None,
        stats={},
    )


@pytest.mark.parametrize("helper", [tiny, tiny_amused], ids=["janus", "amused"])
@pytest.mark.parametrize(("rank", "checkpointing"), [(0, False), (0, True), (4, False)])
def test_an_update_holds_what_its_trace_says(helper: Any, rank: int, checkpointing: bool, tmp_path: Path) -> None:
    """Every allocation of a real forward and backward pass, as torch's profiler saw them, within 5 %."""
    folder = str(helper.checkpoint(tmp_path / "model", grid=8, codebook=256, width=64))
    generator = generators.load(folder, compile=False, gradient_checkpointing=checkpointing)
    if rank:
        generator.add_lora(rank=rank, alpha=1.0)
    asked = rollout(generator, 2, 8)
    for parameter in generator.trainable_parameters():
        parameter.grad = torch.zeros_like(parameter)
    columns = 0 if generator.masked else len(generator.prompts.encode([asked.prompts[0].text]).ids[0])

    def update() -> None:
        generator.training_scores(asked, distribution="guided").logprob.sum().backward()

    update()
    options = PassOptions(
        dtype=torch.float32, distribution="guided", guidance=2.0, lora_rank=rank, gradient_checkpointing=checkpointing,
        prompt_columns=columns, sampling_steps=2, schedule="linear",
    )  # fmt: skip
    counted = load(find(folder), torch.float32).update(asked.batch, options).peak
    assert counted == pytest.approx(peak_bytes(update, CPU), rel=0.05)


def test_a_larger_chunk_of_logits_holds_what_its_trace_says(tmp_path: Path) -> None:
    """1,024 codes and 256 tokens at once, where logits are most of what the update holds: within 5 %."""
    folder = str(tiny.checkpoint(tmp_path / "model", grid=8, codebook=1024))
    peaks = {}
    for chunk in (128, 256):
        generator = generators.load(folder, compile=False, head_chunk=chunk)
        asked = rollout(generator, 2, 8)
        for parameter in generator.trainable_parameters():
            parameter.grad = torch.zeros_like(parameter)
        columns = len(generator.prompts.encode([asked.prompts[0].text]).ids[0])

        def update(generator: Any = generator, asked: Rollout = asked) -> None:
            generator.training_scores(asked, distribution="guided").logprob.sum().backward()

        update()
        options = PassOptions(
            dtype=torch.float32, distribution="guided", guidance=2.0, prompt_columns=columns, head_chunk=chunk
        )
        counted = load(find(folder), torch.float32).update(asked.batch, options).peak
        peaks[chunk] = peak_bytes(update, CPU)
        assert counted == pytest.approx(peaks[chunk], rel=0.05)
    assert peaks[256] > 1.05 * peaks[128]


@pytest.mark.slow
def test_a_rollout_holds_what_the_plan_says(tmp_path: Path) -> None:
    """Buffers, and the prompts' keys and values, of a model whose heads are in pairs or on their own: within 5 %."""
    prompts = [Prompt("a red circle left of a blue square"), Prompt("a white star right of a green circle")]
    for grid, key_heads in ((8, 4), (12, 2)):
        sizes = {"grid": grid, "codebook": 256, "width": 128, "layers": 8, "heads": 4, "kv_heads": key_heads}
        folder = str(tiny.checkpoint(tmp_path / str(grid), **sizes))
        generator, model = generators.load(folder, dtype="bfloat16", compile=False), load(find(folder), torch.bfloat16)
        columns = generator.prompts.encode([prompt.text for prompt in prompts]).ids.shape[1]
        options = PassOptions(dtype=torch.bfloat16, distribution="guided", guidance=2.0, prompt_columns=columns)
        counted = model.cache(16, options, compiled=False, on_cpu=True) + model.sample(16, 4, options)
        how = Sampling(group_size=4, guidance=2.0, seed=0)

        def draw(generator: Any = generator, how: Sampling = how) -> None:
            generator.sample(prompts, how)

        draw()
        assert counted == pytest.approx(peak_bytes(draw, CPU), rel=0.05)


def test_logits_by_hand(tmp_path: Path) -> None:
    """256 tokens in chunks of 128 have fp32 logits and their exponentials; under guidance both branches have them."""
    model = load(find(str(tiny.checkpoint(tmp_path / "model", grid=8, codebook=1024))), torch.bfloat16)
    options = PassOptions(
        dtype=torch.bfloat16, distribution="conditional", guidance=2.0, prompt_columns=8, head_chunk=128
    )
    chunk = 128 * 1024 * 4
    assert model.update(4, options).logits == 2 * chunk
    assert model.update(4, replace(options, head_chunk=256)).logits == 2 * 2 * chunk
    assert model.update(4, replace(options, distribution="guided")).logits == 4 * chunk


def test_gradients_are_no_part_of_a_pass(tmp_path: Path) -> None:
    """One row of many layers, whose gradients are more than its activations: with them the peak is on no line."""
    options = PassOptions(dtype=torch.bfloat16, distribution="conditional", guidance=2.0, prompt_columns=8)
    model = load(find(str(tiny.checkpoint(tmp_path / "model", width=256, layers=6))), torch.bfloat16)
    straight, along = model._pass(options, True, 1, 6), model.update(1, options)
    assert 2 * model.policy > straight.peak >= straight.kept
    assert along.peak == pytest.approx(straight.peak, rel=0.01)


def test_rows_and_layers_go_along_lines(tmp_path: Path) -> None:
    """Seven rows of six layers, from traces of two and four of each, are what a trace of all of them is."""
    options = PassOptions(dtype=torch.bfloat16, distribution="guided", guidance=2.0, prompt_columns=8)
    model = load(find(str(tiny.checkpoint(tmp_path / "model", grid=8, layers=6))), torch.bfloat16)
    straight, along = model._pass(options, True, 7, 6), model.update(7, options)
    assert along.flops == straight.flops
    assert along.kept == pytest.approx(straight.kept, rel=0.01) and along.peak == pytest.approx(straight.peak, rel=0.01)


# -- sources -----------------------------------------------------------------------------------------------------------


def test_names_of_the_hub_stand_for_their_published_shapes() -> None:
    source = find("deepseek-community/Janus-Pro-1B")
    assert source.published and source.random is not None and source.random.shape == "janus-pro-1b"
    assert "was not looked for on the hub" in source.note
    with pytest.raises(ValueError, match="a plan looks for nothing on the hub: give a local folder"):
        find("somebody/some-model")


def test_the_published_sizes_are_counted() -> None:
    model = load(find("deepseek-community/Janus-Pro-1B"), torch.bfloat16)
    assert round(model.policy / 1e9, 2) == 1.44 and (model.layers, model.tokens, model.codebook) == (24, 576, 16384)
    options = PassOptions(dtype=torch.bfloat16, distribution="conditional", guidance=5.0, prompt_columns=64)
    # 24 layers of 16 heads of 128 numbers, keys and values, in bf16; 639 columns rounded up to 640, on a CPU 16 more.
    column = 2 * 24 * 16 * 128 * 2 * 2
    assert model.cache(2, options, compiled=True, on_cpu=True) == 656 * column
    assert model.cache(2, options, compiled=True, on_cpu=False) == 640 * column
    assert sum(model.trained(2)) == 2 * 24 * (4 * (2048 + 2048) + 3 * (2048 + 5632))


def test_each_weight_is_counted_once(tmp_path: Path) -> None:
    """The parts are what the model has, whether or not its head is the word embeddings themselves."""
    for tied in (False, True):
        folder = tiny.checkpoint(tmp_path / str(tied))
        settings = json.loads((folder / "config.json").read_text())
        settings["tie_word_embeddings"] = settings["text_config"]["tie_word_embeddings"] = tied
        (folder / "config.json").write_text(json.dumps(settings))
        model = load(find(str(folder)), torch.float32)
        assert isinstance(model, PlannedJanus)
        assert model.policy + sum(model.frozen.values()) == sum(
            p.numel() for p in model._model(model.layers).parameters()
        )
    assert model.frozen["word head"] == 0


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, folder = tmp_path / "new" / "plan.json", str(tiny.checkpoint(tmp_path / "model"))
    options = ["--generator.checkpoint", folder, "--prompt-columns", "8"]
    assert main(["plan", *options, "--card", "H100", "--out", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "memory at the peak of each phase" in shown and "H100" in shown and "A100" not in shown
    content = json.loads(file.read_text())
    update = content["memory"]["update"]
    assert update["total"] == sum(value for part, value in update.items() if part != "total")
    assert content["peak"]["bytes"] == max(phase["total"] for phase in content["memory"].values())
    card = content["cards"]["H100"]
    assert card["fits"] and card["hours"] > 0 and set(card["step_seconds"]) == set(content["step"])


def test_what_does_not_fit_is_told_what_to_change(tmp_path: Path) -> None:
    """The changes are taken at their word: a plan with them fits."""
    folder = str(tiny.checkpoint(tmp_path / "model", grid=8))
    options = ["--generator.checkpoint", folder, "--micro-batch", "64", "--algorithm.group-size", "16"]
    config = parse(options).settings
    source = find(config.generator.checkpoint)
    work = workload(config, source, columns=8)
    model = load(source, torch.float32)
    before = plan(model, work)
    card = replace(cards.CARDS["H100"], memory=cards.RESERVED + before.peak.total // 2)
    changes = advise(source, work, card, {torch.float32: model})
    assert not before.fits(card)
    # One option does it in one way alone; the other way takes two, and holds no way that fits already.
    assert [set(change.options) for change in changes] == [
        {"--micro-batch"},
        {"--generator.gradient-checkpointing", "--generator.dtype"},
    ]
    for change in changes:
        words = [word for pair in change.options.items() for word in pair]
        changed = parse([*options, *words]).settings
        after = plan(load(source, generators.as_dtype(changed.generator.dtype)), workload(changed, source, columns=8))
        assert after.fits(card) and after.peak.total == change.peak
    hopeless = replace(card, memory=cards.RESERVED + 1)
    assert advise(source, work, hopeless, {torch.float32: model}) == []


@pytest.mark.parametrize("gpus", [1, 8])
def test_several_cards_may_sum_their_gradients_more_often(
    gpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advice, "CHANGES", {"reduce_gradients": advice.CHANGES["reduce_gradients"]})
    folder = str(tiny.checkpoint(tmp_path / "model"))
    config, source = parse(["--generator.checkpoint", folder, "--micro-batch", "1"]).settings, find(folder)
    work, model = workload(config, source, columns=8, gpus=gpus), load(source, torch.float32)
    often = plan(model, replace(work, each_pass=True)).peak.total
    card = replace(cards.CARDS["H100"], memory=cards.RESERVED + often)
    changes = advise(source, work, card, {torch.float32: model})
    assert [change.options for change in changes] == [{"--reduce-gradients": "micro_batch"}] * (gpus > 1)
    assert parse(["--reduce-gradients", "micro_batch"]).settings.reduce_gradients == "micro_batch"


# -- against a measured run --------------------------------------------------------------------------------------------

MEASURED = {
    "janus-mini": ["--prompts-per-step", "2", "--algorithm.group-size", "8", "--micro-batch", "16"],
    "amused-mini": [
        "--generator.checkpoint", "amused-mini", "--prompts-per-step", "2", "--algorithm.group-size", "4",
        "--micro-batch", "4",
    ],
    "true width": [
        "--generator.checkpoint", "random:janus-pro-1b", "--generator.layers", "2", "--prompts-per-step", "1",
        "--algorithm.group-size", "2", "--micro-batch", "2",
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1200)  # sampling at the true width reads 2 GB a token
@pytest.mark.parametrize("name", MEASURED)
def test_a_plan_is_within_15_percent_of_the_measured_peak(name: str) -> None:
    same = ["--generator.device", "cpu", "--generator.compile", "off", "--generator.decode-dtype", "float32"]
    same += ["--evaluate.every", "0", "--evaluate.before", "false", "--evaluate.after", "false"]  # steps alone run
    options = [*MEASURED[name], *same]
    config = parse(options).settings
    source = find(config.generator.checkpoint, layers=config.generator.layers)
    real = measure(config, source.kind, training_prompts(config))["peak"]
    assert planned(*options).peak.total == pytest.approx(real, rel=0.15)


# -- what the configs say ----------------------------------------------------------------------------------------------

PAGE = ROOT / "docs" / "fine_tune_janus_pro.md"
SHIPPED = [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if "\nprompts_per_step:" in path.read_text()]
NAMES = ("deepseek-community/", "amused/")
REAL = [  # those of adapters, on one card
    path
    for path in sorted((ROOT / "configs").glob("*.yaml"))
    if any(name in path.read_text() for name in NAMES) and "lora_rank: 32" in path.read_text()
]
SAID = re.compile(
    r"# By `t2i-gcpo plan`, scorers not counted: ([\d.]+ GB) and at least ([\d.]+ h) on an H100; "
    r"([\d.]+ GB) and ([\d.]+ h) on an RTX 4090\."
)


def test_the_configs_of_real_models_say_what_they_need() -> None:
    assert len(REAL) == 5
    for path in REAL:
        text = path.read_text(encoding="utf-8")
        assert SAID.search(text), f"{path} says no plan"
        assert "lr 1e-5: " in text and re.search("# (conditional|guided): ", text), f"{path} gives no reasons"


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_is_planned(path: Path) -> None:
    """The file is planned as it stands, but for the size of the model. That it runs is another test's."""
    masked = "amused" in path.read_text()
    shape = "random:amused-256" if masked else "random:janus-pro-1b"
    cut = [f"--generator.checkpoint={shape}", "--generator.layers=1", "--generator.width=32"]
    made = planned("--config", str(path), *cut)
    assert made.peak.total > 0 and made.hours(cards.CARDS["H100"]) > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_the_numbers_in_a_config_are_those_of_its_plan(path: Path) -> None:
    """The numbers are those of a run's choices on each card, of the page's table and of the table of phases."""
    said = SAID.search(path.read_text(encoding="utf-8"))
    assert said is not None
    config = parse(["--config", str(path)]).settings
    source = find(config.generator.checkpoint)
    work = workload(config, source, columns=prompt_columns(source, config, 0)[0])
    large, small = plans(config, source, [cards.CARDS["H100"], cards.CARDS["RTX4090"]], work)
    assert large.plan.fits(large.card) and small.plan.fits(small.card)
    numbers = [
        f"{value:.1f} {unit}"
        for made in (large, small)
        for value, unit in ((made.plan.peak.total / cards.GB, "GB"), (made.plan.hours(made.card), "h"))
    ]
    assert numbers == list(said.groups())
    page = PAGE.read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if f"`configs/{path.name}`" in line)
    assert row.endswith(f"| {' | '.join(numbers)} |"), "the page's table is the configs'"
    phases = " | ".join(f"{phase.total / cards.GB:.1f}" for phase in large.plan.phases)
    assert re.search(rf"^\| (Janus-Pro-1B|Janus-Pro-7B|aMUSEd-512) \| {re.escape(phases)} \|$", page, re.MULTILINE)
