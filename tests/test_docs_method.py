"""The numbers of docs/method.md and the table of docs/algorithms.md are what the library computes."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

from helpers import pages
from t2i_gcpo import advantages, credit, losses
from t2i_gcpo.algorithms import TABLE, Algorithm

METHOD, ALGORITHMS = pages.ROOT / "docs" / "method.md", pages.ROOT / "docs" / "algorithms.md"


def tables(text: str) -> list[list[list[str]]]:
    """The tables of a page: rows of cells, the head first."""
    found = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    split = [[re.split(r"(?<!\\)\|", row)[1:-1] for row in table.splitlines()] for table in found]
    return [[[cell.strip() for cell in row] for row in table if set(row[0]) - set("- ")] for table in split]


def by_hand(head: str) -> list[list[str]]:
    """The rows of the worked example's table whose head begins so."""
    section = METHOD.read_text(encoding="utf-8").split("## Four tokens by hand")[1].split("\n## ")[0]
    (table,) = (table for table in tables(section) if table[0][: len(head.split(", "))] == head.split(", "))
    return table[1:]


def column(rows: list[list[str]], k: int) -> Tensor:
    return torch.tensor([[float(row[k]) for row in rows]])


def shown(values: Tensor, digits: int = 4) -> list[str]:
    return [f"{value + 0.0:.{digits}f}" for value in values.flatten().tolist()]


@pytest.fixture(scope="module")
def example() -> tuple[Tensor, Tensor]:
    rows = by_hand("token, p(· \\| prompt)")
    return column(rows, 1).log(), column(rows, 2).log()


def test_the_contrast_of_the_worked_example(example: tuple[Tensor, Tensor]) -> None:
    positive, negative = example
    rows = by_hand("token, p(· \\| prompt)")
    assert [row[3] for row in rows] == shown(negative - positive)
    assert [row[4] for row in rows] == shown(credit.divergence(positive, negative))


def test_the_credit_of_the_worked_example(example: tuple[Tensor, Tensor]) -> None:
    rows, weights = by_hand("token, u"), credit.token_weights(*example)
    advantage = advantages.group_advantages(torch.tensor([1.0, 0.0]), 2)
    alpha = math.log(1 - 0.8) / math.log(1 - 0.4) - 1
    assert f"α = {alpha:.4f}" in METHOD.read_text(encoding="utf-8")
    assert [row[2] for row in rows] == shown(column(rows, 1) ** alpha)
    assert [row[3] for row in rows] == shown(weights)
    assert [row[4] for row in rows] == shown(advantage[0] * weights)
    assert [row[7] for row in rows] == shown(losses.kl_weights(weights), 1)

    def gradient(spread: Tensor) -> Tensor:
        """Of the loss of both images with respect to the first one's log-probs.

        Its sibling's weights do not matter to it.
        """
        logprob = torch.full((2, 4), -1.0, requires_grad=True)
        spread = advantage[:, None] * torch.cat([spread, torch.ones(1, 4)])
        losses.policy_loss(logprob, logprob.detach(), spread, reduction="sequence").loss.backward()
        assert logprob.grad is not None
        return logprob.grad[0]

    assert [row[5] for row in rows] == shown(gradient(weights))
    assert [row[6] for row in rows] == shown(gradient(torch.ones(1, 4)))


def test_the_weights_under_other_choices(example: tuple[Tensor, Tensor]) -> None:
    rows = by_hand("divergence and normalisation")
    assert len(rows) == 6
    for name, *cells in rows:
        divergence, normalization = re.findall(r"`(\w+)`", name)
        assert cells == shown(credit.token_weights(*example, divergence=divergence, normalization=normalization)), name  # type: ignore[arg-type]


def test_what_is_said_of_the_credits_place_stands_in_the_measurement() -> None:
    """The contrast's and the entropy's AUROC and the weights' share on the objects are told.

    And no number that was not measured.
    """
    section = METHOD.read_text(encoding="utf-8").split("## What is known of where the credit falls")[1]
    measured = (pages.DOCS / "heatmaps.md").read_text(encoding="utf-8")
    auroc, share = (
        {row[0].strip("*"): [cell.split()[0] for cell in row[1:]] for row in table[1:]}
        for table in tables(measured)
        if table[0][0] in ("map", "share of weights on objects") and table[0][1] in ("AUROC, objects", "rank")
    )
    (uniform,) = re.findall(r"chance is the objects' share of the cells, ([\d.]+) %", measured)
    expected = [auroc["kl"][0], auroc["kl"][2], auroc["entropy"][0], share["kl"][0], f"{float(uniform) / 100:.3f}"]
    told = set(re.findall(r"\b0\.\d{3}\b", section))
    everything = {cell for table in (auroc, share) for row in table.values() for cell in row} | set(expected)
    assert set(expected) <= told <= everything


def test_the_table_of_algorithms_is_the_code_s() -> None:
    """Each cell in the words that the table has for the row's choice.

    A word used for two choices would be found out.
    """
    (table, *_) = tables(ALGORITHMS.read_text(encoding="utf-8"))
    rows = {row[0].strip("`"): row[1:] for row in table[1:]}
    assert list(rows) == list(TABLE)

    def cells(name: str) -> list[str]:
        """A row's cells, with `as ROW` looked up there."""
        found = []
        for k, cell in enumerate(rows[name]):
            other = re.fullmatch(r"as `(\w+)`", cell)
            found.append(cells(other[1])[k] if other else cell)
        return found

    def words(row: Algorithm) -> list[str]:
        kl = "none" if row.kl_estimator == "none" else f"{row.kl_estimator}, {row.kl_coef:g}"
        by_size = f"by size, small ones 0, at most {row.cap:g} means"
        credits = {
            "uniform": "uniform",
            "contrast": f"contrast, KL divergence, {'ranks' if row.normalization == 'rank' else by_size}",
            "variance": "variance of the contrast over the codebook, by size over the batches before",
            "clauses": "contrast with the prompt without each clause, ranks",
            "dissimilar": "unlike the images of the other sign (STAGE)",
            "critical": "three tenths of the tokens, alike (Group Critical-token Policy Optimization)",
            "sibling": "GCPO's weights of another image of the prompt (control)",
            "entropy": "token entropy, ranks",
            "random": "random ranks (control)",
            "shuffled": "GCPO's weights, shuffled over the image (control)",
        }
        whose = "contrast" if row.event_codes == "own" else "the contrast of random others"
        control = "" if row.event_codes == "own" else ", as probable (control)"
        events = f", of events of {row.event_width:g} nat of {whose} instead of tokens{control}" if row.events else ""
        weighted = {"dissimilar": "weighted by likeness", "critical": "of these tokens alone"}
        advantage = "(r − mean) / std" if row.advantage_scale == "std" else "r − mean"
        advantage += " of each clause" if row.credit == "clauses" else ""
        advantage += ", with STAGE's entropy reward" if row.entropy_reward_coef else ""
        advantage += ", times the running ratio to the reference" if row.ratio_bound else ""
        return [
            credits[row.credit] + events,
            advantage,
            f"{row.clip_low:g} / {row.clip_high:g}",
            {"sequence": "each image, then images", "token": "tokens", "constant": "constant B·T"}[row.reduction],
            kl + (f", {weighted.get(row.credit, 'weighted by token')}" if row.kl_weighting and kl != "none" else ""),
            "with reward spread only" if row.dynamic_sampling else "all",
        ]

    for name, row in TABLE.items():
        assert cells(name) == words(row), name
