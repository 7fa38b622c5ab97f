"""The masked generator against what is known.

Diffusers' own pipeline, probabilities that add up to 1, credit of one step each.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from test_amused import PROMPTS, as_rollout, close, sampling
from torch import Tensor

from helpers import tiny_amused
from t2i_gcpo import credit
from t2i_gcpo.generators.amused.adapter import Amused
from t2i_gcpo.generators.tokens.sampling import draw, row_noise
from t2i_gcpo.generators.tokens.unmasking import gumbel
from t2i_gcpo.records import Unmasking


@pytest.fixture(scope="module")
def shared() -> Amused:
    """Not to be trained."""
    return tiny_amused.generator(decode_dtype="float32")


@pytest.mark.parametrize(("guidance", "steps"), [(1.0, 1), (1.0, 5), (1.0, 16), (2.0, 5)])
def test_sampling_is_the_pipelines_with_the_same_draws(
    shared: Amused, guidance: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers' AmusedPipeline and AmusedScheduler with our noise in place of theirs.

    The same tokens, without guidance and with it.
    """
    from diffusers import VQModel
    from diffusers.pipelines.deprecated.amused.pipeline_amused import AmusedPipeline

    assert isinstance(shared.parts.vqvae, VQModel)
    rollout = shared.sample(PROMPTS, sampling(group_size=1, guidance=guidance, unmasking=Unmasking(steps=steps)))
    noise = row_noise(4, [(0, 0), (1, 0)], 2 * steps * 16).view(2, steps, 2, 16)
    drawn = iter(range(steps))
    ordered = iter(range(steps - 1))  # the last step commits all that is left

    def multinomial(probabilities: Tensor, count: int, generator: object = None) -> Tensor:
        return draw(probabilities.log(), noise[:, next(drawn), 0].reshape(-1)).unsqueeze(-1)

    def noise_of_step(like: Tensor, generator: object = None) -> Tensor:
        return gumbel(noise[:, next(ordered), 1])

    monkeypatch.setattr(torch, "multinomial", multinomial)
    monkeypatch.setattr("diffusers.schedulers.scheduling_amused.gumbel_noise", noise_of_step)
    parts = shared.parts
    pipeline = AmusedPipeline(parts.vqvae, parts.tokenizer, parts.text_encoder, parts.transformer, parts.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    found = pipeline(
        PROMPTS,
        num_inference_steps=steps,
        guidance_scale=guidance,
        temperature=(2, 0),
        output_type="latent",
        return_dict=False,
    )[0]
    assert next(drawn, None) is None and next(ordered, None) is None, "not all noise was asked for"
    assert torch.equal(found.view(2, 16), rollout.tokens)


def test_trajectories_of_two_tokens_a_step_add_up_to_1() -> None:
    """Under random order each of the 6 pairs that the first step may commit is as likely as any other."""
    small = tiny_amused.generator(grid=2, codebook=3, width=16)
    how = sampling(unmasking=Unmasking(steps=2, schedule="linear", order="random"), guidance=1.0)
    choices = list(itertools.product(range(3), repeat=4))
    tokens, commits = [], []
    for pair in itertools.combinations(range(4), 2):
        tokens += choices
        commits += [[0 if t in pair else 1 for t in range(4)]] * len(choices)
    rollout = as_rollout(torch.tensor(tokens), torch.tensor(commits), how)
    with torch.no_grad():
        logprob = small.token_logprobs(rollout)
    assert float((logprob.sum(dim=1).exp() / 6).sum()) == pytest.approx(1.0, abs=1e-5)
    backwards = replace(rollout, commit_step=1 - rollout.commit_step)
    with torch.no_grad():
        other = small.token_logprobs(backwards)
    assert not close(other.sum(dim=1), logprob.sum(dim=1), 1e-2), "the order does not matter to this model"


def test_a_tokens_divergence_is_of_its_own_steps_two_log_probs(shared: Amused) -> None:
    rollout = shared.sample(PROMPTS, sampling())
    assert rollout.logprob_negative is not None
    recorded = credit.divergence(rollout.logprob_positive, rollout.logprob_negative)
    late = rollout.commit_step >= 3
    changed = replace(rollout, tokens=torch.where(late, (rollout.tokens + 7) % 32, rollout.tokens))
    with torch.no_grad():
        positive, negative = (shared.token_logprobs(changed, prompt=prompt) for prompt in ("positive", "negative"))
    again = credit.divergence(positive, negative)
    assert close(again[~late], recorded[~late], 1e-4)
    assert not close(again[late], recorded[late], 1e-2)
    # And of nothing else: one token's two log-probs move its own divergence, by hand.
    d = rollout.logprob_negative - rollout.logprob_positive
    assert close(recorded, (torch.expm1(d) - d).clamp(max=10), 1e-4)
    moved = rollout.logprob_negative.clone()
    moved[0, 5] -= 1
    other = credit.divergence(rollout.logprob_positive, moved)
    assert (other != recorded).nonzero().tolist() == [[0, 5]]
