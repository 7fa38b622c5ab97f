"""Make token weights from log-probs: `t2i_gcpo.credit` with the mask of what the model itself wrote.

B completions, T tokens; weights [B, T] are fp32, of mean 1 over a completion's valid tokens, 0 elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from t2i_gcpo import credit as credits
from t2i_gcpo.text.credit_options import CreditOptions

#: The floor is a mean |d| in nats; near 0 a KL is d^2 / 2.
EXACT_CURVATURE = 2.0


def token_weights(
    choices: CreditOptions,
    mask: Tensor,
    *,
    positive: Tensor | None = None,
    negative: Tensor | None = None,
    exact_kl: Tensor | None = None,
    entropy: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the weights that the config asks for, [B, T].

    mask [B, T]: 1 for tokens that the model wrote and that count. positive, negative [B, T]: log-probs of the drawn
    tokens under both prompts; exact_kl, entropy [B, T], nats, for the credits that are made of them. `generator` is
    what the controls draw from.
    """
    valid = mask.bool()
    if choices.credit == "uniform":
        return valid.float()
    top, mass = choices.top, choices.mass
    if choices.credit == "random":
        shape = (valid.shape[0], valid.shape[1])
        return credits.random_weights(shape, top=top, mass=mass, mask=valid, generator=generator, device=valid.device)
    if choices.credit == "entropy":
        values = _needed(entropy, "entropy")
        return credits.normalize(values, normalization=choices.normalization, top=top, mass=mass, floor=0.0, mask=valid)
    if choices.divergence == "exact_kl":
        values = _needed(exact_kl, "exact_kl")
        floor = choices.floor**2 / EXACT_CURVATURE
        weights = credits.normalize(
            values, normalization=choices.normalization, top=top, mass=mass, floor=floor, mask=valid
        )
    else:
        weights = credits.token_weights(
            _needed(positive, "positive"),
            _needed(negative, "negative"),
            divergence=choices.divergence,
            normalization=choices.normalization,
            top=top,
            mass=mass,
            floor=choices.floor,
            mask=valid,
        )
    return credits.shuffled(weights, mask=valid, generator=generator) if choices.credit == "shuffled" else weights


def measurements(
    choices: CreditOptions, weights: Tensor, mask: Tensor, positive: Tensor | None, negative: Tensor | None
) -> dict[str, float]:
    """Return numbers for the log: how concentrated the weights are, and how much contrast there was in nats."""
    valid = mask.bool()
    values = {
        f"credit/{name}": value for name, value in credits.statistics(weights, top=choices.top, mask=valid).items()
    }
    if positive is not None and negative is not None:
        contrast = credits.contrast(positive, negative, mask=valid)
        values["credit/contrast"] = float(contrast.mean())
        values["credit/below_floor"] = float((contrast < choices.floor).float().mean())
    return values


def _needed(values: Tensor | None, name: str) -> Tensor:
    if values is None:
        raise ValueError(f"this credit is made of {name}, which was not passed")
    return values
