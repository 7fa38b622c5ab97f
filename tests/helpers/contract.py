"""What every generator must do, as rules that run on any: see `test_contract.py` for how to put one under them.

A rule takes a function that makes a fresh generator (random weights will do, if its logits are far from uniform),
prompts that it can read, and an empty folder. B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from t2i_gcpo import generators
from t2i_gcpo.generators.base import DISTRIBUTIONS, ImageGenerator
from t2i_gcpo.records import Prompt, Rollout, Sampling

Make = Callable[[], Any]
Rule = Callable[[Make, list[str], Path], None]

DRAWN = Sampling(group_size=3, guidance=2.0, seed=5)
#: Scored again in fp32, log-probs are those recorded to so many nats.
CLOSE = {"atol": 1e-5, "rtol": 0.0}


def a_rollout_says_what_was_drawn(make: Make, prompts: list[str], folder: Path) -> None:
    generator = make()
    rollout = generator.sample(prompts, Sampling(group_size=3, guidance=2.0, stats=("entropy", "exact_kl", "js")))
    shape = (3 * len(prompts), generator.grid[0] * generator.grid[1])
    assert rollout.tokens.shape == shape and rollout.tokens.dtype == torch.int64
    assert 0 <= int(rollout.tokens.min()) and int(rollout.tokens.max()) < generator.codebook_size
    records = [rollout.logprob_positive, rollout.logprob_negative, rollout.logprob_behaviour, *rollout.stats.values()]
    assert all(record.shape == shape and record.dtype == torch.float32 for record in records)
    assert all(bool(record.isfinite().all()) and not record.requires_grad for record in records)
    assert sorted(rollout.stats) == ["entropy", "exact_kl", "js"]
    assert rollout.commit_step.shape == shape and int(rollout.commit_step.min()) == 0
    assert [prompt.text for prompt in rollout.prompts] == prompts and tuple(rollout.grid) == tuple(generator.grid)
    assert [prompt.metadata for prompt in generator.sample([Prompt(prompts[0], {"a": 1})], DRAWN).prompts] == [{"a": 1}]


def scoring_gives_the_log_probs_of_sampling(make: Make, prompts: list[str], folder: Path) -> None:
    """On-policy the probability ratio is 1: under guidance, temperature and truncation, and without any of them."""
    generator = make()
    for drawn in (DRAWN, Sampling(guidance=3.0, temperature=0.8, top_k=9, top_p=0.9), Sampling(guidance=1.0)):
        rollout = generator.sample(prompts, drawn)
        for recorded, how in (
            (rollout.logprob_positive, {}),
            (rollout.logprob_negative, {"prompt": "negative"}),
            (rollout.logprob_behaviour, {"distribution": "guided"}),
            (rollout.logprob_behaviour, {"distribution": "guided_detached"}),
        ):
            torch.testing.assert_close(generator.token_logprobs(rollout, **how).detach(), recorded, **CLOSE)
        torch.testing.assert_close(generator.token_entropy(rollout), rollout.stats["entropy"], **CLOSE)


def an_image_depends_on_its_seed_and_indices_alone(make: Make, prompts: list[str], folder: Path) -> None:
    generator = make()
    whole = generator.sample(prompts, DRAWN)
    last = generator.sample(prompts[-1:], DRAWN, prompt_indices=[len(prompts) - 1])
    torch.testing.assert_close(last.tokens, whole.tokens[-3:])
    places = range(len(prompts))[::-1]
    turned = generator.sample(prompts[::-1], DRAWN, prompt_indices=places)
    torch.testing.assert_close(turned.tokens, torch.cat([whole.tokens[3 * p : 3 * p + 3] for p in places]))
    with pytest.raises(ValueError, match="1 places for"):
        generator.sample(prompts, DRAWN, prompt_indices=[0])
    torch.testing.assert_close(generator.sample(prompts, Sampling(guidance=2.0, seed=5)).tokens, whole.tokens[::3])
    other = generator.sample(prompts, Sampling(group_size=3, guidance=2.0, seed=6))
    assert not torch.equal(other.tokens, whole.tokens) and not torch.equal(whole.tokens[0], whole.tokens[1])


def a_generator_of_numbers_replaces_the_seed_and_nothing_else_is_drawn_from(
    make: Make, prompts: list[str], folder: Path
) -> None:
    generator = make()
    before = torch.random.get_rng_state()
    first = generator.sample(prompts, DRAWN, rng=torch.Generator().manual_seed(1))
    assert torch.equal(torch.random.get_rng_state(), before), "sampling drew from torch's global generator"
    assert torch.equal(generator.sample(prompts, first.sampling).tokens, first.tokens), "the drawn seed is recorded"


def rows_score_as_in_the_whole(make: Make, prompts: list[str], folder: Path) -> None:
    generator = make()
    rollout = generator.sample(prompts, DRAWN, negative_prompts=prompts[::-1])
    index = torch.tensor([4, 1])
    for how in ({}, {"prompt": "negative"}, {"distribution": "guided"}):
        scored = generator.token_logprobs(rollout, **how).detach()
        torch.testing.assert_close(
            generator.token_logprobs(rollout.rows(index), **how).detach(), scored[index], **CLOSE
        )


def a_negative_prompt_is_the_contrast_and_leaves_the_tokens_alone(make: Make, prompts: list[str], folder: Path) -> None:
    generator = make()
    plain, negative = generator.sample(prompts, DRAWN), generator.sample(prompts, DRAWN, negative_prompts=prompts[0])
    assert torch.equal(plain.tokens, negative.tokens)
    assert not torch.allclose(plain.logprob_negative, negative.logprob_negative)
    # Under its own text the first prompt has no contrast at all.
    torch.testing.assert_close(negative.logprob_negative[:3], negative.logprob_positive[:3], **CLOSE)
    scored = generator.token_logprobs(plain, prompt=[prompts[0]] * len(prompts)).detach()
    torch.testing.assert_close(scored, negative.logprob_negative, **CLOSE)


def the_distribution_decides_the_gradient_and_only_the_policy_has_one(
    make: Make, prompts: list[str], folder: Path
) -> None:
    generator = make()
    rollout = generator.sample(prompts, DRAWN)
    gradients = {}
    for distribution in DISTRIBUTIONS:
        generator.policy.zero_grad()
        generator.token_logprobs(rollout, distribution=distribution).sum().backward()
        parts = [p.grad.flatten() for p in generator.trainable_parameters() if p.grad is not None]
        gradients[distribution] = torch.cat(parts)
        assert bool(gradients[distribution].isfinite().all()) and bool(gradients[distribution].any())
    assert not torch.allclose(gradients["guided"], gradients["guided_detached"])
    assert not torch.allclose(gradients["guided"], gradients["conditional"])


def the_reference_is_the_policy_as_it_was_kept(make: Make, prompts: list[str], folder: Path) -> None:
    generator = make()
    rollout = generator.sample(prompts, DRAWN)
    before = generator.token_logprobs(rollout).detach()
    generator.keep_reference()
    with torch.no_grad():
        for parameter in generator.trainable_parameters():
            parameter.mul_(1.1)
    changed = generator.token_logprobs(rollout).detach()
    with torch.no_grad(), generator.reference():
        assert torch.equal(generator.token_logprobs(rollout), before)
    assert torch.equal(generator.token_logprobs(rollout).detach(), changed) and not torch.allclose(changed, before)


def what_is_optional_has_a_default(make: Make, prompts: list[str], folder: Path) -> None:
    """The trainer, the updater and the export ask every generator the same, and never whether it has a method."""
    generator: ImageGenerator = make()
    generator.prepare(rollouts_ahead=3)
    rollout = generator.sample(prompts, DRAWN)
    for distribution in DISTRIBUTIONS:
        scores = generator.training_scores(rollout, distribution=distribution)
        expected = generator.token_logprobs(rollout, distribution=distribution)
        torch.testing.assert_close(scores.own.detach(), expected.detach(), **CLOSE)
        assert scores.logprob.requires_grad and (scores.scale is None or scores.scale.shape == rollout.tokens.shape)
    assert not generator.has_lora and generator.base is None, "built in memory, without adapters"
    with pytest.raises(ValueError, match="no LoRA"):
        generator.merge_lora()


def a_saved_folder_is_the_same_generator(make: Make, prompts: list[str], folder: Path) -> None:
    generator = make()
    with torch.no_grad():
        generator.trainable_parameters()[0].mul_(1.1)
    generator.save(folder / "saved")
    loaded = generators.load(str(folder / "saved"), max_batch=64, compile=False)
    drawn, again = generator.sample(prompts, DRAWN), loaded.sample(prompts, DRAWN)
    assert (loaded.kind, tuple(loaded.grid)) == (generator.kind, tuple(generator.grid))
    assert torch.equal(again.tokens, drawn.tokens) and torch.equal(again.logprob_positive, drawn.logprob_positive)


def an_image_depends_on_its_own_tokens_alone(make: Make, prompts: list[str], folder: Path) -> None:
    generator = make()
    rollout: Rollout = generator.sample(prompts, DRAWN)
    images = generator.decode(rollout.tokens)
    assert images.dtype == torch.uint8 and images.dim() == 4 and images.shape[:2] == (rollout.batch, 3)
    assert int((generator.decode(rollout.tokens[1:2])[0].int() - images[1].int()).abs().max()) <= 1, "of 255"
    assert not torch.equal(images[0], images[1])


RULES: tuple[Rule, ...] = (
    a_rollout_says_what_was_drawn,
    scoring_gives_the_log_probs_of_sampling,
    an_image_depends_on_its_seed_and_indices_alone,
    a_generator_of_numbers_replaces_the_seed_and_nothing_else_is_drawn_from,
    rows_score_as_in_the_whole,
    a_negative_prompt_is_the_contrast_and_leaves_the_tokens_alone,
    the_distribution_decides_the_gradient_and_only_the_policy_has_one,
    the_reference_is_the_policy_as_it_was_kept,
    what_is_optional_has_a_default,
    a_saved_folder_is_the_same_generator,
    an_image_depends_on_its_own_tokens_alone,
)
