"""The training losses of RetinaNet and FCOS equal torchvision's on the same matches, and so do their gradients."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor

from mlc_yolo.assigners import Role, Schedule
from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.training.detector_criterion import DetectorLoss

from .lively import fixed_statistics, image, loaded, torchvision_detector, torchvision_heads

SIZE = (160, 224)
#: Objects by image, xyxy px and class; of odd coordinates, so that no rule is met exactly.
CROWDED = ([[10.3, 12.1, 101.7, 99.2], [50.6, 33.3, 200.1, 151.9], [20.2, 21.7, 61.4, 40.8]], [1, 2, 4])
ALONE = ([[120.7, 60.2, 181.3, 130.9]], [6])
EMPTY: tuple[list[list[float]], list[int]] = ([], [])
#: torchvision's name of each of our losses.
NAMES = {"box_loss": "bbox_regression", "cls_loss": "classification", "ctr_loss": "bbox_ctrness"}
each_kind = pytest.mark.parametrize("kind", ["retinanet", "fcos"])


@cache
def _pair(kind: str) -> tuple[Any, DetectorModel]:
    theirs = torchvision_detector(kind)
    with TemporaryDirectory() as folder:
        return theirs, loaded(kind, theirs.state_dict(), Path(folder))


def _criterion(model: DetectorModel) -> DetectorLoss:
    own = model.head.own_assigner
    return DetectorLoss(model, schedule=Schedule(own, own, 0))


def _their_targets(objects: list[tuple[list[list[float]], list[int]]]) -> list[dict[str, Tensor]]:
    return [
        {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64)}
        for boxes, labels in objects
    ]


def _batch(objects: list[tuple[list[list[float]], list[int]]]) -> dict[str, Tensor]:
    """The same as Ultralytics' batch."""
    targets = _their_targets(objects)
    boxes = torch.cat([target["boxes"] for target in targets])
    height, width = SIZE
    xywh = torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), 1)
    return {
        "batch_idx": torch.cat([torch.full((len(target["labels"]),), float(i)) for i, target in enumerate(targets)]),
        "cls": torch.cat([target["labels"] for target in targets])[:, None].float(),
        "bboxes": xywh / torch.tensor([width, height, width, height]),
    }


def _matches(model: DetectorModel, raw: dict[str, Any], batch: dict[str, Tensor]) -> Tensor:
    """Our own assigner's decision in torchvision's numbers: the object, -1 for background, -2 for left out."""
    _, priors, targets = _criterion(model).assigner_inputs(raw, batch)
    task = model.head.own_assigner.assign(priors, targets).classification
    return torch.where(task.role == Role.IGNORED, -2, task.gt_index)


def _their_losses(theirs: Any, images: Tensor, targets: list[dict[str, Tensor]], matches: Tensor) -> dict[str, Tensor]:
    """torchvision's losses on these matches, over the positives of the batch.

    Its RetinaNet divides each image's loss by that image's positives, as no paper does: image by image, undone.
    """
    heads, anchors, _ = torchvision_heads(theirs, images)
    total = max(1, int((matches >= 0).sum()))
    sums: dict[str, Any] = dict.fromkeys(NAMES.values(), 0)
    for i, target in enumerate(targets):
        of_image = {name: output[i : i + 1] for name, output in heads.items()}
        losses = theirs.head.compute_loss([target], of_image, [anchors[i]], [matches[i]])
        for name, loss in losses.items():
            sums[name] = sums[name] + loss * max(1, int((matches[i] >= 0).sum())) / total
    return sums


@pytest.mark.slow
@pytest.mark.parametrize(
    "objects",
    [[CROWDED], [ALONE], [EMPTY], [CROWDED, ALONE], [ALONE, EMPTY, CROWDED], [EMPTY, EMPTY]],
    ids=["three", "one", "none", "two_images", "one_image_empty", "all_empty"],
)
@each_kind
def test_losses_are_torchvisions_on_the_same_matches(kind: str, objects: list[Any]) -> None:
    theirs, ours = _pair(kind)
    images, batch = image(*SIZE, count=len(objects)), _batch(objects)
    with torch.no_grad(), fixed_statistics(theirs, ours):
        raw = ours(images)
        items = _criterion(ours)(raw, batch)[1]
        matches = _matches(ours, raw, batch)
        expected = _their_losses(theirs, images, _their_targets(objects), matches)
    assert bool((matches >= 0).any()) == any(labels for _, labels in objects)
    for name in ("box_loss", "cls_loss", *(["ctr_loss"] if kind == "fcos" else [])):
        torch.testing.assert_close(items[name], torch.as_tensor(expected[NAMES[name]]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objects", [CROWDED, ALONE, EMPTY], ids=["three", "one", "none"])
@each_kind
def test_losses_and_gradients_are_torchvisions_with_its_own_matches(
    kind: str, objects: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = _pair(kind)
    if kind == "fcos":  # center sampling came after the paper
        monkeypatch.setattr(theirs, "center_sampling_radius", float("inf"))
    images = image(*SIZE)
    watched = {  # a trained layer of each part
        "model.0.body.layer2.0.conv1.weight": "backbone.body.layer2.0.conv1.weight",
        "model.1.fpn.layer_blocks.1.0.weight": "backbone.fpn.layer_blocks.1.0.weight",
        "model.2.classification_head.cls_logits.weight": "head.classification_head.cls_logits.weight",
        "model.2.regression_head.bbox_reg.bias": "head.regression_head.bbox_reg.bias",
    }
    with fixed_statistics(theirs, ours):
        losses, items = _criterion(ours)(ours(images), _batch([objects]))
        ours_all = torch.autograd.grad(losses.sum(), [ours.get_parameter(name) for name in watched])
        expected = theirs(list(images), _their_targets([objects]))
        wanted = torch.autograd.grad(sum(expected.values()), [theirs.get_parameter(n) for n in watched.values()])
    for name in ("box_loss", "cls_loss", *(["ctr_loss"] if kind == "fcos" else [])):
        torch.testing.assert_close(items[name], expected[NAMES[name]].detach(), rtol=1e-4, atol=1e-6)
    for ours_here, theirs_here in zip(ours_all, wanted, strict=True):
        assert (ours_here - theirs_here).norm() <= 1e-3 * theirs_here.norm()
