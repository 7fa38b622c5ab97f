"""Make one HTML page of a text heatmap, which needs no network.

Tokens are pills on one signed scale; a bar has the numbers of the token that is looked at.

A token is a button: it is reached with the mouse, a finger, Tab or the arrow keys, and its numbers stand in a bar that
stays in view.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from t2i_gcpo.heatmap.paint import colormap

if TYPE_CHECKING:
    from t2i_gcpo.text.heatmap import TextHeatmap

DIGITS = 5
"""Significant digits of the numbers in the page."""


def page(heatmaps: Sequence[TextHeatmap], *, title: str, recipe: str) -> str:
    """Return the whole page as text. recipe: how the weights were made, in words."""
    text = json.dumps(payload(heatmaps, recipe), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # "</script>" in a prompt must not end the script.
    return _PAGE.replace("__TITLE__", html.escape(title)).replace("__DATA__", text.replace("<", "\\u003c"))


def payload(heatmaps: Sequence[TextHeatmap], recipe: str) -> dict[str, Any]:
    """Return what the page's script reads, as plain values."""
    return {
        "recipe": recipe,
        "colors": {"signed": colormap(True).tolist(), "unsigned": colormap(False).tolist()},
        "divergences": list(heatmaps[0].weights),
        "items": [
            {
                "prompt": item.prompt,
                "negative": item.negative_prompt,
                "label": item.label,
                "score": item.score,
                "advantage": item.advantage,
                "tokens": list(item.tokens),
                "positive": _rounded(item.logprob_positive),
                "contrasted": _rounded(item.logprob_negative),
                "entropy": None if item.entropy is None else _rounded(item.entropy),
                "weights": {kind: _rounded(values) for kind, values in item.weights.items()},
                "raw": {kind: _rounded(values) for kind, values in item.divergences.items()},
            }
            for item in heatmaps
        ],
    }


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>__TITLE__</title>
<style>
:root { color-scheme: light dark; --ink: #1c1c20; --ground: #fff; --faint: #5c5e66; --line: #d5d5db; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececf0; --ground: #17181c; --faint: #a3a5af; --line: #494b54; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 16px 16px 150px; color: var(--ink); background: var(--ground); max-width: 1000px; }
h1 { font-size: 18px; margin: 0 0 8px; }
form { display: flex; flex-wrap: wrap; gap: 8px 22px; align-items: center; padding: 8px 0; position: sticky; top: 0; background: var(--ground); z-index: 1; }
form label { display: inline-flex; gap: 7px; align-items: center; } select { font: inherit; padding: 3px 6px; }
#bar { display: flex; gap: 8px; align-items: center; font-variant-numeric: tabular-nums; }
#bar canvas { width: 160px; height: 14px; border: 1px solid var(--line); }
.faint { color: var(--faint); }
section { margin: 18px 0; } section h2 { font-size: 15px; margin: 0 0 4px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 12px; margin: 6px 0; }
dt { color: var(--faint); } dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.5 ui-monospace, monospace; }
.tokens { display: flex; flex-wrap: wrap; gap: 4px 3px; }
.tokens button { font: 14px/1.4 ui-monospace, monospace; border: 1px solid var(--line); border-radius: 9px; padding: 3px 6px; min-width: 24px; min-height: 32px;
  color: #1c1c20; background: #fff; white-space: pre; cursor: pointer; }
.tokens button:focus-visible, .tokens button.on { outline: 3px solid var(--ink); outline-offset: 1px; }
#numbers { position: fixed; left: 0; right: 0; bottom: 0; background: #1c1c20; color: #fff; border-top: 1px solid var(--line); padding: 9px 16px 12px; font: 13px/1.55 ui-monospace, monospace;
  display: flex; flex-wrap: wrap; gap: 0 22px; max-height: 40vh; overflow: auto; }
#numbers span b { font-weight: 400; color: #b9bac4; }
</style></head><body>
<h1>__TITLE__</h1>
<form onsubmit="return false">
  <label>map <select id="map"></select></label>
  <label>divergence <select id="divergence"></select></label>
  <span id="bar"><span id="low"></span><canvas width="256" height="1"></canvas><span id="high"></span></span>
</form>
<div><b id="what"></b> <span class="faint" id="how"></span></div>
<main id="items"></main>
<div id="numbers" role="status" aria-live="polite">Point at a token, tap it, or use Tab and the arrow keys.</div>
<script id="data" type="application/json">__DATA__</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent), $ = id => document.getElementById(id);
const judged = data.items.every(item => item.advantage !== null);
const maps = {
  advantage: { signed: true, title: "token advantage A · w", of: (item, d) => item.weights[d].map(w => w * item.advantage) },
  weight: { signed: false, title: "token weight w, mean 1 over a completion", of: (item, d) => item.weights[d] },
  divergence: { signed: false, title: "raw divergence between the two prompts, nats", of: (item, d) => item.raw[d] },
  contrast: { signed: true, title: "log p(token | prompt) − log p(token | negative prompt), nats", of: item => item.positive.map((p, t) => p - item.contrasted[t]) },
  entropy: { signed: false, title: "entropy of the model at the token, nats", of: item => item.entropy },
};
if (!judged) delete maps.advantage;
if (data.items.some(item => item.entropy === null)) delete maps.entropy;
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const show = value => value === null || value === undefined ? "–" : Number(value.toPrecision(4)).toString();
const visible = text => text.replaceAll("\\n", "⏎").replaceAll("\\t", "⇥") || "∅";

function percentile(values) {  // the colours end here, so that one token does not bleach the rest
  const sizes = values.map(Math.abs).sort((a, b) => a - b), last = sizes[sizes.length - 1];
  return sizes[Math.floor(0.98 * (sizes.length - 1))] || last || 1;
}

const panels = data.items.map(item => {
  const section = document.createElement("section");
  section.innerHTML = `<h2></h2><dl><dt>prompt</dt><dd></dd><dt>negative prompt</dt><dd></dd></dl><div class="tokens" role="toolbar" aria-label="tokens"></div>`;
  section.querySelector("h2").textContent = [item.label, item.score === null ? "" : `score ${show(item.score)}`, item.advantage === null ? "" : `A = ${show(item.advantage)}`].filter(Boolean).join(", ");
  const [prompt, negative] = section.querySelectorAll("dd");
  prompt.textContent = item.prompt; negative.textContent = item.negative;
  const box = section.querySelector(".tokens");
  const buttons = item.tokens.map((token, t) => {
    const button = document.createElement("button");
    button.type = "button"; button.textContent = visible(token); button.tabIndex = t ? -1 : 0;
    button.onmouseenter = button.onfocus = button.onclick = () => look(item, t, button);
    box.append(button);
    return button;
  });
  box.onkeydown = event => {
    const at = buttons.indexOf(document.activeElement), step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const to = event.key === "Home" ? 0 : event.key === "End" ? buttons.length - 1 : step && at >= 0 ? clamp(at + step, 0, buttons.length - 1) : -1;
    if (to < 0) return;
    event.preventDefault();
    buttons.forEach((button, t) => { button.tabIndex = t === to ? 0 : -1; });
    buttons[to].focus();
  };
  $("items").append(section);
  return { item, buttons };
});

let looked = null;
function look(item, t, button) {
  document.querySelectorAll(".tokens .on").forEach(one => one.classList.remove("on"));
  button.classList.add("on"); looked = [item, t, button];
  const d = $("divergence").value, w = item.weights[d][t];
  const rows = [["token", JSON.stringify(item.tokens[t])], ["index", t], ["log p(· | prompt)", show(item.positive[t])], ["log p(· | negative)", show(item.contrasted[t])],
    [d, show(item.raw[d][t])], ["weight", show(w)], ["advantage", item.advantage === null ? "–" : show(w * item.advantage)], ["entropy", item.entropy === null ? "–" : show(item.entropy[t])]];
  $("numbers").replaceChildren(...rows.map(([name, value]) => {
    const span = document.createElement("span"), label = document.createElement("b");
    label.textContent = `${name} `; span.append(label, String(value));
    return span;
  }));
}

function draw() {
  const map = maps[$("map").value], d = $("divergence").value, colors = data.colors[map.signed ? "signed" : "unsigned"];
  const values = panels.map(({ item }) => map.of(item, d)), end = percentile(values.flat());
  panels.forEach(({ buttons }, k) => buttons.forEach((button, t) => {
    const share = clamp(values[k][t] / end, map.signed ? -1 : 0, 1);
    const [r, g, b] = colors[Math.round(map.signed ? (share + 1) * 127.5 : share * 255)];
    button.style.background = `rgb(${r},${g},${b})`;
    button.style.color = 0.299 * r + 0.587 * g + 0.114 * b < 140 ? "#fff" : "#1c1c20";
    button.setAttribute("aria-label", `${button.textContent}, ${show(values[k][t])}`);
  }));
  const own = $("map").value === "contrast" || $("map").value === "entropy";
  $("divergence").disabled = own;
  $("what").textContent = map.title;
  $("how").textContent = own ? "" : `${d}; weights: ${data.recipe}`;
  $("low").textContent = map.signed ? `−${show(end)}` : "0"; $("high").textContent = (map.signed ? "+" : "") + show(end);
  const context = $("bar").querySelector("canvas").getContext("2d"), pixels = context.createImageData(256, 1);
  for (let k = 0; k < 256; k++) pixels.data.set([...colors[k], 255], 4 * k);
  context.putImageData(pixels, 0, 0);
  if (looked) look(...looked);
}

for (const name of Object.keys(maps)) $("map").add(new Option(name, name));
for (const name of data.divergences) $("divergence").add(new Option(name, name));
$("map").onchange = $("divergence").onchange = draw;
draw();
</script></body></html>
"""
