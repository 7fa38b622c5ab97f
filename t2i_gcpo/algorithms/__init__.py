"""The algorithms: `table` has one row of choices for each, `weights` and `objective` say what a row does to a rollout.

At home here: what distinguishes GRPO, DAPO, GCPO and their controls. It calls the maths (`advantages`, `credit`,
`losses`) and knows no generator, no optimiser and no file.
"""

from __future__ import annotations

from t2i_gcpo.algorithms.objective import TokenAdvantages, loss, loss_denominator, token_advantages
from t2i_gcpo.algorithms.running_mean import RunningMean
from t2i_gcpo.algorithms.table import ALL_STATS, STATS, TABLE, Algorithm, resolve
from t2i_gcpo.algorithms.weights import token_weights

__all__ = [
    "ALL_STATS",
    "STATS",
    "TABLE",
    "Algorithm",
    "RunningMean",
    "TokenAdvantages",
    "loss",
    "loss_denominator",
    "resolve",
    "token_advantages",
    "token_weights",
]
