"""Holds the style and the script of a report's page: light, dark, for narrow screens, and to enlarge pictures."""

from __future__ import annotations

import base64
import hashlib

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c20; --ground: #fff; --faint: #5c5e66; --line: #ddd; --pre: #f5f5f7;
  --warn: #fff5e0;
  --good: #157a3b; --bad: #b72a2a; --link: #2456b8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ec; --ground: #17181c; --faint: #a3a6b0; --line: #3b3d46;
  --pre: #22242a;
  --warn: #3a2f16; --good: #4cc07a; --bad: #ff7b72; --link: #8ab4f8; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); max-width: 1180px;
  margin: 28px auto; padding: 0 20px;
  overflow-wrap: anywhere; }
a { color: var(--link); }
h1 { font-size: 24px; margin-bottom: 4px; } h2 { font-size: 18px; margin: 34px 0 8px;
  border-bottom: 1px solid var(--line); padding-bottom: 4px; }
h3 { font-size: 16px; margin: 22px 0 8px; } h4 { font-size: 14px; margin: 0 0 8px; }
.lead { font-size: 19px; line-height: 1.45; margin: 10px 0; max-width: 62em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } .scroll { overflow-x: auto; }
td, th { padding: 4px 14px 4px 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
td:first-child, th:first-child { text-align: left; } tr.total { font-weight: 600; }
img { max-width: 100%; height: auto; } figure { margin: 14px 0; } figcaption, .faint { color: var(--faint); }
pre { background: var(--pre); padding: 12px; overflow-x: auto; font-size: 13px; }
  .warning { background: var(--warn); padding: 8px 12px; }
button.zoom { all: unset; cursor: zoom-in; display: inline-block; max-width: 100%; }
button.zoom:focus-visible, .scroll:focus-visible { outline: 3px solid #3b82f6; outline-offset: 2px; }
button.zoom img { display: block; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: 14px; }
.pair { border: 1px solid var(--line); border-radius: 6px; padding: 10px; min-width: 0; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 12px; }
  .sides figure { margin: 0; min-width: 0; }
.sides img { width: 100%; max-width: 384px; image-rendering: pixelated; } .sides button.zoom { width: 100%; }
.sides ul { margin: 2px 0 0; padding-left: 18px; } .sides figcaption { font-size: 13px; }
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
dialog { border: 0; padding: 0; max-width: 98vw; max-height: 96vh; background: var(--ground); color: var(--ink);
  overflow: auto; }
dialog::backdrop { background: rgba(0, 0, 0, .75); } dialog img { display: block; max-width: none; cursor: zoom-out; }
dialog form { position: sticky; top: 0; left: 0; display: flex; gap: 12px; align-items: center;
  width: min(96vw, 100%); padding: 6px 10px;
  box-sizing: border-box; background: var(--ground); } dialog button { font: inherit; min-height: 36px;
  padding: 2px 14px; }
@media (max-width: 699px) { body { padding: 0 12px; } .lead { font-size: 17px; } figure.wide img { max-width: none;
  width: 1000px; } }
"""
SCRIPT = """
"use strict";
const box = document.getElementById("enlarged"), shown = box.querySelector("img");
for (const button of document.querySelectorAll("button.zoom")) button.onclick = () => {
  const image = button.querySelector("img");
  shown.src = image.currentSrc || image.src;
  shown.alt = image.alt;
  box.querySelector("span").textContent = image.alt;
  const width = image.naturalWidth || image.width, height = image.naturalHeight || image.height;
  const scale = Math.max(1, Math.min(innerWidth * .94 / width, (innerHeight * .94 - 60) / height));
  shown.width = width * scale;
  shown.style.imageRendering = width < 300 ? "pixelated" : "auto";
  box.showModal();
};
box.onclick = event => { if (event.target === box || event.target === shown) box.close(); };
"""
DIALOG = (
    '<dialog id="enlarged" aria-label="enlarged picture"><form method="dialog"><button>close</button><span></span>'
    '</form><img alt=""></dialog>'
)
#: A run may come from somebody else: its page runs no script but ours and loads nothing.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src "
    f"'sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}'"
)
