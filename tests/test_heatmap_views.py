"""Looking into a heatmap without a model.

Other rules of credit, one picture, one cell; hand-worked where a number can be.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_heatmap import scored

from t2i_gcpo import credit, heatmap
from t2i_gcpo.algorithms import resolve, token_advantages
from t2i_gcpo.heatmap import KINDS, Heatmap, Recipe
from t2i_gcpo.heatmap.html import payload
from t2i_gcpo.heatmap.paint import overlay_colors, paint


def drawn(**changes: object) -> Heatmap:
    """Two prompts, three images each, the last one failed; weights by GCPO's recipe."""
    result, _ = scored()
    algorithm = resolve("gcpo", group_size=3, **changes)
    targets = token_advantages(algorithm, result.rollout, result.scores)
    return Heatmap.of(result, targets, algorithm=algorithm, logprob_reference=result.rollout.logprob_positive - 0.5)


def test_the_recipe_travels_in_the_file(tmp_path: Path) -> None:
    one = drawn(divergence="js", normalization="softmax")
    back = heatmap.load(one.save(tmp_path / "x.npz"))
    assert back.recipe == Recipe(divergence="js", normalization="softmax")
    assert "contrast js, normalised by softmax" in back.title("weight")
    for name, values in one.maps().items():
        np.testing.assert_array_equal(back.maps()[name], values)
    np.testing.assert_array_equal(np.asarray(one.draw("js")), np.asarray(back.draw("js")))


@pytest.mark.parametrize("divergence", ["kl", "abs", "js", "information_gain"])
@pytest.mark.parametrize("normalization", ["rank", "softmax", "minmax", "none"])
def test_another_rule_gives_what_training_by_it_would_have(divergence: str, normalization: str, tmp_path: Path) -> None:
    saved = heatmap.load(drawn().save(tmp_path / "x.npz"))
    trained = drawn(divergence=divergence, normalization=normalization)
    new = heatmap.reweigh(saved, divergence=divergence, normalization=normalization)
    np.testing.assert_array_equal(new.weights, trained.weights)
    np.testing.assert_array_equal(new.advantages, trained.advantages)  # type: ignore[arg-type]
    assert (new.weights[5] == 0).all() and np.isnan(new.scores[5])  # its reward failed
    weights = credit.token_weights(
        torch.from_numpy(saved.logprob_positive),
        torch.from_numpy(saved.logprob_negative),  # type: ignore[arg-type]
        divergence=divergence,  # type: ignore[arg-type]
        normalization=normalization,  # type: ignore[arg-type]
    )
    np.testing.assert_array_equal(new.weights[:5], weights[:5].numpy())


def test_grpo_is_flat_on_the_same_scale() -> None:
    one = drawn()
    flat = heatmap.reweigh(one, credit="uniform")
    assert (flat.weights[:5] == 1).all() and flat.title("weight").endswith("(uniform)")
    np.testing.assert_allclose(flat.advantages[0], one.sequence_advantages[0])  # type: ignore[index]
    end = one.end("advantage")
    picture = np.asarray(heatmap.overlay(flat, "advantage", 0, end=end))
    share = float(np.clip(one.sequence_advantages[0] / end, -1, 1))  # type: ignore[index]
    code = one.tokens[0, 0] * 8  # the fake generator's grey
    expected = (1 - 0.85 * abs(share)) * code + 0.85 * abs(share) * overlay_colors(True)[round((share + 1) * 127.5)]
    np.testing.assert_allclose(picture[0, 0], expected, atol=0.51)


def test_reweighing_twice_is_reweighing_once_and_keeps_the_rest() -> None:
    one = drawn()
    there = heatmap.reweigh(heatmap.reweigh(one, divergence="js", normalization="none"), credit="uniform")
    back = heatmap.reweigh(there, credit="contrast", divergence="kl", normalization="rank")
    np.testing.assert_array_equal(back.advantages, one.advantages)  # type: ignore[arg-type]
    assert back.recipe == one.recipe and back.images is one.images
    random = [heatmap.reweigh(one, credit="random", seed=seed).weights for seed in (0, 0, 1)]
    np.testing.assert_array_equal(random[0], random[1])
    assert (random[0] != random[2]).any()


def test_what_cannot_be_reweighed_says_why() -> None:
    one = drawn()
    for choices, message in (
        ({"divergence": "chi2"}, "'chi2'; allowed: kl"),
        ({"divergence": "exact_kl"}, "needs the statistic 'exact_kl'"),
        ({"sharpness": 1}, "unknown choice sharpness; allowed: credit, divergence"),
        ({"top": 1.5}, r"algorithm.top is 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            heatmap.reweigh(one, **choices)
    with pytest.raises(ValueError, match="negative prompt"):
        heatmap.reweigh(replace(one, logprob_negative=None))


def test_an_overlay_is_the_paint_of_its_cells() -> None:
    one = drawn()
    values, end = one.maps()["weight"][1].reshape(4, 4), one.end("weight")
    expected = paint(np.kron(one.images[1], np.ones((1, 4, 4), np.uint8)), values, signed=False, end=end)
    np.testing.assert_array_equal(np.asarray(heatmap.overlay(one, "weight", 1, width=32)), expected)
    bare = np.asarray(heatmap.overlay(one, "weight", 1, width=32, opacity=0.0))
    early = np.asarray(heatmap.overlay(one, "weight", 1, width=32, up_to=3))  # raster order: the first row of cells
    np.testing.assert_array_equal(early[:8], expected[:8])
    np.testing.assert_array_equal(early[8:], bare[8:])
    assert (expected[8:] != bare[8:]).any()
    for arguments, message in (((one, "weight", 6), "no image 6"), ((one, "heat", 0), "no map 'heat'")):
        with pytest.raises(ValueError, match=message):
            heatmap.overlay(*arguments)
    with pytest.raises(ValueError, match="opacity is 2"):
        heatmap.overlay(one, opacity=2.0)


def test_a_cell_has_the_numbers_of_its_token() -> None:
    one = drawn()
    found = heatmap.cell(one, 2, row=1, column=3)
    assert (found["index"], found["row"], found["column"], found["step"]) == (7, 1, 3, 7)
    assert found["token"] == one.tokens[2, 7]
    positive, negative = float(one.logprob_positive[2, 7]), float(one.logprob_negative[2, 7])  # type: ignore[index]
    assert (found["logprob_positive"], found["logprob_negative"]) == (positive, negative)
    assert found["contrast"] == pytest.approx(positive - negative) and found["surprisal"] == -positive
    assert found["kl"] == pytest.approx(np.exp(negative - positive) - (negative - positive) - 1, rel=1e-4)
    assert found["kl_reference"] == pytest.approx(np.exp(-0.5) + 0.5 - 1, rel=1e-5)
    assert found["weight"] == one.weights[2, 7] and found["advantage"] == one.advantages[2, 7]  # type: ignore[index]
    assert all(type(value) in (int, float) for name, value in found.items() if name != "below_floor")
    assert found["below_floor"] is False and found["rank"] == 1 + (one.weights[2] > one.weights[2, 7]).sum()
    broken = replace(one, logprob_negative=np.full_like(one.logprob_positive, -np.inf))
    assert heatmap.cell(broken, 0, 0, 0)["logprob_negative"] is None
    for place in ((4, 0), (0, 4), (-1, 0)):
        with pytest.raises(ValueError, match="outside the 4 x 4 grid"):
            heatmap.cell(one, 0, *place)


def test_the_page_shows_the_numbers_of_the_cells() -> None:
    one = drawn()
    data = payload(one)
    assert {entry["kind"] for entry in data["maps"]} == set(one.maps())
    for index, image in enumerate(data["images"]):
        for t in range(16):
            found = heatmap.cell(one, index, t // 4, t % 4)
            shown = {name: values[t] for name, values in image["maps"].items()}
            shown |= {name: image[name][t] for name in ("logprob_positive", "logprob_negative")}
            shown |= {"token": image["tokens"][t], "step": image["step"][t]}
            for name, value in shown.items():
                assert value == pytest.approx(found[name], rel=1e-4), name


def test_the_title_says_what_the_picture_shows() -> None:
    result, targets = scored()
    rollout = replace(result.rollout, negative_prompts=("a star", "b"))
    one = Heatmap.of(replace(result, rollout=rollout), targets, algorithm=resolve("gcpo"))
    assert one.title("contrast").endswith("; own negative prompts")
    assert one.rows([0, 2]).title("kl").endswith("; negative prompt: “a star”")
    assert "negative" not in one.title("entropy") and "negative" not in heatmap.reweigh(one, credit="uniform").title(
        "weight"
    )
    assert one.rows([4]).negative_prompts.tolist() == ["b"]  # type: ignore[union-attr]


def test_the_order_spans_its_scale() -> None:
    assert drawn().end("order") == 15.0 and KINDS["order"].whole


def test_a_file_that_is_no_heatmap_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_text("no")
    np.savez(tmp_path / "y.npz", images=np.zeros(3))
    for name, message in (("x", "not a heatmap"), ("y", "not a heatmap"), ("z", "there is no file")):
        with pytest.raises(ValueError, match=message):
            heatmap.load(tmp_path / f"{name}.npz")
