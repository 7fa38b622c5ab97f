"""The text of a heatmap's page: its style and its script, which reads the numbers that `html` puts in."""

from __future__ import annotations

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>__TITLE__</title>
<style>
:root { color-scheme: light dark; --ink: #1c1c20; --ground: #fff; --faint: #5c5e66; --line: #ccc; --tip: #1c1c20; --tip-ink: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ec; --ground: #17181c; --faint: #a3a6b0; --line: #4a4c55; --tip: #33353d; } }
body { font: 14px/1.45 system-ui, sans-serif; margin: 20px; color: var(--ink); background: var(--ground); }
h1 { font-size: 17px; margin: 0 0 12px; } h2 { font-size: 15px; font-weight: 600; margin: 0; flex-basis: 100%; }
form { display: flex; flex-wrap: wrap; gap: 10px 26px; align-items: center; padding: 10px 0; background: var(--ground); z-index: 1; }
form label, #order { display: inline-flex; gap: 7px; align-items: center; }
button, select { font: inherit; padding: 2px 10px; }
#bar { display: flex; gap: 8px; align-items: center; font-variant-numeric: tabular-nums; }
#bar canvas { width: 200px; height: 14px; border: 1px solid var(--line); }
.faint { color: var(--faint); }
#panels { display: flex; flex-wrap: wrap; gap: 18px 22px; margin-top: 12px; }
figure { margin: 0; }
.pair { display: flex; gap: 6px; }
.pair img { display: block; image-rendering: pixelated; height: auto; max-width: calc(50vw - 23px); }
.over { position: relative; cursor: crosshair; touch-action: manipulation; }
.over:focus-visible { outline: 3px solid #3b82f6; outline-offset: 2px; }
.over img { filter: grayscale(.75); }
.over canvas { position: absolute; inset: 0; width: 100%; height: 100%; image-rendering: pixelated; }
.over i { position: absolute; border: 2px solid #111; outline: 1px solid #fff; box-sizing: border-box; pointer-events: none; display: none; }
#tip { position: fixed; display: none; pointer-events: none; background: var(--tip); color: var(--tip-ink); padding: 7px 10px; border-radius: 5px;
  font: 12px/1.5 ui-monospace, monospace; z-index: 2; }
#tip div { display: flex; gap: 18px; justify-content: space-between; white-space: nowrap; }
@media (min-width: 700px) { form { position: sticky; top: 0; } }
@media (max-width: 699px) {
  body { margin: 12px 12px 45vh; }
  .pair img { max-width: calc(50vw - 15px); }
  select, button { min-height: 40px; } input[type=range] { min-height: 32px; width: 150px; }
  #tip { left: 0 !important; right: 0; top: auto !important; bottom: 0; border-radius: 0; font-size: 11px; display: none;
    grid-template-columns: 1fr 1fr; column-gap: 18px; }
  #tip div { gap: 8px; }
}
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
<div class="faint">Point at a cell or tap it for its numbers; the arrow keys move from cell to cell.</div>
<div id="panels"></div><div id="tip" role="status" aria-live="polite"></div>
<script id="data" type="application/json">__DATA__</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id), [rows, columns] = data.grid;
const SIDE = 12;  // canvas pixels a cell
const ordered = data.images.every(image => image.step);
const last = ordered ? data.images.reduce((most, image) => Math.max(most, ...image.step), 0) : 0;
let map = data.maps.find(one => one.kind === data.first);
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const sign = () => map.signed ? "signed" : "unsigned";
function share(value) {
  const size = Math.abs(value);
  let part = size / map.end;
  if (map.linear !== null) {
    const linear = 1 / (1 + Math.log10(map.end / map.linear));
    part = linear * (size <= map.linear ? size / map.linear : 1 + Math.log10(size / map.linear));
  }
  return clamp(Math.sign(value) * part, map.signed ? -1 : 0, 1);
}
const color = s => data.colors[sign()][Math.round(map.signed ? (s + 1) * 127.5 : s * 255)];
const show = value => value === null ? "–" : String(value);

let prompt = null;
const panels = data.images.map((image, index) => {
  if (image.prompt && image.prompt !== prompt) {
    const title = document.createElement("h2");
    title.textContent = image.prompt;
    $("panels").append(title);
  }
  prompt = image.prompt;
  const figure = document.createElement("figure");
  figure.innerHTML = `<div class="pair"><img><div class="over" tabindex="0" role="img"><img alt=""><canvas></canvas><i></i></div></div><figcaption class="faint"></figcaption>`;
  figure.lastElementChild.textContent = image.note;
  figure.querySelector("img").alt = [`image ${index + 1} of ${data.images.length}`, image.prompt, image.note].filter(Boolean).join(", ");
  for (const picture of figure.querySelectorAll("img")) {
    picture.onload = () => { picture.width = picture.naturalWidth * Math.max(1, Math.round(data.width / picture.naturalWidth)); };
    picture.src = image.picture;
  }
  const canvas = figure.querySelector("canvas"), over = figure.querySelector(".over");
  canvas.width = columns * SIDE; canvas.height = rows * SIDE;
  const panel = { image, canvas, over, row: 0, column: 0 };
  over.onmousemove = over.onclick = event => point(panel, event);
  over.onpointerleave = event => { if (event.pointerType === "mouse" && !docked()) hide(panel); };
  over.onblur = () => hide(panel);
  over.onfocus = () => { if (over.matches(":focus-visible")) select(panel, panel.row, panel.column); };
  over.onkeydown = event => {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -columns], End: [0, columns] };
    if (event.key === "Escape") hide(panel);
    if (!moves[event.key]) return;
    event.preventDefault();
    select(panel, clamp(panel.row + moves[event.key][0], 0, rows - 1), clamp(panel.column + moves[event.key][1], 0, columns - 1));
  };
  $("panels").append(figure);
  return panel;
});

function draw() {
  const step = +$("step").value, opacity = $("opacity").value / 100;
  $("at").textContent = `${step} of ${last}`;
  for (const { image, canvas } of panels) {
    const context = canvas.getContext("2d"), pixels = context.createImageData(canvas.width, canvas.height);
    image.maps[map.kind].forEach((value, t) => {
      if (value === null || (ordered && image.step[t] > step)) return;
      const s = share(value), painted = [...color(s), 255 * opacity * (map.signed ? Math.abs(s) : 1)];
      const left = t % columns * SIDE, top = Math.floor(t / columns) * SIDE;
      const hatched = map.credit && image.below_floor && image.below_floor[t];
      for (let y = 0; y < SIDE; y++) for (let x = 0; x < SIDE; x++)
        if (!hatched || (x + y) % 6 < 2) pixels.data.set(painted, 4 * ((top + y) * canvas.width + left + x));
    });
    context.putImageData(pixels, 0, 0);
  }
}

function choose(kind) {
  map = data.maps.find(other => other.kind === kind);
  $("opacity").value = 100 * data.opacity[sign()];
  $("what").textContent = map.title;
  $("how").textContent = map.scale;
  $("low").textContent = map.signed ? `−${map.end}` : "0";
  $("high").textContent = (map.signed ? "+" : "") + map.end;
  const context = $("bar").querySelector("canvas").getContext("2d"), pixels = context.createImageData(256, 1);
  for (let k = 0; k < 256; k++) pixels.data.set([...data.bars[sign()][k], 255], 4 * k);
  context.putImageData(pixels, 0, 0);
  panels.forEach(({ over }, index) => over.setAttribute("aria-label", `image ${index + 1}, ${map.alts[index]}`));
  draw();
}

function point(panel, event) {
  const box = panel.over.getBoundingClientRect();
  const column = clamp(Math.floor((event.clientX - box.left) / box.width * columns), 0, columns - 1);
  const row = clamp(Math.floor((event.clientY - box.top) / box.height * rows), 0, rows - 1);
  select(panel, row, column, event.clientX, event.clientY);
}

const docked = () => matchMedia("(max-width: 699px)").matches;  // the numbers stand at the bottom of a narrow screen

function hide(panel) { $("tip").style.display = panel.over.querySelector("i").style.display = "none"; }

function numbers(image, t, row, column) {
  const lines = [["index", t], ["row, column", `${row}, ${column}`], [`rank of ${rows * columns}`, image.rank[t]]];
  if (image.below_floor) lines.push(["below the floor", image.below_floor[t] ? `yes, under ${data.floor}` : "no"]);
  if (image.tokens) lines.push(["token", image.tokens[t]]);
  if (image.step) lines.push(["step", image.step[t]]);
  if (image.logprob_positive) lines.push(["log p(· | prompt)", show(image.logprob_positive[t])]);
  if (image.logprob_negative) lines.push(["log p(· | negative)", show(image.logprob_negative[t])]);
  if (image.logprob_reference) lines.push(["log p(· | reference)", show(image.logprob_reference[t])]);
  for (const other of data.maps) if (other.kind !== "order") lines.push([other.kind, show(image.maps[other.kind][t])]);
  return lines;
}

function select(panel, row, column, x, y) {
  for (const other of panels) other.over.querySelector("i").style.display = "none";
  Object.assign(panel, { row, column });
  const mark = panel.over.querySelector("i"), tip = $("tip"), box = panel.over.getBoundingClientRect();
  Object.assign(mark.style, { display: "block", left: `${100 * column / columns}%`, top: `${100 * row / rows}%`, width: `${100 / columns}%`, height: `${100 / rows}%` });
  tip.replaceChildren(...numbers(panel.image, row * columns + column, row, column).map(texts => {
    const line = document.createElement("div");
    line.append(...texts.map(text => Object.assign(document.createElement("span"), { textContent: text })));
    return line;
  }));
  tip.style.display = docked() ? "grid" : "block";
  if (docked() && box.bottom > innerHeight - tip.offsetHeight) scrollBy(0, box.bottom - innerHeight + tip.offsetHeight + 8);
  if (x === undefined) [x, y] = [box.left + (column + 1) / columns * box.width, box.top + (row + 1) / rows * box.height];
  tip.style.left = `${Math.min(x + 16, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(y + 16, innerHeight - tip.offsetHeight - 8)}px`;
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
