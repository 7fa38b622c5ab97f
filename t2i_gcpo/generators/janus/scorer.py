"""Compute the teacher-forced log-probs of Janus' tokens.

P prompts, B rows, L columns of prompt, T tokens, V codebook, D hidden width. Hidden states exist at all L + T - 1
columns, logits only for a chunk of tokens at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from t2i_gcpo.generators.base import DISTRIBUTIONS, row_texts
from t2i_gcpo.generators.janus.prompts import Encoded, PromptEncoder
from t2i_gcpo.generators.policy_weights import PolicyWeights
from t2i_gcpo.generators.tokens.logprobs import token_entropy, token_logprob
from t2i_gcpo.records import Rollout


class RowScorer:
    """Score a rollout's tokens with the policy as it is now."""

    def __init__(self, model: Any, encoder: PromptEncoder, weights: PolicyWeights, *, head_chunk: int) -> None:
        self.model = model
        self.encoder = encoder
        self.weights = weights
        self.head_chunk = head_chunk

    def token_logprobs(self, rollout: Rollout, prompt: str | list[str], distribution: str) -> Tensor:
        """Compute the log-probs [B, T] fp32 that `Janus.token_logprobs` describes."""
        if distribution not in DISTRIBUTIONS:
            raise ValueError(f"distribution is {distribution!r}; allowed: {', '.join(DISTRIBUTIONS)}")
        conditional, null = self._encode_rows(rollout, prompt)
        head = self.model.model.generation_head
        tokens = rollout.tokens.to(self.encoder.device)
        policy = self.weights.module
        if distribution == "conditional":
            return token_logprob(self._hidden(policy, conditional, tokens), head, tokens, chunk=self.head_chunk)
        sampling = rollout.sampling
        unconditional = None
        if sampling.guidance == 1:
            hidden = self._hidden(policy, conditional, tokens)
        elif distribution == "guided":
            both = self._hidden(policy, conditional.cat(null), repeat(tokens, "b t -> (n b) t", n=2))
            hidden, unconditional = rearrange(both, "(n b) t d -> n b t d", n=2)
        else:
            hidden = self._hidden(policy, conditional, tokens)
            with torch.no_grad():
                unconditional = self._hidden(policy, null, tokens)
        return token_logprob(
            hidden,
            head,
            tokens,
            unconditional=unconditional,
            guidance=sampling.guidance,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            chunk=self.head_chunk,
        )

    @torch.no_grad()
    def token_entropy(self, rollout: Rollout) -> Tensor:
        """Compute the entropies [B, T] fp32 that `Janus.token_entropy` describes."""
        conditional, _ = self._encode_rows(rollout, "positive")
        tokens = rollout.tokens.to(self.encoder.device)
        hidden = self._hidden(self.weights.module, conditional, tokens)
        return token_entropy(hidden, self.model.model.generation_head, chunk=self.head_chunk)

    def _encode_rows(self, rollout: Rollout, prompt: str | list[str]) -> tuple[Encoded, Encoded]:
        """Encode the conditional rows [B, L] that `prompt` asks for, and their null rows."""
        asked = row_texts(rollout, prompt)
        texts = [owner.text for owner in rollout.row_prompts] if asked is None else asked
        place = {text: index for index, text in enumerate(dict.fromkeys(texts))}
        rows = torch.tensor([place[text] for text in texts], device=self.encoder.device)
        encoded = self.encoder.encode(list(place)).take(rows)
        null = self.encoder.null(encoded)
        return (null if asked is None else encoded), null

    def _hidden(self, policy: nn.Module, prompts: Encoded, tokens: Tensor) -> Tensor:
        """Compute the hidden states [b, T, D] that predict `tokens` [b, T] after `prompts` [b, L]."""
        words: Any = self.weights.unwrapped().get_input_embeddings()
        embeds = torch.cat(
            [words(prompts.ids), self.model.prepare_embeddings_for_image_generation(tokens[:, :-1])], dim=1
        )
        mask = nn.functional.pad(prompts.mask, (0, tokens.shape[1] - 1), value=True).long()
        output = policy(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            use_cache=False,
        )
        return output.last_hidden_state[:, -tokens.shape[1] :]
