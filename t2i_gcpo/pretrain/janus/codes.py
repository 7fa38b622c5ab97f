"""Define the codes of the embedded Janus models: each stands for a patch of pixels, and for nothing around it.

B pictures, S pixels a side, K codes, N patches or points of D numbers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from t2i_gcpo.data.shapes.scene import IMAGE_SIZE, Difficulty, random_scene
from t2i_gcpo.pretrain.janus.model import VQSettings

#: Pixels a token covers on each side.
PATCH = 8
#: Points whose distances to all centres are held at once.
MOST_POINTS = 65536


def pictures(rng: random.Random, count: int, size: int, difficulty: Difficulty | None = None) -> Tensor:
    """Draw random scenes or crops of them, `[B, 3, S, S]` in [-1, 1]; a crop starts on the grid and holds an object."""
    batch: list[np.ndarray] = []
    while len(batch) < count:
        scene = random_scene(rng, difficulty)
        picture = scene.render()
        if size < IMAGE_SIZE:
            thing = rng.choice(scene.objects)
            centre_x, centre_y = (int(corner) + int(thing.size) // 2 for corner in (thing.left, thing.top))
            limit = (IMAGE_SIZE - size) // PATCH
            left, top = (
                min(max((centre - rng.randint(0, size)) // PATCH, 0), limit) * PATCH for centre in (centre_x, centre_y)
            )
            picture = picture[top : top + size, left : left + size]
        batch.append(picture)
    return as_pixels(batch).contiguous(memory_format=torch.channels_last)


def as_pixels(pictures: Sequence[np.ndarray]) -> Tensor:
    """Stack pictures [S, S, 3] uint8 to `[B, 3, S, S]` in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def patches(pixels: Tensor) -> Tensor:
    """Cut pictures `[B, 3, S, S]` into patches `[B * S/8 * S/8, 192]`, in the order of the tokens."""
    return rearrange(pixels, "b c (h y) (w x) -> (b h w) (c y x)", y=PATCH, x=PATCH)


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Return the index of the centre [K, D] nearest to each point [N, D]; many points are taken part by part."""
    squares, parts = centres.square().sum(1), points.split(MOST_POINTS)
    return torch.cat([(squares - 2 * part @ centres.T).argmin(1) for part in parts])


def kmeans(points: Tensor, count: int, rounds: int, generator: torch.Generator) -> Tensor:
    """Find `count` centres [K, D] of distinct points [N, D].

    With no more points than centres, each is one, and the last repeats.
    """
    order = torch.randperm(len(points), generator=generator)
    centres = points[order[torch.arange(count).clamp(max=len(points) - 1)]].clone()
    for _ in range(rounds if len(points) > count else 0):
        owner = nearest(points, centres)
        sizes = torch.bincount(owner, minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, owner, points)
        used = sizes > 0
        centres[used] = sums[used] / sizes[used, None]
    return centres


def principal_components(centres: Tensor, dim: int, power: float = 0.0) -> Tensor:
    """Return the centres' first principal components [K, dim], of variance 1 on average.

    The deviation of each is in proportion to its own to the `power`: 0 makes all alike, so that a detail of a patch
    counts as much as its colour; 1 leaves the distances of the patches as they are.
    """
    left, deviations, _ = torch.linalg.svd(centres - centres.mean(0), full_matrices=False)
    scale = deviations[:dim] ** power
    return left[:, :dim] * len(centres) ** 0.5 * scale / scale.square().mean().sqrt()


def directions(centres: Tensor, dim: int) -> Tensor:
    """Return unit vectors [K, dim] to start the codebook with: the directions of the principal components."""
    return F.normalize(principal_components(centres, dim), dim=1)


def patch_codes(settings: VQSettings) -> Tensor:
    """Return what each code stands for: centres [K, 192] of the patches of many scenes, in [-1, 1]."""
    generator = torch.Generator().manual_seed(settings.seed)
    if settings.background_codes == 0:
        return kmeans(_distinct_patches(settings), settings.codebook, 30, generator)
    objects, background = _sorted_patches(settings)
    counts = settings.codebook - settings.background_codes, settings.background_codes
    return torch.cat([kmeans(objects, counts[0], 15, generator), kmeans(background, counts[1], 15, generator)])


def _distinct_patches(settings: VQSettings) -> Tensor:
    """Draw the distinct patches [N, 192] of `kmeans_scenes` scenes."""
    rng, difficulty = random.Random(settings.seed + 1), Difficulty.of_style(settings.style)
    distinct = torch.empty(0, 3 * PATCH * PATCH)
    for start in range(0, settings.kmeans_scenes, 500):
        count = min(500, settings.kmeans_scenes - start)
        new = patches(pictures(rng, count, IMAGE_SIZE, difficulty))
        distinct = torch.unique(torch.cat([distinct, new]), dim=0)
    return distinct


def _sorted_patches(settings: VQSettings) -> tuple[Tensor, Tensor]:
    """Draw the patches [N, 192] of `kmeans_scenes` scenes: those that show a part of an object, and the others.

    Where patterns vary without end, the backdrop is most of all patches; counted with the rest it would take most of
    the codes, and objects would be drawn coarsely.
    """
    rng, difficulty = random.Random(settings.seed + 1), Difficulty.of_style(settings.style)
    objects, background = [], []
    for _ in range(settings.kmeans_scenes):
        scene = random_scene(rng, difficulty)
        full, empty = (patches(as_pixels([one.render()])) for one in (scene, replace(scene, objects=())))
        shows = (full != empty).any(dim=1)
        objects.append(full[shows])
        background.append(full[~shows])
    return torch.cat(objects), torch.cat(background)
