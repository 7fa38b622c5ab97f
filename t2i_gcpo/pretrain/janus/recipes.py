"""List the embedded Janus models, each with the settings of its two stages."""

from __future__ import annotations

from dataclasses import dataclass, replace

from t2i_gcpo.pretrain.janus.language import LanguageSettings
from t2i_gcpo.pretrain.janus.model import LanguageModelShape, VQSettings


@dataclass(frozen=True)
class Recipe:
    """Says how one checkpoint is trained."""

    name: str
    command: str
    """What trains it, for its card."""
    vq: VQSettings
    shape: LanguageModelShape
    language: LanguageSettings

    def seeded(self, seed: int) -> Recipe:
        """Return the recipe with another seed in both stages."""
        return replace(self, vq=replace(self.vq, seed=seed), language=replace(self.language, seed=seed))


MINI = Recipe("janus-mini", "t2i-gcpo pretrain", VQSettings(), LanguageModelShape(), LanguageSettings())

#: Scenes of one class more often than `TASK_SHARE` has them: they alone say at every object what its word means.
_TEXTURED_SHARE = {
    "single_object": 0.2,
    "two_object": 0.15,
    "counting": 0.2,
    "colors": 0.25,
    "position": 0.1,
    "color_attr": 0.1,
}

#: Patterns without end need a larger codebook, and an eighth of it is enough for muted backdrops. Two cores
#: make the steps in less than two and a half hours.
TEXTURED = Recipe(
    "janus-textured",
    "t2i-gcpo pretrain textured",
    VQSettings(
        codebook=2048,
        embed_dim=32,
        kmeans_scenes=4000,
        crop_steps=800,
        full_steps=300,
        style="textured",
        background_codes=256,
    ),
    LanguageModelShape(width=160, layers=5, heads=5, mlp=432),
    LanguageSettings(
        steps=2400,
        style="textured",
        bfloat16=False,
        dropped_words=0.3,
        task_share=_TEXTURED_SHARE,
        layout_weight=8.0,
        layout_steps=800,
        ramp_steps=300,
    ),
)

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (MINI, TEXTURED)}
