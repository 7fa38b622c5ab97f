#!/bin/sh
# Draw the heatmaps that the README and docs/heatmaps.md show. The run of heatmap_steps.png trains for some minutes on
# two CPU cores and is kept in runs/figures; a second call draws from it.
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

if [ ! -e runs/figures/heatmaps/step_000024.npz ]; then
    rm -rf runs/figures
    t2i-gcpo train --config configs/quickstart.yaml --output-dir runs/figures --steps 24 --optim.lr 3e-4 \
        --algorithm.group-size 8 --pictures.every 3 --checkpoint.every 0 \
        --evaluate.every 0 --evaluate.before False --evaluate.after False
fi
draw heatmap_steps --run runs/figures --map weight
