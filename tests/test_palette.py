"""The colours of algorithms: told apart by all eyes, seen on white and on dark pages, the same in figures and demo."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex

from helpers import run_folders
from t2i_gcpo.algorithms import TABLE
from t2i_gcpo.algorithms.palette import COLORS, DASHES, OTHER, styles
from t2i_gcpo.demo import plots
from t2i_gcpo.reports import curves
from t2i_gcpo.reports.run import read

#: White pages, the demo's dark one, where its plots stand (neutral 950 of Gradio's theme), and zinc 900.
PAGES = ("#ffffff", "#0f0f11", "#18181b")
#: How a colour (linear RGB) is seen, after Machado, Oliveira and Fernandes (2009), severity 1.
EYES = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
#: Linear RGB -> CIE XYZ for D65.
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]])


def linear(color: str) -> np.ndarray:
    values = np.array([int(color[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """WCAG's contrast of two colours, 1 to 21."""
    low, high = sorted(float(XYZ[1] @ linear(color)) for color in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(color: str, eyes: str) -> np.ndarray:
    seen = np.clip(np.asarray(EYES[eyes]) @ linear(color), 0, 1)
    share = XYZ @ seen / (XYZ @ np.ones(3))
    f = np.where(share > 216 / 24389, np.cbrt(share), (24389 / 27 * share + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_every_algorithm_has_a_colour() -> None:
    assert set(COLORS) == set(TABLE)
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("page", PAGES)
def test_lines_are_seen_on_white_and_on_dark_pages(page: str) -> None:
    for color in (*COLORS.values(), OTHER):
        assert contrast(color, page) >= 3, color


@pytest.mark.parametrize("eyes", EYES)
def test_each_two_colours_are_told_apart(eyes: str) -> None:
    """A difference of 1 in CIE Lab is just seen side by side; the demo's four are further apart than all eight."""
    for names, least in ((list(COLORS)[:4], 16.0), (list(COLORS), 14.0)):
        for one, other in combinations(names, 2):
            assert np.linalg.norm(lab(COLORS[one], eyes) - lab(COLORS[other], eyes)) > least, (one, other)


def test_lines_of_one_algorithm_differ_in_their_dashes() -> None:
    drawn = styles(["gcpo", "grpo", *["gcpo"] * 7, "mine"])
    assert len(set(drawn)) == len(drawn) and len(set(DASHES)) == len(DASHES)
    assert {style.color for k, style in enumerate(drawn) if k not in (1, 9)} == {COLORS["gcpo"]}
    assert (drawn[1].color, drawn[1].dash, drawn[9].color) == (COLORS["grpo"], (), OTHER)


def test_figures_and_demo_draw_an_algorithm_alike(tmp_path: Path) -> None:
    """Whatever the order of the runs, and whatever they are called."""
    runs = {
        name: read(run_folders.write(tmp_path / name, algorithm=algorithm, before=False, after=False))
        for name, algorithm in (("first", "gcpo"), ("second", "grpo"))
    }
    for order in (["first", "second"], ["second", "first"]):
        lines = curves.draw({name: [runs[name]] for name in order}).axes[1].lines
        figure = {line.get_label(): to_hex(line.get_color()) for line in lines if line.get_label() in runs}
        scale = plots.lines({name: runs[name] for name in order}, "reward/mean").to_dict()["encoding"]["color"]["scale"]
        assert figure == {"first": COLORS["gcpo"], "second": COLORS["grpo"]}
        assert dict(zip(scale["domain"], scale["range"], strict=True)) == figure


def test_a_line_is_seen_below_one_that_runs_over_it(tmp_path: Path) -> None:
    """As after the first step, which gives all algorithms the same images."""
    runs = {name: read(run_folders.write(tmp_path / name, before=False, after=False)) for name in "abcde"}
    for names, widths in (("abc", [6, 4, 2]), ("abcde", [2] * 5)):
        drawn = plots.lines({name: runs[name] for name in names}, "reward/mean").to_dict()
        assert drawn["encoding"]["strokeWidth"]["scale"] == {"domain": list(names), "range": widths}


def test_a_plot_without_data_has_no_legend(tmp_path: Path) -> None:
    """Vega draws a legend without entries 2^25 pixels high."""
    begun = read(run_folders.write(tmp_path / "begun", steps=0, before=False, after=False))
    for runs, words in (({}, "no runs yet"), ({"begun": begun}, "no steps yet")):
        drawn = plots.lines(runs, "reward/mean").to_dict()
        assert drawn["mark"]["text"] == words and "encoding" not in drawn and drawn["height"] == plots.HEIGHT
