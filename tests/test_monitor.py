"""What a run draws besides training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from helpers import training
from t2i_gcpo import heatmap
from t2i_gcpo.algorithms import token_weights
from t2i_gcpo.heatmap import KINDS, Recipe
from t2i_gcpo.heatmap.views import as_rollout
from t2i_gcpo.training.callbacks.pictures import Pictures, first_informative


def test_the_map_of_the_rollout_is_of_the_first_group_that_has_something_to_show() -> None:
    advantages = torch.tensor([0.0, 0.0, -1.0, 1.0, 0.5, -0.5])
    assert first_informative(advantages, 2) == 1
    assert first_informative(advantages, 3) == 0
    assert first_informative(torch.zeros(6), 2) == 0


def test_the_files_hold_what_any_map_needs_and_the_reference_is_the_start(tmp_path: Path) -> None:
    subject = training.trainer(tmp_path, distribution="guided")
    pictures = Pictures(training.PROMPTS[:2], subject.reward, sampling=subject.sampling, every=1, group=2, seed=7)  # type: ignore[arg-type]
    pictures.draw(subject, 0)
    subject.callbacks = [pictures]
    subject.train()
    start, end = (heatmap.load(tmp_path / "heatmaps" / f"step_{step:06d}.npz") for step in (0, 2))
    trained = heatmap.load(tmp_path / "heatmaps" / "step_000002_trained.npz")
    assert set(KINDS) == set(start.maps()) == set(end.maps())
    assert {"kl", "kl_reference", "entropy"} <= set(trained.maps()) and trained.recipe == Recipe()
    # At the start the policy is its own reference; afterwards the reference still is what it was.
    np.testing.assert_allclose(start.logprob_reference, start.logprob_positive, atol=1e-5)  # type: ignore[arg-type]
    assert end.maps()["kl_reference"].max() > 1e-4
    first = training.generator()
    rollout = as_rollout(end)
    wanted = first.token_logprobs(rollout).detach().numpy()
    np.testing.assert_allclose(end.logprob_reference, wanted, atol=1e-5)  # type: ignore[arg-type]
    # Another rule is what training by it would have drawn.
    by_js = replace(subject.algorithm, divergence="js_full", group_size=2)  # type: ignore[type-var]
    weights = token_weights(by_js, rollout).numpy()  # type: ignore[arg-type]
    np.testing.assert_array_equal(heatmap.reweigh(end, divergence="js_full").weights, weights)
