"""Define `GCPOConfig`: TRL's `GRPOConfig` and the options of the credit."""

from __future__ import annotations

from dataclasses import dataclass

from t2i_gcpo.text.credit_options import CreditOptions
from t2i_gcpo.text.trl_version import require_trl

require_trl()
from trl import GRPOConfig  # noqa: E402  (its absence is explained first)

#: TRL's losses that are a sum over tokens, each with an advantage of its own.
TOKEN_LOSSES = ("dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo")


@dataclass
class GCPOConfig(CreditOptions, GRPOConfig):
    """Holds TRL's options and the credit's; with `credit="uniform"` the trainer is GRPO's.

    ValueError for a value that is not allowed.
    """

    def __post_init__(self) -> None:
        GRPOConfig.__post_init__(self)
        CreditOptions.__post_init__(self)
        if self.loss_type not in TOKEN_LOSSES:
            raise ValueError(f"loss_type is {self.loss_type!r}; allowed: {', '.join(TOKEN_LOSSES)}")
        if self.importance_sampling_level != "token" and self.credit != "uniform":
            raise ValueError(
                f"importance_sampling_level is {self.importance_sampling_level!r}: a ratio of the whole sequence "
                "has one gradient for all its "
                "tokens, in which weights of mean 1 cancel. Use importance_sampling_level='token', or credit='uniform'"
            )
