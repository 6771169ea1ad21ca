"""With the same weights our RetinaNet, FCOS and RPN give what torchvision's give, before and after suppression."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers
from ultralytics.utils.ops import xywh2xyxy

from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.nms import select_detections

from .lively import SIZES, image, lively_detector, loaded, torchvision_detector, torchvision_heads

each_size = pytest.mark.parametrize("size", SIZES[::2], ids=str)
each_kind = pytest.mark.parametrize("kind", ["retinanet", "fcos"])


@cache
def _pair(kind: str) -> tuple[Any, DetectorModel]:
    """torchvision's detector on a ResNet-50 and ours."""
    theirs = torchvision_detector(kind, "resnet50")
    with TemporaryDirectory() as folder:
        return theirs, loaded(kind, theirs.state_dict(), Path(folder), "resnet50")


def _detections(decoded: Tensor, confidence: float, iou_threshold: float, max_det: int) -> Tensor:
    """Detections of one image, rows x1, y1, x2, y2, score, class, of every class above the threshold."""
    boxes, scores = decoded.T.split((4, len(decoded) - 4), 1)
    return select_detections(
        xywh2xyxy(boxes),
        scores,
        confidence=confidence,
        iou_threshold=iou_threshold,
        max_det=max_det,
        groups=torch.zeros(len(boxes), dtype=torch.int64),  # exact, where Ultralytics' offsets round
    )


def _without_partner(detections: Tensor, others: Tensor) -> int:
    """Count rows that have no other of the same class with score and box within 1e-4, the box relative to its size."""
    tolerance = detections.new_tensor([1e-4 * detections[:, :4].amax()] * 4 + [1e-4, 0.1])
    close = ((detections[:, None] - others).abs() < tolerance).all(-1)
    return int((~close.any(1)).sum())


def _assert_same_detections(ours: Tensor, theirs: Tensor, *, at_least: int) -> None:
    """Both ways; one in a hundred may fall the other way where two scores or an overlap and the threshold are equal."""
    assert len(theirs) >= at_least
    assert _without_partner(ours, theirs) <= len(ours) // 100
    assert _without_partner(theirs, ours) <= len(theirs) // 100


@pytest.mark.slow
@each_size
@each_kind
def test_raw_outputs_are_torchvisions(kind: str, size: tuple[int, int]) -> None:
    theirs, ours = _pair(kind)
    images = image(*size, count=2)
    with torch.no_grad():
        expected, _, _ = torchvision_heads(theirs, images)
        raw = ours(images)[1]
    assert expected["cls_logits"].std() > 1
    torch.testing.assert_close(raw["scores"], expected["cls_logits"], rtol=0, atol=1e-4)
    torch.testing.assert_close(raw["boxes"], expected["bbox_regression"], rtol=0, atol=1e-4)
    if kind == "fcos":
        torch.testing.assert_close(raw["quality"], expected["bbox_ctrness"][..., 0], rtol=0, atol=1e-4)


@each_size
@each_kind
def test_priors_are_torchvisions_anchors(kind: str, size: tuple[int, int]) -> None:
    theirs, ours = _pair(kind)
    images = image(*size)
    with torch.no_grad():
        _, anchors, feats = torchvision_heads(theirs, images)
    priors = ours.head.priors(feats, scale=1.0)
    torch.testing.assert_close(priors.boxes, anchors[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(priors.points, (anchors[0][:, :2] + anchors[0][:, 2:]) / 2, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "suppressed", [pytest.param(False, marks=pytest.mark.slow), True], ids=["before_nms", "after_nms"]
)
@each_size
@each_kind
def test_boxes_scores_and_labels_are_torchvisions(kind: str, size: tuple[int, int], suppressed: bool) -> None:
    theirs, ours = _pair(kind)
    images = image(*size, count=2)
    iou_threshold, max_det = (theirs.nms_thresh, theirs.detections_per_img) if suppressed else (1.0, 100_000)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "nms_thresh", iou_threshold)
        patch.setattr(theirs, "detections_per_img", max_det)
        expected = theirs(list(images))
        decoded = ours(images)[0]
    for predicted, wanted in zip(decoded, expected, strict=True):
        rows = torch.cat((wanted["boxes"], wanted["scores"][:, None], wanted["labels"][:, None].float()), 1)
        detections = _detections(predicted, theirs.score_thresh, iou_threshold, max_det)
        assert len(rows[:, 5].unique()) > 2
        _assert_same_detections(detections, rows, at_least=50)
        torch.testing.assert_close(detections[:, 4], rows[:, 4], rtol=0, atol=1e-4)


@pytest.mark.slow
@each_size
def test_an_rpn_proposes_what_torchvisions_does(size: tuple[int, int]) -> None:
    ours = lively_detector("rpn")
    images = image(*size, count=2)
    with torch.no_grad():
        decoded, raw = ours(images)
    generator = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
    listed = ImageList(images, [size] * 2)
    anchors = generator(listed, raw["feats"])
    with torch.no_grad():
        objectness, deltas = concat_box_prediction_layers(*ours.head.rpn(raw["feats"]))
        kept = {"training": 2000, "testing": ours.head.pre_nms}, {"training": 1000, "testing": 1000}
        theirs = RegionProposalNetwork(generator, ours.head.rpn, 0.7, 0.3, 256, 0.5, *kept, 0.7).eval()
        proposals = theirs(listed, dict(enumerate(raw["feats"])))[0]

    torch.testing.assert_close(ours.head.priors(raw["feats"], scale=1.0).boxes, anchors[0])
    torch.testing.assert_close(raw["scores"].flatten(0, 1), objectness)
    torch.testing.assert_close(raw["boxes"].flatten(0, 1), deltas)
    assert ours.head.extra_channels == ("level",)
    for rows, expected in zip(decoded, proposals, strict=True):
        boxes, scores, level = rows.T.split((4, 1, 1), 1)
        rows = select_detections(
            xywh2xyxy(boxes), scores, confidence=0, iou_threshold=0.7, max_det=10_000, groups=level[:, 0].long()
        )
        # torchvision drops boxes that clipping left without area, which suppress nothing; it hands on no scores
        rows = rows[((rows[:, 2:4] - rows[:, :2]) >= 1e-3).all(1)][:1000]
        rows[:, 4:] = 0
        padded = torch.cat((expected, expected.new_zeros(len(expected), 2)), 1)
        _assert_same_detections(rows, padded, at_least=100)
