"""Contrast images with part of their prompt, or with any other text, without drawing tokens anew.

One forward pass over tokens that are already there, none is drawn anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from t2i_gcpo.generators.base import ImageGenerator, as_negatives, in_chunks
from t2i_gcpo.heatmap.data import Heatmap, to_array
from t2i_gcpo.heatmap.views import as_rollout, reweigh

#: Of the rollout's statistics, those that contrast the prompt with the negative prompt over the whole codebook.
OF_THE_NEGATIVE_PROMPT = ("exact_kl", "js", "variance", "event")


def without(prompt: str, clause: str) -> str:
    """Return a prompt less one of its clauses, compared word by word.

    The negative prompt that shows which tokens the clause drives.

    `without("a photo of a ring and a star", "and a star")` is "a photo of a ring". ValueError: the clause is empty, not
    in the prompt, in it more than once, or all of it.
    """
    words, gone = prompt.split(), clause.split()
    if not gone:
        raise ValueError("the clause to remove is empty; name words of the prompt, such as 'and a blue star'")
    places = [k for k in range(len(words)) if words[k : k + len(gone)] == gone]
    if len(places) != 1 or len(gone) == len(words):
        found = f"{len(places)} times in" if places and len(gone) < len(words) else "all of" if places else "not in"
        raise ValueError(
            f"{clause!r} is {found} the prompt {prompt!r}; name words that stand in it once, and leave others"
        )
    return " ".join(words[: places[0]] + words[places[0] + len(gone) :])


@torch.no_grad()
def against(
    heatmap: Heatmap, generator: ImageGenerator, negative_prompts: str | Sequence[str], *, max_batch: int | None = 64
) -> Heatmap:
    """Contrast the same images and tokens with another text, one for all images or one each, and weigh them anew.

    The recipe of the weights stays.

    generator: the one that drew the images. max_batch: rows scored at once. Statistics of the old contrast over the
    whole codebook are dropped. ValueError: a number of texts that does not fit, words that the generator does not know,
    a recipe that needs what was dropped, or a heatmap without tokens.
    """
    if heatmap.tokens is None:
        raise ValueError("the heatmap holds no tokens, which the generator would score; draw it with tokens")
    texts = as_negatives(negative_prompts, len(heatmap))
    generator.check_prompts(texts)
    rollout = replace(as_rollout(heatmap), negative_prompts=texts)
    negative = in_chunks(
        lambda index: generator.token_logprobs(rollout.rows(index), prompt="negative").cpu(),
        torch.arange(len(heatmap)),
        max_batch,
    )
    kept = {name: values for name, values in heatmap.stats.items() if name not in OF_THE_NEGATIVE_PROMPT}
    changed = replace(
        heatmap, logprob_negative=to_array(negative), negative_prompts=np.array(texts, dtype=str), stats=kept
    )
    return reweigh(changed)
