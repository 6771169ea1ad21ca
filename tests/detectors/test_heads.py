"""The heads alone: coding of boxes, what is selected at inference, and what detections are ranked by."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.heads.dense import DenseDetect
from mlc_yolo.priors import Priors

from .lively import WIDTH, image, lively_detector

SIZE = (160, 224)
#: Every head, with every layer it can have, by both sets of conventions.
HEADS = [
    ("retinanet", "none", "paper"),
    ("retinanet", "iou", "paper"),
    ("fcos", "none", "paper"),
    ("fcos", "iou", "paper"),
    ("fcos", "centerness", "paper"),
    ("fcos", "centerness", "torchvision"),
    ("rpn", "none", "paper"),
    ("rpn", "iou", "paper"),
]
each_head = pytest.mark.parametrize(("kind", "quality", "follows"), HEADS, ids=["-".join(head) for head in HEADS])


def _detector(kind: str, quality: str, follows: str) -> DetectorModel:
    return lively_detector(kind, quality=quality, follows=follows, nc=1 if kind == "rpn" else 5)


def _priors(model: DetectorModel) -> Priors:
    with torch.no_grad():
        return model.head.priors(model(image(*SIZE))[1]["feats"], scale=1.0)


@pytest.mark.slow
@each_head
def test_decoding_undoes_encoding(kind: str, quality: str, follows: str) -> None:
    model = _detector(kind, quality, follows)
    priors = _priors(model)
    reach = torch.rand(len(priors), 4, generator=torch.Generator().manual_seed(0)) * 90 + 2
    boxes = torch.cat((priors.points - reach[:, :2], priors.points + reach[:, 2:]), 1)
    torch.testing.assert_close(model.head.decode(model.head.encode(boxes, priors), priors), boxes, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("kind", ["retinanet", "fcos", "rpn"])
def test_encoding_undoes_decoding(kind: str) -> None:
    model = _detector(kind, "none", "paper")
    priors = _priors(model)
    raw = torch.randn(2, len(priors), 4, generator=torch.Generator().manual_seed(0)) / 2 + 2 * (kind == "fcos")
    encoded = model.head.encode(model.head.decode(raw, priors), priors)
    torch.testing.assert_close(encoded, raw, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["retinanet", "fcos", "rpn"])
def test_wild_regressions_stay_finite(kind: str) -> None:
    model = _detector(kind, "none", "paper")
    priors = _priors(model)
    raw = torch.full((len(priors), 4), 1e4, requires_grad=True)
    boxes = model.head.decode(raw, priors)
    boxes.square().sum().backward()
    assert bool(boxes.isfinite().all())
    assert raw.grad is not None and bool(raw.grad.isfinite().all())


def test_points_of_the_papers_fcos_are_cell_centres_and_torchvisions_the_corners() -> None:
    centres = _priors(_detector("fcos", "centerness", "paper"))
    corners = _priors(_detector("fcos", "centerness", "torchvision"))
    assert centres.points[:2].tolist() == [[4.0, 4.0], [12.0, 4.0]]
    assert corners.points[:2].tolist() == [[0.0, 0.0], [8.0, 0.0]]
    assert len(centres) == len(corners) == 20 * 28 + 10 * 14 + 5 * 7 + 3 * 4 + 2 * 2


def test_retinanet_has_nine_anchors_per_cell_of_the_papers_areas_and_shapes() -> None:
    boxes = _priors(_detector("retinanet", "none", "paper")).boxes[:9]
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    torch.testing.assert_close((width * height).sqrt(), torch.tensor([32.0, 40, 50] * 3), rtol=0.04, atol=0)
    torch.testing.assert_close(height / width, torch.tensor([0.5, 1, 2]).repeat_interleave(3), rtol=0.06, atol=0)


def _pairs_by_level(head: DenseDetect, raw: dict[str, Any], limit: int) -> list[tuple[int, float, int, int, int]]:
    """(image, confidence, level, anchor, class) of each level's best pairs, pair by pair."""
    pairs = []
    cells = [level.shape[2] * level.shape[3] for level in raw["feats"]]
    per_cell = raw["scores"].shape[1] // sum(cells)
    for b in range(len(raw["scores"])):
        start = 0
        for level, count in enumerate(cells):
            candidates = []
            for anchor in range(start, start + count * per_cell):
                quality = raw["quality"][b, anchor].sigmoid() if "quality" in raw and head.rescore else torch.ones(())
                for label in range(head.nc):
                    confidence = raw["scores"][b, anchor, label].sigmoid() * quality
                    if getattr(head, "torchvision_rules", False):
                        confidence = confidence.sqrt()
                    candidates.append((b, float(confidence), level, anchor, label))
            pairs += sorted(candidates, key=lambda pair: -pair[1])[:limit]
            start += count * per_cell
    return pairs


@pytest.mark.slow
@each_head
@pytest.mark.parametrize("rescore", [True, False], ids=["rescored", "by_class"])
def test_inference_keeps_each_levels_best_pairs(kind: str, quality: str, follows: str, rescore: bool) -> None:
    model = _detector(kind, quality, follows)
    head, limit, (height, width) = model.head, 30, (64, 96)
    head.pre_nms, head.rescore, head.xyxy = limit, rescore, True
    with torch.no_grad():
        decoded, raw = model(image(height, width, count=2))
    if not rescore and getattr(head, "torchvision_rules", False):
        raw = {**raw, "quality": torch.full_like(raw["quality"], 100.0)}  # sigmoid 1: what the square root is of
    priors = head.priors(raw["feats"], scale=1.0)
    expected = []
    for b, confidence, level, anchor, label in _pairs_by_level(head, raw, limit):
        at = torch.tensor([anchor])
        box = head.decode(raw["boxes"][b, at], priors[at])[0]
        x1, y1, x2, y2 = box.tolist()
        clipped = [min(max(x1, 0), width), min(max(y1, 0), height), min(max(x2, 0), width), min(max(y2, 0), height)]
        expected.append([b, label, confidence, *clipped, *([float(level)] if kind == "rpn" else [])])
    parts = []
    for b, columns in enumerate(decoded):
        rows = columns.T
        anchor, label = (rows[:, 4 : 4 + head.nc] > 0).nonzero(as_tuple=True)
        extra = rows[anchor, 4 + head.nc :]
        confidence = rows[anchor, 4 + label]
        index = torch.full_like(confidence, b)
        parts.append(torch.cat((torch.stack((index, label, confidence), 1), rows[anchor, :4], extra), 1))
    _assert_same_rows(torch.cat(parts), torch.tensor(expected))


def _assert_same_rows(rows: Tensor, expected: Tensor) -> None:
    """Equal up to the order."""
    assert rows.shape == expected.shape
    scale = expected.abs().amax(0).clamp(min=1)
    distances = ((rows[:, None] - expected) / scale).abs().amax(-1)
    assert float(distances.amin(0).amax()) < 1e-4
    assert float(distances.amin(1).amax()) < 1e-4


@pytest.mark.parametrize("kind", ["retinanet", "fcos", "rpn"])
def test_for_iou_guided_nms_the_predicted_iou_has_a_channel_of_its_own(kind: str) -> None:
    model = _detector(kind, "iou", "paper")
    head = model.head
    head.pre_nms = 100_000  # the best by class score and the best by their product are not the same
    with torch.no_grad():
        rescored = model(image(64, 96))[0]
        head.rescore = False
        by_class = model(image(64, 96))[0]
        head.rescore, head.rank_by_iou = True, True
        ranked, raw = model(image(64, 96))
    assert head.extra_channels == (("iou", "level") if kind == "rpn" else ("iou",))
    assert ranked.shape[1] == by_class.shape[1] + 1
    assert torch.equal(ranked[:, : 4 + head.nc], by_class[:, : 4 + head.nc])
    predicted = ranked[:, 4 + head.nc]
    assert float(predicted.amax()) <= 1
    distances = (predicted.flatten()[:, None] - raw["quality"].sigmoid().flatten()).abs()
    assert float(distances.amin(1).amax()) < 1e-6
    torch.testing.assert_close(
        (ranked[:, 4 : 4 + head.nc] * predicted[:, None]).flatten().sort().values,
        rescored[:, 4 : 4 + head.nc].flatten().sort().values,
    )


@pytest.mark.parametrize("kind", ["retinanet", "fcos", "rpn"])
def test_exports_return_boxes_and_confidences_alone(kind: str) -> None:
    model = _detector(kind, "iou", "paper")
    model.head.rank_by_iou = True
    model.head.export = True
    with torch.no_grad():
        decoded = model(image(64, 96))
    assert isinstance(decoded, Tensor)
    assert decoded.shape[1] == 4 + model.head.nc


@each_head
def test_a_picture_gives_the_same_alone_and_in_a_batch(kind: str, quality: str, follows: str) -> None:
    model = _detector(kind, quality, follows)
    images = image(64, 96, count=2)
    with torch.no_grad():
        together, alone = model(images)[1], model(images[1:])[1]
    for name in {"boxes", "scores", "quality"} & set(together):
        torch.testing.assert_close(together[name][1:], alone[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("follows", "tower"), [("paper", "classification"), ("torchvision", "regression")])
def test_centerness_reads_the_tower_its_source_says(follows: str, tower: str) -> None:
    head = _detector("fcos", "centerness", follows).head
    feats = [torch.rand(1, WIDTH, n, n) for n in (8, 4, 2, 2, 2)]
    torch.nn.init.normal_(head.get_parameter("regression_head.bbox_ctrness.weight"))
    head.raw(feats)["quality"].sum().backward()
    reached = {
        name
        for name in ("classification", "regression")
        if head.get_parameter(f"{name}_head.conv.0.weight").grad is not None
    }
    assert reached == {tower}


def test_an_rpn_keeps_twice_as_many_before_nms() -> None:
    assert (_detector("rpn", "none", "paper").head.pre_nms, _detector("fcos", "none", "paper").head.pre_nms) == (
        2000,
        1000,
    )


@pytest.mark.parametrize("kind", ["retinanet", "fcos", "rpn"])
def test_an_export_keeps_the_predicted_iou_in_the_score(kind: str) -> None:
    model = _detector(kind, "iou", "paper")
    torch.nn.init.normal_(model.head.get_parameter("cv_iou.weight"))
    model.head.export = True
    with torch.no_grad():
        plain = model(image(64, 96))
        model.head.rank_by_iou = True
        assert torch.equal(model(image(64, 96)), plain)
        model.head.rescore = False
        assert not torch.equal(model(image(64, 96)), plain)
