"""Show a heatmap as one HTML page that needs no network: pictures as data URIs, numbers as JSON, one script.

Per image, the picture and itself under its map; hover a cell for its numbers, switch between the maps, change the
opacity, and scrub over the order in which the tokens were sampled.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from typing import Any

import numpy as np
from einops import rearrange
from PIL import Image

from t2i_gcpo.heatmap.data import Heatmap
from t2i_gcpo.heatmap.kinds import KINDS
from t2i_gcpo.heatmap.paint import OPACITY, UNSIGNED_OPACITY, colormap, scale_end, scale_words

DIGITS = 5
"""Significant digits of the numbers in the page."""
WIDTH = 256
"""Pixels that a picture is shown at, about."""


def page(heatmap: Heatmap, *, title: str, first: str | None = None) -> str:
    """Return the whole page as text; `first` is the map that is shown first."""
    text = json.dumps(payload(heatmap, first=first), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # "</script>" in a prompt must not end the script.
    return _PAGE.replace("__TITLE__", html.escape(title)).replace("__DATA__", text.replace("<", "\\u003c"))


def payload(heatmap: Heatmap, *, first: str | None = None) -> dict[str, Any]:
    """Return what the page's script reads: plain values, null for what is not finite."""
    maps = heatmap.maps()
    return {
        "grid": list(heatmap.grid),
        "first": heatmap.map(first)[0],
        "colors": {"signed": colormap(True).tolist(), "unsigned": colormap(False).tolist()},
        "opacity": {"signed": OPACITY, "unsigned": UNSIGNED_OPACITY},
        "maps": [
            {
                "kind": kind,
                "title": heatmap.title(kind),
                "scale": scale_words(values, KINDS[kind]),
                "signed": KINDS[kind].signed,
                "end": _numbers(scale_end(values, KINDS[kind])),
            }
            for kind, values in maps.items()
        ],
        "width": WIDTH,
        "images": [
            {
                "prompt": str(heatmap.prompts[b]),
                "note": note,
                "picture": data_uri(heatmap.images[b]),
                "maps": {kind: _numbers(values[b]) for kind, values in maps.items()},
                "tokens": _row(heatmap.tokens, b),
                "step": _row(heatmap.commit_step, b),
                "logprob_positive": _row(heatmap.logprob_positive, b),
                "logprob_negative": _row(heatmap.logprob_negative, b),
                "logprob_reference": _row(heatmap.logprob_reference, b),
            }
            for b, note in enumerate(heatmap.notes())
        ],
    }


def data_uri(image: np.ndarray) -> str:
    """Encode [3, H, W] uint8 as a PNG in a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rearrange(image, "c h w -> h w c"))).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _row(values: np.ndarray | None, b: int) -> Any:
    """Return one image's numbers, or null where there are none."""
    return None if values is None else _numbers(values[b])


def _numbers(values: Any) -> Any:
    """Round floats, with null for NaN and infinities."""
    if isinstance(values, np.ndarray):
        return [_numbers(value) for value in values.tolist()]
    if isinstance(values, int):
        return values
    return float(f"{values:.{DIGITS}g}") if math.isfinite(values) else None


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>__TITLE__</title>
<style>
body { font: 14px/1.45 system-ui, sans-serif; margin: 20px; color: #1c1c20; background: #fff; }
h1 { font-size: 17px; margin: 0 0 12px; }
form { display: flex; flex-wrap: wrap; gap: 10px 26px; align-items: center; padding: 10px 0; position: sticky; top: 0; background: #fff; z-index: 1; }
form label { display: inline-flex; gap: 7px; align-items: center; }
button { font: inherit; padding: 2px 10px; }
#bar { display: flex; gap: 8px; align-items: center; font-variant-numeric: tabular-nums; }
#bar canvas { width: 200px; height: 14px; border: 1px solid #ccc; }
.faint { color: #5c5e66; }
#panels { display: flex; flex-wrap: wrap; gap: 22px; margin-top: 12px; }
figure { margin: 0; } figcaption { max-width: 540px; min-height: 1.5em; }
.pair { display: flex; gap: 6px; }
.pair img { display: block; image-rendering: pixelated; }
.over { position: relative; cursor: crosshair; }
.over img { filter: grayscale(.75); }
.over canvas { position: absolute; inset: 0; width: 100%; height: 100%; image-rendering: pixelated; }
.over i { position: absolute; border: 2px solid #111; outline: 1px solid #fff; box-sizing: border-box; pointer-events: none; display: none; }
#tip { position: fixed; display: none; pointer-events: none; background: #1c1c20; color: #fff; padding: 7px 10px; border-radius: 5px;
  font: 12px/1.5 ui-monospace, monospace; white-space: pre; z-index: 2; }
</style></head><body>
<h1>__TITLE__</h1>
<form onsubmit="return false">
  <label>map <select id="map"></select></label>
  <label>opacity <input id="opacity" type="range" min="0" max="100"></label>
  <span id="order"><label>sampled up to step <input id="step" type="range" min="0"> <output id="at"></output></label>
  <button id="play" type="button">play</button></span>
  <span id="bar"><span id="low"></span><canvas width="256" height="1"></canvas><span id="high"></span></span>
</form>
<div><b id="what"></b> <span class="faint" id="how"></span></div>
<div id="panels"></div><div id="tip"></div>
<script id="data" type="application/json">__DATA__</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id), [rows, columns] = data.grid;
const ordered = data.images.every(image => image.step);
const last = ordered ? data.images.reduce((most, image) => Math.max(most, ...image.step), 0) : 0;
let map = data.maps.find(one => one.kind === data.first);
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const share = value => clamp(value / map.end, map.signed ? -1 : 0, 1);
const color = s => data.colors[map.signed ? "signed" : "unsigned"][Math.round(map.signed ? (s + 1) * 127.5 : s * 255)];
const show = value => value === null ? "–" : String(value);

const panels = data.images.map(image => {
  const figure = document.createElement("figure");
  figure.innerHTML = `<figcaption></figcaption><div class="pair"><img alt=""><div class="over"><img alt=""><canvas></canvas><i></i></div></div><div class="faint"></div>`;
  figure.querySelector("figcaption").textContent = image.prompt;
  figure.lastElementChild.textContent = image.note;
  for (const picture of figure.querySelectorAll("img")) {
    picture.onload = () => { picture.width = picture.naturalWidth * Math.max(1, Math.round(data.width / picture.naturalWidth)); };
    picture.src = image.picture;
  }
  const canvas = figure.querySelector("canvas"), over = figure.querySelector(".over");
  canvas.width = columns; canvas.height = rows;
  over.onmousemove = event => hover(image, over, event);
  over.onmouseleave = () => { $("tip").style.display = over.querySelector("i").style.display = "none"; };
  $("panels").append(figure);
  return { image, canvas };
});

function draw() {
  const step = +$("step").value, opacity = $("opacity").value / 100;
  $("at").textContent = `${step} of ${last}`;
  for (const { image, canvas } of panels) {
    const context = canvas.getContext("2d"), pixels = context.createImageData(columns, rows);
    image.maps[map.kind].forEach((value, t) => {
      if (value === null || (ordered && image.step[t] > step)) return;
      const s = share(value);
      pixels.data.set([...color(s), 255 * opacity * (map.signed ? Math.abs(s) : 1)], 4 * t);
    });
    context.putImageData(pixels, 0, 0);
  }
}

function choose(kind) {
  map = data.maps.find(other => other.kind === kind);
  $("opacity").value = 100 * data.opacity[map.signed ? "signed" : "unsigned"];
  $("what").textContent = map.title;
  $("how").textContent = map.scale;
  $("low").textContent = map.signed ? `−${map.end}` : "0";
  $("high").textContent = (map.signed ? "+" : "") + map.end;
  const context = $("bar").querySelector("canvas").getContext("2d"), pixels = context.createImageData(256, 1);
  for (let k = 0; k < 256; k++) pixels.data.set([...data.colors[map.signed ? "signed" : "unsigned"][k], 255], 4 * k);
  context.putImageData(pixels, 0, 0);
  draw();
}

function hover(image, over, event) {
  const box = over.getBoundingClientRect(), mark = over.querySelector("i"), tip = $("tip");
  const column = clamp(Math.floor((event.clientX - box.left) / box.width * columns), 0, columns - 1);
  const row = clamp(Math.floor((event.clientY - box.top) / box.height * rows), 0, rows - 1), t = row * columns + column;
  Object.assign(mark.style, { display: "block", left: `${100 * column / columns}%`, top: `${100 * row / rows}%`, width: `${100 / columns}%`, height: `${100 / rows}%` });
  const lines = [["index", t], ["row, column", `${row}, ${column}`]];
  if (image.tokens) lines.push(["token", image.tokens[t]]);
  if (image.step) lines.push(["step", image.step[t]]);
  if (image.logprob_positive) lines.push(["log p(· | prompt)", show(image.logprob_positive[t])]);
  if (image.logprob_negative) lines.push(["log p(· | negative)", show(image.logprob_negative[t])]);
  if (image.logprob_reference) lines.push(["log p(· | reference)", show(image.logprob_reference[t])]);
  for (const other of data.maps) if (other.kind !== "order") lines.push([other.kind, show(image.maps[other.kind][t])]);
  tip.textContent = lines.map(([name, value]) => name.padEnd(23) + value).join("\\n");
  tip.style.display = "block";
  tip.style.left = `${Math.min(event.clientX + 16, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(event.clientY + 16, innerHeight - tip.offsetHeight - 8)}px`;
}

let timer = null;
$("play").onclick = () => {
  if (timer) { clearInterval(timer); timer = null; $("play").textContent = "play"; return; }
  if (+$("step").value >= last) $("step").value = 0;
  $("play").textContent = "stop";
  timer = setInterval(() => {
    $("step").value = +$("step").value + 1; draw();
    if (+$("step").value >= last) $("play").onclick();
  }, Math.max(15, 6000 / (last + 1)));
};
for (const { kind } of data.maps) $("map").add(new Option(kind, kind));
$("map").onchange = () => choose($("map").value);
$("opacity").oninput = $("step").oninput = draw;
if (!ordered) $("order").style.display = "none";
$("step").max = last;  // first: a slider refuses a value beyond its maximum, which is 100 at first
$("step").value = last;
$("map").value = map.kind;
choose(map.kind);
</script></body></html>
"""
