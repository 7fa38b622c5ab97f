"""Janus: one path samples and re-scores, batching changes nothing, gradients go where they are said to go."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from helpers import tiny
from t2i_gcpo import generators
from t2i_gcpo.generators.compilation import batches, cut, filled, worth_compiling
from t2i_gcpo.generators.janus.adapter import Janus, place
from t2i_gcpo.records import Prompt, Rollout, Sampling

SHORT, LONG = "a red circle", "two blue star left of a green square"
PROMPTS = [SHORT, LONG]
EXACT = {"atol": 1e-5, "rtol": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("janus") / "tiny")


@pytest.fixture(scope="module")
def shared(folder: Path) -> Janus:
    """For tests that change nothing in it."""
    return Janus.load(str(folder), compile=False, decode_dtype="float32")


@pytest.fixture
def generator(folder: Path) -> Janus:
    return Janus.load(str(folder), compile=False)


def sampled(
    generator: Janus, prompts: Sequence[str] = PROMPTS, negative: str | None = None, **options: object
) -> Rollout:
    options = {"group_size": 2, "guidance": 2.0, "seed": 5} | options
    return generator.sample(prompts, Sampling(**options), negative_prompts=negative)  # type: ignore[arg-type]


def assert_same(a: Rollout, b: Rollout) -> None:
    assert torch.equal(a.tokens, b.tokens)
    for name in ("logprob_positive", "logprob_negative", "logprob_behaviour"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), **EXACT)


def logits_by_hand(generator: Janus, text: str, tokens: Tensor, null: bool = False) -> Tensor:
    """Logits [T, V] of one row, written out without the adapter's encoder.

    Masks or chunks (a row of its own has no padding).
    """
    words = generator.processor.tokenizer
    ids = [words.bos_token_id, *words.convert_tokens_to_ids(text.split()), words.convert_tokens_to_ids("<boi>")]
    if null:
        ids[1:-1] = [words.pad_token_id] * (len(ids) - 2)
    language_model = generator.model.model.language_model
    embeds = torch.cat(
        [
            language_model.embed_tokens(torch.tensor([ids])),
            generator.model.prepare_embeddings_for_image_generation(tokens[None, :-1]),
        ],
        1,
    )
    hidden = language_model(inputs_embeds=embeds).last_hidden_state[0, -len(tokens) :]
    return generator.model.model.generation_head(hidden)


def picked(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.log_softmax(-1)[torch.arange(len(tokens)), tokens]


def exact_logprobs(
    generator: Janus,
    rollout: Rollout,
    guidance: float = 2.0,
    temperature: float = 1.0,
    top_k: int | None = None,
    **_: float,
) -> dict[str, Tensor]:
    """Log-probabilities [B, T] of a rollout's tokens in the precision of `generator`, written out row by row."""
    rows: dict[str, list[Tensor]] = {"logprob_positive": [], "logprob_negative": [], "logprob_behaviour": []}
    for prompt, tokens in zip(rollout.row_prompts, rollout.tokens, strict=True):
        with torch.no_grad():
            positive = logits_by_hand(generator, prompt.text, tokens)
            negative = logits_by_hand(generator, prompt.text, tokens, null=True)
        behaviour = (negative + guidance * (positive - negative)) / temperature
        if top_k is not None:
            smallest = behaviour.topk(top_k).values[:, -1:]
            behaviour = behaviour.masked_fill(behaviour < smallest, float("-inf"))
        for name, logits in zip(rows, (positive, negative, behaviour), strict=True):
            rows[name].append(picked(logits, tokens))
    return {name: torch.stack(values) for name, values in rows.items()}


# -- sampling and re-scoring ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"guidance": 1.0},
        {"guidance": 3.0},
        {"guidance": 0.0},
        {"guidance": 1.0, "temperature": 0.7, "top_k": 5},
        {"guidance": 2.0, "temperature": 0.8, "top_k": 12, "top_p": 0.8},
        {"guidance": 2.0, "temperature": 0.0},
    ],
)
def test_scoring_gives_the_log_probs_of_sampling(shared: Janus, options: dict[str, float]) -> None:
    rollout = sampled(shared, **options)
    with torch.no_grad():
        positive = shared.token_logprobs(rollout)
        negative = shared.token_logprobs(rollout, prompt="negative")
        guided = shared.token_logprobs(rollout, distribution="guided")
        detached = shared.token_logprobs(rollout, distribution="guided_detached")
    assert positive.dtype == guided.dtype == torch.float32
    torch.testing.assert_close(positive, rollout.logprob_positive, **EXACT)
    torch.testing.assert_close(negative, rollout.logprob_negative, **EXACT)
    torch.testing.assert_close(guided, rollout.logprob_behaviour, **EXACT)
    torch.testing.assert_close(detached, rollout.logprob_behaviour, **EXACT)
    if options["guidance"] != 1:
        assert (positive - guided).abs().mean() > 0.05, (
            "guidance must matter in the tiny model, or this test tests nothing"
        )
    assert (positive - negative).abs().mean() > 0.05


def test_log_probs_are_those_of_a_row_alone_written_by_hand(shared: Janus) -> None:
    rollout = sampled(shared, guidance=3.0, temperature=0.7)
    with torch.no_grad():
        for row, text in enumerate([SHORT, SHORT, LONG, LONG]):
            tokens = rollout.tokens[row]
            c, u = logits_by_hand(shared, text, tokens), logits_by_hand(shared, text, tokens, null=True)
            torch.testing.assert_close(rollout.logprob_positive[row], picked(c, tokens), **EXACT)
            torch.testing.assert_close(rollout.logprob_negative[row], picked(u, tokens), **EXACT)
            torch.testing.assert_close(
                rollout.logprob_behaviour[row], picked((u + 3.0 * (c - u)) / 0.7, tokens), **EXACT
            )


def test_stats_are_those_of_the_logits(shared: Janus) -> None:
    rollout = sampled(shared, stats=("entropy", "exact_kl", "js"))
    with torch.no_grad():
        log_p = logits_by_hand(shared, LONG, rollout.tokens[3]).log_softmax(-1)
        log_q = logits_by_hand(shared, LONG, rollout.tokens[3], null=True).log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    middle = ((p + q) / 2).log()
    torch.testing.assert_close(rollout.stats["entropy"][3], -(p * log_p).sum(-1), **EXACT)
    torch.testing.assert_close(rollout.stats["exact_kl"][3], (p * (log_p - log_q)).sum(-1), **EXACT)
    torch.testing.assert_close(
        rollout.stats["js"][3], 0.5 * ((p * (log_p - middle)).sum(-1) + (q * (log_q - middle)).sum(-1)), **EXACT
    )


def test_greedy_tokens_are_those_of_transformers_generate(shared: Janus) -> None:
    batch = shared.processor(text=PROMPTS, generation_mode="image", padding=True, return_tensors="pt")
    expected = shared.model.generate(**batch, generation_mode="image", do_sample=False, guidance_scale=3.0)
    rollout = sampled(shared, group_size=1, guidance=3.0, temperature=0.0)
    assert torch.equal(rollout.tokens, expected)
    assert len(set(expected.flatten().tolist())) > 5, "a constant sequence would be matched by chance"
    assert torch.equal(rollout.logprob_behaviour, torch.zeros_like(rollout.logprob_behaviour))


def test_rollout_says_how_it_was_made(shared: Janus) -> None:
    rollout = sampled(shared, [SHORT, Prompt(LONG, {"tag": "position"})])  # type: ignore[list-item]
    assert rollout.grid == shared.grid == (4, 4) and rollout.tokens.shape == (4, 16)
    assert [prompt.text for prompt in rollout.prompts] == PROMPTS and rollout.prompts[1].task == "position"
    assert torch.equal(rollout.commit_step, torch.arange(16).expand(4, 16))
    assert set(rollout.stats) == {"entropy"} and rollout.negative_prompts is None
    assert rollout.tokens.min() >= 0 and rollout.tokens.max() < shared.codebook_size


# -- batching and noise -----------------------------------------------------------------------------------------------


def test_prompts_of_different_lengths_together_are_as_one_by_one(shared: Janus) -> None:
    together = sampled(shared, group_size=3)
    alone = [
        shared.sample([text], Sampling(group_size=3, guidance=2.0, seed=5), prompt_indices=[index])
        for index, text in enumerate(PROMPTS)
    ]
    assert_same(together, Rollout.cat(alone))


@pytest.mark.parametrize("max_batch", [1, 2, 4, 5])
def test_row_chunks_change_nothing(shared: Janus, max_batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sampled(shared, group_size=3, negative="no text")
    monkeypatch.setattr(shared, "max_batch", max_batch)
    assert_same(sampled(shared, group_size=3, negative="no text"), whole)


def test_noise_depends_on_seed_prompt_index_and_image_index_only(shared: Janus) -> None:
    three = sampled(shared, group_size=3)
    five = sampled(shared, group_size=5)
    assert torch.equal(five.tokens[[0, 1, 2, 5, 6, 7]], three.tokens)
    assert not torch.equal(three.tokens[0], three.tokens[1])
    same_text = sampled(shared, [SHORT, SHORT], group_size=1)
    assert not torch.equal(same_text.tokens[0], same_text.tokens[1]), "prompt index must count, not the text alone"
    assert not torch.equal(sampled(shared, seed=6).tokens, sampled(shared).tokens)


def test_a_generator_replaces_the_seed_and_the_draw_is_recorded(shared: Janus) -> None:
    def from_rng(rng: torch.Generator) -> Rollout:
        return shared.sample(PROMPTS, Sampling(guidance=2.0, seed=5), rng=rng)

    rng = torch.Generator().manual_seed(3)
    first, second = from_rng(rng), from_rng(rng)
    expected = int(torch.randint(0, 2**63 - 1, (), generator=torch.Generator().manual_seed(3)))
    assert first.sampling.seed == expected != second.sampling.seed
    assert_same(first, shared.sample(PROMPTS, first.sampling))
    assert not torch.equal(first.tokens, second.tokens)


def test_sampling_leaves_the_global_generator_and_the_modes_alone(generator: Janus) -> None:
    state = torch.get_rng_state()
    generator.policy.train()
    sampled(generator)
    assert torch.equal(torch.get_rng_state(), state) and generator.policy.training


# -- negative prompts -------------------------------------------------------------------------------------------------


def test_a_negative_text_gives_its_own_log_probs_and_leaves_the_tokens_alone(shared: Janus) -> None:
    null, text = sampled(shared), sampled(shared, negative="no text")
    assert torch.equal(null.tokens, text.tokens), "guidance uses the null prompt whatever the negative prompt is"
    torch.testing.assert_close(null.logprob_behaviour, text.logprob_behaviour, **EXACT)
    with torch.no_grad():
        expected = picked(logits_by_hand(shared, "no text", text.tokens[2]), text.tokens[2])
        again = shared.token_logprobs(text, prompt="negative")
    torch.testing.assert_close(text.logprob_negative[2], expected, **EXACT)  # type: ignore[index]
    torch.testing.assert_close(text.logprob_negative, again, **EXACT)
    assert (text.logprob_negative - null.logprob_negative).abs().mean() > 0.01  # type: ignore[operator]


def test_each_prompt_may_have_its_own_negative(shared: Janus) -> None:
    sampling = Sampling(group_size=2, guidance=1.0, seed=5)
    rollout = shared.sample(PROMPTS, sampling, negative_prompts=["no text", "a star"])
    with torch.no_grad():
        for row, text in enumerate(["no text", "no text", "a star", "a star"]):
            tokens = rollout.tokens[row]
            expected = picked(logits_by_hand(shared, text, tokens), tokens)
            torch.testing.assert_close(rollout.logprob_negative[row], expected, **EXACT)  # type: ignore[index]
    assert rollout.negative_prompts == ("no text", "a star")
    with pytest.raises(ValueError, match="3 negative prompts for 2 prompts"):
        shared.sample(PROMPTS, sampling, negative_prompts=["a"] * 3)


def test_divergences_are_taken_against_the_negative_text(shared: Janus) -> None:
    rollout = sampled(shared, negative="no text", stats=("exact_kl",))
    with torch.no_grad():
        log_p = logits_by_hand(shared, LONG, rollout.tokens[3]).log_softmax(-1)
        log_q = logits_by_hand(shared, "no text", rollout.tokens[3]).log_softmax(-1)
    torch.testing.assert_close(rollout.stats["exact_kl"][3], (log_p.exp() * (log_p - log_q)).sum(-1), **EXACT)
    torch.testing.assert_close(rollout.logprob_negative[3], picked(log_q, rollout.tokens[3]), **EXACT)  # type: ignore[index]
    assert torch.equal(rollout.tokens, sampled(shared).tokens)


def test_contrast_runs_only_where_it_is_wanted_or_free(shared: Janus, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    language_model = shared.policy
    forward = language_model.forward
    monkeypatch.setattr(
        language_model, "forward", lambda **inputs: sizes.append(len(inputs["inputs_embeds"])) or forward(**inputs)
    )
    assert sampled(shared, guidance=1.0, contrast=False).logprob_negative is None
    assert sizes == [2] + [4] * 16, "two prompts prefilled once, then four rows and no second branch"
    sizes.clear()
    assert sampled(shared, guidance=1.0).logprob_negative is not None
    assert sizes == [2] + [4] * 16 + [4], "the contrast costs one teacher-forced forward pass"
    sizes.clear()
    assert sampled(shared, contrast=False).logprob_negative is not None, "free under guidance"
    assert sizes == [4] + [8] * 16, "guidance with the null prompt gives the contrast for free"
    assert sampled(shared, negative="no text", contrast=False).logprob_negative is None


def test_texts_may_be_given_to_score_under(shared: Janus) -> None:
    rollout = sampled(shared)
    with torch.no_grad():
        positive = shared.token_logprobs(rollout)
        torch.testing.assert_close(shared.token_logprobs(rollout, prompt=PROMPTS), positive, **EXACT)
        by_row = shared.token_logprobs(rollout, prompt=[SHORT, SHORT, LONG, SHORT])
    torch.testing.assert_close(by_row[:3], positive[:3], **EXACT)
    assert (by_row[3] - positive[3]).abs().mean() > 0.05
    with pytest.raises(ValueError, match="3 texts for 2 prompts and 4 rows"):
        shared.token_logprobs(rollout, prompt=[SHORT] * 3)


def test_rows_of_a_rollout_score_as_in_the_whole(shared: Janus) -> None:
    rollout = sampled(shared, negative="no text")
    part = rollout.rows(torch.tensor([3, 0]))
    for options in ({}, {"prompt": "negative"}, {"distribution": "guided"}):
        with torch.no_grad():
            whole = shared.token_logprobs(rollout, **options)  # type: ignore[arg-type]
            torch.testing.assert_close(shared.token_logprobs(part, **options), whole[[3, 0]], **EXACT)  # type: ignore[arg-type]


# -- gradients --------------------------------------------------------------------------------------------------------


def gradient(generator: Janus, loss: Tensor) -> Tensor:
    parameters = list(generator.model.model.language_model.parameters())
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])


@pytest.mark.parametrize("distribution", ["conditional", "guided", "guided_detached"])
def test_gradients_are_those_of_plain_autograd(generator: Janus, distribution: str) -> None:
    rollout = sampled(generator, [LONG], group_size=1, guidance=3.0, temperature=0.7, seed=9)
    weights = torch.linspace(-1, 2, 16)
    ours = gradient(generator, (generator.token_logprobs(rollout, distribution=distribution)[0] * weights).sum())  # type: ignore[arg-type]
    tokens = rollout.tokens[0]
    c, u = logits_by_hand(generator, LONG, tokens), logits_by_hand(generator, LONG, tokens, null=True)
    mixed = {
        "conditional": c,
        "guided": (u + 3.0 * (c - u)) / 0.7,
        "guided_detached": (u.detach() + 3.0 * (c - u.detach())) / 0.7,
    }
    plain = {name: gradient(generator, (picked(logits, tokens) * weights).sum()) for name, logits in mixed.items()}
    torch.testing.assert_close(ours, plain[distribution], rtol=1e-4, atol=1e-4 * float(plain[distribution].abs().max()))
    others = [plain[name] for name in mixed if name != distribution]
    assert all((ours - other).norm() > 0.05 * ours.norm() for other in others)


def test_a_step_along_the_gradient_raises_the_log_prob(generator: Janus) -> None:
    rollout = sampled(generator)
    before = generator.token_logprobs(rollout, distribution="guided").sum()
    before.backward()
    parameters = generator.trainable_parameters()
    with torch.no_grad():
        for parameter in parameters:
            parameter += 1e-5 * parameter.grad
        after = generator.token_logprobs(rollout, distribution="guided").sum()
    assert after > before + 1e-3


def test_only_the_language_model_trains(generator: Janus) -> None:
    trainable = {id(parameter) for parameter in generator.trainable_parameters()}
    named = {id(p): name for name, p in generator.model.named_parameters()}
    assert {named[i] for i in trainable} == {n for n in named.values() if n.startswith("model.language_model.")}
    assert all(p.requires_grad == (id(p) in trainable) for p in generator.model.parameters())
    generator.token_logprobs(sampled(generator)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in generator.trainable_parameters())


def test_gradient_checkpointing_changes_neither_samples_nor_gradients(folder: Path, generator: Janus) -> None:
    lean = Janus.load(str(folder), compile=False, gradient_checkpointing=True)
    rollout = sampled(generator)
    lean.policy.train()
    assert_same(sampled(lean), rollout)
    seen: list[bool] = []
    hook = lean.policy.layers[0].mlp.register_forward_pre_hook(lambda module, _: seen.append(module.training))  # type: ignore[union-attr,index]
    ours = gradient(lean, lean.token_logprobs(rollout).sum())
    hook.remove()
    assert len(seen) == 2, "the layer runs again in the backward pass"
    plain = gradient(generator, generator.token_logprobs(rollout).sum())
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


# -- devices and dtypes ------------------------------------------------------------------------------------------------


def test_parts_that_are_never_run_stay_on_the_host() -> None:
    """The meta device stands for a GPU."""
    model = place(tiny.model(), torch.device("meta"))
    where = {name.split(".")[1 if name.startswith("model.") else 0]: p.device.type for name, p in
             model.named_parameters()}  # fmt: skip
    idle = {"vision_model", "aligner", "lm_head"}
    assert idle == {part for part, device in where.items() if device == "cpu"}
    assert {part for part, device in where.items() if device == "meta"} == {
        "vqmodel", "generation_embeddings", "generation_aligner", "generation_head", "language_model"
    }  # fmt: skip
    tied = tiny.model()
    tied.lm_head.weight = tied.model.language_model.get_input_embeddings().weight
    place(tied, torch.device("meta"))
    assert tied.model.language_model.get_input_embeddings().weight.device.type == "meta"


def test_logits_are_fp32_in_a_bf16_model_and_the_saved_head_is_bf16(folder: Path, tmp_path: Path) -> None:
    policy = Janus.load(str(folder), dtype=torch.bfloat16, compile=False)
    assert policy.dtype == torch.bfloat16
    hidden = torch.randn(
        64, policy.model.config.text_config.hidden_size, generator=torch.Generator().manual_seed(0)
    ).to(torch.bfloat16)
    logits = policy.head(hidden)
    assert logits.dtype == torch.float32
    exact = copy.deepcopy(policy.model.model.generation_head).double()(hidden.double())
    assert float((logits - exact).abs().max()) < 1e-5, "rounded to bf16 they are thousandths off"
    assert float((exact - exact.to(torch.bfloat16)).abs().max()) > 1e-4
    rollout = sampled(policy)
    policy.save(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.bfloat16}
    assert policy.model.model.generation_head.proj_out.weight.dtype == torch.float32, "and goes on as it was"
    again = Janus.load(str(tmp_path), dtype=torch.bfloat16, compile=False)
    assert_same(sampled(again), rollout)


# -- LoRA and the reference -------------------------------------------------------------------------------------------


def push(generator: Janus) -> None:
    """Move the trained weights far enough to see."""
    with torch.no_grad():
        for index, parameter in enumerate(generator.trainable_parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
            parameter += 0.1 * noise


def test_reference_of_full_fine_tuning_is_the_model_as_it_was_kept(generator: Janus) -> None:
    rollout = sampled(generator)
    with pytest.raises(ValueError, match="keep_reference"), generator.reference():
        pass
    generator.keep_reference()
    push(generator)
    with torch.no_grad():
        moved = generator.token_logprobs(rollout)
        with generator.reference():
            kept = generator.token_logprobs(rollout)
            assert_same(sampled(generator), rollout)
        torch.testing.assert_close(kept, rollout.logprob_positive, **EXACT)
        assert (moved - kept).abs().mean() > 0.05
        torch.testing.assert_close(generator.token_logprobs(rollout), moved, **EXACT)
    with generator.reference():
        assert not generator.token_logprobs(rollout).requires_grad


def test_lora_adapts_the_language_model_only_and_its_base_is_the_reference(generator: Janus) -> None:
    rollout = sampled(generator)
    state = torch.get_rng_state()
    generator.add_lora(rank=4, alpha=8)
    assert torch.equal(torch.get_rng_state(), state)
    adapted = {name for name, _ in generator.model.named_parameters() if "lora_" in name}
    assert adapted and all(name.startswith("model.language_model.layers.") for name in adapted)
    assert len(adapted) == 2 * 2 * 7, "2 layers of 7 projections, A and B each"
    assert {id(p) for p in generator.trainable_parameters()} == {
        id(p) for name, p in generator.model.named_parameters() if name in adapted
    }
    generator.keep_reference()
    push(generator)
    with torch.no_grad():
        moved = generator.token_logprobs(rollout)
        with generator.reference():
            torch.testing.assert_close(generator.token_logprobs(rollout), rollout.logprob_positive, **EXACT)
    assert (moved - rollout.logprob_positive).abs().mean() > 0.05
    generator.token_logprobs(rollout).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in generator.trainable_parameters())
    assert all(p.grad is None for p in generator.model.parameters() if not p.requires_grad)
    with pytest.raises(ValueError, match="rank 4"):
        generator.add_lora(rank=8)


def test_full_model_round_trip(generator: Janus, tmp_path: Path) -> None:
    push(generator)
    rollout = sampled(generator)
    generator.save(tmp_path / "checkpoints" / "step_000001")
    again = generators.load(str(tmp_path / "checkpoints" / "step_000001"))
    assert_same(sampled(again), rollout)  # type: ignore[arg-type]
    assert torch.equal(again.decode(rollout.tokens), generator.decode(rollout.tokens))


def test_lora_round_trip_and_merge(generator: Janus, folder: Path, tmp_path: Path) -> None:
    base = sampled(generator)
    generator.add_lora(rank=4, alpha=8)
    push(generator)
    rollout = sampled(generator)
    assert not torch.equal(rollout.tokens, base.tokens)
    generator.save(tmp_path / "step_000002")
    assert not (tmp_path / "step_000002" / "config.json").exists(), "an adapter, not a whole model"
    again = generators.load(str(tmp_path / "step_000002"), compile=False)
    assert isinstance(again, Janus)
    assert_same(sampled(again), rollout)
    assert len(again.trainable_parameters()) == 2 * 2 * 7
    again.add_lora(rank=4, alpha=8)  # a resumed run asks again
    assert_same(sampled(again), rollout)
    with again.reference():
        assert_same(sampled(again), base)
    again.merge_lora()
    with torch.no_grad():
        torch.testing.assert_close(again.token_logprobs(rollout), rollout.logprob_positive, atol=1e-4, rtol=0)
    again.save(tmp_path / "whole")
    merged = generators.load(str(tmp_path / "whole"))
    with torch.no_grad():
        torch.testing.assert_close(merged.token_logprobs(rollout), rollout.logprob_positive, atol=1e-4, rtol=0)
    assert len(merged.trainable_parameters()) > 2 * 2 * 7 / 2


# -- decoding, prompts, dtypes ----------------------------------------------------------------------------------------


def test_decode_maps_minus_one_to_one_onto_bytes(shared: Janus, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = sampled(shared).tokens
    images = shared.decode(tokens)
    pixels = shared.model.decode_image_tokens(tokens).detach().permute(0, 3, 1, 2)
    assert images.dtype == torch.uint8 and images.shape == (4, 3, 8, 8) and images.float().std() > 1
    expected = ((pixels.double() + 1) / 2 * 255).clamp(0, 255)
    assert (images.double() - expected).abs().max() <= 0.5 + 1e-4
    monkeypatch.setattr(shared, "max_batch", 3)
    assert (shared.decode(tokens).int() - images.int()).abs().max() <= 1
    ramp = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).reshape(1, 1, 5, 1).expand(1, 8, 5, 3)
    monkeypatch.setattr(shared.model, "decode_image_tokens", lambda part: ramp)
    assert shared.decode(tokens[:1])[0, 0, 0].tolist() == [0, 0, 128, 255, 255]
    with pytest.raises(ValueError, match=r"\[B, 16\]"):
        shared.decode(tokens[:, :9])
    with pytest.raises(ValueError, match="0 to 31"):
        shared.decode(tokens + 32)


def test_unknown_words_are_named(shared: Janus) -> None:
    with pytest.raises(ValueError, match="'dragon', 'zebra'.*t2i-gcpo prompts shapes:vocabulary --out FILE"):
        shared.sample([SHORT, "a red dragon left of a zebra"], Sampling())
    with pytest.raises(ValueError, match="'zebra'"):
        shared.sample([SHORT], Sampling(), negative_prompts="a zebra")


def test_a_chat_template_frames_the_prompt(tmp_path: Path) -> None:
    framed = Janus.load(str(tiny.checkpoint(tmp_path / "chat", chat_template=tiny.CHAT_TEMPLATE)), compile=False)
    encoded = framed.prompts.encode([SHORT])
    assert framed.processor.tokenizer.decode(encoded.ids[0]).split() == "<bos> photo of a red circle and <boi>".split()
    null = framed.prompts.null(encoded)
    assert framed.processor.tokenizer.decode(null.ids[0]).split() == ["<bos>", *["<pad>"] * 6, "<boi>"]


def test_bfloat16_samples_and_scores_in_float32(folder: Path) -> None:
    half = generators.load(str(folder), dtype="bfloat16", compile=False)
    assert half.dtype == torch.bfloat16
    rollout = half.sample(PROMPTS, Sampling(group_size=4, guidance=2.0))
    assert rollout.logprob_positive.dtype == torch.float32
    scored = half.token_logprobs(rollout, distribution="guided")
    assert scored.dtype == torch.float32
    assert (scored - rollout.logprob_behaviour).abs().mean() < 0.1
    assert half.decode(rollout.tokens).dtype == torch.uint8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g, r: g.token_logprobs(r, distribution="guide"), "allowed: conditional, guided, guided_detached"),
        (lambda g, r: g.token_logprobs(r, prompt="null"), '"positive", "negative"'),
        (lambda g, r: g.token_logprobs(replace(r, tokens=r.tokens[:, :5])), "4 x 4 grid"),
        (lambda g, r: g.sample(SHORT, Sampling()), "a list of one"),
        (lambda g, r: g.sample([], Sampling()), "non-empty"),
        (lambda g, r: g.merge_lora(), "no LoRA adapters"),
    ],
)
def test_mistakes_are_explained(shared: Janus, call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(shared, sampled(shared))  # type: ignore[operator]


# -- compiling --------------------------------------------------------------------------------------------------------


def test_auto_compiles_only_where_it_pays(shared: Janus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2i_gcpo.generators.compilation.can_compile", lambda device: True)
    assert not shared.compiles(), "compile=False"
    monkeypatch.setattr(shared.compiles, "choice", "auto")
    assert not shared.compiles(), "a single rollout is over before the compiler is"
    monkeypatch.setattr(shared.compiles, "rollouts_ahead", 100)
    assert shared.compiles()
    monkeypatch.setattr("t2i_gcpo.generators.compilation.can_compile", lambda device: False)
    assert not shared.compiles()
    with pytest.raises(ValueError, match="C\\+\\+ compiler"):
        Janus(shared.model, shared.processor, compile=True)


def test_compiled_batches_have_one_size_and_uncompiled_ones_are_even() -> None:
    rows = [(0, image) for image in range(9)]
    assert [len(part) for part in cut(rows, 4, compiled=True)] == [4, 4, 1]
    assert [len(part) for part in cut(rows, 4, compiled=False)] == [3, 3, 3]
    assert [len(part) for part in cut(rows, None, compiled=True)] == [9]
    assert worth_compiling(2, 4) and not worth_compiling(1, 4) and worth_compiling(1, None)
    assert filled([1, 3], 4) == [1, 3, 3, 3]
    found = [(len(batch.rows), batch.asked, batch.compile) for batch in batches(rows[:7], 4, compile=True)]
    assert found == [(4, 4, True), (4, 3, True)]
    assert [(len(batch.rows), batch.compile) for batch in batches(rows, 4, compile=True)][-1] == (1, False)
    assert not any(batch.compile for batch in batches(rows[:1], 4, compile=True))


@pytest.mark.parametrize(
    ("rows", "usual", "expected"),
    [
        (16, 16, [(16, 16)]),  # not filled up to 32
        (32, 16, [(32, 32)]),
        (40, 40, [(20, 20), (20, 20)]),
        (41, 41, [(21, 21), (21, 20)]),
        (10, 16, [(16, 10)]),
        (7, 16, [(7, 7)]),
        (16, None, [(32, 16)]),
    ],
)
def test_a_usual_rollout_is_not_filled_up(rows: int, usual: int | None, expected: list[tuple[int, int]]) -> None:
    found = batches([(0, image) for image in range(rows)], 32, compile=True, usual=usual)
    assert [(len(batch.rows), batch.asked) for batch in found] == expected
    assert [batch.compile for batch in found] == [rows != 7] * len(found)


def test_the_memory_of_keys_and_values_is_given_back_after_a_rollout(generator: Janus) -> None:
    sampled(generator)
    assert generator.sampler.steps.buffers.bytes == 0


@pytest.mark.slow
def test_compiled_sampling_is_uncompiled_sampling(folder: Path, shared: Janus) -> None:
    from torch._dynamo.utils import counters

    compiled = Janus.load(str(folder), compile=True, max_batch=4)
    if not compiled.compiles():
        pytest.skip("torch.compile has no compiler here")
    exact = Janus.load(str(folder), compile=False)
    exact.model.double()

    def check(prompts: Sequence[str] = PROMPTS, **options: float) -> None:
        """Both draw the same tokens, and round the same log-probabilities: each is compared with float64."""
        rollouts = sampled(compiled, prompts, **options), sampled(shared, prompts, **options)
        assert torch.equal(rollouts[0].tokens, rollouts[1].tokens)
        for name, values in exact_logprobs(exact, rollouts[0], **options).items():
            for rollout in rollouts:
                torch.testing.assert_close(getattr(rollout, name).double(), values, **EXACT)

    check()
    frames = counters["stats"]["unique_graphs"]
    check([LONG, SHORT], seed=8)
    check(group_size=3)  # 6 rows: 4, and 2 filled up to 4
    assert counters["stats"]["unique_graphs"] == frames, "another prompt or seed must not compile again"
    # How a token is drawn is part of what is compiled, so other options are compiled by themselves, and once.
    options = {"guidance": 3.0, "temperature": 1.5, "top_k": 9}
    check(**options)
    frames = counters["stats"]["unique_graphs"]
    check()
    check(seed=8, **options)
    assert counters["stats"]["unique_graphs"] == frames, "going back and forth must not compile again"
    # Images that go on from where they are begun: a shape of their own, wherever that is.
    rollout, rows = sampled(shared), torch.arange(4)
    for shortest in (9, 1, 0):
        begun = rollout.tokens[rows].masked_fill(torch.arange(16) >= shortest + rows[:, None], -1)
        both = [one.sample_on(rollout, rows, begun, rows) for one in (compiled, shared)]
        assert torch.equal(*both)
        frames = counters["stats"]["unique_graphs"] if shortest == 9 else frames
    assert counters["stats"]["unique_graphs"] == frames, "another beginning must not compile again"


@pytest.mark.slow
def test_compiled_sampling_follows_the_weights_with_lora_too(folder: Path, generator: Janus) -> None:
    compiled = Janus.load(str(folder), compile=True)
    if not compiled.compiles():
        pytest.skip("torch.compile has no compiler here")
    for model in (compiled, generator):
        model.add_lora(rank=4, alpha=8)
    before = sampled(compiled)
    assert_same(before, sampled(generator))
    for model in (compiled, generator):
        push(model)
    after = sampled(compiled)
    assert_same(after, sampled(generator))
    assert not torch.equal(after.tokens, before.tokens)
    with compiled.reference():
        assert_same(sampled(compiled), before)
    assert_same(sampled(compiled), after)
