"""Options that were asked for and do nothing, said once: of another mode, or beside others that leave them out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlc_yolo.options.specification import CUSTOM, OWN, changed, warmup_length

_AFTER_NMS = ("vote", "vote_iou", "vote_sigma", "min_iou", "sort")
_RANKED = ("rescore", "nms_by", "trust")
_JUDGED = (*_RANKED, *_AFTER_NMS, "resize", "coco_eval", "voc_eval", "calibrate")
_SHOWN = (*_RANKED, *_AFTER_NMS, "resize", "show_sigma")
#: Assigners that compare objects with the priors' boxes; an object handed over may.
_BY_PRIORS = frozenset({"max_iou", "atss", "mutual_guidance", CUSTOM})
#: Kinds of models whose priors are squares of a chosen side; the others' anchors have sizes of their own.
_ON_POINTS = (None, "fcos")

#: Mode -> the options that do something there, of the modes that use a finished model.
OF_MODE: dict[str, tuple[str, ...]] = {
    **{"val": _JUDGED, "diagnose": _JUDGED, "predict": _SHOWN, "track": _SHOWN, "export": _RANKED},
}


def idle_in_mode(mode: str, asked: Mapping[str, Any]) -> str | None:
    """Say which options a mode passes over.

    Args:
        mode: of the command line; one that trains takes every option.
        asked: arguments of the call; ours may be among them.

    Returns:
        A sentence; None if nothing that was changed is passed over.

    Example:
        >>> idle_in_mode("export", {"vote": True, "rescore": False, "imgsz": 64})
        'vote: no effect in export'
        >>> idle_in_mode("predict", {"vote": True}) is None
        True
    """
    if mode not in OF_MODE:
        return None
    tries = mode == "diagnose" and (asked.get("remedies") is None or "vote" in str(asked["remedies"]))
    votes = [] if asked.get("vote") or tries else ["vote_iou", "vote_sigma"]
    idle = [name for name in changed(asked, "") if name not in OF_MODE[mode] or name in votes]
    if not idle:
        return None
    hint = ". rescore=False ranks without the channel" if "iou_head" in idle else ""
    without = " without vote=True" if set(idle) <= set(votes) else ""
    return f"{', '.join(idle)}: no effect in {mode}{without}{hint}"


def without_own(ours: Mapping[str, Any], detector: str | None) -> dict[str, Any]:
    """Return settled options but for those that have the value which an empty one means for the model.

    Args:
        ours: options by name.
        detector: kind of a ported detector; None is YOLO.
    """
    return {name: value for name, value in ours.items() if name not in OWN[detector] or value != OWN[detector][name]}


def idle_in_training(ours: Mapping[str, Any], epochs: int, *, detector: str | None = None) -> list[str]:
    """Say which options of a training do nothing beside the others.

    Args:
        ours: options, complete and settled for the model.
        epochs: length of the run.
        detector: kind of a ported detector; None is YOLO.

    Returns:
        Sentences, none if every option that was changed acts.

    Example:
        >>> from mlc_yolo.options.specification import defaults, settle
        >>> idle_in_training(settle({**defaults(), "assigner": "mlc", "mlc_tasks": "cls", "mg_sigma": 3}), 10)
        ['mg_sigma: no effect with assigner=mlc, but with assigner=mutual_guidance']
    """
    assigner, asked = ours["assigner"], without_own(ours, detector)
    idle = []
    warms_up = warmup_length(ours["assigner_warmup"], assigner, epochs) > 0
    training = {assigner, ours["assigner_base"]} if warms_up else {assigner}
    for start, owner in (("mlc_", "mlc"), ("mg_", "mutual_guidance")):
        if owner not in training and (names := changed(asked, start)):
            idle.append(f"{', '.join(names)}: no effect with assigner={assigner}, but with assigner={owner}")
    if changed(asked, "assigner_base") and not warms_up:
        idle.append("assigner_base: no effect without a warm-up. Give its length with assigner_warmup=0.4")
    if ours["assigner_warmup"] and assigner == ours["assigner_base"]:
        idle.append(f"assigner_warmup: no effect, as assigner and assigner_base are both {assigner}")
    if changed(asked, "prior_scale") and detector not in _ON_POINTS:
        idle.append(f"prior_scale: no effect with {detector}, whose anchors have sizes of their own")
    elif changed(asked, "prior_scale") and not training & _BY_PRIORS:
        idle.append(f"prior_scale: no effect with assigner={assigner}, which looks at no prior's box")
    if changed(asked, "box_weight") and training == {CUSTOM}:
        idle.append("box_weight: no effect with an assigner object, which weighs its boxes itself")
    if changed(asked, "ssl_ema") and ours["ssl"] != "none" and ours["teacher"] and ours["teacher_weight"]:
        idle.append("ssl_ema: no effect with a teacher, which takes the average's place")
    if not ours["vote"] and (names := changed(asked, "vote_")):
        idle.append(f"{', '.join(names)}: no effect without vote=True")
    if names := changed(asked, "show_sigma", "calibrate"):
        idle.append(f"{', '.join(names)}: no effect in a training")
    return idle
