"""The diagnosis: its numbers against the metrics they come from, and the verdict's words against its numbers."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from made_records import made_records, records_of

from mlc_yolo.evaluation.diagnosis import FEW_OBJECTS, Diagnosis, Observations
from mlc_yolo.evaluation.verdict import verdict
from mlc_yolo.metrics.oracles import Repair
from mlc_yolo.metrics.records import Records
from mlc_yolo.metrics.weighted_ap import WeightedAP


def _seen(records: Records, reach: float | None = 0.9) -> Observations:
    """What a validation saw whose every object had a candidate of that IoU; None where candidates are not known."""
    sides = np.sqrt(np.prod(records.gt_boxes[:, 2:].astype(float) - records.gt_boxes[:, :2], axis=1))
    candidates = None
    if reach is not None:
        rest = np.full((len(sides), 2), (0.5, reach))
        candidates = np.concatenate((records.gt_boxes, rest), 1).astype(np.float32)
    return Observations(records, candidates, sides)


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    records = made_records(images=60)
    spearman = np.linspace(-1, 1, len(records.gt_labels)).astype(np.float32)
    return Diagnosis(_seen(replace(records, spearman=spearman)))


def test_the_baseline_is_coco_s_ap_and_every_gain_is_none_or_more(diagnosis: Diagnosis) -> None:
    expected = WeightedAP(diagnosis.seen.records)()
    for metric, value in diagnosis.baseline.values.items():
        assert value == pytest.approx(100 * expected[metric][0], abs=1e-9)
    assert diagnosis.ap.low < diagnosis.ap.mean < diagnosis.ap.high
    assert set(diagnosis.gains) == set(Repair)
    for gain in diagnosis.gains.values():
        assert gain.gain.mean >= 0
        assert gain.values["AP"] == pytest.approx(diagnosis.baseline.values["AP"] + gain.gain.mean)


def test_the_classes_and_sizes_share_all_objects_among_them(diagnosis: Diagnosis) -> None:
    records = diagnosis.seen.records
    assert sum(size.objects for size in diagnosis.sizes) == len(records.gt_labels)
    assert sum(row.objects for row in diagnosis.classes) == len(records.gt_labels)
    assert np.mean([row.ap for row in diagnosis.classes]) == pytest.approx(diagnosis.baseline.values["AP"])
    spearman = sum(row.objects * row.spearman for row in diagnosis.classes)
    assert spearman == pytest.approx(float(records.spearman.sum()), abs=1e-4)


def test_a_confusion_gains_what_the_class_oracle_gains_for_it_alone() -> None:
    # Two classes that are confused; a third is right.
    truth = [(0, 0, 20, 20, 0), (40, 0, 60, 20, 1), (0, 40, 20, 60, 2)]
    found = [(0, 0, 20, 20, 0.9, 1), (40, 0, 60, 20, 0.8, 0), (0, 40, 20, 60, 0.7, 2)]
    diagnosis = Diagnosis(_seen(records_of(truth, found, classes=3)))
    (confusion,) = diagnosis.confusions
    assert confusion.name == "0 and 1"
    assert confusion.gain.mean == pytest.approx(diagnosis.gains[Repair.CLASS].gain.mean)
    assert confusion.values["AP"] == pytest.approx(100)


def test_the_same_observations_give_the_same_intervals() -> None:
    first, second = (Diagnosis(_seen(made_records(images=10))) for _ in range(2))
    assert first.ap == second.ap
    assert first.gains[Repair.PLACE].gain == second.gains[Repair.PLACE].gain


def test_a_set_without_objects_is_refused() -> None:
    with pytest.raises(ValueError, match="none of the 1 images has an object"):
        Diagnosis(_seen(records_of([], [(0, 0, 5, 5, 0.5, 0)])))


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([(0, 0, 20, 8, 0.9, 0)], "sit badly"),
        ([(0, 0, 20, 20, 0.9, 1)], "another class"),
        ([(60, 60, 80, 80, 0.9, 0)], "without any detection"),
    ],
)
def test_the_verdict_names_what_costs_most(found: list[tuple[float, ...]], words: str) -> None:
    # The same image twenty times: every draw of images shows the same.
    one = records_of([(0, 0, 20, 20, 0)], found)
    count = 20
    records = Records(
        images=[f"{i:02}.jpg" for i in range(count)],
        sizes=one.sizes.repeat(count, 0),
        gt_image=np.arange(count),
        gt_boxes=one.gt_boxes.repeat(count, 0),
        gt_labels=one.gt_labels.repeat(count),
        image=np.arange(count),
        boxes=one.boxes.repeat(count, 0),
        scores=one.scores.repeat(count),
        labels=one.labels.repeat(count),
        names=one.names,
    )
    assert words in verdict(Diagnosis(_seen(records, reach=0.0)))[0]


def test_the_verdict_says_what_the_images_cannot_tell(diagnosis: Diagnosis) -> None:
    few = verdict(Diagnosis(_seen(made_records(images=12), reach=None)))
    assert any("few images" in sentence for sentence in few)
    assert any("before NMS are not to be had" in sentence for sentence in few)
    rare = Diagnosis(_seen(records_of([(0, 0, 20, 20, 0)] * (FEW_OBJECTS - 1), [])))
    assert any("Too few objects to say anything of these classes: 0." in sentence for sentence in verdict(rare))
    assert not any("few images" in sentence for sentence in verdict(diagnosis))


def test_numbers_in_the_verdict_are_the_diagnosis_own(diagnosis: Diagnosis) -> None:
    said = " ".join(verdict(diagnosis))
    inside = diagnosis.gains[Repair.INSIDE].gain
    assert f"at most {inside.mean:+.1f} AP [{inside.low:.1f}, {inside.high:.1f}]" in said
    point = diagnosis.curve.at(0.25)
    assert (
        f"At conf=0.25: precision {point.precision:.2f}, recall {point.recall:.2f}, {point.false} false boxes" in said
    )
    assert not re.search(r"\bnan\b", said)


def test_a_printed_diagnosis_is_its_table_and_its_verdict(diagnosis: Diagnosis) -> None:
    printed = str(diagnosis)
    assert all(sentence in printed for sentence in verdict(diagnosis))
    assert all(repair.value in printed for repair in diagnosis.gains)


def test_rescoring_is_said_where_there_is_something_to_compare_with(diagnosis: Diagnosis) -> None:
    records = diagnosis.seen.records
    doubled = replace(records, scores=np.minimum(records.scores * 2, 1))
    compared = Diagnosis(replace(diagnosis.seen, without_rescoring=doubled))
    said = " ".join(verdict(compared))
    assert "rescore=False" in said
    assert compared.curve_without_rescoring is not None
    assert f"recall {compared.curve_without_rescoring.at(0.25).recall:.2f}" in said
    assert "rescore=False" not in " ".join(verdict(diagnosis))
