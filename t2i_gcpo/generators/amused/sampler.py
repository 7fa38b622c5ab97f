"""The sampling loop of aMUSEd: candidates for every masked token, the best of them committed, step by step.

R rows, T tokens, N steps, V codebook, M branches folded in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from t2i_gcpo.generators.amused.likelihoods import step_gain
from t2i_gcpo.generators.amused.parts import NULL, AmusedParts, TextEncoder, Texts, logits
from t2i_gcpo.generators.amused.scorer import STEP_GAIN
from t2i_gcpo.generators.compilation import ShapeCache, compiled
from t2i_gcpo.generators.tokens.branches import Branches, SampledRows, choice, choose
from t2i_gcpo.generators.tokens.sampling import row_noise
from t2i_gcpo.generators.tokens.unmasking import annealed, newly_committed, state, still_masked
from t2i_gcpo.records import Prompt, Sampling

Predict = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, dict[str, Tensor]]]
"""States [R, T], the folded branches' texts, noise [R, T] and the masked positions [R, c] -> candidates [R, T] and
their records [R, T]: from the transformer to the drawn token in one function, so that it compiles into one graph.
Without positions it draws for all, which is one shape for all steps; with them only where there is a mask, and gives 0
elsewhere."""


class StepSampler:
    """Sample rows of tokens, with the records of each token."""

    def __init__(self, parts: AmusedParts, texts: TextEncoder, *, with_gain: bool = False) -> None:
        """Take the parts and their text encoder.

        with_gain: record `step_gain`, that of a token's step, from the candidates of all steps, which are kept until
        then.
        """
        self.parts, self.texts, self.with_gain = parts, texts, with_gain
        self._compiled: ShapeCache[Predict] = ShapeCache()

    def draw(
        self,
        policy: nn.Module,
        prompts: Sequence[Prompt],
        negatives: Sequence[str] | None,
        sampling: Sampling,
        rows: Sequence[tuple[int, int]],
        prompt_indices: Sequence[int],
        *,
        compile: bool,
    ) -> SampledRows:
        """Sample the rows (prompt, image); `commit_step` is among their records. ValueError: more steps than tokens."""
        plan, device = sampling.unmasking, self.texts.device
        length = self.parts.grid[0] * self.parts.grid[1]
        counts = (length, *still_masked(plan.steps, length, plan.schedule))
        texts, branches = self._branches(
            [prompts[p].text for p, _ in rows], negatives and [negatives[p] for p, _ in rows], sampling
        )
        indices = [(prompt_indices[p], g) for p, g in rows]
        noise = row_noise(sampling.seed, indices, 2 * plan.steps * length, device=device)
        noise = rearrange(noise, "r (n two t) -> n two r t", n=plan.steps, two=2)
        predict = self._predict(policy, len(rows), sampling, branches, compile)
        tokens = torch.zeros(len(rows), length, dtype=torch.long, device=device)
        commit = torch.full_like(tokens, plan.steps)
        records: dict[str, Tensor] = {}
        predictions: list[Tensor] = []
        for step in range(plan.steps):
            states = state(tokens, commit, step, self.parts.mask_token)
            masked = commit == plan.steps
            where = None if compile else masked.int().argsort(dim=1, descending=True, stable=True)[:, : counts[step]]
            candidate, record = predict(states, texts.hidden, texts.pooled, noise[step, 0], where)
            if self.with_gain:
                predictions.append(torch.where(masked, candidate, tokens))
            new = newly_committed(
                record["behaviour"],
                masked,
                counts[step] - counts[step + 1],
                noise[step, 1],
                order=plan.order,
                temperature=annealed(step, plan.steps, (plan.temperature, 0.0)),
            )
            tokens, commit = torch.where(new, candidate, tokens), torch.where(new, step, commit)
            records = {name: torch.where(new, value, records.get(name, value)) for name, value in record.items()}
        if self.with_gain:
            gain = step_gain(torch.stack(predictions), self.parts.vqvae.quantize.embedding.weight)
            records[STEP_GAIN] = gain.gather(1, commit)
        return SampledRows(tokens, records | {"commit_step": commit})

    def _predict(self, policy: nn.Module, rows: int, sampling: Sampling, branches: Branches, compile: bool) -> Predict:
        """Return the function that draws one step's candidates; a compiled one is kept for the next call."""
        parts = self.parts

        def predict(
            states: Tensor, hidden: Tensor, pooled: Tensor, uniform: Tensor, where: Tensor | None
        ) -> tuple[Tensor, dict[str, Tensor]]:
            folded = repeat(states, "r t -> (m r) t", m=branches.count)
            scores = logits(policy, folded, Texts(hidden, pooled), parts.grid, parts.pixels)
            scores = rearrange(scores, "(m r) t v -> m r t v", m=branches.count)
            if where is None:
                return choose(scores, uniform, sampling, branches)
            index = torch.arange(len(where), device=where.device)[:, None], where
            candidate, record = choose(scores[:, index[0], index[1]], uniform[index], sampling, branches)
            everywhere = {name: torch.zeros_like(uniform).index_put(index, value) for name, value in record.items()}
            return torch.zeros_like(states).index_put(index, candidate), everywhere

        if not compile:
            return predict
        key = (id(policy), rows, choice(sampling), branches)
        return self._compiled.get_or_build(key, lambda: compiled(predict, f"predict_{rows}"))

    def _branches(self, texts: list[str], negatives: list[str] | None, sampling: Sampling) -> tuple[Texts, Branches]:
        """Encode the folded branches' texts [M R], and say which is which."""
        branches = Branches.of(sampling, negative=negatives is not None)
        others = [self.texts([NULL] * len(texts))] if branches.null is not None else []
        if negatives is not None and branches.contrast is not None:
            others.append(self.texts(negatives))
        return self.texts(texts).cat(*others), branches
