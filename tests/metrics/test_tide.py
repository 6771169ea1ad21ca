"""Kinds of errors against `tidecv`, the authors' own, on the same detections; and where oracles differ from it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from made_records import made_records, records_of

from mlc_yolo.boxes import xywh
from mlc_yolo.metrics.errors import Kind, best_detections, count_kinds, judge
from mlc_yolo.metrics.oracles import Fault, Oracles
from mlc_yolo.metrics.records import Records

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its plots import is not ours to mend
    from tidecv import TIDE, Data

NAMES = {
    Kind.CLASS: "Cls",
    Kind.LOCALIZATION: "Loc",
    Kind.BOTH: "Both",
    Kind.DUPLICATE: "Dupe",
    Kind.BACKGROUND: "Bkg",
    Kind.MISSED: "Miss",
}


def _tide(records: Records, rows: np.ndarray) -> dict[str, int]:
    """What TIDE counts of each kind at IoU 0.5, of these detections of the records."""
    truth, predictions = Data("truth"), Data("predictions", max_dets=10_000)
    for image in range(len(records.images)):
        truth.add_image(image, str(image))
    boxes = xywh(records.gt_boxes.astype(np.float64))
    for image, label, box in zip(records.gt_image, records.gt_labels, boxes, strict=True):
        truth.add_ground_truth(int(image), int(label), box.tolist())
    boxes = xywh(records.boxes[rows].astype(np.float64))
    for row, box in zip(rows, boxes, strict=True):
        image, label, score = int(records.image[row]), int(records.labels[row]), float(records.scores[row])
        predictions.add_detection(image, label, score, box.tolist())
    tide = TIDE()
    run = tide.evaluate(truth, predictions, pos_threshold=0.5, background_threshold=0.1, mode=TIDE.BOX)
    counted = run.count_errors()
    return {kind.short_name: int(count) for kind, count in counted.items()}


@pytest.mark.parametrize("seed", range(8))
def test_kinds_are_those_that_the_authors_count(seed: int) -> None:
    records = made_records(images=30, seed=seed, noise_seed=seed)
    rows = best_detections(records.scores, len(records.gt_labels))
    theirs, ours = _tide(records, rows), count_kinds(judge(records))
    assert {NAMES[kind]: count for kind, count in ours.items() if kind in NAMES} == {
        name: theirs.get(name, 0) for name in NAMES.values()
    }


def test_an_oracle_calls_a_box_that_sits_on_another_class_a_class_error_where_tide_does_not() -> None:
    # IoU 0.2 with an object of its class, 0.9 with one of another: TIDE asks for the former first.
    records = records_of([(0, 0, 20, 20, 0), (0, 16, 20, 36, 1)], [(0, 16, 20, 34, 0.9, 0)])
    assert _tide(records, np.array([0]))["Loc"] == 1
    assert judge(records)[0].kind.tolist() == [Kind.LOCALIZATION]
    kind, target = Oracles(records).faults()
    assert (kind.tolist(), target.tolist()) == ([Fault.CLASS.value], [1])
