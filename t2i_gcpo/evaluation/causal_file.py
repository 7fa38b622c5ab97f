"""The file of a measured influence: the images' tokens, their log-probs, and what each token does to the reward.

N images, T tokens. It is a safetensors file, so reading it runs nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from einops import rearrange
from torch import Tensor

from t2i_gcpo.evaluation.causal_influence import Influence
from t2i_gcpo.evaluation.intervals import Estimates, estimate
from t2i_gcpo.records import Prompt, Rollout, Sampling
from t2i_gcpo.utils.files import write_atomically

_ROLLOUT = ("tokens", "logprob_positive", "logprob_negative", "logprob_behaviour", "commit_step")
_WHOLE = ("tokens", "commit_step")
"""Arrays of whole numbers, which take half the room in the file."""
_STAT = "stats."


@dataclass(frozen=True)
class Truth:
    """Holds images of a checkpoint and the influence of their tokens."""

    rollout: Rollout
    """N images in groups, on the CPU, with contrast and statistics."""
    influence: Influence
    images: Tensor
    """[N, 3, H, W] uint8."""
    scores: Tensor
    """[N] fp32, the images' own rewards."""
    about: dict[str, Any] = field(default_factory=dict)
    """Checkpoint, prompts, reward and the other settings."""

    @property
    def reward_variance(self) -> Estimates:
        """Return the variance of the reward under a prompt, which the tokens of an image decide in sum.

        From the images of each prompt, with the interval over prompts.
        """
        spread = rearrange(self.scores, "(p g) -> p g", g=self.rollout.sampling.group_size).double().var(dim=1)
        prompts = self.rollout.prompts
        return estimate(spread.tolist(), [one.text for one in prompts], [one.task for one in prompts])

    def save(self, path: Path) -> Path:
        """Write everything into one file."""
        from safetensors.torch import save

        rollout, sampling = self.rollout.cpu(), self.rollout.sampling
        tensors = {name: vars(rollout)[name] for name in _ROLLOUT}
        tensors |= {_STAT + name: value for name, value in rollout.stats.items()}
        tensors |= {name: vars(rollout)[name].int() for name in _WHOLE}
        tensors |= {"variance": self.influence.variance, "halves": self.influence.halves}
        tensors |= {"images": self.images, "scores": self.scores}
        texts = {
            "prompts": [[prompt.text, prompt.metadata] for prompt in rollout.prompts],
            "grid": list(rollout.grid),
            "group_size": sampling.group_size,
            "guidance": sampling.guidance,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            "drawn": self.influence.drawn,
            "about": self.about,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = {name: value.contiguous() for name, value in tensors.items()}
        return write_atomically(path, save(whole, {"influence": json.dumps(texts)}))

    @classmethod
    def load(cls, path: Path) -> Truth:
        """Read a file that `save` wrote. ValueError for any other."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                texts = json.loads((file.metadata() or {})["influence"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return cls._of(tensors, texts)
        except (OSError, SafetensorError, KeyError, TypeError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"{path} is no measured influence ({error!r}); write one with: t2i-gcpo credit-truth --checkpoint ..."
            ) from error

    @classmethod
    def _of(cls, tensors: dict[str, Tensor], texts: dict[str, Any]) -> Truth:
        stats = {name.removeprefix(_STAT): value for name, value in tensors.items() if name.startswith(_STAT)}
        sampling = Sampling(
            guidance=texts["guidance"],
            temperature=texts["temperature"],
            top_k=texts["top_k"],
            top_p=texts["top_p"],
            group_size=texts["group_size"],
            seed=texts["seed"],
            stats=tuple(stats),
        )
        rollout = Rollout(
            tokens=tensors["tokens"].long(),
            logprob_positive=tensors["logprob_positive"],
            logprob_negative=tensors["logprob_negative"],
            logprob_behaviour=tensors["logprob_behaviour"],
            commit_step=tensors["commit_step"].long(),
            prompts=tuple(Prompt(text, metadata) for text, metadata in texts["prompts"]),
            grid=tuple(texts["grid"]),
            sampling=sampling,
            stats=stats,
        )
        shape = rollout.tokens.shape
        influence = Influence(tensors["variance"], tensors["halves"], texts["drawn"])
        of_tokens = [value for name, value in tensors.items() if name not in ("halves", "images", "scores")]
        wrong = {tuple(value.shape) for value in [*of_tokens, *influence.halves]} - {tuple(shape)}
        if wrong or shape[0] != len(rollout.row_prompts) or shape[1] != rollout.grid[0] * rollout.grid[1]:
            raise ValueError(
                f"arrays of {shape[0]} images with a grid of {rollout.grid} do not fit one another: {wrong}"
            )
        return cls(rollout, influence, tensors["images"], tensors["scores"], texts["about"])
