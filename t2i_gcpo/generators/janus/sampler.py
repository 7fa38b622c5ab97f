"""The step loop of Janus: every branch of every row one token further, with constant shapes so that it compiles.

R rows sampled at once, Q distinct prompts among them, N branches folded in one batch (the prompt, then where wanted the
null prompt and a negative prompt), L columns of prompt, T tokens, V codebook, D hidden width. Branch n of row r is row
n * R + r of the folded batch.

The prompt without its last token (BOI) is prefilled once per distinct prompt and copied to the rows of its group; then
T steps feed BOI and the tokens drawn so far. Rows that have their first S tokens already are prefilled with these, but
for the last, and take the T - S other steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from t2i_gcpo.generators.compilation import ShapeCache, compiled
from t2i_gcpo.generators.janus import row_attention
from t2i_gcpo.generators.janus.graph_step import WARM_UP, GraphStep
from t2i_gcpo.generators.janus.head import Fp32Head
from t2i_gcpo.generators.janus.kv_cache import Buffers, GrowingCache
from t2i_gcpo.generators.janus.prompts import Encoded
from t2i_gcpo.generators.tokens.branches import Branches, SampledRows, choice, choose
from t2i_gcpo.records import Sampling

#: Where the step is compiled, the prompts' width is rounded up to this many columns: prompts of like lengths share one
#: shape.
WIDTH_MULTIPLE = 16

#: From so many operations on, inductor keeps a value that is read several times instead of working it out anew (its
#: default: 30). At 5 the rotary cosines and sines are kept, which otherwise take most of the time of the attention
#: scores.
REALIZE_FROM = 5


@dataclass
class _Shape:
    """The buffers of one shape, and the step that reads them."""

    cache: GrowingCache
    positions: Tensor
    """[N R, 1] int64."""
    advance: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, dict[str, Tensor]]]
    """Input embeddings [N R, 1, D], noise [R] or [R, V] -> the next input embeddings, tokens [R] and their records [R];
    writes the cache's open column. From the language model to the drawn token in one function: so it compiles into one
    graph."""


class StepSampler:
    """Sample rows with the model's own forward pass, and keep compiled steps and their caches between calls."""

    def __init__(self, model: Any, head: Fp32Head, length: int, device: torch.device) -> None:
        """Take a `JanusForConditionalGeneration`, its head, the tokens T, `length`, and the device of its policy."""
        self.model, self.head, self.device = model, head, device
        self.length = length
        self.fused_attention = device.type != "cpu"
        """Whether torch's fused attention kernel reads the cache. On a CPU two plain matrix products do: for one query
        they are nearly twice as fast."""
        self.row_attention = device.type == "cuda"
        """Whether a compiled step reads the cache with FlexAttention: on CUDA, whose flash kernel takes no mask."""
        self.graphs = False
        """Whether a compiled step with FlexAttention is recorded as a CUDA graph."""
        self.buffers = Buffers()
        self.keys_in_one_piece = self.fused_attention
        """The layout of the cache; a fused kernel that is given the other one falls back to a slow one."""
        self._compiled: ShapeCache[_Shape] = ShapeCache()

    @torch.no_grad()
    def draw_rows(
        self,
        policy: nn.Module,
        prompts: Encoded,
        owner: Tensor,
        noise: Callable[[int], Tensor],
        sampling: Sampling,
        branches: Branches,
        *,
        compile: bool,
        begun: Tensor | None = None,
    ) -> SampledRows:
        """Sample R rows, from their first token or from where they are `begun`: T - S tokens each.

        `prompts`: the folded branches of the distinct prompts [N Q, L]; `owner` [R] the row's prompt in 0..Q-1; `noise`
        of a step as `choose` takes it; `begun` [Q, S] int64 the tokens that the rows of a prompt have already.
        `policy` is the language model, in eval mode.
        """
        rows, count = len(owner), branches.count
        begun = prompts.ids.new_zeros(len(prompts.ids) // count, 0) if begun is None else begun
        start = begun.shape[1]
        folded = repeat(torch.arange(count, device=owner.device), "n -> (n r)", r=rows) * (len(prompts.ids) // count)
        folded = folded + repeat(owner, "r -> (n r)", n=count)
        prefix = prompts.ids.shape[1] - 1
        now = noise(start)
        shape = self._shape(policy, len(folded), prefix, sampling, branches, now.ndim, compile)
        tokens, records = [], []
        with _attention(policy, self.kernel(compile=False)):
            last = self._prefill(policy, prompts, begun, folded, shape)
        with _attention(policy, self.kernel(compile=compile)):
            embeds, advance = last[folded], shape.advance
            for step in range(start, self.length):
                now = noise(step) if step > start else now
                shape.cache.open(prefix + step)
                with _guards_once(step - start):
                    if step - start == WARM_UP and self.graphs and self.kernel(compile=compile) == row_attention.NAME:
                        advance = GraphStep(advance, embeds, now)
                    embeds, token, record = advance(embeds, now)
                tokens.append(token)
                records.append(record)
                shape.positions.add_(1)
        shape.cache.close()
        by_name = {name: torch.stack([record[name] for record in records], dim=1) for name in records[0]}
        steps = repeat(torch.arange(start, self.length, device=owner.device), "t -> r t", r=rows).clone()
        return SampledRows(torch.stack(tokens, dim=1), by_name | {"commit_step": steps})

    def kernel(self, *, compile: bool) -> str:
        """Return the attention that reads the cache, by transformers' name.

        Not compiled, FlexAttention would make all scores one after the other; torch's masked kernel does not.
        """
        if self.row_attention and compile:
            return row_attention.NAME
        return "sdpa" if self.fused_attention else "eager"

    def end(self, *, compile: bool) -> None:
        """Give the keys' and values' memory back after a rollout: the update needs it.

        A CPU that has many rollouts before it keeps it, as new memory has to be mapped page by page there.
        """
        if not (compile and self.device.type == "cpu"):
            self.buffers.release()

    def _prefill(self, policy: nn.Module, prompts: Encoded, begun: Tensor, folded: Tensor, shape: _Shape) -> Tensor:
        """Run each distinct prompt with its tokens once, without the last of both: keys and values for all its rows.

        Returns the embeddings [N Q, 1, D] of that last one, BOI where there are no tokens.
        """
        from transformers import DynamicCache

        columns = prompts.ids.shape[1] - 1 + begun.shape[1]
        words = policy.get_input_embeddings()(prompts.ids)
        images = repeat(
            self.model.prepare_embeddings_for_image_generation(begun), "q s d -> (n q) s d", n=len(words) // len(begun)
        )
        embeds = torch.cat([words, images.to(words.dtype)], dim=1)
        mask = nn.functional.pad(prompts.mask, (0, begun.shape[1]), value=True)
        positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        shape.positions.copy_(positions[folded, -1:])
        once = DynamicCache(config=self.model.config.text_config)
        policy(
            inputs_embeds=embeds[:, :columns],
            attention_mask=mask[:, :columns].long(),
            position_ids=positions[:, :columns],
            past_key_values=once,
            use_cache=True,
        )
        shape.cache.start(
            [layer.keys for layer in once.layers],
            [layer.values for layer in once.layers],
            mask[:, :columns],
            folded,
        )
        return embeds[:, columns:]

    def _shape(
        self,
        policy: nn.Module,
        rows: int,
        prefix: int,
        sampling: Sampling,
        branches: Branches,
        noise: int,
        compile: bool,
    ) -> _Shape:
        """Return buffers and step for a folded batch; compiled ones are kept, as new ones would be compiled anew.

        noise: the dimensions of a step's noise.
        """
        if not compile:
            return self._new_shape(policy, rows, prefix, sampling, branches, self.kernel(compile=False))

        def build() -> _Shape:
            shape = self._new_shape(policy, rows, prefix, sampling, branches, self.kernel(compile=True))
            options = {"realize_opcount_threshold": REALIZE_FROM} if self.device.type == "cpu" else {}
            shape.advance = compiled(shape.advance, f"advance_{rows}_{prefix}_{noise}", **options)
            return shape

        layout = (self.kernel(compile=True), self.keys_in_one_piece)
        key = (id(policy), rows, prefix, choice(sampling), branches, noise, layout)
        return self._compiled.get_or_build(key, build)

    def _new_shape(
        self, policy: nn.Module, rows: int, prefix: int, sampling: Sampling, branches: Branches, kernel: str
    ) -> _Shape:
        if kernel == row_attention.NAME:
            row_attention.register()
        text = self.model.config.text_config
        weight = policy.get_input_embeddings().weight
        cache = GrowingCache(
            text.num_hidden_layers,
            rows,
            text.num_key_value_heads,
            prefix + self.length,
            text.head_dim or text.hidden_size // text.num_attention_heads,
            dtype=weight.dtype,
            device=weight.device,
            keys_in_one_piece=self.keys_in_one_piece,
            whole=kernel == row_attention.NAME,
            buffers=self.buffers,
        )
        positions = torch.zeros(rows, 1, dtype=torch.long, device=weight.device)
        head = self.head
        embed = self.model.prepare_embeddings_for_image_generation

        def advance(embeds: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            output = policy(
                inputs_embeds=embeds,
                attention_mask=cache.mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
            logits = rearrange(head(output.last_hidden_state[:, -1]), "(n r) v -> n r v", n=branches.count)
            token, record = choose(logits, noise, sampling, branches)
            following = repeat(embed(rearrange(token, "r -> r 1")), "r 1 d -> (n r) 1 d", n=branches.count)
            return following, token, record

        return _Shape(cache, positions, advance)


@contextmanager
def _attention(policy: nn.Module, name: str) -> Iterator[None]:
    """Let the policy compute its attention in one of transformers' ways: "eager" is two plain matrix products."""
    config: Any = policy.config
    chosen = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = chosen


def _guards_once(step: int) -> AbstractContextManager[Any]:
    """Let torch check only at a rollout's first step that what was compiled still holds: nothing changes after it."""
    return torch.compiler.set_stance("default", skip_guard_eval_unsafe=step > 0)
