"""Log-probs of aMUSEd's tokens, computed again: each in the state of the step that committed it.

P prompts, B rows, b rows of a forward pass, T tokens, c tokens of a step, V codebook, M branches folded in one batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from t2i_gcpo.generators.amused_parts import NULL, AmusedParts, TextEncoder, Texts, logits
from t2i_gcpo.generators.base import DISTRIBUTIONS
from t2i_gcpo.generators.policy import PolicyWeights
from t2i_gcpo.logprobs import entropy, selected_logprob
from t2i_gcpo.records import Rollout
from t2i_gcpo.sampling import behaviour_logits
from t2i_gcpo.unmasking import state


class StateScorer:
    """Scores a rollout's tokens with the policy as it is now."""

    def __init__(
        self, parts: AmusedParts, texts: TextEncoder, weights: PolicyWeights, *, gradient_checkpointing: bool
    ) -> None:
        self.parts, self.texts, self.weights = parts, texts, weights
        self.gradient_checkpointing = gradient_checkpointing

    def token_logprobs(self, rollout: Rollout, prompt: str | list[str], distribution: str) -> Tensor:
        """[B, T] fp32; see `Amused.token_logprobs`."""
        if distribution not in DISTRIBUTIONS:
            raise ValueError(f"distribution is {distribution!r}; allowed: {', '.join(DISTRIBUTIONS)}")
        sampling = rollout.sampling
        texts = self._row_texts(rollout, prompt)
        guided = distribution != "conditional" and sampling.guidance != 1
        null = self.texts([NULL] * rollout.batch) if guided else None

        def score(states: Tensor, index: Tensor, chosen: Tensor) -> Tensor:
            """Log-probs [B, c] of the tokens `chosen` [B, c] at positions `index` [B, c]."""
            unconditional = None
            if null is not None and distribution == "guided":
                both = self._logits(repeat(states, "b t -> (m b) t", m=2), texts.cat(null))
                conditional, unconditional = rearrange(_at(both, index.repeat(2, 1)), "(m b) c v -> m b c v", m=2)
            else:
                conditional = _at(self._logits(states, texts), index)
                if null is not None:
                    with torch.no_grad():
                        unconditional = _at(self._logits(states, null), index)
            if distribution == "conditional":
                return selected_logprob(conditional, chosen)
            mixed = behaviour_logits(
                conditional,
                unconditional,
                guidance=sampling.guidance,
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                keep=chosen,
            )
            return selected_logprob(mixed, chosen)

        return self._by_step(rollout, score)

    def token_entropy(self, rollout: Rollout) -> Tensor:
        """[B, T] fp32; see `Amused.token_entropy`."""
        texts = self._row_texts(rollout, "positive")

        def score(states: Tensor, index: Tensor, chosen: Tensor) -> Tensor:
            return entropy(_at(self._logits(states, texts), index))

        return self._by_step(rollout, score)

    def _logits(self, states: Tensor, texts: Texts) -> Tensor:
        """[b, T, V] of the policy, or of the wrapper that it is trained through."""
        policy: nn.Module = self.weights.module
        return logits(policy, states, texts, self.parts.grid, self.parts.pixels)

    def _by_step(self, rollout: Rollout, score: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """[B, T]: `score` of each step's state and the tokens that it committed."""
        device = self.texts.device
        tokens, commit = rollout.tokens.to(device), rollout.commit_step.to(device)
        # Every row commits equally many tokens at a step, so those of one step are a [B, c] block of this order.
        order = commit.argsort(dim=1, stable=True)
        sizes = torch.bincount(commit[0], minlength=int(commit.max()) + 1).tolist()
        blocks = []
        for step, index in enumerate(order.split(sizes, dim=1)):
            arguments = (state(tokens, commit, step, self.parts.mask_token), index, tokens.gather(1, index))
            if self.gradient_checkpointing and torch.is_grad_enabled():
                blocks.append(checkpoint(score, *arguments, use_reentrant=False, preserve_rng_state=False))
            else:
                blocks.append(score(*arguments))
        return torch.cat(blocks, dim=1).gather(1, order.argsort(dim=1))

    def _row_texts(self, rollout: Rollout, prompt: str | list[str]) -> Texts:
        """The texts [B] that `prompt` asks for."""
        if isinstance(prompt, str):
            if prompt not in ("positive", "negative"):
                raise ValueError(f'prompt is {prompt!r}; allowed: "positive", "negative", or a list of texts')
            found = [item.text for item in rollout.prompts]
            if prompt == "negative":
                found = list(rollout.negative_prompts or [NULL] * len(rollout.prompts))
        else:
            found = list(prompt)
        if len(found) not in (len(rollout.prompts), rollout.batch):
            raise ValueError(
                f"{len(found)} texts for {len(rollout.prompts)} prompts and {rollout.batch} rows; pass one for each"
            )
        copies = rollout.sampling.group_size if len(found) == len(rollout.prompts) else 1
        return self.texts([text for text in found for _ in range(copies)])


def _at(found: Tensor, index: Tensor) -> Tensor:
    """Logits [b, T, V] at the positions `index` [b, c]: [b, c, V]."""
    return found.gather(1, repeat(index, "b c -> b c v", v=found.shape[-1]))
