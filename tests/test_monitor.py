"""What a run draws besides training."""

from __future__ import annotations

import torch

from t2i_gcpo.monitor import first_with_spread


def test_the_map_of_the_rollout_is_of_the_first_group_that_has_something_to_show() -> None:
    advantages = torch.tensor([0.0, 0.0, -1.0, 1.0, 0.5, -0.5])
    assert first_with_spread(advantages, 2) == 1
    assert first_with_spread(advantages, 3) == 0
    assert first_with_spread(torch.zeros(6), 2) == 0
