"""The trajectory of a masked generator."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import get_args, get_type_hints

import pytest
import torch
from diffusers.schedulers import AmusedScheduler
from torch import Tensor

from t2i_gcpo.generators.tokens.unmasking import (
    ORDERS,
    SCHEDULES,
    annealed,
    gumbel,
    newly_committed,
    state,
    still_masked,
)
from t2i_gcpo.records import Unmasking

MASK = 9


def test_options_name_what_there_is() -> None:
    hints = get_type_hints(Unmasking)
    assert get_args(hints["schedule"]) == tuple(SCHEDULES) and get_args(hints["order"]) == ORDERS


def test_still_masked_by_hand() -> None:
    # 16 cos(22.5, 45, 67.5 degrees) = 14.78, 11.31, 6.12
    assert still_masked(4, 16) == (14, 11, 6, 0)
    assert still_masked(4, 16, "linear") == (12, 8, 4, 0)
    assert still_masked(4, 16, "square") == (15, 12, 7, 0)  # 16 (1 - 1/16), 16 (1 - 1/4), 16 (1 - 9/16)
    assert still_masked(2, 16, "cubic") == (14, 0)
    assert still_masked(4, 16, "sqrt") == (8, 4, 2, 0)  # 16 (1 - 0.5), 16 (1 - 0.707), 16 (1 - 0.866)
    assert still_masked(1, 16) == (0,)
    assert still_masked(3, 3) == (2, 1, 0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("steps", "length"), [(1, 1), (5, 5), (12, 144), (144, 144), (7, 9), (64, 256)])
def test_every_step_commits_and_all_is_committed(schedule: str, steps: int, length: int) -> None:
    counts = (length, *still_masked(steps, length, schedule))
    assert counts[-1] == 0 and all(later < earlier for earlier, later in itertools.pairwise(counts))


def test_steps_and_names_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="17 sampling steps for 16 tokens; allowed are 1 to 16"):
        still_masked(17, 16)
    with pytest.raises(ValueError, match="0 sampling steps"):
        still_masked(0, 16)
    with pytest.raises(ValueError, match="'cosin' is unknown; allowed: cosine, linear"):
        still_masked(4, 16, "cosin")
    with pytest.raises(ValueError, match="'order' is unknown; allowed: confidence, random"):
        newly_committed(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), 1, torch.zeros(1, 2), order="order")


def test_confidence_by_hand() -> None:
    logprob = torch.tensor([[-1.0, -3.0, -2.0, -0.5]])
    masked = torch.tensor([[True, True, True, False]])
    half = torch.full((1, 4), 0.5)
    assert newly_committed(logprob, masked, 1, half).tolist() == [[True, False, False, False]], "the known one is out"
    assert newly_committed(logprob, masked, 2, half).tolist() == [[True, False, True, False]]
    # Gumbel noise of 0.99 is 4.60, of 0.01 -1.53: at temperature 1 the second leads with 1.60, the first falls to
    # -2.53.
    noise = torch.tensor([[0.01, 0.99, 0.5, 0.5]])
    assert newly_committed(logprob, masked, 1, noise, temperature=1.0).tolist() == [[False, True, False, False]]
    assert newly_committed(logprob, masked, 1, noise, temperature=0.1).tolist() == [[True, False, False, False]]
    assert newly_committed(logprob, masked, 1, noise, order="random").tolist() == [[False, True, False, False]]
    assert float(gumbel(torch.tensor(0.99))) == pytest.approx(-math.log(-math.log(0.99)), abs=1e-5)


def test_random_order_does_not_depend_on_the_policy_and_is_uniform() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(6000, 3, generator=generator)
    masked = torch.ones(6000, 3, dtype=torch.bool)
    sure = torch.log(torch.tensor([0.9, 0.05, 0.05])).expand(6000, 3)
    first = newly_committed(sure, masked, 1, noise, order="random")
    assert torch.equal(first, newly_committed(sure.flip(1), masked, 1, noise, order="random"))
    counts = Counter(first.int().argmax(dim=1).tolist())
    for position in range(3):  # 2000 expected, standard deviation 36
        assert abs(counts[position] - 2000) < 5 * 36.5


def test_annealed_goes_from_one_end_to_the_other() -> None:
    assert [annealed(k, 5, (2.0, 0.0)) for k in range(5)] == [2.0, 1.5, 1.0, 0.5, 0.0]
    assert annealed(0, 1, (2.0, 0.0)) == 2.0


def test_states_are_rebuilt() -> None:
    tokens = torch.tensor([[1, 2, 3, 4]])
    commit = torch.tensor([[2, 0, 1, 2]])
    assert state(tokens, commit, 0, MASK).tolist() == [[MASK] * 4]
    assert state(tokens, commit, 1, MASK).tolist() == [[MASK, 2, MASK, MASK]]
    assert state(tokens, commit, 2, MASK).tolist() == [[MASK, 2, 3, MASK]]
    assert state(tokens, commit, 3, MASK).tolist() == [[1, 2, 3, 4]]
    both = state(tokens.expand(2, 4), commit.expand(2, 4), torch.tensor([[1], [2]]), MASK)
    assert both.tolist() == [[MASK, 2, MASK, MASK], [MASK, 2, 3, MASK]]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("steps", [1, 5, 12])
def test_the_trajectory_is_amused_schedulers_with_the_same_noise(
    schedule: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, length, codes, temperature = 3, 16, 8, (2.0, 0.0)
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(steps, rows, length, codes, generator=generator)
    candidates = torch.distributions.Categorical(logits=logits).sample()
    noise = torch.rand(steps, rows, length, generator=generator)

    scheduler = AmusedScheduler(mask_token_id=codes, masking_schedule=schedule)
    scheduler.set_timesteps(steps, temperature)
    theirs = torch.full((rows, length), codes)
    history: list[Tensor] = []
    for step, timestep in enumerate(scheduler.timesteps):
        monkeypatch.setattr(torch, "multinomial", lambda *_, step=step, **__: candidates[step].reshape(-1, 1))
        monkeypatch.setattr(
            "diffusers.schedulers.scheduling_amused.gumbel_noise", lambda *_, step=step, **__: gumbel(noise[step])
        )
        theirs = scheduler.step(logits[step], timestep, theirs).prev_sample
        history.append(theirs)

    tokens = torch.full((rows, length), codes)
    commit = torch.full((rows, length), steps)
    counts = (length, *still_masked(steps, length, schedule))
    for step in range(steps):
        drawn = candidates[step]
        logprob = logits[step].log_softmax(-1).gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
        new = newly_committed(
            logprob, commit == steps, counts[step] - counts[step + 1], noise[step],
            temperature=annealed(step, steps, temperature),
        )  # fmt: skip
        tokens, commit = torch.where(new, drawn, tokens), torch.where(new, step, commit)
        assert torch.equal(tokens, history[step])
        assert torch.equal(state(tokens, commit, step + 1, codes), history[step])
    assert bool((commit < steps).all())
