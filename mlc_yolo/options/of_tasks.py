"""Which options models of segmentation, pose and oriented boxes take, and why they do not take the others."""

from __future__ import annotations

from collections.abc import Iterable

#: In the methods of a model beside training: how its boxes are ranked, and what is done to them after NMS.
FOR_INFERENCE = frozenset({"rescore", "vote", "vote_iou", "vote_sigma", "min_iou", "sort"})
#: In training, whose validations do the same: who learns what, how fast, and how well boxes are said to sit.
FOR_TRAINING = FOR_INFERENCE | frozenset(
    {"assigner", "assigner_base", "assigner_warmup", "box_weight", "prior_scale"}
    | {"iou_head", "iou_training", "iou_gain", "iou_warmup"}
    | {"teacher", "teacher_weight", "teacher_temperature", "teacher_imgsz"}
    | {"lr_steps", "warmup_iters", "ema", "trust"}
    | {"mlc_candidates", "mlc_alpha", "mlc_tasks", "mg_rule", "mg_sigma", "mg_tasks"}
)

_PORTED = "it belongs to the ported detectors"
_NMS = "it works on what detection's NMS keeps and suppresses"
_SHOWN = "it is drawn for upright boxes of detection alone"
_UNLABELLED = "what is learned without labels is boxes, not masks, keypoints or angles"
_IMAGES = "it moves boxes alone, not masks, keypoints or angles"
_JUDGED = "it judges upright boxes"
#: Option -> why no method takes it.
_REASONS = {
    **dict.fromkeys(("align_gain", "quality"), _PORTED),
    "nms_by": _NMS,
    "show_sigma": _SHOWN,
    **dict.fromkeys(("resize", "augmentation"), _IMAGES),
    **dict.fromkeys(("coco_eval", "voc_eval", "calibrate"), _JUDGED),
    **dict.fromkeys(("ssl", "unlabeled"), _UNLABELLED),
    **dict.fromkeys(("ssl_weight", "ssl_burn_in", "ssl_ramp", "ssl_ema", "ssl_ratio"), _UNLABELLED),
    **dict.fromkeys(("ssl_reweight", "ssl_scale", "ssl_threshold"), _UNLABELLED),
}


def because(names: Iterable[str]) -> str:
    """Return why options are refused on these models, each reason once.

    Args:
        names: options that some method refuses.

    Example:
        >>> because(["quality", "align_gain", "assigner"])
        'it belongs to the ported detectors; it is an option of training'
    """
    return "; ".join(dict.fromkeys(_REASONS.get(name, "it is an option of training") for name in names))
