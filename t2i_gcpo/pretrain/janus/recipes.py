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

#: Patterns without end need a larger codebook, and a tenth of it is enough for muted backdrops. Two cores
#: make the steps in less than two and a half hours.
TEXTURED = Recipe(
    "janus-textured",
    "t2i-gcpo pretrain textured",
    VQSettings(
        codebook=4096,
        embed_dim=32,
        kmeans_scenes=4000,
        crop_steps=800,
        full_steps=300,
        style="textured",
        background_codes=384,
    ),
    LanguageModelShape(width=160, layers=5, heads=5, mlp=432),
    LanguageSettings(
        steps=3000,
        style="textured",
        layout_weight=8.0,
        layout_steps=1200,
        ramp_steps=600,
        codes_as_features=True,
    ),
)

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (MINI, TEXTURED)}
