"""The page of a diagnosis: what it shows, what it escapes, and that it needs nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from made_records import made_records

from mlc_yolo.evaluation.diagnosis import Diagnosis, Observations
from mlc_yolo.metrics.coverage import SIZES
from mlc_yolo.metrics.oracles import Repair
from mlc_yolo.report import write_diagnosis
from mlc_yolo.report.charts import Frame
from mlc_yolo.report.diagnosis_page import EDGES, render_diagnosis
from mlc_yolo.report.examples import misplaced, misranked


@pytest.fixture
def diagnosis(tmp_path: Path) -> Diagnosis:
    """A diagnosis over photographs that exist; every object has a candidate that fits it exactly."""
    records = made_records(images=12, empty=12)
    images = []
    for i in range(len(records.images)):
        path = tmp_path / f"{i:02}.jpg"
        cv2.imwrite(str(path), np.full((400, 400, 3), 20 * i, np.uint8))
        images.append(str(path))
    records = replace(records, images=images, names={0: "cat", 1: "<b>dog</b>", 2: "cow"})
    best = np.concatenate((records.gt_boxes, np.full((len(records.gt_boxes), 2), (0.3, 1.0))), 1).astype(np.float32)
    sides = np.sqrt(np.prod(records.gt_boxes[:, 2:] - records.gt_boxes[:, :2], axis=1)).astype(float)
    pairs = np.random.default_rng(0).random((50, 2)).astype(np.float32)
    plain = replace(records, scores=np.sqrt(records.scores), spearman=None)
    rng = np.random.default_rng(1)
    sigmas = rng.uniform(1, 20, (80, 4))
    edges = np.concatenate((rng.normal(0, 2 * sigmas), sigmas, rng.uniform(100, 20_000, (80, 1))), 1)
    return Diagnosis(Observations(records, best, sides, without_rescoring=plain, predicted=pairs, edges=edges))


def test_the_page_shows_every_repair_and_the_verdict_first(diagnosis: Diagnosis) -> None:
    page = render_diagnosis(diagnosis, model="mine.pt", data="mine")
    assert page.index("What costs most") < page.index("<svg") < page.index("Class by class")
    for repair in Repair:
        assert f">{repair.value}" in page
    assert "rescore=False" in page
    assert "The predicted IoU" in page


def test_the_page_says_how_far_deviations_and_predicted_ious_can_be_believed(diagnosis: Diagnosis) -> None:
    page = render_diagnosis(diagnosis)
    section = page[page.index('id="edges"') : page.index("</main>")]
    assert diagnosis.coverage is not None and diagnosis.spread is not None
    rows = re.findall(r'<th scope="row">([^<]+)', section)
    assert rows[:2] == ["all", "left sides"] and rows[5:] == [EDGES[size] for size in SIZES]
    shares = [int(share) for share in re.findall(r">(\d+) %</td>", section)]
    assert shares[0] == round(100 * diagnosis.coverage.overall) < 50
    assert f"times {diagnosis.coverage.factor:.2f} would be honest" in section
    assert section.count("<circle") == len(diagnosis.spread.count) == 10
    assert ">predicted IoU</text>" in page and ">stated deviation, px</text>" in section
    without = Diagnosis(replace(diagnosis.seen, edges=None))
    assert 'id="edges"' not in render_diagnosis(without)


def test_logarithmic_axes_have_round_ticks_at_their_places() -> None:
    frame = Frame((0.5, 50), (0.5, 50), logarithmic=True)
    assert frame.to_x(5) - frame.to_x(0.5) == pytest.approx(frame.to_x(50) - frame.to_x(5))
    axes = str(frame.axes("x", "y"))
    assert re.findall(r">([\d.]+)</text>", axes)[:7] == ["0.5", "1", "2", "5", "10", "20", "50"]


def test_names_are_escaped_and_nothing_is_loaded(diagnosis: Diagnosis) -> None:
    page = render_diagnosis(diagnosis, model="<script>x</script>", data="mine")
    assert "<b>dog" not in page
    assert "&lt;b&gt;dog" in page
    assert "<script>x" not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "default-src 'none'" in page


def test_each_photograph_has_words_for_who_does_not_see_it(diagnosis: Diagnosis) -> None:
    page = render_diagnosis(diagnosis)
    images = re.findall(r"<img [^>]*>", page)
    assert images
    assert all(re.search(r'alt="[^"]+ in \d\d\.jpg: [^"]*IoU', image) for image in images)
    assert page.count('role="img"') == page.count('aria-label="AP ') + page.count('aria-label="The ')


def test_examples_are_the_worst_first_and_gone_photographs_are_left_out(diagnosis: Diagnosis, tmp_path: Path) -> None:
    gaps = [float(re.search(r"kept: IoU ([\d.]+)", example.caption)[1]) for example in misranked(diagnosis)]
    assert gaps == sorted(gaps)
    assert gaps[0] >= 0.5
    badly = misplaced(diagnosis)
    assert 0 < len(badly) <= 6
    assert all(float(re.search(r"IoU ([\d.]+)", example.caption)[1]) < 0.5 for example in badly)
    for path in tmp_path.glob("*.jpg"):
        path.unlink()
    assert misranked(diagnosis) == misplaced(diagnosis) == []
    assert "Where did NMS keep" not in render_diagnosis(diagnosis)


def test_a_diagnosis_without_candidates_channel_or_photographs_has_a_page(tmp_path: Path) -> None:
    records = made_records(images=6)
    bare = Diagnosis(Observations(records, None, np.full(len(records.gt_labels), 20.0)))
    path = write_diagnosis(bare, tmp_path / "page.html")
    page = path.read_text(encoding="utf-8")
    assert "rank inside objects" not in page
    assert "nan" not in re.sub(r"<style>.*?</style>|<script>.*?</script>", "", page, flags=re.S).split()
