"""Score completions under other prompts.

Here are padded ids, and the KL between two prompts' distributions over the whole vocabulary.

B rows, P prompt tokens (left-padded), T completion tokens (right-padded), V vocabulary, H hidden features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Tokens whose logits are in memory at once, for both prompts: 256 times a vocabulary of 150,000 are 150 MB each in
#: fp32.
CHUNK = 256
#: Fields of a config by which some models change their logits after the head.
AFTER_HEAD = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


@dataclass(frozen=True)
class PaddedPrompts:
    """Holds the padded prompts of one batch."""

    ids: Tensor
    """[B, P] int64, left-padded."""
    mask: Tensor
    """[B, P] int64, 1 = a token of the prompt."""

    def with_completion(self, completion_ids: Tensor, completion_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return ids and attention mask of prompt and completion, [B, P + T] each."""
        return torch.cat([self.ids, completion_ids], dim=1), torch.cat([self.mask, completion_mask], dim=1)


def pad_prompts(prompts: Sequence[Sequence[int]], pad: int, device: torch.device | str = "cpu") -> PaddedPrompts:
    """Left-pad token ids to one length. ValueError: an empty prompt, after which the first token has no log-prob."""
    length = max(map(len, prompts))
    if min(map(len, prompts)) == 0:
        raise ValueError("a prompt has no token at all, so the first token of its completion has no log-prob")
    ids = torch.tensor([[pad] * (length - len(row)) + list(row) for row in prompts], device=device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in prompts], device=device)
    return PaddedPrompts(ids, mask)


def refuse_changed_logits(config: Any) -> None:
    """Raise a ValueError for a model that changes its logits after the head, where `exact_kl` takes them."""
    text_config = config.get_text_config()
    changed = {name: value for name in AFTER_HEAD if (value := text_config.to_dict().get(name)) not in (None, 1, 1.0)}
    if changed:
        raise ValueError(
            "divergence='exact_kl' reads the logits from the model's head, and this model changes them after it "
            f"({changed}); take one of the other divergences"
        )


@torch.no_grad()
def exact_kl(
    model: Any,
    positive: PaddedPrompts,
    negative: PaddedPrompts,
    completion_ids: Tensor,
    completion_mask: Tensor,
    *,
    temperature: float = 1.0,
    rows: int | None = None,
    chunk: int = CHUNK,
) -> Tensor:
    """Return KL(p(. | prompt) || p(. | negative prompt)) at each position of the completions, nats.

    [B, T] fp32, 0 where masked.

    It depends on the tokens before a position and not on the one that was drawn there. `rows`: completions in one
    forward pass (None: all); `chunk`: tokens whose logits [chunk, V] are in memory at once.
    """
    values = []
    for start in range(0, len(completion_ids), rows or len(completion_ids)):
        part = slice(start, start + (rows or len(completion_ids)))
        ids, mask = completion_ids[part], completion_mask[part]
        hidden = [
            _hidden(model, PaddedPrompts(prompt.ids[part], prompt.mask[part]), ids, mask)
            for prompt in (positive, negative)
        ]
        valid = mask.bool()
        flat = _kl_of_hidden(model, hidden[0][valid], hidden[1][valid], temperature, chunk)
        values.append(torch.zeros(ids.shape, device=ids.device).masked_scatter(valid, flat))
    return torch.cat(values)


def _hidden(model: Any, prompt: PaddedPrompts, completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Return the features [b, T, H] that each token of the completion is predicted from."""
    ids, mask = prompt.with_completion(completion_ids, completion_mask)
    backbone = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    return backbone.last_hidden_state[:, -completion_ids.shape[1] - 1 : -1]


def _kl_of_hidden(model: Any, positive: Tensor, negative: Tensor, temperature: float, chunk: int) -> Tensor:
    """Return the KL of each pair of rows, [N, H] -> [N] fp32."""
    head = model.get_output_embeddings()
    parts = [torch.zeros(0, device=positive.device)]
    for start in range(0, len(positive), chunk):
        p, q = (
            torch.log_softmax(head(features[start : start + chunk]).float() / temperature, dim=-1)
            for features in (positive, negative)
        )
        parts.append((p.exp() * (p - q)).sum(dim=-1).clamp(min=0))
    return torch.cat(parts)
