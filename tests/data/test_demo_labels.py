"""The demo set with labels of other tasks: they describe what was painted, and Ultralytics reads every row."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from ultralytics.data.dataset import YOLODataset

from mlc_yolo.data.demo_set import scenes
from mlc_yolo.data.demo_set.scenes import DemoSpec, draw_scene
from mlc_yolo.data.resolve import resolve_data

IMGSZ = 128
SPEC = {"train_images": 6, "val_images": 1, "imgsz": IMGSZ}


def _rows(folder: Path, index: int) -> list[np.ndarray]:
    text = (folder / "labels" / "train" / f"{index:04d}.txt").read_text()
    return [np.array(line.split(), float) for line in text.splitlines()]


@pytest.mark.parametrize("task", ["segment", "pose", "obb"])
def test_labels_of_every_task_describe_the_same_pictures(task: str, tmp_path: Path) -> None:
    spec = DemoSpec(**SPEC, task=task)
    scenes.write_demo(spec, tmp_path)
    objects = 0
    for index in range(spec.train_images):
        scene, rows = draw_scene(DemoSpec(**SPEC), "train", index), _rows(tmp_path, index)
        assert [int(row[0]) for row in rows] == scene.labels.tolist()
        for row, box, whole, badge in zip(rows, scene.boxes, scene.silhouettes, scene.badges, strict=True):
            objects += 1
            left, top, right, bottom = box.astype(int)
            assert whole[top:bottom, left:right].sum() == whole.sum() and badge.sum() <= whole.sum()
            corners = (row[1:].reshape(-1, 2) * IMGSZ if task != "pose" else np.zeros((0, 2))).astype(np.float32)
            if task == "segment":
                drawn = cv2.fillPoly(np.zeros((IMGSZ, IMGSZ), np.uint8), [np.floor(corners).astype(np.int32)], 1) > 0
                assert (drawn & whole).sum() / (drawn | whole).sum() > 0.85
            elif task == "obb":
                assert corners.shape == (4, 2)
                ys, xs = np.nonzero(whole)
                outside = [
                    cv2.pointPolygonTest(corners, (float(x) + 0.5, float(y) + 0.5), measureDist=True) < -1.5
                    for x, y in zip(xs[::7], ys[::7], strict=True)
                ]
                assert np.mean(outside) < 0.02  # corners beyond the image were cut
                sides = np.linalg.norm(corners - np.roll(corners, 1, 0), axis=1)
                assert sides[0] * sides[1] < 1.2 * (right - left + 2) * (bottom - top + 2)
            else:
                np.testing.assert_allclose(row[1:5] * IMGSZ, [*(box[:2] + box[2:]) / 2, *box[2:] - box[:2]], atol=1e-3)
                (x, y, seen), (_, _, body) = row[5:].reshape(2, 3)
                assert body == 2 and seen == 2 * badge.any()
                if seen:  # the middle of a ring is not in it, but near
                    ys, xs = np.nonzero(badge)
                    assert np.hypot(xs + 0.5 - x * IMGSZ, ys + 0.5 - y * IMGSZ).min() < 6
    assert objects > 10


@pytest.mark.parametrize(("name", "task"), [("seg", "segment"), ("pose", "pose"), ("obb", "obb")])
def test_ultralytics_reads_every_row_of_a_set_that_is_asked_for_by_name(name: str, task: str, tmp_path: Path) -> None:
    own = yaml.safe_load((Path(scenes.__file__).parents[3] / "datasets" / f"demo-{name}.yaml").read_text())
    assert own == {"generator": "demo", "task": task}
    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump({**own, **SPEC}))
    data = yaml.safe_load(Path(resolve_data(str(small))).read_text())
    images = str(Path(data["path"]) / data["train"])
    labels = YOLODataset(images, data={**data, "channels": 3}, task=task, imgsz=IMGSZ).labels
    folder = Path(data["path"])
    assert len(labels) == 6 and [len(label["cls"]) for label in labels] == [len(_rows(folder, i)) for i in range(6)]
    if task == "pose":
        assert data["kpt_shape"] == [2, 3] and labels[0]["keypoints"].shape[1:] == (2, 3)


def test_labels_of_an_unknown_task_are_refused() -> None:
    with pytest.raises(ValueError, match="segment, pose, obb"):
        DemoSpec(task="classify")
