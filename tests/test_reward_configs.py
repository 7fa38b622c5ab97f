"""The shipped configs' rewards: every option is one that the scorer takes.

And the mixture is the one that the file says.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from rewards import registry, weighted_sum
from rewards.base import Reward, RewardOutput
from t2i_gcpo.commands.options import build
from t2i_gcpo.commands.options.arguments import load

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Name and options of every scorer that is built, in place of loading its weights.

    Their signatures are the real ones.
    """
    calls: list[tuple[str, dict[str, Any]]] = []
    real = registry.find

    def find(name: str) -> Any:
        builder = real(name)
        if name == "composite":
            return builder

        def stand_in(**options: Any) -> Reward:
            calls.append((name, options))
            return lambda images, prompts, metadata: RewardOutput(torch.ones(len(images)))

        stand_in.__signature__ = inspect.signature(builder)  # type: ignore[attr-defined]
        return stand_in

    monkeypatch.setattr(registry, "find", find)
    monkeypatch.setattr(weighted_sum, "find", find)
    return calls


@pytest.mark.parametrize(
    "path", sorted(set(CONFIGS.glob("*.yaml")) - set(CONFIGS.glob("text_*.yaml"))), ids=lambda path: path.stem
)
def test_the_scorers_of_a_shipped_config_have_its_options(path: Path, built: Any) -> None:
    build.reward(load(path).reward)
    build.held_out(load(path).watch)
    assert built


def test_an_option_that_no_scorer_has_is_found_out(built: Any, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("reward: {name: composite, rewards: {hps: {verzion: v2}}}")
    with pytest.raises(ValueError, match="reward 'hps' has no option verzion"):
        build.reward(load(file).reward)


def test_the_mixture_of_t2i_r1(built: Any) -> None:
    mixture = build.reward(load(CONFIGS / "janus_pro_7b_t2i_r1.yaml").reward)
    assert isinstance(mixture, weighted_sum.Composite)
    assert mixture.weights == {"hps": 1.0, "git_vqa": 1.0, "grounding_dino": 1.0}
    assert [name for name, _ in built] == ["hps", "git_vqa", "grounding_dino"]
    assert built[0][1] == {"version": "v2.1", "device": "cuda", "dtype": "bfloat16"}
    assert mixture(torch.zeros(2, 3, 4, 4), ["a", "b"], [{}, {}]).scores.tolist() == [3, 3]


def test_geneval_and_hps(built: Any) -> None:
    for name in ("janus_pro_1b_geneval", "janus_pro_1b_hps"):
        build.reward(load(CONFIGS / f"{name}.yaml").reward)
    assert built == [
        ("geneval", {"detector": "mask2former", "score": "strict", "device": "cuda"}),
        ("hps", {"version": "v2.1", "device": "cuda", "dtype": "bfloat16"}),
    ]
