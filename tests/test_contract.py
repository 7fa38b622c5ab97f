"""Every adapter keeps the contract of `generators/base.py`.

A new one gets a row in `GENERATORS`; see docs/adding_a_generator.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import contract, pages, tiny, tiny_amused
from rewards.models.torchvision_mend import mend
from t2i_gcpo import generators
from t2i_gcpo.generators.janus.adapter import Janus
from t2i_gcpo.records import Sampling

PROMPTS = ["a photo of one red circle", "two blue square"]


def janus() -> Janus:
    mend()
    return Janus(tiny.model(), tiny.processor())


def bigram() -> Any:
    """The generator of the page; `page_files` has put it on the import path."""
    module = importlib.import_module("bigram")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = module.Network()
    return module.Bigram(network)


#: Name -> a function that makes a small one with random weights.
GENERATORS: dict[str, Callable[[], Any]] = {"janus": janus, "amused": tiny_amused.generator, "bigram": bigram}


@pytest.fixture(scope="module", autouse=True)
def page_files(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The page's file where Python finds it, and its line in the registry."""
    folder = tmp_path_factory.mktemp("package")
    ((name, code),) = pages.files(pages.ROOT / "docs" / "adding_a_generator.md").items()
    (folder / name).write_text(code, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setitem(generators.ADAPTERS, "bigram", "bigram:Bigram")
        yield


@pytest.mark.parametrize("rule", contract.RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("make", GENERATORS.values(), ids=GENERATORS)
def test_contract(make: Callable[[], Any], rule: contract.Rule, tmp_path: Path) -> None:
    rule(make, PROMPTS, tmp_path)


class Wrong:
    """The page's generator with one mistake."""

    def __init__(self, mistake: str) -> None:
        self.inner, self.mistake = bigram(), mistake

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def sample(self, prompts: Any, sampling: Sampling, **options: Any) -> Any:
        if self.mistake == "global noise":
            torch.rand(1)
        if self.mistake == "ignores the index":
            options.pop("prompt_indices", None)
        if self.mistake == "negative prompt of guidance":
            options.pop("negative_prompts", None)
        rollout = self.inner.sample(prompts, sampling, **options)
        if self.mistake == "int32":
            object.__setattr__(rollout, "tokens", rollout.tokens.int())
        return rollout

    def token_logprobs(self, rollout: Any, **options: Any) -> Any:
        if self.mistake == "always conditional":
            options.pop("distribution", None)
        if self.mistake == "of the first prompt":
            rollout = rollout.rows(torch.zeros(rollout.batch, dtype=torch.long))
        if self.mistake == "always detached" and options.get("distribution") == "guided":
            options["distribution"] = "guided_detached"
        return self.inner.token_logprobs(rollout, **options)

    def reference(self) -> Any:
        if self.mistake == "no reference":
            return torch.no_grad()
        return self.inner.reference()

    def save(self, path: Path) -> None:
        (bigram() if self.mistake == "saves the start" else self.inner).save(path)

    def decode(self, tokens: Any) -> Any:
        images = self.inner.decode(tokens)
        return images[:1].expand_as(images) if self.mistake == "one picture" else images


@pytest.mark.parametrize(
    ("mistake", "rule"),
    [
        ("int32", contract.a_rollout_says_what_was_drawn),
        ("always conditional", contract.scoring_gives_the_log_probs_of_sampling),
        ("ignores the index", contract.an_image_depends_on_its_seed_and_indices_alone),
        ("global noise", contract.a_generator_of_numbers_replaces_the_seed_and_nothing_else_is_drawn_from),
        ("of the first prompt", contract.rows_score_as_in_the_whole),
        ("negative prompt of guidance", contract.a_negative_prompt_is_the_contrast_and_leaves_the_tokens_alone),
        ("always detached", contract.the_distribution_decides_the_gradient_and_only_the_policy_has_one),
        ("no reference", contract.the_reference_is_the_policy_as_it_was_kept),
        ("saves the start", contract.a_saved_folder_is_the_same_generator),
        ("one picture", contract.an_image_depends_on_its_own_tokens_alone),
    ],
)
def test_each_rule_finds_the_mistake_it_is_for(mistake: str, rule: contract.Rule, tmp_path: Path) -> None:
    rule(lambda: Wrong("none"), PROMPTS, tmp_path / "right")
    with pytest.raises(AssertionError):
        rule(lambda: Wrong(mistake), PROMPTS, tmp_path / "wrong")
