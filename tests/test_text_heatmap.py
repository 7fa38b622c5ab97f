"""Text heatmaps: their numbers against the model, their page, their picture; and the commands around them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.text_models import TOKENIZER, GCPOTrainer, distributions, tiny_folder, tiny_model, trainer
from helpers.text_models import drawn as pick
from t2i_gcpo import cli, credit
from t2i_gcpo.text.credit_location import deciding, shares
from t2i_gcpo.text.heatmap import Recipe, TextHeatmap, describe, of_logprobs
from t2i_gcpo.text.heatmap_files import save
from t2i_gcpo.text.heatmap_page import page

QUESTION = [{"role": "user", "content": "What is 1+1?"}]
COMPLETIONS = [TOKENIZER(text)["input_ids"] for text in ("12+3=9", "The answer")]


def drawn(**changes: Any) -> list[TextHeatmap]:
    return describe(tiny_model(), TOKENIZER, QUESTION, COMPLETIONS, **changes)


def test_the_numbers_are_the_models() -> None:
    model, (first, second) = tiny_model(), drawn(scores=[1.0, 0.0])
    for item, completion in zip((first, second), COMPLETIONS, strict=True):
        tables = [
            distributions(model, TOKENIZER(text, add_special_tokens=False)["input_ids"], completion)
            for text in (item.prompt, item.negative_prompt)
        ]
        positive, negative = (pick(table, completion) for table in tables)
        np.testing.assert_allclose(item.logprob_positive, positive, atol=1e-4)
        np.testing.assert_allclose(item.logprob_negative, negative, atol=1e-4)
        exact = (tables[0].exp() * (tables[0] - tables[1])).sum(-1)
        np.testing.assert_allclose(item.divergences["exact_kl"], exact, atol=1e-4)
        weights = credit.token_weights(positive[None], negative[None])[0]
        np.testing.assert_allclose(item.weights["kl"], weights, atol=1e-4)
        assert item.entropy is not None and min(item.entropy) > 0
    assert first.advantage == pytest.approx(0.7071, abs=1e-3) and second.advantage == pytest.approx(-0.7071, abs=1e-3)
    assert "".join(first.tokens) == TOKENIZER.decode(COMPLETIONS[0])


def test_the_weights_of_the_loss_are_what_is_shown() -> None:
    own = torch.tensor([0.5, 2.0, 0.5])
    item = of_logprobs(
        torch.tensor([-1.0, -2.0, -0.1]), torch.tensor([-1.5, -2.0, -3.0]), recipe=Recipe(), own=("abs", own),
        prompt="p", negative_prompt="n", tokens=("a", "b", "c"),
    )  # fmt: skip
    assert next(iter(item.weights)) == "abs" and item.weights["abs"] == (0.5, 2.0, 0.5)
    assert item.divergences["abs"] == pytest.approx((0.5, 0.0, 2.9))


def test_the_page_holds_the_numbers_and_escapes_text(tmp_path: Path) -> None:
    items = drawn(scores=[1.0, 0.0])
    text = page(items, title="a </script> title", recipe=Recipe().words())
    assert "a </script> title" not in text and "http" not in re.sub(r"<html.*?>", "", text)
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)
    assert found
    data = json.loads(found[1])
    assert (
        data["divergences"][0] == "kl" and "exact_kl" in data["divergences"] and "top 40% carry 80%" in data["recipe"]
    )
    assert data["items"][0]["tokens"] == list(items[0].tokens)
    np.testing.assert_allclose(data["items"][0]["weights"]["kl"], items[0].weights["kl"], rtol=1e-3)


def test_the_picture_shows_the_sign_of_the_advantage(tmp_path: Path) -> None:
    from PIL import Image

    html, png = save(drawn(scores=[1.0, 0.0]), tmp_path, name="x", title="t", recipe=Recipe())
    assert html.is_file()
    pixels = np.asarray(Image.open(png).convert("RGB")).astype(int)
    red, blue = pixels[..., 0] - pixels[..., 2] > 60, pixels[..., 2] - pixels[..., 0] > 60
    rows = [np.flatnonzero(mask.any(axis=1)) for mask in (red, blue)]
    assert rows[0].size and rows[1].size and rows[0].max() < rows[1].min()


def test_rows_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="all must be the number of tokens"):
        TextHeatmap("p", "n", ("a",), (0.0, 1.0), (0.0,), {"kl": (1.0,)}, {"kl": (0.0,)})
    with pytest.raises(ValueError, match="no completion with a token"):
        describe(tiny_model(), TOKENIZER, QUESTION, [[]])


@pytest.mark.parametrize("reuse", [False, True])
def test_the_trainer_writes_heatmaps_of_what_the_loss_used(tmp_path: Path, reuse: bool) -> None:
    changes = {"steps_per_generation": 2, "num_iterations": 2, "per_device_train_batch_size": 4} if reuse else {}
    run = trainer(GCPOTrainer, tmp_path, heatmap_every=2, max_steps=3, divergence="exact_kl", **changes)
    run.train()
    assert sorted(path.name for path in (tmp_path / "heatmaps").iterdir()) == [
        "step_000000.html", "step_000000.png", "step_000002.html", "step_000002.png",
    ]  # fmt: skip
    found = re.search(
        r'application/json">(.*?)</script>', (tmp_path / "heatmaps" / "step_000002.html").read_text(), re.DOTALL
    )
    assert found and json.loads(found[1])["divergences"][0] == "exact_kl"


def test_heatmap_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "text",
        "heatmap",
        "--model",
        str(tiny_folder()),
        "--prompt",
        "What is 2+2?",
        "--answer",
        "4",
        "--max-new-tokens",
        "6",
    ]
    assert cli.main([*argv, "--samples", "2", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "heatmap.html").is_file() and (tmp_path / "heatmap.png").is_file()
    assert cli.main([*argv, "--samples", "0", "--out", str(tmp_path)]) == 2
    assert "argument --samples: '0' is not an integer of at least 1" in capsys.readouterr().err
    assert cli.main([*argv, "--temperature=-1", "--out", str(tmp_path)]) == 2
    assert "--temperature is -1.0; it must be at least 0" in capsys.readouterr().err


def test_the_digits_that_decide_are_those_of_results() -> None:
    tokens = [
        "3",
        "7",
        "+",
        "4",
        "8",
        "=",
        "8",
        "5",
        ".",
        " ",
        "8",
        "5",
        "-",
        "1",
        "=",
        "8",
        "4",
        ".",
        " The",
        " answer",
        " is",
        " ",
        "8",
        "4",
        ".",
    ]
    assert [k for k, flag in enumerate(deciding(tokens)) if flag] == [6, 7, 15, 16]
    assert not any(deciding(["no", "step"])) and deciding(["1", "+=", "2", "!", "3"]) == [
        False,
        False,
        True,
        False,
        False,
    ]


def test_shares_of_the_credit() -> None:
    item = TextHeatmap(
        "p", "n", ("1", "=", "2", "."), (0.0,) * 4, (0.0,) * 4, {"kl": (0.5, 0.5, 2.5, 0.5)}, {"kl": (0.0,) * 4},
        entropy=(0.1, 0.2, 0.3, 0.4),
    )  # fmt: skip
    found = shares(item, torch.Generator().manual_seed(0))
    assert found is not None and found["kl"] == pytest.approx(2.5 / 4) and found["share of tokens"] == 0.25
    assert found["entropy"] == pytest.approx(float(credit.normalize(torch.tensor([item.entropy]), floor=0.0)[0, 2]) / 4)
    ranks = credit.normalize(torch.tensor([[0.0, 0.0, 1.0, 0.0]]), floor=0.0)[0]
    assert found["most that ranks allow"] == pytest.approx(float(ranks.max()) / 4)
    assert (
        shares(TextHeatmap("p", "n", ("a",), (0.0,), (0.0,), {"kl": (1.0,)}, {"kl": (0.0,)}), torch.Generator()) is None
    )


def test_credit_command(tmp_path: Path) -> None:
    argv = ["text", "credit", "--limit", "4", "--samples", "1", "--out", str(tmp_path)]
    assert cli.main(argv) == 0
    rules = json.loads((tmp_path / "credit.json").read_text())["rules"]
    assert {"share of tokens", "kl", "exact_kl", "entropy", "random"} <= set(rules)
    assert rules["kl"]["share"] > 1.3 * rules["share of tokens"]["share"]
    assert all(value["share"] <= rules["most that ranks allow"]["share"] + 1e-6 for value in rules.values())
