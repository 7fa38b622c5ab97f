"""The paper's rollout and step written plainly (2605.29198's code), as what our own are timed against.

A growing cache, one eager forward pass a token, and no masks: it attends to the padding, as the paper's code does. The
step computes logits over the whole codebook for the policy, the negative branch and the reference. Its slow ranks in
Python are left out: token weights are ours. P prompts, G images a prompt, B = P * G rows, T tokens, V codebook.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from einops import repeat
from torch import Tensor, nn

from t2i_gcpo import credit, losses
from t2i_gcpo.advantages import group_advantages
from t2i_gcpo.generators.janus.adapter import Janus
from t2i_gcpo.generators.janus.prompts import Encoded
from t2i_gcpo.records import Prompt, Sampling
from t2i_gcpo.training.master_weights import MasterWeights


@torch.no_grad()
def sample(generator: Janus, prompts: Sequence[Prompt], sampling: Sampling) -> Tensor:
    """Sample tokens [B, T] under guidance, both branches in one batch."""
    from transformers import DynamicCache

    model, policy = generator.model, generator.policy
    rows = encoded(generator, prompts, sampling.group_size)
    both = rows.cat(generator.prompts.null(rows))
    rng = torch.Generator(generator.device).manual_seed(sampling.seed)
    cache, embeds, tokens = DynamicCache(config=model.config.text_config), words(generator, both.ids), []
    for _ in range(math.prod(generator.grid)):
        hidden = policy(inputs_embeds=embeds, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        conditional, unconditional = model.model.generation_head(hidden.to(head_dtype(generator))).chunk(2)
        chance = (unconditional + sampling.guidance * (conditional - unconditional)).softmax(dim=-1)
        tokens.append(torch.multinomial(chance, 1, generator=rng))
        embeds = model.prepare_embeddings_for_image_generation(repeat(tokens[-1], "b 1 -> (n b) 1", n=2))
    return torch.cat(tokens, dim=1)


class PlainStep:
    """Update the policy once from a rollout of its own: GRPO's loss with GCPO's weights and a KL term."""

    def __init__(self, generator: Janus, sampling: Sampling, *, micro_batch: int, lr: float, kl_coef: float) -> None:
        """Set up the optimiser. The reference is what the generator keeps."""
        self.generator, self.sampling = generator, sampling
        self.micro_batch, self.kl_coef = micro_batch, kl_coef
        self.weights = MasterWeights(generator.trainable_parameters())
        self.optimizer = torch.optim.AdamW(self.weights.masters, lr=lr)

    def __call__(self, prompts: Sequence[Prompt], reward: Callable[[Tensor], Tensor]) -> float:
        """Take a step and return the loss; `reward` maps images [B, 3, H, W] to B numbers."""
        tokens = sample(self.generator, prompts, self.sampling)
        scores = reward(self.generator.decode(tokens)).to(tokens.device)
        advantages = group_advantages(scores, self.sampling.group_size)
        rows = encoded(self.generator, prompts, self.sampling.group_size)
        self.weights.clear_gradients()
        total = 0.0
        for part in torch.arange(len(tokens), device=tokens.device).split(self.micro_batch):
            loss = self._loss(rows.take(part), tokens[part], advantages[part]) * len(part) / len(tokens)
            loss.backward()
            self.weights.add_gradients()
            total += float(loss.detach())
        self.optimizer.step()
        self.weights.write_back()
        return total

    def _loss(self, rows: Encoded, tokens: Tensor, advantages: Tensor) -> Tensor:
        logprob = self._logprobs(rows, tokens)
        with torch.no_grad():
            negative = self._logprobs(self.generator.prompts.null(rows), tokens)
            with self.generator.reference():
                reference = self._logprobs(rows, tokens)
        weights = credit.token_weights(logprob.detach(), negative)
        ratio = (logprob - logprob.detach()).exp()
        held = losses.kl_weights(weights) * losses.kl(logprob, reference)
        return (-ratio * weights * advantages[:, None] + self.kl_coef * held).mean()

    def _logprobs(self, rows: Encoded, tokens: Tensor) -> Tensor:
        """Compute the conditional log-probs [b, T] by way of all logits [b, T, V]."""
        generator = self.generator
        image = generator.model.prepare_embeddings_for_image_generation(tokens[:, :-1])
        embeds = torch.cat([words(generator, rows.ids), image], dim=1)
        hidden = generator.policy(inputs_embeds=embeds, use_cache=False).last_hidden_state[:, -tokens.shape[1] :]
        logits = generator.model.model.generation_head(hidden.to(head_dtype(generator)))
        return logits.log_softmax(dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1).float()


def encoded(generator: Janus, prompts: Sequence[Prompt], group_size: int) -> Encoded:
    """Encode the prompts of all B rows."""
    once = generator.prompts.encode([prompt.text for prompt in prompts])
    owner = repeat(torch.arange(len(prompts), device=once.ids.device), "p -> (p g)", g=group_size)
    return once.take(owner)


def words(generator: Janus, ids: Tensor) -> Tensor:
    """Return the embeddings of token ids."""
    table: nn.Module = generator.model.model.language_model.get_input_embeddings()
    return table(ids)


def head_dtype(generator: Janus) -> torch.dtype:
    """Return the dtype that the head computes in."""
    dtype: torch.dtype = generator.model.model.generation_head.proj_out.weight.dtype
    return dtype
