"""COCO numbers against pycocotools run by hand on the same JSON files."""

from __future__ import annotations

import doctest
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mlc_yolo.metrics import coco
from mlc_yolo.metrics.coco import NAMES, coco_evaluate


@pytest.fixture(params=["pycocotools", "faster-coco-eval"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs with both; without the extra `coco` there is pycocotools alone."""
    if request.param == "pycocotools":
        monkeypatch.setitem(sys.modules, "faster_coco_eval", None)  # as if it were not installed
    return request.param


def by_hand(folder: Path, detections: list[np.ndarray], objects: list[np.ndarray], num_classes: int) -> list[float]:
    """What a user would do: write the two files, load them, evaluate."""
    annotations, results = [], []
    for image, (found, truth) in enumerate(zip(detections, objects, strict=True), start=10):
        for x1, y1, x2, y2, label in truth.tolist():
            w, h = x2 - x1, y2 - y1
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": int(label) + 1, "area": w * h}
                | {"bbox": [x1, y1, w, h], "iscrowd": 0}
            )
        for x1, y1, x2, y2, score, label in found.tolist():
            box = [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)]
            results.append({"image_id": image, "category_id": int(label) + 1, "bbox": box, "score": round(score, 5)})
    images = [{"id": image} for image in range(10, 10 + len(objects))]
    categories = [{"id": k + 1} for k in range(num_classes)]
    truth_file, results_file = folder / "truth.json", folder / "results.json"
    truth_file.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))
    results_file.write_text(json.dumps(results))
    truth_api = COCO(truth_file)
    judge = COCOeval(truth_api, truth_api.loadRes(str(results_file)), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return list(judge.stats)


def random_set(seed: int, images: int = 12, classes: int = 3) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Objects from 8 to 180 px; detections are jittered objects and noise; some images have none of either."""
    rng = np.random.default_rng(seed)
    detections, objects = [], []
    for i in range(images):
        count = 0 if i == 3 else rng.integers(1, 8)
        corner, side = rng.random((count, 2)) * 300, 8 + rng.random((count, 2)) * 172
        labels = rng.integers(0, classes, (count, 1))
        objects.append(np.hstack((corner, corner + side, labels)).astype(np.float32))
        boxes = np.hstack((corner, corner + side)).repeat(3, 0)
        boxes += rng.normal(0, 0.12, boxes.shape) * np.hstack((side, side)).repeat(3, 0)
        noise = rng.random((5, 4)) * 100 + [0, 0, 100, 100]
        boxes = np.vstack((boxes, noise))
        guessed = np.vstack((labels.repeat(3, 0), rng.integers(0, classes, (5, 1))))
        found = np.hstack((boxes, rng.random((len(boxes), 1)), guessed)).astype(np.float32)
        detections.append(found[:0] if i == 5 else found)
    return detections, objects


@pytest.mark.parametrize("seed", range(3))
def test_numbers_equal_pycocotools_run_by_hand_on_the_same_files(
    seed: int, tmp_path: Path, implementation: str
) -> None:
    detections, objects = random_set(seed)
    found = coco_evaluate(detections, objects, 3)
    assert list(found) == list(NAMES)
    assert 0.05 < found["AP"] < 0.95
    assert all(value >= 0 for value in found.values())
    last_digit = 0 if implementation == "pycocotools" else 1e-12  # the other sums in another order
    assert list(found.values()) == pytest.approx(by_hand(tmp_path, detections, objects, 3), rel=0, abs=last_digit)


def test_the_faster_implementation_is_taken_where_it_is_installed(implementation: str) -> None:
    found = {judging.__module__.split(".")[0] for judging in coco._implementation()}
    assert found == {implementation.replace("-", "_")}


def test_perfect_detections_score_one_and_absent_sizes_minus_one() -> None:
    objects = [np.array([[0, 0, 10, 10, 0], [20, 20, 40, 40, 1]], dtype=np.float32)]
    detections = [np.insert(objects[0], 4, 0.9, axis=1)]
    found = coco_evaluate(detections, objects, 2)
    assert (found["AP"], found["AP50"], found["APs"], found["AR100"]) == pytest.approx((1, 1, 1, 1))
    assert (found["APm"], found["APl"], found["ARm"], found["ARl"]) == (-1, -1, -1, -1)


@pytest.mark.parametrize(("num_detections", "num_objects", "expected"), [(0, 2, 0.0), (2, 0, -1.0), (0, 0, -1.0)])
def test_sets_without_detections_or_objects_are_judged(num_detections: int, num_objects: int, expected: float) -> None:
    box = np.array([[0, 0, 10, 10, 0]], dtype=np.float32)
    detections = [np.insert(box, 4, 0.5, axis=1).repeat(num_detections, 0), np.empty((0, 6))]
    objects = [box.repeat(num_objects, 0), np.empty((0, 5))]
    assert coco_evaluate(detections, objects, 1)["AP"] == expected


def test_no_images_at_all_are_judged() -> None:
    assert set(coco_evaluate([], [], 1).values()) == {-1.0}


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    coco_evaluate(*random_set(0), 3)
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 of detections and 1 of objects"):
        coco_evaluate([np.empty((0, 6))] * 2, [np.empty((0, 5))], 1)


def test_the_example_in_the_documentation_holds() -> None:
    result = doctest.testmod(coco)
    assert result.attempted >= 2
    assert result.failed == 0
