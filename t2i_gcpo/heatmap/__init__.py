"""Draw credit over an image: token advantages, weights, contrasts and controls, as PNG, HTML, npz and GIF.

B images, T = rows * columns tokens in raster order, H, W pixels. What a run draws is the tensor that its loss used,
never another computation of it; `reweigh` computes the weights anew from the saved log-probs, and the picture says so.

    from t2i_gcpo import heatmap

    saved = heatmap.load("heatmap.npz")
    heatmap.reweigh(saved, divergence="js", normalization="softmax").draw("weight").save("js.png")
    heatmap.overlay(saved, "advantage", 0)           # one picture under one map
    heatmap.cell(saved, 0, row=3, column=5)          # the numbers of one token
    heatmap.against(saved, generator, "a red circle") # the contrast with another text: the one that runs a model
    heatmap.over_steps("runs/quickstart")            # one prompt and noise over the training
    heatmap.together({"GCPO": one, "GRPO": other})   # the same images or noise on one scale
    heatmap.draw(image, weights, grid=(24, 24))      # images and weights of anybody's model
"""

from t2i_gcpo.heatmap.contrast import against, without
from t2i_gcpo.heatmap.data import Heatmap
from t2i_gcpo.heatmap.drawing import Drawing, draw
from t2i_gcpo.heatmap.files import load, over_steps, save
from t2i_gcpo.heatmap.kinds import KINDS
from t2i_gcpo.heatmap.recipe import Recipe
from t2i_gcpo.heatmap.side_by_side import together
from t2i_gcpo.heatmap.views import cell, overlay, reweigh

__all__ = [
    "KINDS",
    "Drawing",
    "Heatmap",
    "Recipe",
    "against",
    "cell",
    "draw",
    "load",
    "over_steps",
    "overlay",
    "reweigh",
    "save",
    "together",
    "without",
]
