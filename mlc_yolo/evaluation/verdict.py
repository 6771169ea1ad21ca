"""The diagnosis in words: what costs most AP, how to gain it, and what the images cannot show.

A sentence claims no more than its interval: a gain whose interval includes zero is not shown, and of two mistakes
whose paired interval includes zero neither is shown to cost more.
"""

from __future__ import annotations

from dataclasses import replace

from mlc_yolo.evaluation.diagnosis import Diagnosis, Tried
from mlc_yolo.evaluation.repaired_ap import Gain
from mlc_yolo.evaluation.task_validators import MASK_ENTRIES
from mlc_yolo.metrics.bootstrap import Difference
from mlc_yolo.metrics.operating_point import OperatingPoint
from mlc_yolo.metrics.oracles import Repair

#: Repair -> the mistake in words, and what mends it.
MISTAKES: dict[Repair, tuple[str, str]] = {
    Repair.PLACE: (
        "boxes that sit badly on objects of the right class",
        "a larger imgsz, more epochs, tighter labels, or a teacher's boxes",
    ),
    Repair.CLASS: (
        "objects taken for another class",
        "more and clearer examples of the confused classes, a larger imgsz or model; no assigner mends it",
    ),
    Repair.MISSED: (
        "objects without any detection",
        "labels of all objects, a larger imgsz for small ones, more images of them; no assigner mends it",
    ),
    Repair.BACKGROUND: (
        "detections where nothing is",
        "images without objects, and labels for what was forgotten; no assigner mends it",
    ),
    Repair.DUPLICATES: ("second detections of an object", "a lower iou= in NMS"),
}
#: What a task finds beside boxes -> what places it better.
PART_CURES = {
    "masks": "polygons that follow the objects, and a larger imgsz, of a quarter of which masks are made",
    "keypoints": "labels of a keypoint that always mean the same spot, a larger imgsz, more epochs",
}
#: AP that is worth a user's time; where INSIDE cannot reach it, this package's methods cannot help much.
WORTHWHILE = 1.0
#: Change of AP below which a remedy makes no difference, however sure.
NOTICEABLE = 0.1
FEW_IMAGES = 50
#: Departure from 1 of the factor on deviations that is worth a calibration.
HONEST = 0.1


def verdict(diagnosis: Diagnosis) -> list[str]:
    """Say what holds the detector back.

    Args:
        diagnosis: of one detector.

    Returns:
        Sentences, the most important first.
    """
    said = [diagnosis.training] if diagnosis.training else []
    said += [_tried(diagnosis, remedy) for remedy in diagnosis.tried]
    said += [*_beside_boxes(diagnosis), _costliest(diagnosis), _ranking(diagnosis)]
    said += [sentence for sentence in (_confusion(diagnosis), _small(diagnosis)) if sentence]
    said += [_deployed(diagnosis), *_trust(diagnosis), *_limits(diagnosis)]
    return said


def interval(value: Difference, digits: int = 1) -> str:
    """Return a gain with its interval.

    Example:
        >>> interval(Difference(3.04, float("nan"), 2.1, 3.9, 1))
        '+3.0 AP [2.1, 3.9]'
    """
    return f"{value.mean:+.{digits}f} AP [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def _tried(diagnosis: Diagnosis, remedy: Tried) -> str:
    """Say what a remedy brings, and advise the one that brings most."""
    part = "" if remedy.own is None or diagnosis.part is None else f", {diagnosis.part.many} {interval(remedy.own)}"
    cost = "" if remedy.pixels == 1 else f", for {remedy.pixels:.1f} times the pixels and about that cost"
    said = f"Tried without training, {remedy.name} alone: {interval(remedy.change)}{part}{cost}. "
    change = remedy.decisive
    if not change.shown or abs(change.mean) < NOTICEABLE:
        return said + "No difference is shown."
    if len(diagnosis.seen.records.images) < FEW_IMAGES:
        return said + "With so few images that is a hint at most."
    if change.mean < 0:
        return said + "Leave it out."
    best = max(diagnosis.tried, key=lambda other: other.decisive.mean if other.decisive.shown else 0.0)
    return said + (f"Give {remedy.name} to val and predict." if remedy is best else "A gain as well.")


def _beside_boxes(diagnosis: Diagnosis) -> list[str]:
    """Say whether boxes or what the task finds beside them is the limit, and by what other than IoU is judged."""
    part, own, behind = diagnosis.part, diagnosis.own, diagnosis.own_behind
    if diagnosis.seen.records.task == "obb":
        return [
            "Oriented boxes: every overlap is probiou, by which Ultralytics judges them; it is kinder than IoU to "
            "boxes of another shape. What the head states of its edges is not judged, as the sides of a turned box "
            "lie along axes of their own."
        ]
    if part is None or own is None or behind is None:
        return []
    sentence = (
        f"Boxes or {part.many}: AP is {own.ap.mean:.1f} [{own.ap.low:.1f}, {own.ap.high:.1f}] by {part.by} and "
        f"{diagnosis.ap.mean:.1f} [{diagnosis.ap.low:.1f}, {diagnosis.ap.high:.1f}] by the IoU of boxes. "
    )
    if not behind.shown:
        sentence += "These images do not show that one lies behind the other."
    elif behind.mean > 0:
        sentence += (
            f"{part.many.capitalize()} as right as their boxes would bring {interval(behind)}: the {part.many} are the "
            f"limit. What helps: {PART_CURES[part.many]}."
        )
    else:
        more = replace(behind, mean=-behind.mean, low=-behind.high, high=-behind.low)
        sentence += (
            f"Boxes as right as their {part.many} would bring {interval(more)}: the boxes are the limit, not the "
            f"{part.many}."
        )
    if part.many == "keypoints":
        sentence += " OKS and IoU are two scales: a small difference means little."
    said = [sentence]
    if Repair.INSIDE in own.gains:
        among = f" of the {MASK_ENTRIES} best boxes of an image" if part.many == "masks" else " that NMS saw"
        gain = own.gains[Repair.INSIDE].gain
        said.append(
            f"Ranking by {part.many}: at most {interval(gain)} to win by keeping each object's best {part.one}{among}."
        )
    if diagnosis.seen.unlabelled:
        said.append(
            f"Labels: {diagnosis.seen.unlabelled} of {len(diagnosis.seen.records.gt_labels)} objects have no labelled "
            "keypoint. By keypoints they count as missed, as in Ultralytics' validation."
        )
    return said


def _costliest(diagnosis: Diagnosis) -> str:
    best, *ties = diagnosis.costliest
    gain = diagnosis.gains[best]
    if not gain.gain.shown:
        return "No kind of mistake is shown to cost anything on these images."
    words, cure = MISTAKES[best]
    by = "" if diagnosis.part is None else " by boxes"
    first = f"What costs most{by}: {words}. Without them: {interval(gain.gain)}. What helps: {cure}."
    shown = [repair for repair in ties if diagnosis.gains[repair].gain.shown]
    if not shown:
        return first
    others = "; ".join(f"{MISTAKES[repair][0]} ({interval(diagnosis.gains[repair].gain)})" for repair in shown)
    return f"{first} These images do not show that it costs more than: {others}."


def _ranking(diagnosis: Diagnosis) -> str:
    gain = diagnosis.gains.get(Repair.INSIDE)
    if gain is None:
        return "The outputs before NMS are not to be had, so ranking inside objects could not be judged."
    if not gain.gain.shown:
        return (
            "Ranking inside objects: no loss is shown. NMS keeps the best-placed boxes that were there; assigner=mlc "
            "and the IoU channel have nothing to win here."
        )
    most = f"Ranking inside objects: at most {interval(gain.gain)} to win, by keeping each object's best-placed box"
    if gain.gain.high < WORTHWHILE:
        return f"{most}. That is little: look at the other mistakes first."
    if not diagnosis.votes and not any(remedy.name.startswith("vote=True") for remedy in diagnosis.tried):
        most += ": vote=True can win a part of that without training"
    return f"{most}. Whether assigner=mlc or the IoU channel wins some of it is what mlc-yolo compare shows."


def _confusion(diagnosis: Diagnosis) -> str | None:
    shown = [gain for gain in diagnosis.confusions if gain.gain.shown and gain.gain.mean >= WORTHWHILE / 2]
    if not shown:
        return None
    return f"Classes: {_listed(shown[:3])} by telling them apart."


def _small(diagnosis: Diagnosis) -> str | None:
    size = diagnosis.sizes[0]
    total = len(diagnosis.seen.records.gt_labels)
    if size.gain is None or size.gain < WORTHWHILE:
        return None
    return (
        f"Objects {size.name} ({size.objects} of {total}, at the network's input): {100 * size.detected:.0f} % are "
        f"detected at any score; mending all that is wrong with them would bring {size.gain:+.1f} AP. "
        "A larger imgsz makes them larger."
    )


def _deployed(diagnosis: Diagnosis) -> str:
    point, best = diagnosis.curve.at(diagnosis.confidence), diagnosis.curve.best_f1()
    said = f"At conf={diagnosis.confidence:g}: {_point(point)}."
    if best.right and abs(best.threshold - diagnosis.confidence) > 0.02:
        said += f" The best F1 is at conf={best.threshold:.2f}: {_point(best)}."
    if diagnosis.curve_without_rescoring is not None:
        other = diagnosis.curve_without_rescoring.at(diagnosis.confidence)
        said += (
            f" Rescoring by the predicted IoU lowers every score: ranked by the class score alone (rescore=False), the "
            f"same threshold gives {_point(other)}."
        )
    return said


def _trust(diagnosis: Diagnosis) -> list[str]:
    """Say how far what the head knows of its boxes can be believed."""
    said = []
    predicted, edges = diagnosis.predicted_iou, diagnosis.coverage
    if predicted is not None and int(predicted.count.sum()):
        way = "high" if predicted.bias > 0 else "low"
        said.append(
            f"Predicted IoU: {abs(predicted.bias):.2f} too {way} on average, off by {predicted.error:.2f} from bin to "
            f"bin ({int(predicted.count.sum())} boxes)."
        )
    if edges is not None:
        sentence = (
            f"Edges: the head states a standard deviation for each side. {100 * edges.overall:.0f} % of the true edges "
            f"of {edges.count} detections lie within one, where an honest one holds 68 %."
        )
        if abs(edges.factor - 1) > HONEST:
            sits = "worse" if edges.factor > 1 else "better"
            sentence += (
                f" Boxes sit {sits} than stated: {edges.factor:.2f} times these deviations would be right here. "
                "mlc-yolo val calibrate=True stores such a factor; measure it on data that the model was not trained "
                "on."
            )
        said.append(sentence)
    return said


def _limits(diagnosis: Diagnosis) -> list[str]:
    records, ap = diagnosis.seen.records, diagnosis.ap
    said = [
        f"{len(records.images)} images with {len(records.gt_labels)} objects tell AP to "
        f"±{(ap.high - ap.low) / 2:.1f}: {ap.mean:.1f} [{ap.low:.1f}, {ap.high:.1f}], for these weights."
    ]
    if len(records.images) < FEW_IMAGES:
        said.append("These are few images: take the numbers for hints.")
    if rare := diagnosis.rare:
        names = ", ".join(rare[:5]) + (f" and {len(rare) - 5} more" if len(rare) > 5 else "")
        said.append(f"Too few objects to say anything of these classes: {names}.")
    return said


def _point(point: OperatingPoint) -> str:
    if not point.detections:
        return f"no detection, recall 0 of {point.objects} objects"
    return (
        f"precision {point.precision:.2f}, recall {point.recall:.2f}, {point.false} false boxes, "
        f"{point.per_image:.1f} boxes an image"
    )


def _listed(gains: list[Gain]) -> str:
    return "; ".join(f"{gain.name} {interval(gain.gain)}" for gain in gains)
