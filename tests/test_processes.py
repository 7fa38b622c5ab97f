"""What processes exchange, with threads in the place of processes: quick, and with every order of their scores."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from helpers.fake_generator import FakeGenerator
from t2i_gcpo import credit
from t2i_gcpo.algorithms import resolve, token_advantages
from t2i_gcpo.records import Prompt, Rows, Sampling, ScoredRollout
from t2i_gcpo.training.ending import Ending
from t2i_gcpo.training.options import LoopOptions
from t2i_gcpo.training.rollout import Collected, collect_informative, collect_once
from t2i_gcpo.training.same_run import check_alike, check_share
from t2i_gcpo.utils.processes import ALONE, Alone, mean

PROMPTS = [Prompt(f"prompt {k}", {"k": k}) for k in range(40)]
TWO = Sampling(group_size=2, stats=("entropy", "variance"))


class Thread(Alone):
    """One of several threads that exchange as processes do."""

    def __init__(self, rank: int, count: int, shared: dict[str, Any]) -> None:
        self.rank, self.count, self.is_main, self._shared = rank, count, rank == 0, shared  # type: ignore[misc]

    def part(self, n: int) -> slice:
        cuts = [n * k // self.count for k in range(self.count + 1)]
        return slice(cuts[self.rank], cuts[self.rank + 1])

    def gather(self, item: Any) -> list[Any]:
        barrier: threading.Barrier = self._shared["barrier"]
        self._shared[self.rank] = item
        barrier.wait(10)
        items = [self._shared[rank] for rank in range(self.count)]
        barrier.wait(10)
        return items

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.gather(values)).sum(dim=0)

    def any(self, flag: bool) -> bool:
        return any(self.gather(flag))

    def from_main(self, item: Any) -> Any:
        return self.gather(item)[0]


def together(count: int, work: Callable[[Thread], Any]) -> list[Any]:
    """Return what `work` returns on each of `count` threads; the first error is raised."""
    shared: dict[str, Any] = {"barrier": threading.Barrier(count)}
    results: list[Any] = [None] * count
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(Thread(rank, count, shared))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


# -- the rollout -------------------------------------------------------------------------------------------------------


def draw_and_collect(useful: set[int]) -> tuple[Callable[[int], list[Prompt]], Callable[..., ScoredRollout | None]]:
    """Prompt k's images score k and k, or k and k + 1 where it is in `useful`."""
    drawn: list[int] = []

    def draw(n: int) -> list[Prompt]:
        first = sum(drawn)
        drawn.append(n)
        return PROMPTS[first : first + n]

    def collect(prompts: Sequence[Prompt], first: int) -> ScoredRollout | None:
        if not prompts:
            return None
        scores = [float(p.metadata["k"]) + (g and p.metadata["k"] in useful) for p in prompts for g in range(2)]
        rollout = FakeGenerator().sample(prompts, TWO, prompt_indices=range(first, first + len(prompts)))
        return ScoredRollout(rollout, FakeGenerator().decode(rollout.tokens), torch.tensor(scores))

    return draw, collect


def joined(parts: list[Collected]) -> dict[int, list[int]]:
    """Row of the whole rollout -> its tokens."""
    rows = {}
    for part in parts:
        assert part.scored is not None and part.rows is not None
        assert part.rows.total == sum(len(one.rows.index) for one in parts if one.rows is not None)
        rows |= dict(zip(part.rows.index.tolist(), part.scored.rollout.tokens.tolist(), strict=True))
    return rows


@pytest.mark.parametrize("count", [2, 3, 4])
def test_dynamic_sampling_keeps_the_same_groups_on_any_number_of_processes(count: int) -> None:
    useful = {1, 2, 9, 14, 15, 16}
    one = collect_informative(*draw_and_collect(useful), wanted=6, limit=9)
    many = together(count, lambda own: collect_informative(*draw_and_collect(useful), 6, 9, own))
    assert joined(many) == joined([one])
    for part in many:
        assert torch.equal(part.scores, one.scores) and part.groups_discarded == one.groups_discarded
        assert part.metrics() == one.metrics()
    assert len({part.scored.rollout.batch for part in many}) > 1, "the shares are unequal"


def test_a_process_without_any_useful_group_has_an_empty_share() -> None:
    useful = {3}  # the last process's, in the only round
    many = together(2, lambda own: collect_informative(*draw_and_collect(useful), 4, 1, own))
    assert [part.scored.rollout.batch for part in many] == [0, 2]
    none = together(2, lambda own: collect_informative(*draw_and_collect(set()), 4, 2, own))
    assert all(part.scored is None and len(part.scores) == 16 for part in none)


def test_a_step_is_shared_out_in_order() -> None:
    one = collect_once(*draw_and_collect({2}), 4)
    many = together(4, lambda own: collect_once(*draw_and_collect({2}), 4, own))
    assert joined(many) == joined([one]) and all(torch.equal(part.scores, one.scores) for part in many)


# -- credit ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gcpo_random", "gcpo_shuffled", "gcpo_variance", "gcpo", "gdpo"])
def test_credit_is_that_of_the_whole_batch(name: str) -> None:
    """Noise, batch means and normalisation, and the metrics."""
    options = {"normalize_parts": True, "normalize_batch": True} if name == "gdpo" else {}
    algorithm = resolve("gcpo" if name == "gdpo" else name, group_size=2, **options)
    whole = FakeGenerator().sample(PROMPTS[:6], TWO)
    scores = torch.rand(12, generator=torch.Generator().manual_seed(0))
    scores[3] = torch.nan

    def targets(own: Any) -> Any:
        part = own.part(6)
        groups = torch.arange(part.start, part.stop)
        rows = torch.arange(2 * part.start, 2 * part.stop)
        return token_advantages(
            algorithm,
            whole.groups(groups),
            scores[rows],
            generator=torch.Generator().manual_seed(7),
            parts={"a": scores[rows]},
            part_weights={"a": 1.0},
            processes=own,
            rows=Rows(rows, 12),
        )

    one, many = targets(ALONE), together(3, targets)
    torch.testing.assert_close(torch.cat([part.advantages for part in many]), one.advantages)
    for part in many:
        assert part.metrics == pytest.approx(one.metrics, abs=1e-6)
    apart = token_advantages(
        algorithm, whole.groups(torch.arange(2)), scores[:4], generator=torch.Generator().manual_seed(8),
        parts={"a": scores[:4]}, part_weights={"a": 1.0},
    )  # fmt: skip
    if name != "gcpo":
        assert not torch.allclose(apart.advantages, one.advantages[:4]), "alone it would be another"


def test_rows_are_found_in_the_order_that_is_asked_for() -> None:
    rows = Rows(torch.tensor([1, 4, 5]), 6)
    assert rows.own(torch.tensor([5, 0, 1, 3])).tolist() == [2, 0]
    assert Rows.all(4).own(torch.tensor([3, 1])).tolist() == [3, 1]
    noise = credit.random_weights((6, 9), generator=torch.Generator().manual_seed(1))
    some = credit.random_weights((3, 9), generator=torch.Generator().manual_seed(1), rows=rows)
    torch.testing.assert_close(some, noise[[1, 4, 5]])
    assert not torch.allclose(some, noise[:3])


def test_a_mean_weighs_the_processes() -> None:
    shares = [({"a": 1.0}, 1), ({"a": 4.0}, 2), ({}, 0)]
    assert together(3, lambda own: mean(own, *shares[own.rank])) == [{"a": 3.0}] * 3


# -- what they must agree on -------------------------------------------------------------------------------------------


def test_a_request_of_one_process_ends_all() -> None:
    def agree(own: Thread) -> Ending:
        ending = Ending()
        if own.rank == 1:
            ending.interrupt("SIGTERM")
        assert ending.agree(own)
        return ending

    first, second = together(2, agree)
    assert (first.reason, second.reason) == ("rank 1: interrupted (SIGTERM)", "interrupted (SIGTERM)")
    assert first.interrupted_by == second.interrupted_by == "SIGTERM"


def test_a_save_request_is_for_all_and_for_once() -> None:
    def agree(own: Thread) -> list[bool]:
        ending = Ending()
        ending.save_requested = own.rank == 1
        return [ending.agree(own), ending.agree(own)]

    assert together(2, agree) == [[True, False]] * 2


@pytest.mark.parametrize(("prompts", "count", "nearest"), [(10, 4, "8 or 12"), (3, 8, "use 8 ")])
def test_prompts_that_cannot_be_shared_evenly_are_refused(prompts: int, count: int, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"prompts_per_step is {prompts}, which {count} processes .*{nearest}"):
        check_share(prompts, Thread(0, count, {}))
    check_share(count * 2, Thread(0, count, {}))


@pytest.mark.parametrize("differs", ["options", "prompts"])
def test_processes_that_see_different_things_are_refused(differs: str) -> None:
    def check(own: Thread) -> None:
        seen: dict[str, Any] = {"options": vars(LoopOptions()), "prompts": "abc"}
        check_alike(own, seen)
        check_alike(own, {**seen, differs: "other"} if own.rank == 1 else seen)

    with pytest.raises(ValueError, match=f"^{differs} of rank 1 differ from those of rank 0"):
        together(2, check)
