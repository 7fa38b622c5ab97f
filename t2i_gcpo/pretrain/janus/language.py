"""Train an embedded Janus' language model to predict the next image token after a prompt.

The prompt is dropped from a share of the rows in the way that guidance drops it when sampling (every token but the
first and the last becomes padding that is still attended to), so that one model holds both distributions.

B rows, L prompt tokens (left-padded to one length), T image tokens, V codebook.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i_gcpo.data.shapes.scene import Style
from t2i_gcpo.generators.compilation import can_compile
from t2i_gcpo.pretrain import float32_attention
from t2i_gcpo.pretrain.janus.layout import shown_layout, split_cross_entropy
from t2i_gcpo.pretrain.janus.layout_rows import LayoutRows
from t2i_gcpo.pretrain.optimisation import Optimisation
from t2i_gcpo.pretrain.scene_pairs import TASK_SHARE, VALIDATION_SCENES, draw_pairs, draw_prompts, encode_scenes

#: <bos>, at most ten words, <begin_of_image>, and one to spare.
PROMPT_LENGTH = 13


@dataclass(frozen=True)
class LanguageSettings:
    """Says how the language model is trained; the defaults made `janus-mini`."""

    steps: int = 2600
    batch: int = 48
    lr: float = 2e-3
    muon_lr: float = 3e-3
    warmup: int = 60
    weight_decay: float = 0.02
    dropped_prompts: float = 0.1
    dropped_words: float = 0.5
    short_prompts: float = 0.15
    ema: float = 0.998
    bfloat16: bool = True
    compile: bool = True
    seed: int = 0
    style: Style = "plain"
    layout_weight: float = 1.0
    """Weight in the loss of the layout that a token shows (`layout.py`); that of the code given its layout is 1 at
    most. With 1 for both the loss is cross-entropy."""
    layout_steps: int = 0
    """So many first steps learn the layouts alone (`layout_rows.py`); 0: codes share nothing."""
    ramp_steps: int = 0
    """Over so many steps after them the weight of the codes of a layout rises to 1."""
    task_share: Mapping[str, float] = field(default_factory=lambda: dict(TASK_SHARE))
    """The share of each task in the training scenes."""


def encode_prompts(texts: list[str], tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Encode texts to ids and attention mask, both `[B, L]` int64, left-padded, with <begin_of_image> at the end."""
    boi = tokenizer.convert_tokens_to_ids("<begin_of_image>")
    ids = torch.full((len(texts), PROMPT_LENGTH), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        encoded = [*tokenizer(text)["input_ids"], boi]
        ids[row, -len(encoded) :] = torch.tensor(encoded)
        mask[row, -len(encoded) :] = 1
    return ids, mask


class LanguageTrainer:
    """The training state and one step of it; `state_dict` holds everything that a resumed run needs."""

    def __init__(self, settings: LanguageSettings, model: Any, tokenizer: Any, codes: Tensor) -> None:
        self.settings, self.model, self.tokenizer, self.codes = settings, model, tokenizer, codes
        inner = model.model
        float32_attention.register()
        self.attention = inner.language_model.config._attn_implementation
        inner.language_model.config._attn_implementation = float32_attention.NAME
        self.modules = nn.ModuleDict(
            {
                "language_model": inner.language_model,
                "generation_embeddings": inner.generation_embeddings,
                "generation_aligner": inner.generation_aligner,
                "generation_head": inner.generation_head,
            }
        ).train()
        self.rows = LayoutRows(inner, codes, settings.seed) if settings.layout_steps else None
        self.layouts = shown_layout(codes) if self.rows is None else self.rows.layouts
        if self.rows is not None:
            self.modules["layout_rows"] = self.rows
        self.optimisation = Optimisation(
            self.modules,
            settings,
            lambda name, _: not any(part in name for part in ("embed", "vision_head", "layout_rows")),
        )
        self.rng = random.Random(settings.seed)
        held_out = draw_prompts(self.rng, VALIDATION_SCENES, "val", settings.task_share)
        self.validation = [p.text for p in held_out], encode_scenes(held_out, codes, self.rng, style=settings.style)
        compiled = settings.compile and can_compile(torch.device("cpu"))
        compile_ = torch.compile(dynamic=False) if compiled else lambda function: function
        self.scores, self.layout_scores = compile_(self._scores), compile_(self._layout_scores)

    @property
    def step_number(self) -> int:
        return self.optimisation.step_number

    def _scores(self, ids: Tensor, mask: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the cross-entropy of each image token's layout, and of it given its layout, each `[B, T]`."""
        embedding, head = self.model.model.generation_embeddings, self.model.model.generation_head.vision_head
        images, weight, bias = embedding(tokens[:, :-1]), head.weight, head.bias
        if self.rows is not None:
            images = images + self.rows.embed(tokens[:, :-1])
            weight, bias = weight + self.rows.weight[self.layouts], bias + self.rows.bias[self.layouts]
        logits = F.linear(self._states(ids, mask, images), weight, bias)
        return split_cross_entropy(logits, tokens, self.layouts)

    def _layout_scores(self, ids: Tensor, mask: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Compute what `_scores` does, of a model that sees layouts alone and draws the codes of each uniformly."""
        if self.rows is None:
            raise RuntimeError("the codes share no rows; the model learns layouts where layout_steps is above 0")
        states = self._states(ids, mask, self.rows.embed(tokens[:, :-1]))
        logits = F.linear(states, self.rows.weight, self.rows.bias).float()
        layouts = self.layouts[tokens]
        layout = F.cross_entropy(logits.flatten(0, 1), layouts.flatten(), reduction="none").view(tokens.shape)
        return layout, self.rows.log_sizes[layouts]

    def _states(self, ids: Tensor, mask: Tensor, images: Tensor) -> Tensor:
        """Compute the states [B, T, H] that the head's last layer reads, from embedded image tokens [B, T - 1, D]."""
        inner = self.model.model
        words = inner.language_model.get_input_embeddings()(ids)
        images = inner.generation_aligner(images)
        embeds = torch.cat([words, images.to(words.dtype)], dim=1)
        length = embeds.shape[1]
        seen = torch.cat([mask, mask.new_ones(images.shape[:2])], dim=1).bool()
        causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        # A padding row must see something, or its softmax is undefined: itself.
        allowed = causal & (seen[:, None, :] | torch.eye(length, dtype=torch.bool, device=ids.device))
        positions = (seen.long().cumsum(1) - 1).clamp(min=0)
        hidden = inner.language_model(
            inputs_embeds=embeds, attention_mask=allowed[:, None], position_ids=positions, use_cache=False
        ).last_hidden_state
        head = inner.generation_head
        states: Tensor = head.activation_fn(head.proj_out(hidden[:, ids.shape[1] - 1 :]))
        return states

    def _batch(self) -> tuple[Tensor, Tensor, Tensor]:
        settings = self.settings
        texts, tokens = draw_pairs(self.rng, self.codes, settings, style=settings.style, share=settings.task_share)
        ids, mask = encode_prompts(texts, self.tokenizer)
        dropped = torch.tensor([self.rng.random() < self.settings.dropped_prompts for _ in texts])
        inside = mask.bool() & (ids != self.tokenizer.bos_token_id)
        inside[:, -1] = False
        ids = ids.masked_fill(inside & dropped[:, None], self.tokenizer.pad_token_id)
        return ids, mask, tokens

    def _learns_layouts(self) -> bool:
        """Tell whether this step is one of those that learn the layouts alone."""
        return self.step_number < self.settings.layout_steps

    def _code_weight(self) -> float:
        """Return the weight of the codes of a layout in this step."""
        after = self.step_number - self.settings.layout_steps
        return 0.0 if after < 0 else min(1.0, (after + 1) / (self.settings.ramp_steps + 1))

    def step(self) -> dict[str, float | Tensor]:
        """Make one optimiser step; returns the cross-entropy of tokens, and of their layouts, in nats a token."""
        ids, mask, tokens = self._batch()
        scores = self.layout_scores if self._learns_layouts() else self.scores
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.settings.bfloat16):
            layout, code = (part.mean() for part in scores(ids, mask, tokens))
        norm = self.optimisation.step(self.settings.layout_weight * layout + self._code_weight() * code)
        return {"loss": (layout + code).detach(), "layout_loss": layout.detach(), "grad_norm": norm}

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Compute the loss of the averaged weights on scenes of prompts never trained on, nats a token."""
        kept = self.optimisation.load(self.optimisation.average)
        texts, tokens = self.validation
        ids, mask = encode_prompts(texts, self.tokenizer)
        scores = self._layout_scores if self._learns_layouts() else self._scores
        layout, code = scores(ids, mask, tokens.long())
        self.optimisation.load(kept)
        return float((layout + code).mean())

    def finished(self) -> Any:
        """Return the whole model in evaluation mode, with the averaged weights."""
        self.optimisation.load(self.optimisation.average)
        if self.rows is not None:
            self.rows.fold_into(self.model.model)
        self.model.model.language_model.config._attn_implementation = self.attention
        return self.model.eval()

    def state_dict(self) -> dict[str, Any]:
        return {**self.optimisation.state_dict(), "rng": self.rng.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimisation.load_state_dict(state)
        version, internal, gauss = state["rng"]
        self.rng.setstate((version, tuple(internal), gauss))
