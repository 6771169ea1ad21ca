"""Records survive their file, whole or not at all, and refuse what does not fit together."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from made_records import made_records

from mlc_yolo.metrics.records import Records, saved_digest


def _equal(a: Records, b: Records) -> bool:
    return all(np.array_equal(getattr(a, field.name), getattr(b, field.name)) for field in fields(Records))


@pytest.mark.parametrize("images", [0, 1, 7])
def test_what_is_saved_is_loaded(tmp_path: Path, images: int) -> None:
    records = replace(made_records(images=images), digest="abc", names={0: "œuf", 1: "b", 2: "c"})
    records.save(tmp_path / "records.npz")
    loaded = Records.load(tmp_path / "records.npz")
    assert _equal(loaded, records)
    assert loaded.boxes.dtype == np.float32 and loaded.gt_labels.dtype == np.int64
    assert [file.name for file in tmp_path.iterdir()] == ["records.npz"]


@pytest.mark.parametrize("name", ["spearman", "reach"])
def test_correlations_and_reach_are_optional_kept_and_of_these_detections_alone(name: str, tmp_path: Path) -> None:
    records = made_records()
    values = np.linspace(0, 1, len(records.gt_image)).astype(np.float32)
    replace(records, **{name: values}).save(tmp_path / "r.npz")
    loaded = Records.load(tmp_path / "r.npz")
    assert np.array_equal(getattr(loaded, name), values)
    other = loaded.with_detections(records.image, records.boxes, records.scores, records.labels)
    assert getattr(other, name) is None
    with pytest.raises(ValueError, match=rf"^{name} is .*expected"):
        replace(records, **{name: values[:-1]})


def test_saving_again_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    made_records(seed=0).save(path)
    made_records(seed=1).save(path)
    assert _equal(Records.load(path), made_records(seed=1))


def test_a_file_that_was_being_written_when_the_process_died_is_no_file(tmp_path: Path) -> None:
    records = made_records()
    records.save(tmp_path / "r.npz")
    (tmp_path / ".r.npz.part").write_bytes((tmp_path / "r.npz").read_bytes()[:100])
    (tmp_path / "r.npz").unlink()
    assert saved_digest(tmp_path / "r.npz") is None
    records.save(tmp_path / "r.npz")  # the remains do not disturb
    assert saved_digest(tmp_path / "r.npz") == ""


def test_the_digest_is_read_alone(tmp_path: Path) -> None:
    replace(made_records(), digest="f00").save(tmp_path / "r.npz")
    assert saved_digest(tmp_path / "r.npz") == "f00"


@pytest.mark.parametrize("name", ["sizes", "gt_boxes", "gt_labels", "boxes", "scores", "labels"])
def test_lengths_that_disagree_are_refused(name: str) -> None:
    records = made_records()
    with pytest.raises(ValueError, match=rf"^{name} is .*expected"):
        replace(records, **{name: getattr(records, name)[:-1]})


def test_another_npz_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", boxes=np.zeros(3))
    with pytest.raises(ValueError, match=r"holds no records: .*scores"):
        Records.load(tmp_path / "other.npz")


def test_the_same_images_are_those_with_the_same_names_and_objects() -> None:
    records = made_records()
    detections = {name: getattr(records, name)[:5] for name in ("image", "boxes", "scores", "labels")}
    assert records.same_images(replace(records, **detections))
    assert not records.same_images(replace(records, images=[f"other/{name}" for name in records.images]))
    assert not records.same_images(replace(records, gt_boxes=records.gt_boxes + 1))
