"""Defines the `git_vqa` reward: GIT is asked for each thing of the prompt.

B images, H, W their sides, K questions, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from rewards.base import Reward, RewardOutput, check_each
from rewards.models.batches import check_images, check_prompts, in_batches
from rewards.models.text_tokens import TextReader
from rewards.models.transformers_model import load_model, read_preprocess
from rewards.t2i_r1 import fields as t2i_r1

#: Tasks that GIT is not asked about, as in T2I-R1: it neither counts nor knows left from right.
NOT_ASKED = (t2i_r1.SPATIAL, t2i_r1.NUMERACY)


class GitVqaReward(Reward):
    """Scores how sure GIT (arXiv 2205.14100) is that each thing is in the picture, on average.

    It is T2I-R1's reward (arXiv 2505.00703), in [0, 1].

    Asked "red car?", it answers yes with p(yes) / (p(yes) + p(no)), from its next token. The things are the row's
    `attr_nouns` ("red car"), or its `nouns` where there are none. As in T2I-R1 a prompt without objects scores 1 and
    one of the tasks `spatial` and `numeracy` 0: both are the same for all of a prompt's pictures and teach nothing.
    Weights: `microsoft/git-large-vqav2`, MIT.

    Args:
        checkpoint: folder or hub repository of the `GitForCausalLM`, its tokenizer and preprocessing.
        revision: of the hub repository.
        dtype: float32, float16 or bfloat16; the answers are float32.
        batch_size: images at a time, each with all of its questions.

    Takes [B, 3, H, W] uint8 of any size; a picture that is not square is cropped. Part: `yes`, the score where there
    was a question, else NaN. ValueError: weights that are missing or do not fit, a row without nouns, images of another
    type.
    """

    name = "git_vqa"

    def __init__(
        self,
        *,
        checkpoint: str = "microsoft/git-large-vqav2",
        revision: str | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = 16,
    ) -> None:
        self.model, folder = load_model(
            "git_vqa", "GitForCausalLM", checkpoint, revision=revision, device=device, dtype=dtype
        )
        self.preprocess = read_preprocess("git_vqa", str(folder), side=self.model.config.vision_config.image_size)
        self.read = TextReader("git_vqa", str(folder), length=self.model.config.max_position_embeddings)
        self.yes, self.no = (self._answer(word) for word in ("yes", "no"))
        self.batch_size = batch_size

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> None:
        """Raise PromptError for the first row without the nouns that GIT is asked for."""
        check_each(lambda prompt, row: self._things(t2i_r1.Row("git_vqa", prompt, row or {})), prompts, metadata)

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        check_images(images, "git_vqa")
        check_prompts(images, prompts, "git_vqa")
        things = [self._things(row) for row in t2i_r1.rows("git_vqa", prompts, metadata)]
        scores = torch.tensor([0.0 if one is None else 1.0 for one in things])
        yes = torch.full_like(scores, torch.nan)
        asked = [index for index, one in enumerate(things) if one]
        if asked:
            questions = [[f"{thing}?" for thing in things[index] or ()] for index in asked]
            yes[asked] = in_batches(
                self._ask, images[asked], questions, batch_size=self.batch_size, name="git_vqa"
            ).cpu()
            scores[asked] = yes[asked]
        return RewardOutput(scores.to(images.device), {"yes": yes.to(images.device)})

    def _things(self, row: t2i_r1.Row) -> list[str] | None:
        """Return what to ask for, possibly nothing; None for tasks that GIT is not asked about."""
        if row.task in NOT_ASKED:
            return None
        return row.texts("attr_nouns") or row.nouns()

    @torch.no_grad()
    def _ask(self, images: Tensor, questions: list[list[str]]) -> Tensor:
        """Return the mean probability of yes [B] of images [B, 3, H, W] uint8 with one question at least."""
        most = max(map(len, questions))
        # Each picture is looked at once: GIT repeats the whole batch of pictures for a multiple of texts, so row = k·B
        # + b.
        filled = [[one[min(k, len(one) - 1)] for one in questions] for k in range(most)]
        tokens = {
            key: values.to(self.model.device)
            for key, values in self.read([text for part in filled for text in part]).items()
        }
        pixels = self.preprocess(images.to(self.model.device), self.model.dtype)
        hidden = self.model.git(pixel_values=pixels, **tokens).last_hidden_state
        # The picture's tokens come first. The last word's is before the end mark, which a causal model has not seen
        # there.
        last = hidden.shape[1] - tokens["input_ids"].shape[1] + tokens["attention_mask"].sum(dim=1) - 2
        logits = self.model.output(hidden[torch.arange(len(hidden), device=hidden.device), last]).float()
        yes = rearrange((logits[:, self.yes] - logits[:, self.no]).sigmoid(), "(k b) -> b k", k=most)
        counts = torch.tensor([len(one) for one in questions], device=yes.device)
        mine = torch.arange(most, device=yes.device) < rearrange(counts, "b -> b 1")
        return yes.where(mine, 0.0).sum(dim=1) / counts

    def _answer(self, word: str) -> int:
        """Return the token of a one-word answer."""
        tokenizer = self.read.tokenizer
        ids = tokenizer(word)["input_ids"]
        if (
            len(ids) != 3
            or ids[0] != tokenizer.cls_token_id
            or ids[2] != tokenizer.sep_token_id
            or (ids[1] == tokenizer.unk_token_id)
        ):
            raise ValueError(
                f"reward 'git_vqa': the tokenizer makes {ids} of {word!r}; one token between a start and an end is "
                "expected, as of BERT's; take the tokenizer of the model's own repository"
            )
        return int(ids[1])
