"""Finds COCO's 80 classes with GenEval's detector, Mask2Former, in transformers.

B images, H, W their sides, Q the model's queries, C classes, h, w the sides of its mask logits, N objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from rewards.geneval.coco import COCO_CLASSES
from rewards.geneval.detectors import Detector
from rewards.geneval.rules import SCORE_THRESHOLD, Detection
from rewards.models.batches import check_batch_size, check_images, memory_errors
from rewards.models.transformers_model import load_image_processor, load_model

#: Query-class pairs that are looked at, the most probable ones.
MOST_OBJECTS = 100

#: Against a division by zero where a mask is empty.
MASK_EPS = 1e-6


class Mask2FormerDetector(Detector):
    """Finds objects with box and mask by Mask2Former (2112.01527), Swin-S, on COCO's classes under GenEval's names.

    The default is its authors' checkpoint `facebook/mask2former-swin-small-coco-instance`; see its page for the licence
    of the weights. GenEval's own script runs the same architecture with weights that mmdetection trained, so the two
    scores differ: compare scores of one detector only. Boxes, masks and confidences are made as mmdetection makes them.

    Args:
        checkpoint: folder or hub repository of a `Mask2FormerForUniversalSegmentation` for instances.
        revision: of the hub repository.
        classes: the names of the model's outputs, in their order; GenEval's names of COCO's classes by default.
        score_threshold: objects at or below this confidence are not returned; GenEval's rules ask for more than 0.3.
        dtype: float32, float16 or bfloat16; the confidences are float32.
        batch_size: images at a time; each is enlarged to 800 pixels on its shorter side.

    ValueError: weights that are missing or do not fit, a number of classes other than the model's, images of another
    type.
    """

    #: Its objects come without a colour.
    names_colors = False

    def __init__(
        self,
        *,
        checkpoint: str = "facebook/mask2former-swin-small-coco-instance",
        revision: str | None = None,
        classes: Sequence[str] = COCO_CLASSES,
        score_threshold: float = SCORE_THRESHOLD,
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = 8,
    ) -> None:
        check_batch_size(batch_size, "detector 'mask2former'")
        if not 0 <= score_threshold < 1:
            raise ValueError(f"score_threshold of detector 'mask2former' is {score_threshold}; it must be in [0, 1)")
        self.model, folder = load_model(
            "geneval",
            "Mask2FormerForUniversalSegmentation",
            checkpoint,
            revision=revision,
            device=device,
            dtype=dtype,
        )
        self.processor = load_image_processor("geneval", folder)
        self.classes: tuple[str, ...] = tuple(classes)
        self.score_threshold, self.batch_size = score_threshold, batch_size
        if self.model.config.num_labels != len(self.classes):
            raise ValueError(
                f"detector 'mask2former': {folder} tells {self.model.config.num_labels} classes apart, but "
                f"{len(self.classes)} "
                "names are given; take a checkpoint for COCO instances, or give classes, a name for each"
            )

    def __call__(self, images: Tensor) -> list[list[Detection]]:
        """Return the objects of each image [B, 3, H, W] uint8, the most probable class first."""
        check_images(images, "geneval")
        detections: list[list[Detection]] = []
        for part in images.split(self.batch_size):
            with memory_errors("geneval", len(part)):
                detections.extend(self._detect(part))
        return detections

    @torch.no_grad()
    def _detect(self, images: Tensor) -> list[list[Detection]]:
        pixels = self.processor(images=list(images.to(self.model.device)), return_tensors="pt")["pixel_values"]
        output = self.model(pixel_values=pixels.to(self.model.device, self.model.dtype))
        sides: list[tuple[int, int]] = [(pixels.shape[-2], pixels.shape[-1]), (images.shape[-2], images.shape[-1])]
        detections = []
        for classes, masks in zip(output.class_queries_logits, output.masks_queries_logits, strict=True):
            objects = instances(classes, masks, sizes=sides, threshold=self.score_threshold)
            rows = zip(*(values.cpu() for values in objects.fields()), strict=True)
            detections.append(
                [
                    Detection(self.classes[label], float(score), tuple(box.tolist()), mask.numpy())
                    for label, score, box, mask in rows
                ]
            )
        return detections


@dataclass(frozen=True)
class Instances:
    """Holds N objects in a picture, the most probable class first."""

    labels: Tensor
    """[N] int64."""
    scores: Tensor
    """[N] float32 in [0, 1]."""
    boxes: Tensor
    """[N, 4] float32: xmin, ymin, xmax + 1, ymax + 1, pixels."""
    masks: Tensor
    """[N, H, W] bool."""

    def fields(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.labels, self.scores, self.boxes, self.masks


def instances(
    class_logits: Tensor, mask_logits: Tensor, *, sizes: Sequence[tuple[int, int]], threshold: float
) -> Instances:
    """Make the objects of one picture from the model's outputs, as mmdetection's MaskFormer fusion head does.

    A query-class pair's probability p is the softmax over the classes and the null class. The 100 most probable pairs
    get the query's mask, `sigmoid(logit) > 0.5`, and the confidence p times the mean of the sigmoid over the mask.

    Args:
        class_logits: [Q, C + 1], the null class last.
        mask_logits: [Q, h, w].
        sizes: rows and columns of the model's input, then of the picture: the logits are resized to one after the
        other.
        threshold: least confidence, exclusive.
    """
    probabilities = class_logits.float().softmax(dim=-1)[:, :-1]
    best = probabilities.flatten().topk(min(MOST_OBJECTS, probabilities.numel()))
    # The mask's factor is at most 1: whoever fails without it need not be resized.
    probable = best.values > threshold
    pairs, probability = best.indices[probable], best.values[probable]
    logits = rearrange(mask_logits.float()[pairs // probabilities.shape[1]], "n h w -> n 1 h w")
    for size in sizes:
        logits = functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    logits = rearrange(logits, "n 1 h w -> n h w")
    masks = logits > 0
    inside = (logits.sigmoid() * masks).sum(dim=(1, 2))
    scores = probability * inside / (masks.sum(dim=(1, 2)) + MASK_EPS)
    sure = scores > threshold
    return Instances(pairs[sure] % probabilities.shape[1], scores[sure], _boxes(masks[sure]), masks[sure])


def _boxes(masks: Tensor) -> Tensor:
    """Return the boxes [N, 4] of masks [N, H, W] bool, none of them empty."""
    sides = []
    for covered in (masks.any(dim=1), masks.any(dim=2)):  # columns, rows
        places = torch.arange(covered.shape[1], device=masks.device)
        sides.append(places.masked_fill(~covered, covered.shape[1]).amin(dim=1))
        sides.append(places.masked_fill(~covered, -1).amax(dim=1) + 1)
    left, right, top, bottom = sides
    return torch.stack([left, top, right, bottom], dim=1).float()
