"""GenEval's detector on a tiny random Mask2Former, and its post-processing against a slow, literal one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from helpers.messages import names
from helpers.tiny_models import pictures, seeded
from rewards.geneval import Detection
from rewards.geneval import detectors as detectors_module
from rewards.geneval.coco import COCO_CLASSES
from rewards.geneval.detectors.mask2former import Mask2FormerDetector, instances
from rewards.geneval.rules import SCORE_THRESHOLD

SIDE = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the hub's repository: the model and its image processor, here for images of 64 pixels."""
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    path = tmp_path_factory.mktemp("mask2former")
    backbone = SwinConfig(
        image_size=SIDE, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=16, num_queries=12, num_labels=80,
    )  # fmt: skip
    with seeded(3):
        model = Mask2FormerForUniversalSegmentation(config)
        model.class_predictor.weight.data.normal_(std=0.8)  # probabilities that are far from alike
        for name, parameter in model.model.named_parameters():
            if "mask_embedder" in name and parameter.ndim > 1:
                parameter.data.mul_(8)  # masks with an outside
    model.save_pretrained(path)
    Mask2FormerImageProcessor(size={"shortest_edge": SIDE, "longest_edge": 96}).save_pretrained(path)
    return path


def plain(model: Any, image: Tensor, threshold: float) -> list[Detection]:
    """One picture at a time: Pillow's resize, the model, and the slow post-processing."""
    height, width = image.shape[-2:]
    large = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(
        (SIDE * width // height, SIDE), Image.Resampling.BILINEAR
    )
    pixels = (torch.from_numpy(np.asarray(large).copy()).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    with torch.no_grad():
        output = model(pixel_values=pixels.permute(2, 0, 1)[None])
    return literal(
        output.class_queries_logits[0], output.masks_queries_logits[0], (SIDE, large.width), (height, width), threshold
    )


def literal(
    classes: Tensor, masks: Tensor, inner: tuple[int, int], outer: tuple[int, int], threshold: float
) -> list[Detection]:
    """mmdetection's instance post-processing, pair by pair."""
    pairs = []
    for query in range(len(classes)):
        probabilities = classes[query].softmax(dim=0)
        pairs += [(float(probabilities[label]), query, label) for label in range(classes.shape[1] - 1)]
    found = []
    for probability, query, label in sorted(pairs, reverse=True)[:100]:
        logits = masks[query][None, None]
        for size in (inner, outer):
            logits = torch.nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        logits = logits[0, 0].numpy()
        mask = logits > 0
        if not mask.any():
            continue
        quality = float(np.mean(1 / (1 + np.exp(-logits[mask]))))
        rows, columns = np.nonzero(mask)
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        if probability * quality > threshold:
            found.append(Detection(COCO_CLASSES[label], probability * quality, tuple(map(float, box)), mask))  # type: ignore[arg-type]
    return found


def compare(given: list[Detection], expected: list[Detection], tolerance: float = 1e-5) -> None:
    assert [one.class_name for one in given] == [one.class_name for one in expected]
    for one, other in zip(given, expected, strict=True):
        assert abs(one.score - other.score) <= tolerance and one.box == other.box
        assert one.mask is not None and one.mask.dtype == bool and (one.mask == other.mask).all()


@pytest.mark.parametrize("threshold", [0.0, 0.15])
def test_the_post_processing_is_mmdetection_s(threshold: float) -> None:
    generator = torch.Generator().manual_seed(1)
    classes = 3 * torch.randn(9, 81, generator=generator)
    masks = torch.nn.functional.interpolate(
        4 * torch.randn(1, 9, 5, 5, generator=generator) - 1, size=(16, 12), mode="bilinear"
    )[0]
    masks[2] = -1.0  # empty: no object, whatever its class
    classes[2, 7] = 20.0
    given = instances(classes, masks, sizes=[(64, 48), (40, 30)], threshold=threshold)
    labels, scores, boxes, areas = given.fields()
    assert scores.dtype == torch.float32 and len(scores) > 3
    found = [
        Detection(COCO_CLASSES[label], float(score), tuple(box.tolist()), mask.numpy())
        for label, score, box, mask in zip(labels, scores, boxes, areas, strict=True)
    ]
    compare(found, literal(classes, masks, (64, 48), (40, 30), threshold), 1e-6)
    assert all(mask.any() for mask in areas)


def test_a_box_and_a_confidence_by_hand() -> None:
    """One mask of 2 x 3 pixels with logit ln 3 (sigmoid 0.75) and a class of probability 8/9 against the null class."""
    classes = torch.full((1, 3), -40.0)
    classes[0, 1], classes[0, 2] = np.log(8.0), 0.0
    masks = torch.full((1, 6, 7), -5.0)
    masks[0, 2:4, 1:4] = np.log(3.0)
    given = instances(classes, masks, sizes=[(6, 7), (6, 7)], threshold=0.3)
    assert given.labels.tolist() == [1] and given.boxes.tolist() == [[1, 2, 4, 4]]
    assert given.scores.item() == pytest.approx(8 / 9 * 0.75, abs=1e-5)
    assert len(instances(classes, masks, sizes=[(6, 7)], threshold=0.67).labels) == 0


def test_no_objects_is_no_error() -> None:
    given = instances(torch.zeros(4, 81), torch.zeros(4, 5, 5), sizes=[(10, 10), (8, 8)], threshold=0.3)
    assert [tuple(values.shape) for values in given.fields()] == [(0,), (0,), (0, 4), (0, 8, 8)]


def test_detections_are_those_of_a_plain_computation(folder: Path) -> None:
    from transformers import Mask2FormerForUniversalSegmentation

    model = Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval()
    detector = detectors_module.load("mask2former", checkpoint=str(folder), score_threshold=0.05, batch_size=2)
    # At the model's size nothing is rounded.
    for images in (pictures(3, SIDE, SIDE), pictures(3, SIDE, 96, seed=1)):
        found = detector(images)
        assert len({len(objects) for objects in found}) > 1, "pictures alike prove nothing"
        for image, objects in zip(images, found, strict=True):
            assert len(objects) > 2 and any(not one.mask.all() for one in objects if one.mask is not None)
            compare(objects, plain(model, image, 0.05))
    assert not detector.model.training and not any(p.requires_grad for p in detector.model.parameters())  # type: ignore[attr-defined]


def test_smaller_pictures_are_enlarged_and_the_boxes_are_theirs(folder: Path) -> None:
    from transformers import Mask2FormerForUniversalSegmentation

    model = Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval()
    image = pictures(1, 40, 40, seed=2)[0]
    given = Mask2FormerDetector(checkpoint=str(folder), score_threshold=0.05)(image[None])[0]
    expected = plain(model, image, 0.05)
    assert given and given[0].mask is not None and given[0].mask.shape == (40, 40)
    # Pillow and torch round the resized bytes apart by a level here and there.
    assert [one.class_name for one in given[:3]] == [one.class_name for one in expected[:3]]
    assert given[0].score == pytest.approx(expected[0].score, abs=5e-3)
    assert given[0].box == pytest.approx(expected[0].box, abs=1)


def test_batches_and_order_do_not_matter(folder: Path) -> None:
    images = pictures(4, SIDE, SIDE)
    found = Mask2FormerDetector(checkpoint=str(folder), score_threshold=0.05, batch_size=3)(images)
    alone = Mask2FormerDetector(checkpoint=str(folder), score_threshold=0.05, batch_size=1)
    order = [2, 0, 3, 1]
    for objects, expected in zip(alone(images[order]), [found[k] for k in order], strict=True):
        compare(objects, expected)
    assert all(
        one.score > SCORE_THRESHOLD
        for objects in Mask2FormerDetector(checkpoint=str(folder))(images)
        for one in objects
    )
    rough = Mask2FormerDetector(checkpoint=str(folder), score_threshold=0.05, dtype="bfloat16")(images)
    assert rough[0][0].class_name == found[0][0].class_name
    assert rough[0][0].score == pytest.approx(found[0][0].score, abs=0.05)


def test_the_class_list_is_geneval_s() -> None:
    assert len(COCO_CLASSES) == len(set(COCO_CLASSES)) == 80
    assert {"computer mouse", "tv remote", "computer keyboard"} <= set(COCO_CLASSES)
    # COCO's category ids of 1 to 90 leave ten out; these are well-known places of the list without them.
    places = {"person": 0, "traffic light": 9, "cat": 15, "bottle": 39, "chair": 56, "tv": 62, "computer mouse": 64}
    assert {name: COCO_CLASSES.index(name) for name in places} == places
    assert (COCO_CLASSES[65], COCO_CLASSES[66], COCO_CLASSES[-1]) == ("tv remote", "computer keyboard", "toothbrush")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["cat", "dog"]}, "tells 80 classes apart, but 2 names"),
        ({"score_threshold": 1.0}, r"score_threshold of detector 'mask2former' is 1.0; it must be in \[0, 1\)"),
        ({"batch_size": 0}, "batch_size of detector 'mask2former' is 0"),
        ({"dtype": "float8"}, "dtype 'float8' of reward 'geneval' is unknown"),
        ({"checkpoint": "no/such/model"}, "no model for reward 'geneval' 'no/such/model'"),
        ({"device": "cuda:99"}, "reward 'geneval' cannot run on device 'cuda:99'"),
        ({"checkpiont": "x"}, "detector 'mask2former' has no option checkpiont; allowed: checkpoint, revision"),
    ],
)
def test_options(options: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        detectors_module.load("mask2former", **{"checkpoint": str(folder), **options})


def test_images_of_another_type(folder: Path) -> None:
    with pytest.raises(ValueError, match="'geneval' takes uint8 images"):
        Mask2FormerDetector(checkpoint=str(folder))(pictures().float())


def test_out_of_memory_says_which_batch_to_try(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = Mask2FormerDetector(checkpoint=str(folder), batch_size=3)

    def full(**_: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(detector.model, "forward", full)
    with pytest.raises(ValueError, match=names("'geneval'", "memory", "batch of 3", "batch_size 1")):
        detector(pictures(4))
