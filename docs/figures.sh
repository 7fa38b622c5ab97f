#!/bin/sh
# Draw the pictures of the README and of docs/: heatmaps, the demo's page, the curves of the studies. The run of
# heatmap_steps.png trains for some minutes on two CPU cores and is kept in runs/figures; a second call draws from it.
set -eu
cd "$(dirname "$0")/.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

draw() { # draw NAME OPTIONS...: docs/NAME.png is heatmap.png of the command
    name=$1
    shift
    t2i-gcpo heatmap "$@" --out "$out/$name"
    cp "$out/$name/heatmap.png" "docs/$name.png"
}

star="a photo of a star left of a ring"
both="a photo of a diamond and a ring"
draw heatmap --checkpoint janus-mini --prompt "$star" --num 8
draw heatmap_group --checkpoint janus-mini --prompt "$star" --num 4 --columns 4
draw heatmap_without --checkpoint janus-mini --prompt "$both" --without "and a ring" --map contrast
draw heatmap_order --checkpoint janus-mini --prompt "$both" --num 2 --map weight --gif
mv docs/heatmap_order.png "$out" && cp "$out/heatmap_order/heatmap.gif" docs/heatmap_order.gif
draw heatmap_masked --checkpoint amused-mini --prompt "$star" --num 4 --columns 4 --order-temperature 6 --map weight order
cp "$out/heatmap_masked/order.png" docs/heatmap_masked_order.png
draw heatmap_events --checkpoint janus-textured --prompt "$star" --num 4 --columns 4 --map event surprisal
cp "$out/heatmap_events/surprisal.png" docs/heatmap_surprisal.png

for world in mini textured; do
    t2i-gcpo credit-truth --measured "docs/results/truth_janus_$world/truth.safetensors" --out "$out/truth_$world" \
        --rules gcpo gcpo:normalization=none gcpo_variance gcpo_entropy gcpo_sibling gcpo_shuffled
done
cp "$out/truth_mini/truth.png" docs/truth.png
cp "$out/truth_textured/truth.png" docs/truth_textured.png

if [ ! -e runs/figures/heatmaps/step_000024.npz ]; then
    rm -rf runs/figures
    t2i-gcpo train --config configs/quickstart.yaml --output-dir runs/figures --steps 24 --optim.lr 3e-4 \
        --algorithm.group-size 8 --pictures.every 3 --checkpoint.every 0 \
        --evaluate.every 0 --evaluate.before False --evaluate.after False
fi
draw heatmap_steps --run runs/figures --map weight

# The curves of a study come from its trials: those that t2i-gcpo study left in runs/, else those that docs/results/ keeps.
for name in quickstart shapes textured masked clip long; do
    trials=runs/studies/$name/trials
    if [ ! -d "$trials" ] && [ -e "docs/results/$name/trials.tgz" ]; then
        tar xzf "docs/results/$name/trials.tgz" -C "$out"
        trials=$out/$trials
    fi
    if [ -d "$trials" ]; then
        t2i-gcpo compare --runs "$trials"/*/seed_* --out "$out/$name" >/dev/null
        cp "$out/$name/curves.png" "docs/results/$name/curves.png"
    else
        echo "docs/results/$name/curves.png stays as it is: t2i-gcpo study configs/studies/$name.yaml trains its runs"
    fi
done
tar xzf docs/results/text_arithmetic/trials.tgz -C "$out"
python -c 'import sys; from pathlib import Path; from t2i_gcpo.text import study, study_results
study_results.write(study.Spec.read(Path("configs/text_studies/arithmetic.yaml")), Path(sys.argv[1]))' "$out/runs/text_study"
cp "$out/runs/text_study/curves.png" docs/results/text_arithmetic/curves.png

# The demo's page, as the browser test of the tab Inspect sees it.
if command -v chromium >/dev/null; then
    T2I_GCPO_SCREENSHOTS=$out python -m pytest -q -m slow tests/browser/test_demo_browser.py -k test_inspect
    cp "$out/inspect.png" docs/demo.png
else
    echo "docs/demo.png stays as it is: it takes Chromium (Debian: apt-get install chromium)"
fi
