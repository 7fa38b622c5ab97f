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
from t2i_gcpo.generators.janus.head import Fp32Head
from t2i_gcpo.generators.janus.prompts import Encoded, PromptEncoder
from t2i_gcpo.generators.policy_weights import PolicyWeights
from t2i_gcpo.generators.tokens.events import EventScores, event_scores
from t2i_gcpo.generators.tokens.logprobs import token_entropy, token_logprob
from t2i_gcpo.generators.tokens.sampling import draw, sampled_logits
from t2i_gcpo.records import Events, Rollout, Sampling


class RowScorer:
    """Score a rollout's tokens with the policy as it is now."""

    def __init__(
        self, model: Any, encoder: PromptEncoder, weights: PolicyWeights, head: Fp32Head, *, head_chunk: int
    ) -> None:
        self.model = model
        self.head = head
        self.encoder = encoder
        self.weights = weights
        self.head_chunk = head_chunk

    def token_logprobs(self, rollout: Rollout, prompt: str | list[str], distribution: str) -> Tensor:
        """Compute the log-probs [B, T] fp32 that `Janus.token_logprobs` describes."""
        tokens = rollout.tokens.to(self.encoder.device)
        hidden, unconditional = self._branches(rollout, tokens, prompt, distribution)
        return token_logprob(
            hidden,
            self.head,
            tokens,
            unconditional=unconditional,
            chunk=self.head_chunk,
            **_options(rollout.sampling, distribution),
        )

    def event_scores(self, rollout: Rollout, distribution: str, events: Events) -> EventScores:
        """Compute the log-probs [B, T] fp32 of the tokens' events and of the tokens themselves.

        The events are those of the contrast with the rollout's negative prompts. The null prompt's branch, where there
        is guidance, serves for it; else the negative one is a forward pass of its own, without gradient.
        """
        tokens = rollout.tokens.to(self.encoder.device)
        hidden, unconditional = self._branches(rollout, tokens, "positive", distribution)
        negative = None
        if unconditional is None or row_texts(rollout, "negative") is not None:
            with torch.no_grad():
                negative = self._hidden(self.weights.module, self._encode_rows(rollout, "negative")[0], tokens)
        return event_scores(
            hidden,
            self.head,
            tokens,
            events=events,
            seed=rollout.sampling.seed,
            negative=negative,
            unconditional=unconditional,
            chunk=self.head_chunk,
            **_options(rollout.sampling, distribution),
        )

    def _branches(
        self, rollout: Rollout, tokens: Tensor, prompt: str | list[str], distribution: str
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the hidden states [B, T, D] of the prompt's branch and of the null prompt's, where it counts."""
        if distribution not in DISTRIBUTIONS:
            raise ValueError(f"distribution is {distribution!r}; allowed: {', '.join(DISTRIBUTIONS)}")
        conditional, null = self._encode_rows(rollout, prompt)
        policy = self.weights.module
        if distribution == "conditional" or rollout.sampling.guidance == 1:
            return self._hidden(policy, conditional, tokens), None
        if distribution == "guided":
            both = self._hidden(policy, conditional.cat(null), repeat(tokens, "b t -> (n b) t", n=2))
            hidden, unconditional = rearrange(both, "(n b) t d -> n b t d", n=2)
            return hidden, unconditional
        hidden = self._hidden(policy, conditional, tokens)
        with torch.no_grad():
            return hidden, self._hidden(policy, null, tokens)

    @torch.no_grad()
    def token_entropy(self, rollout: Rollout) -> Tensor:
        """Compute the entropies [B, T] fp32 that `Janus.token_entropy` describes."""
        conditional, _ = self._encode_rows(rollout, "positive")
        tokens = rollout.tokens.to(self.encoder.device)
        hidden = self._hidden(self.weights.module, conditional, tokens)
        return token_entropy(hidden, self.head, chunk=self.head_chunk)

    @torch.no_grad()
    def redraw(self, rollout: Rollout, uniform: Tensor) -> Tensor:
        """Draw the tokens [B, T, K] that `Janus.redraw` describes."""
        conditional, null = self._encode_rows(rollout, "positive")
        tokens, policy = rollout.tokens.to(self.encoder.device), self.weights.module
        guided = rollout.sampling.guidance != 1
        branches = [conditional, null] if guided else [conditional]
        rows = [rearrange(self._hidden(policy, branch, tokens), "b t d -> (b t) d") for branch in branches]
        asked = rearrange(uniform.to(tokens.device), "b t k -> (b t) k")
        own = rearrange(tokens, "b t -> (b t)")
        drawn = []
        for part in torch.arange(len(own), device=own.device).split(self.head_chunk):
            logits = [self.head(hidden[part]) for hidden in rows]
            behaviour = sampled_logits(logits[0], logits[1] if guided else None, rollout.sampling, keep=own[part])
            drawn.append(draw(repeat(behaviour, "n v -> n k v", k=asked.shape[1]), asked[part]))
        return torch.cat(drawn).view(*tokens.shape, -1)

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


def _options(sampling: Sampling, distribution: str) -> dict[str, Any]:
    """Return how logits become the distribution: as they are, or as tokens were drawn."""
    if distribution == "conditional":
        return {}
    return {name: vars(sampling)[name] for name in ("guidance", "temperature", "top_k", "top_p")}
