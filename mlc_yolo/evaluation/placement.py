"""Where detections are placed: how well a model believes its boxes sit, and what is made of it after NMS.

1. A YOLO head decodes each side of a box from a distribution over distances; its variance says how sure the head is of
   that side. Heads with one number a side (YOLO26, the ported detectors) do not say.
2. A head with an IoU channel predicts the IoU of every box.
3. After NMS, boxes may be voted on, detections of a low predicted IoU left out, and the others ordered by it.

Both are read from the raw outputs, or from the channels that `export(placement=True)` appends to an exported file's.
They are unknown where there is neither: in other exported files, in augmented prediction, and of a head that needs no
NMS, which does not say which anchors its boxes are of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.head import Detect
from ultralytics.utils.ops import xywh2xyxy

from mlc_yolo.checkpoints.sigma_scale import sigma_scale
from mlc_yolo.evaluation.postprocess import detections_with_anchors, native
from mlc_yolo.faults import UsageError
from mlc_yolo.heads.dense import DenseDetect
from mlc_yolo.heads.iou_aware import IoUAwareDetect
from mlc_yolo.heads.placed import IOU, SIGMAS
from mlc_yolo.nms import candidates
from mlc_yolo.voting import distance_variances, vote, vote_oriented


@dataclass(frozen=True)
class Placing:
    """What is done to detections after NMS.

    Attributes:
        vote: whether boxes are voted on.
        vote_iou: overlap above which a candidate votes, in [0, 1].
        vote_sigma: width of a voter's closeness, above 0.
        min_iou: least predicted IoU of a detection, in [0, 1]; 0 leaves none out.
        by_iou: whether the detections of an image are ordered by predicted IoU instead of score.
    """

    vote: bool
    vote_iou: float
    vote_sigma: float
    min_iou: float
    by_iou: bool

    @classmethod
    def of(cls, ours: Mapping[str, Any]) -> Placing:
        """Read it from our options, all of them checked."""
        names = ("vote", "vote_iou", "vote_sigma", "min_iou")
        return cls(**{name: ours[name] for name in names}, by_iou=ours["sort"] == "iou")

    def check(self, model: nn.Module, *, augment: bool) -> None:
        """Refuse what a model's outputs do not allow.

        Args:
            model: as `AutoBackend` or bare.
            augment: whether it predicts several views of an image.

        Raises:
            UsageError: a choice by the predicted IoU that is not known, or a vote where nothing competes.
        """
        ends = bool(getattr(model, "end2end", False))
        if self.vote and ends:
            raise UsageError(
                "vote=True uses the boxes that NMS suppresses, but this model has no NMS: give end2end=False, or "
                "leave vote out"
            )
        known = _predicts_iou(_head(model)) or IOU in exported_channels(model)
        if (self.min_iou > 0 or self.by_iou) and (ends or augment or not known):
            asked = f"min_iou={self.min_iou:g}" if self.min_iou > 0 else "sort=iou"
            why = "with augment=True" if augment else "without NMS" if ends else "of this model"
            raise UsageError(
                f"{asked} needs the predicted IoU, which is not available {why}: use a checkpoint trained with the "
                "IoU channel, or its export with placement=True, with NMS and without augment=True"
            )


class Placement:
    """What the outputs of one batch say about the boxes of its anchors.

    Attributes:
        dense: what goes to NMS: the first output, without the channels of an exported placement.
    """

    def __init__(self, model: nn.Module, prediction: Any) -> None:
        """Find it, if there is any.

        Args:
            model: what predicted, as `AutoBackend` or bare, before it predicts again.
            prediction: what it returned in evaluation.
        """
        head = _head(model)
        raw = prediction[1] if isinstance(prediction, list | tuple) and len(prediction) > 1 else None
        self.dense: Tensor = prediction[0] if isinstance(prediction, list | tuple) else prediction
        self._ious: Tensor | None = None  # (B, A) in [0, 1]
        self._distances: Tensor | None = None  # (B, 4 * R, A) logits
        self._strides: Tensor | None = None  # (A,) px
        self._sigmas: Tensor | None = None  # (B, 4, A) px, where they are outputs
        self._scale = 1.0
        names = exported_channels(model)
        if names:
            stop = self.dense.shape[1] - len(names)
            known = self.dense[:, stop:].float()
            self.dense = self.dense[:, :stop]
            self._ious = known[:, names.index(IOU)] if IOU in names else None
            self._sigmas = known[:, -len(SIGMAS) :] if SIGMAS[0] in names else None
            return
        if head is None or not isinstance(raw, dict) or getattr(head, "end2end", False):
            return
        raw = raw.get("one2many", raw)
        if isinstance(head, DenseDetect):
            if head.quality == "iou":
                self._ious = raw["quality"].gather(1, raw["selected"]).float().sigmoid()
            return
        if "iou" in raw:
            self._ious = raw["iou"][:, 0].float().sigmoid()
        if head.reg_max > 1:
            strides: Any = head.strides
            self._distances, self._strides = raw["boxes"], strides.flatten()
            self._scale = sigma_scale(native(model))

    @property
    def predicted(self) -> Tensor | None:
        """Predicted IoU of every anchor, (B, A) float32 in [0, 1]; None where it is not known."""
        return self._ious

    @property
    def knows_sides(self) -> bool:
        """Whether it is known how sure the sides of boxes are."""
        return self._sigmas is not None or self._distances is not None

    def ious(self, image: int, anchors: Tensor) -> Tensor:
        """Return predicted IoUs.

        Args:
            image: which of the batch.
            anchors: (n,) int64.

        Returns:
            (n,) float32 in [0, 1]; nan where they are not known.
        """
        if self._ious is None:
            return torch.full(anchors.shape, torch.nan, device=anchors.device)
        return self._ious[image, anchors]

    def variances(self, image: int, anchors: Tensor) -> Tensor | None:
        """Return the variance of each side of boxes.

        Args:
            image: which of the batch.
            anchors: (n,) int64.

        Returns:
            (n, 4) float32: of left, top, right, bottom, in px^2 of the input; None where they are not known. Those of
            an exported file are calibrated, others are as the head states them: a factor common to all.
        """
        if self._sigmas is not None:
            return self._sigmas[image][:, anchors].T.square()
        if self._distances is None or self._strides is None:
            return None
        variances = distance_variances(self._distances[image][:, anchors].T)
        return variances * self._strides[anchors, None].float().square()

    def columns(self, image: int, anchors: Tensor) -> Tensor:
        """Return what is known of boxes.

        Args:
            image: which of the batch.
            anchors: (n,) int64.

        Returns:
            (n, 5) float32: predicted IoU, standard deviation of left, top, right, bottom in px, by the factor that the
            checkpoint was calibrated with; nan where not known.
        """
        ious, variances = self.ious(image, anchors), self.variances(image, anchors)
        sigmas = ious.new_full((len(ious), 4), torch.nan) if variances is None else variances.sqrt() * self._scale
        return torch.cat((ious[:, None], sigmas), 1)


def placed_detections(
    prediction: Any, extras: Sequence[str], placing: Placing, placement: Placement, **options: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """Apply NMS to every image of a batch, then vote, choose and order: `detections_with_anchors` and what follows.

    Args:
        prediction: a batch's output, as that function takes it.
        extras: names of its channels after the class scores.
        placing: what is done after NMS.
        placement: what is known of the batch.
        **options: of that function.

    Returns:
        detections: B tensors (n, 6 + E): xyxy px, score, class, and what goes along with the box that was kept.
        anchors: B int64 tensors (n,): which of the A each box is.

    Raises:
        UsageError: a vote on final boxes, as an export with NMS inside gives them.
    """
    dense: Tensor = prediction[0] if isinstance(prediction, list | tuple) else prediction
    polls: list[_Poll] = []
    if placing.vote:
        if options.get("end2end") or dense.shape[-1] == 6:  # the test upstream's NMS applies
            raise UsageError("vote=True needs the boxes that NMS suppresses: export the model without nms=True")
        polls = [_Poll(image, i, extras, placement, options) for i, image in enumerate(dense)]  # before NMS alters them
    rows, anchors = detections_with_anchors(prediction, extras, **options)
    for i, anchor in enumerate(anchors):
        if polls:
            polls[i].vote(rows[i], anchor, placing)
        if placing.min_iou > 0 or placing.by_iou:
            ious = placement.ious(i, anchor)
            order = (
                ious.argsort(descending=True, stable=True)
                if placing.by_iou
                else torch.arange(len(ious), device=ious.device)
            )
            order = order[~(ious[order] < placing.min_iou)]
            rows[i], anchors[i] = rows[i][order], anchor[order]
    return rows, anchors


class _Poll:
    """The candidates of one image: what competes in NMS, in the groups in which it does."""

    def __init__(
        self, image: Tensor, index: int, extras: Sequence[str], placement: Placement, options: Mapping[str, Any]
    ) -> None:
        """Keep the candidates of an image's output (4 + K + E, A); `options` are those of `detections_with_anchors`."""
        stop = 4 + options["num_classes"] if options.get("num_classes") else len(image) - len(extras)
        self._classes = stop - 4
        self._rotated = bool(options.get("rotated"))
        near = (image[4:stop].amax(0) > options["confidence"]).nonzero().squeeze(1)
        columns = image[:, near].float()
        self._agnostic = options["agnostic"]
        self._extra = dict(zip(extras, image[len(image) - len(extras) :].float(), strict=True))
        scores, wanted = columns[4:stop].T, options.get("classes")
        if wanted is not None:
            wanted = torch.as_tensor(wanted, device=image.device).flatten()
            if extras:  # where the best of the wanted classes counts
                scores = scores.where(torch.isin(torch.arange(self._classes, device=image.device), wanted), 0)
        anchors, labels, self._scores = candidates(
            scores, confidence=options["confidence"], multi_label=options["multi_label"]
        )
        if wanted is not None:
            kept = torch.isin(labels, wanted)
            anchors, labels, self._scores = anchors[kept], labels[kept], self._scores[kept]
        boxes = columns[:4, anchors].T
        self._boxes = torch.cat((boxes, columns[-1:, anchors].T), 1) if self._rotated else xywh2xyxy(boxes)
        anchors = near[anchors]
        if "iou" in self._extra:  # else it is a factor of the score already
            self._scores = self._scores * self._extra["iou"][anchors]
        self._groups = self._group(labels, anchors)
        self._variances = None if self._rotated else placement.variances(index, anchors)

    def vote(self, rows: Tensor, anchors: Tensor, placing: Placing) -> None:
        """Give detections (n, 6 + E) their boxes, in place."""
        candidates = self._boxes, self._scores, self._groups
        groups = self._group(rows[:, 5].long(), anchors)
        limits: dict[str, Any] = {"iou_threshold": placing.vote_iou, "sigma": placing.vote_sigma}
        if self._rotated:
            boxes = vote_oriented(torch.cat((rows[:, :4], rows[:, -1:]), 1), groups, *candidates, **limits)
            rows[:, :4], rows[:, -1] = boxes[:, :4], boxes[:, 4]
        else:
            rows[:, :4] = vote(rows[:, :4], groups, *candidates, **limits, variances=self._variances)

    def _group(self, labels: Tensor, anchors: Tensor) -> Tensor:
        groups = torch.zeros_like(labels) if self._agnostic else labels
        return groups + self._extra["level"][anchors].long() * self._classes if "level" in self._extra else groups


def exported_channels(model: nn.Module) -> tuple[str, ...]:
    """Return what an exported file says of the channels after its class scores; nothing for other models."""
    metadata: Any = getattr(model, "metadata", None)
    named = metadata.get("placement") if isinstance(metadata, dict) else None
    names = tuple(named.split(",")) if isinstance(named, str) and named else ()
    return names if names in {(IOU,), SIGMAS, (IOU, *SIGMAS)} else ()


def _head(model: nn.Module) -> Detect | None:
    """Return a detection model's head; None where it is exported."""
    layers: Any = getattr(native(model), "model", None)
    head = layers[-1] if isinstance(layers, nn.Sequential) else None
    return head if isinstance(head, Detect) else None


def _predicts_iou(head: Detect | None) -> bool:
    return isinstance(head, IoUAwareDetect) or (isinstance(head, DenseDetect) and head.quality == "iou")
