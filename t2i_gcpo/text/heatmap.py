"""Collect what a text heatmap shows: each token's credit under each divergence, and the numbers behind it.

T tokens of one completion. What is drawn as the weight of the run's own divergence is the very tensor that the loss
used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from t2i_gcpo import credit
from t2i_gcpo.text.models import encode
from t2i_gcpo.text.negatives import check_different, negative_prompt
from t2i_gcpo.text.scoring import exact_kl, pad_prompts

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class TextHeatmap:
    """Holds one completion: its tokens, their weights under each divergence, and what these were made of."""

    prompt: str
    negative_prompt: str
    tokens: tuple[str, ...]
    logprob_positive: Numbers
    logprob_negative: Numbers
    weights: dict[str, Numbers]
    """Divergence -> token weights of mean 1; the first is the one to show."""
    divergences: dict[str, Numbers]
    """Divergence -> the raw contrast, nats."""
    entropy: Numbers | None = None
    """The model's uncertainty at each token, nats."""
    advantage: float | None = None
    """The completion's advantage within its group; None where there is none."""
    score: float | None = None
    label: str = ""

    def __post_init__(self) -> None:
        lengths = {len(self.tokens), len(self.logprob_positive), len(self.logprob_negative)}
        lengths |= {len(values) for values in (*self.weights.values(), *self.divergences.values())}
        if len(lengths) != 1:
            raise ValueError(f"a heatmap's rows have lengths {sorted(lengths)}; all must be the number of tokens")


@dataclass(frozen=True)
class Recipe:
    """Says how weights are made of a divergence, as in `credit.normalize`."""

    normalization: credit.Normalization = "rank"
    top: float = credit.DEFAULT_TOP
    mass: float = credit.DEFAULT_MASS
    floor: float = credit.DEFAULT_FLOOR

    def words(self) -> str:
        share = f", the top {self.top:.0%} carry {self.mass:.0%}" if self.normalization == "rank" else ""
        return f"{self.normalization}{share}; uniform below a mean contrast of {self.floor:g} nats"


def of_logprobs(
    positive: Tensor,
    negative: Tensor,
    *,
    recipe: Recipe,
    exact: Tensor | None = None,
    own: tuple[str, Tensor] | None = None,
    **about: Any,
) -> TextHeatmap:
    """Make the heatmap of one completion from its tokens' log-probs [T] under both prompts, nats.

    exact [T]: the KL over the whole vocabulary, where it is known. own: the divergence and the weights [T] that the
    loss used; shown first. about: the other fields of `TextHeatmap`.
    """
    positive, negative = positive.float().cpu(), negative.float().cpu()
    raw = {kind: credit.divergence(positive[None], negative[None], kind) for kind in get_args(credit.Divergence)}
    how: dict[str, Any] = {"normalization": recipe.normalization, "top": recipe.top, "mass": recipe.mass}
    weights = {
        kind: credit.token_weights(positive[None], negative[None], divergence=kind, floor=recipe.floor, **how)[0]
        for kind in get_args(credit.Divergence)
    }
    if exact is not None:
        raw["exact_kl"] = exact.float().cpu()[None]
        weights["exact_kl"] = credit.normalize(raw["exact_kl"], floor=recipe.floor**2 / 2, **how)[0]
    if own is not None:
        weights = {own[0]: own[1].float().cpu()} | {kind: w for kind, w in weights.items() if kind != own[0]}
    weights = {kind: values for kind, values in weights.items() if kind in raw}
    return TextHeatmap(
        logprob_positive=_numbers(positive),
        logprob_negative=_numbers(negative),
        weights={kind: _numbers(values) for kind, values in weights.items()},
        divergences={kind: _numbers(values[0]) for kind, values in raw.items()},
        **about,
    )


@torch.no_grad()
def describe(
    model: Any,
    tokenizer: Any,
    prompt: Any,
    completions: Sequence[Sequence[int]],
    *,
    negative: str = "wrong",
    recipe: Recipe | None = None,
    scores: Sequence[float] | None = None,
) -> list[TextHeatmap]:
    """Make the heatmaps of some completions (token ids) of one prompt.

    With scores, advantages are those of the completions as one group.

    ValueError: a negative prompt that equals the prompt, or no completion with a token.
    """
    from t2i_gcpo.advantages import group_advantages

    rows = [list(row) for row in completions if len(row)]
    if not rows:
        raise ValueError("there is no completion with a token to draw")
    against = negative_prompt(negative)(prompt)
    check_different([prompt], [against])
    both = encode(tokenizer, [prompt, against])
    length = max(map(len, rows))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=model.device)
    prompts = [pad_prompts([row] * len(rows), pad, model.device) for row in both]
    scored = []
    for padded in prompts:
        full_ids, full_mask = padded.with_completion(ids, mask)
        logits = (
            model(input_ids=full_ids, attention_mask=full_mask, use_cache=False).logits[:, -length - 1 : -1].float()
        )
        scored.append(logits.log_softmax(dim=-1))
    positive, negative_logps = (table.gather(-1, ids[..., None])[..., 0] for table in scored)
    entropy = -(scored[0].exp() * scored[0]).sum(dim=-1)
    exact = exact_kl(model, prompts[0], prompts[1], ids, mask)
    advantages = None if scores is None or len(scores) < 2 else group_advantages(torch.tensor(scores), len(scores))
    return [
        of_logprobs(
            positive[k, : len(row)], negative_logps[k, : len(row)], recipe=recipe or Recipe(),
            exact=exact[k, : len(row)], prompt=tokenizer.decode(both[0]), negative_prompt=tokenizer.decode(both[1]),
            tokens=token_texts(tokenizer, row), entropy=_numbers(entropy[k, : len(row)]),
            advantage=None if advantages is None else float(advantages[k]),
            score=None if scores is None else float(scores[k]), label=f"completion {k + 1}",
        )
        for k, row in enumerate(rows)
    ]  # fmt: skip


def token_texts(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """Return each token's text as it stands in the completion.

    Bytes that are no character of their own keep the tokenizer's name for them.
    """
    texts = []
    for token in ids:
        text = tokenizer.decode([token])
        texts.append(tokenizer.convert_ids_to_tokens(token) if "\ufffd" in text or not text else text)
    return tuple(texts)


def _numbers(values: Tensor) -> Numbers:
    return tuple(value if math.isfinite(value) else 0.0 for value in values.tolist())


__all__ = ["Recipe", "TextHeatmap", "describe", "of_logprobs", "token_texts"]
