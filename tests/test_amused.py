"""The masked generator: its trajectories, log-probs and gradients, on a tiny random model of the real classes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import tiny_amused, training
from helpers.messages import names
from t2i_gcpo import generators
from t2i_gcpo.generators.amused.adapter import Amused
from t2i_gcpo.generators.amused.parts import AmusedParts
from t2i_gcpo.generators.compilation import Compilation, can_compile
from t2i_gcpo.generators.tokens.logprobs import entropy
from t2i_gcpo.generators.tokens.sampling import behaviour_logits
from t2i_gcpo.generators.tokens.unmasking import state, still_masked
from t2i_gcpo.records import Rollout, Sampling, Unmasking

PROMPTS = ["a red circle", "a photo of two blue square"]
PLAN = Unmasking(steps=5)


def sampling(**changes: Any) -> Sampling:
    return Sampling(**{"group_size": 3, "guidance": 2.0, "seed": 4, "unmasking": PLAN, **changes})


@pytest.fixture(scope="module")
def shared() -> Amused:
    """Not to be trained."""
    return tiny_amused.generator(decode_dtype="float32")


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return bool(torch.allclose(a, b, atol=tolerance, rtol=0))


# -- sampling and scoring --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"guidance": 1.0},
        {"unmasking": Unmasking(steps=5, order="random")},
        {"unmasking": Unmasking(steps=16, schedule="linear", temperature=0.5)},
        {"temperature": 0.7, "top_k": 5},
        {"unmasking": Unmasking(steps=1)},
    ],
)
def test_scoring_again_gives_what_sampling_recorded(shared: Amused, changes: dict[str, Any]) -> None:
    rollout = shared.sample(PROMPTS, sampling(**changes, stats=("entropy", "exact_kl")))
    steps = rollout.sampling.unmasking.steps
    counts = (16, *still_masked(steps, 16, rollout.sampling.unmasking.schedule))
    for step in range(steps):
        assert (rollout.commit_step == step).sum(dim=1).tolist() == [counts[step] - counts[step + 1]] * 6
    assert close(shared.token_logprobs(rollout), rollout.logprob_positive)
    assert close(shared.token_logprobs(rollout, distribution="guided"), rollout.logprob_behaviour)
    assert rollout.logprob_negative is not None
    assert close(shared.token_logprobs(rollout, prompt="negative"), rollout.logprob_negative)
    assert close(shared.token_entropy(rollout), rollout.stats["entropy"])
    assert float((rollout.logprob_positive - rollout.logprob_negative).abs().max()) > 0.01, "the prompt does nothing"


def test_records_are_those_of_a_slow_loop(shared: Amused) -> None:
    rollout = shared.sample(PROMPTS, sampling(group_size=1))
    for row, text in enumerate(PROMPTS):
        for t in range(16):
            step = int(rollout.commit_step[row, t])
            seen = state(rollout.tokens[row : row + 1], rollout.commit_step[row : row + 1], step, 32)
            with torch.no_grad():
                c, u = (
                    shared.parts.transformer(
                        seen.view(1, 4, 4),
                        encoder_hidden_states=features.hidden_states[-2],
                        pooled_text_emb=features.text_embeds,
                        micro_conds=torch.tensor([[8.0, 8.0, 0.0, 0.0, 6.0]]),
                    )[0, :, t // 4, t % 4]
                    for features in (encoded(shared, text), encoded(shared, ""))
                )
            token = int(rollout.tokens[row, t])
            assert float(c.log_softmax(0)[token]) == pytest.approx(float(rollout.logprob_positive[row, t]), abs=1e-5)
            assert float(u.log_softmax(0)[token]) == pytest.approx(float(rollout.logprob_negative[row, t]), abs=1e-5)  # type: ignore[index]
            mixed = behaviour_logits(c, u, guidance=2.0).log_softmax(0)
            assert float(mixed[token]) == pytest.approx(float(rollout.logprob_behaviour[row, t]), abs=1e-5)
            assert float(entropy(c)) == pytest.approx(float(rollout.stats["entropy"][row, t]), abs=1e-4)


def encoded(generator: Amused, text: str) -> Any:
    ids = generator.parts.tokenizer(text, padding="max_length", max_length=12, return_tensors="pt").input_ids
    return generator.parts.text_encoder(ids, output_hidden_states=True)


def test_images_depend_on_their_own_seed_and_indices_alone(shared: Amused) -> None:
    whole = shared.sample(PROMPTS, sampling())
    second = shared.sample(PROMPTS[1:], sampling(), prompt_indices=[1])
    assert torch.equal(whole.tokens[3:], second.tokens) and torch.equal(whole.commit_step[3:], second.commit_step)
    shared.max_batch = 2
    try:
        small = shared.sample(PROMPTS, sampling())
    finally:
        shared.max_batch = None
    assert torch.equal(whole.tokens, small.tokens) and close(whole.logprob_behaviour, small.logprob_behaviour)
    assert not torch.equal(whole.tokens, shared.sample(PROMPTS, sampling(seed=5)).tokens)
    assert len({tuple(row) for row in whole.tokens.tolist()}) == 6


def test_batches_are_cut_and_filled_up_without_a_change(shared: Amused, monkeypatch: pytest.MonkeyPatch) -> None:
    """As compiled batches are: 6 rows as 4, and 2 filled up to 4."""
    whole = shared.sample(PROMPTS, sampling())
    sizes: list[int] = []
    monkeypatch.setattr(shared, "max_batch", 4)
    monkeypatch.setattr(shared, "compiles", compiles := Compilation("auto", torch.device("cpu")))
    monkeypatch.setattr(Compilation, "__call__", lambda self: True)
    assert compiles()

    def not_compiled(function: Any, name: str) -> Any:
        sizes.append(int(name.removeprefix("predict_")))
        return function

    monkeypatch.setattr("t2i_gcpo.generators.amused.sampler.compiled", not_compiled)
    again = shared.sample(PROMPTS, sampling())
    assert sizes == [4], "both batches share one shape"
    assert torch.equal(again.tokens, whole.tokens) and torch.equal(again.commit_step, whole.commit_step)
    assert again.stats["entropy"].shape == whole.tokens.shape


@pytest.mark.slow
def test_compiled_sampling_is_uncompiled_sampling_and_follows_the_weights() -> None:
    from torch._dynamo.utils import counters

    eager, compiled = tiny_amused.generator(compile=False), tiny_amused.generator(compile="auto")
    if not can_compile(eager.device):
        pytest.skip("torch.compile has no compiler here")
    assert not compiled.compiles(), "a single rollout is over before the compiler is"
    compiled.compiles.rollouts_ahead = 100
    assert compiled.compiles() and not eager.compiles()

    def both(prompts: list[str], **changes: Any) -> Rollout:
        ours, theirs = compiled.sample(prompts, sampling(**changes)), eager.sample(prompts, sampling(**changes))
        assert torch.equal(ours.tokens, theirs.tokens) and torch.equal(ours.commit_step, theirs.commit_step)
        assert close(ours.logprob_positive, theirs.logprob_positive)
        return ours

    before = both(PROMPTS)
    graphs = counters["stats"]["unique_graphs"]
    both(PROMPTS[::-1], seed=8)
    for generator in (compiled, eager):
        with torch.no_grad():
            for parameter in generator.trainable_parameters():
                parameter.mul_(0.8)
    assert not torch.equal(both(PROMPTS).tokens, before.tokens)
    assert counters["stats"]["unique_graphs"] == graphs, "other prompts, seeds and weights must not compile again"


def test_a_negative_prompt_is_the_contrast(shared: Amused) -> None:
    rollout = shared.sample(PROMPTS, sampling(), negative_prompts="a green star")
    other = shared.sample(PROMPTS, sampling())
    assert torch.equal(rollout.tokens, other.tokens), "guidance keeps the null prompt"
    assert rollout.logprob_negative is not None and other.logprob_negative is not None
    assert not close(rollout.logprob_negative, other.logprob_negative, 1e-3)
    assert close(shared.token_logprobs(rollout, prompt=["a green star"] * 2), rollout.logprob_negative)
    third = shared.sample(PROMPTS, sampling(stats=("exact_kl",)), negative_prompts="a green star")
    assert third.logprob_negative is not None and close(third.logprob_negative, rollout.logprob_negative)


def test_a_token_depends_on_its_own_step_alone(shared: Amused) -> None:
    """Tokens that are committed at a step or later change no other log-prob of that step or before."""
    rollout = shared.sample(PROMPTS, sampling())
    late = rollout.commit_step >= 3
    tokens = torch.where(late, (rollout.tokens + 7) % 32, rollout.tokens)
    changed = replace(rollout, tokens=tokens)
    for prompt in ("positive", "negative"):
        before, after = (shared.token_logprobs(r, prompt=prompt) for r in (rollout, changed))
        assert close(before[~late], after[~late])
        assert not close(before[late], after[late], 1e-2)


# -- exactness -------------------------------------------------------------------------------------------------------


def all_trajectories(steps: int = 4) -> tuple[Tensor, Tensor]:
    """Tokens and commit steps of every trajectory of 4 tokens of 3 codes, one token a step: 3^4 * 4!."""
    tokens, commits = [], []
    for order in itertools.permutations(range(steps)):
        for choice in itertools.product(range(3), repeat=4):
            tokens.append(choice)
            commits.append(order)
    return torch.tensor(tokens), torch.tensor(commits)


def as_rollout(tokens: Tensor, commit: Tensor, how: Sampling) -> Rollout:
    nothing = torch.zeros(tokens.shape)
    from t2i_gcpo.records import Prompt

    return Rollout(
        tokens, nothing, nothing, nothing, commit, (Prompt(PROMPTS[0]),), (2, 2), replace(how, group_size=len(tokens))
    )


def test_under_random_order_the_log_probs_are_exact() -> None:
    """The trajectories' probabilities add up to 1, and the policy gradient of sampled ones is the enumerated one."""
    small = tiny_amused.generator(grid=2, codebook=3, width=16)
    how = sampling(unmasking=Unmasking(steps=4, schedule="linear", order="random"), guidance=2.0)
    tokens, commit = all_trajectories()
    value = (tokens.float() * torch.tensor([1.0, -2.0, 0.5, 1.5])).sum(dim=1).sin()  # any reward
    weight = small.parts.transformer.mlm_layer.conv2.weight

    logprob = small.token_logprobs(as_rollout(tokens, commit, how), distribution="guided").sum(dim=1)
    probability = logprob.exp() / 24  # each order is as likely as any other
    assert float(probability.detach().sum()) == pytest.approx(1.0, abs=1e-5)
    expected = float((probability.detach() * value).sum())
    (exact,) = torch.autograd.grad((probability * value).sum(), weight)

    count = 3000
    drawn = small.sample([PROMPTS[0]], replace(how, group_size=count))
    assert close(drawn.logprob_behaviour, small.token_logprobs(drawn, distribution="guided"))
    reward = (drawn.tokens.float() * torch.tensor([1.0, -2.0, 0.5, 1.5])).sum(dim=1).sin()
    assert abs(float(reward.mean()) - expected) < 5 * float(reward.std()) / count**0.5
    direction = exact / exact.norm()
    batches = []
    for part in torch.arange(count).split(100):
        rows = drawn.rows(part)
        score = small.token_logprobs(rows, distribution="guided").sum(dim=1)
        (gradient,) = torch.autograd.grad(((reward[part] - expected) * score).mean(), weight)
        batches.append(float((gradient * direction).sum()))
    found = torch.tensor(batches)
    error = float(found.std()) / len(found) ** 0.5
    assert float(exact.norm()) > 5 * error, "the test could not see a wrong gradient"
    assert abs(float(found.mean()) - float(exact.norm())) < 5 * error


# -- gradients -------------------------------------------------------------------------------------------------------


def gradients(generator: Amused, rollout: Rollout, **options: Any) -> list[Tensor]:
    parameters = generator.trainable_parameters()
    loss = (generator.token_logprobs(rollout, **options) * torch.linspace(-1, 1, 16)).sum()
    return [
        torch.zeros_like(p) if g is None else g
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True)
    ]


@pytest.mark.parametrize("distribution", ["conditional", "guided", "guided_detached"])
def test_activations_of_one_step_or_of_all_give_the_same_gradient(distribution: str) -> None:
    one, all_steps = tiny_amused.generator(), tiny_amused.generator(gradient_checkpointing=False)
    rollout = one.sample(PROMPTS, sampling())
    a, b = (gradients(g, rollout, distribution=distribution) for g in (one, all_steps))
    assert all(close(x, y, 1e-4) for x, y in zip(a, b, strict=True))
    assert max(float(x.abs().max()) for x in a) > 0.01


@pytest.mark.parametrize("distribution", ["conditional", "guided"])
def test_logits_of_tokens_that_a_pass_does_not_score_are_not_held(distribution: Any) -> None:
    """A backward pass needs those of the scored tokens alone: with N passes at once the others would be most of it.

    No other tensor is 40 values a token wide.
    """
    generator = tiny_amused.generator(codebook=40, gradient_checkpointing=False)
    rollout, sizes = generator.sample(PROMPTS, sampling()), list[int]()

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        generator.training_scores(rollout, distribution=distribution)
    every = rollout.tokens.numel() * generator.codebook_size * 4
    assert sizes and every not in sizes and 2 * every not in sizes


def test_only_the_guided_branch_that_is_trained_has_a_gradient(shared: Amused) -> None:
    rollout = shared.sample(PROMPTS, sampling())
    through, detached = (gradients(shared, rollout, distribution=d) for d in ("guided", "guided_detached"))
    assert max(float((x - y).abs().max()) for x, y in zip(through, detached, strict=True)) > 0.01
    unguided = shared.sample(PROMPTS, sampling(guidance=1.0))
    a, b = (gradients(shared, unguided, distribution=d) for d in ("conditional", "guided"))
    assert all(close(x, y) for x, y in zip(a, b, strict=True))


def test_training_raises_the_log_probs_that_it_rewards() -> None:
    policy = tiny_amused.generator()
    rollout = policy.sample(PROMPTS, sampling())
    before = policy.token_logprobs(rollout).detach()
    optimizer = torch.optim.SGD(policy.trainable_parameters(), lr=1e-4)
    policy.token_logprobs(rollout).mean().neg().backward()
    optimizer.step()
    assert float(policy.token_logprobs(rollout).detach().mean()) > float(before.mean())


# -- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_saved_folder_is_loaded_by_name_of_its_class_and_by_diffusers(shared: Amused, tmp_path: Path) -> None:
    shared.save(tmp_path / "whole")
    again = generators.load(str(tmp_path / "whole"), decode_dtype="float32")
    assert isinstance(again, Amused) and again.kind == "amused"
    rollout = shared.sample(PROMPTS, sampling())
    assert torch.equal(again.sample(PROMPTS, sampling()).tokens, rollout.tokens)
    assert torch.equal(again.decode(rollout.tokens), shared.decode(rollout.tokens))
    from diffusers.pipelines.deprecated.amused.pipeline_amused import AmusedPipeline

    pipeline = AmusedPipeline.from_pretrained(tmp_path / "whole")
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(PROMPTS[0], num_inference_steps=3, guidance_scale=2.0, output_type="pt").images
    assert picture.shape == (1, 3, 8, 8)


def test_decoding_is_the_pipelines(shared: Amused) -> None:
    tokens = torch.randint(32, (3, 16), generator=torch.Generator().manual_seed(0))
    images = shared.decode(tokens)
    assert images.shape == (3, 3, 8, 8) and images.dtype == torch.uint8
    with torch.no_grad():
        pixels = shared.parts.vqvae.decode(tokens.view(3, 4, 4), force_not_quantize=True, shape=(3, 4, 4, 4)).sample
    assert torch.equal(images, (pixels.clamp(0, 1) * 255).round().to(torch.uint8))
    assert len(images.unique()) > 3
    with pytest.raises(ValueError, match="tokens are"):
        shared.decode(tokens[:, :9])


def test_lora_trains_the_transformer_and_its_base_is_the_reference(tmp_path: Path) -> None:
    folder = tiny_amused.checkpoint(tmp_path / "base")
    policy = Amused.load(str(folder))
    rollout = policy.sample(PROMPTS, sampling())
    policy.add_lora(rank=2, alpha=4.0)
    names = [name for name, p in policy.parts.named_parameters() if p.requires_grad]
    assert names and all("lora_" in name and "transformer." in name for name in names)
    assert close(policy.token_logprobs(rollout), rollout.logprob_positive), "new adapters change nothing"
    for parameter in policy.trainable_parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    assert not close(policy.token_logprobs(rollout).detach(), rollout.logprob_positive, 1e-2)
    with policy.reference(), torch.no_grad():
        assert close(policy.token_logprobs(rollout), rollout.logprob_positive)
    policy.save(tmp_path / "adapter")
    again = generators.load(str(tmp_path / "adapter"))
    assert close(again.token_logprobs(rollout).detach(), policy.token_logprobs(rollout).detach())


def test_the_trainer_trains_it_and_goes_on(tmp_path: Path) -> None:
    how = {"sampling": Sampling(guidance=2.0, unmasking=Unmasking(steps=4)), "steps": 3}
    whole = training.trainer(tmp_path / "whole", policy=tiny_amused.generator(), **how)  # type: ignore[arg-type]
    before = training.weights(whole.generator)  # type: ignore[arg-type]
    whole.train()
    after = training.weights(whole.generator)  # type: ignore[arg-type]
    assert training.distance(before, after) > 1e-3
    cut = training.trainer(
        tmp_path / "cut",
        policy=tiny_amused.generator(),
        **how,  # type: ignore[arg-type]
        callbacks=[lambda trainer, record: trainer.stop("test") if record.step == 2 else None],
    )
    cut.train()
    resumed = training.trainer(tmp_path / "cut", policy=tiny_amused.generator(), **how)  # type: ignore[arg-type]
    assert resumed.resume() == 2
    resumed.train()
    assert training.same(training.weights(resumed.generator), after)  # type: ignore[arg-type]


# -- bad input -------------------------------------------------------------------------------------------------------


def test_mistakes_are_named(shared: Amused, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="17 sampling steps for 16 tokens; allowed are 1 to 16"):
        shared.sample(PROMPTS, sampling(unmasking=Unmasking(steps=17)))
    with pytest.raises(ValueError, match=names("schedule", "'cos'", "cosine", "sqrt")):
        Unmasking(schedule="cos")
    with pytest.raises(ValueError, match=names("order", "'best'", "confidence", "random")):
        Unmasking(order="best")
    long = "a red circle and a blue square and a green star"
    with pytest.raises(ValueError, match=names("13 tokens", "12", "'star'")):
        shared.check_prompts([long])
    with pytest.raises(ValueError, match="does not know 'zebra'"):
        shared.check_prompts(["a red zebra"])
    shared.check_prompts(PROMPTS)
    right, wrong = tiny_amused.parts(), tiny_amused.parts(codebook=16)
    with pytest.raises(ValueError, match=names("32 codes", "codebook", 16)):
        AmusedParts(right.transformer, wrong.vqvae, right.text_encoder, right.tokenizer, right.scheduler)
    with pytest.raises(ValueError, match="mask_token_id of the scheduler is 16"):
        AmusedParts(right.transformer, right.vqvae, right.text_encoder, right.tokenizer, wrong.scheduler)
    odd = tiny_amused.parts()
    odd.vqvae.register_to_config(sample_size=9)
    with pytest.raises(
        ValueError,
        match=names("sample_size", "9 pixels", "2 pixels", "8 or 10"),
    ):
        AmusedParts(odd.transformer, odd.vqvae, odd.text_encoder, odd.tokenizer, odd.scheduler)
    (tmp_path / "model_index.json").write_text('{"_class_name": "AmusedPipeline"}')
    with pytest.raises(ValueError, match=names("transformer", "vqvae", "text_encoder", "tokenizer", "scheduler")):
        generators.load(str(tmp_path))
    rollout = shared.sample(PROMPTS, sampling())
    with pytest.raises(ValueError, match="distribution is 'raw'"):
        shared.token_logprobs(rollout, distribution="raw")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="3 texts for 2 prompts and 6 rows"):
        shared.token_logprobs(rollout, prompt=["a"] * 3)
