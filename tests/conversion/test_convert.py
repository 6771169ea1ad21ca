"""Pascal VOC XML and COCO JSON become data sets of the same boxes, and what is wrong with them is told."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from annotations import (
    HEIGHT,
    WIDTH,
    assert_labels,
    coco_box,
    labels_of,
    only,
    write_coco,
    write_image,
    write_pair,
    write_voc,
    xml,
    xml_object,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from ultralytics.cfg import get_cfg
from ultralytics.data.build import build_yolo_dataset
from ultralytics.data.utils import check_det_dataset
from ultralytics.nn.tasks import DetectionModel

from mlc_yolo.conversion.convert import convert
from mlc_yolo.conversion.pictures import Kind
from mlc_yolo.conversion.voc_xml import NAMES
from mlc_yolo.data.flags import ImageFlags, difficult_rows, read_flags

# ---------------------------------------------------------------------------------------------------- round trips


def test_a_voc_folder_keeps_its_boxes_and_flags(tmp_path: Path) -> None:
    source = write_voc(
        tmp_path / "VOC2007",
        {
            "trainval": {
                "000005": xml(
                    xml_object((1, 1, 100, 80), "dog", difficult=0, truncated=1),
                    xml_object((11, 21, 30, 60), "aeroplane", difficult=1),
                    database="The VOC2007 Database",
                ),
            },
            "test": {"000001": xml(xml_object((11, 21, 30, 60), "person", occluded=1)), "000002": xml()},
        },
    )
    report = convert(source, tmp_path / "out", split="trainval,test")
    out = tmp_path / "out"
    # VOC's own pixels 1..100 of 100 are the whole image, its 11..30 the edges 10..30; a tool's 11 is the edge 11.
    assert_labels(out, "000005", [(11, (0, 0, 100, 80)), (0, (10, 20, 30, 60))], "trainval")
    assert_labels(out, "000001", [(14, (11, 21, 30, 60))], "test")
    assert labels_of(out, "000002", "test") == []
    assert yaml.safe_load((out / "data.yaml").read_text()) == {
        "train": "images/trainval",
        "val": "images/test",
        "names": dict(enumerate(NAMES)),
    }
    detail = "'person' has 1 objects here and none in trainval"
    assert [(problem.kind, problem.detail) for problem in report.problems] == [(Kind.UNTRAINED, detail)]
    assert report.splits["test"] == {
        "images": 2,
        "without objects": 1,
        "objects": 1,
        "difficult": 0,
        "crowd regions": 0,
    }
    flags = read_flags(out / "data.yaml", "train")
    assert flags["000005"]["difficult"].tolist() == [False, True]
    sidecar = json.loads((out / "flags" / "trainval.json").read_text())
    assert [sorted(each) for each in sidecar["images"]["000005"]["objects"]] == [
        ["row", "truncated"],
        ["difficult", "row"],
    ]
    assert "1 images count pixels from 1" in str(report)


def test_a_coco_file_keeps_its_boxes_flags_ids_and_areas(tmp_path: Path) -> None:
    source = write_coco(
        tmp_path / "in" / "instances_val2017.json",
        [
            coco_box([10.25, 20.5, 30.13, 40.01], 901, area=555.5),
            coco_box([0, 0, 100, 80], 902, iscrowd=1, area=4000),
            coco_box([1, 2, 3, 4], 903, category_id=3),
        ],
    )
    report = convert(source, tmp_path / "out", split="val2017")
    out = tmp_path / "out"
    # Categories 3, 18 are labels 0, 1: by id, not in the order of the file.
    assert_labels(out, "a", [(1, (10.25, 20.5, 40.38, 60.51)), (0, (1, 2, 4, 6))], "val2017")
    assert report.names == ["car", "dog"] and not report.problems
    assert report.splits["val2017"]["crowd regions"] == 1
    entry = json.loads((out / "flags" / "val2017.json").read_text())["images"]["a"]
    assert (entry["file"], entry["id"]) == ("a.png", 7)
    assert [(each["id"], each.get("area")) for each in entry["objects"]] == [(901, 555.5), (903, None)]
    assert [(each["id"], each["area"], each["row"]) for each in entry["crowd"]] == [(902, 4000, [1, 0.5, 0.5, 1, 1])]
    flags = read_flags(out / "data.yaml")["a"]
    assert flags["crowd"].tolist() == [[1, 0.5, 0.5, 1, 1]] and not flags["difficult"].any()


def test_several_json_files_are_splits_of_one_set(tmp_path: Path) -> None:
    files = [write_coco(tmp_path / part / f"{part}.json", [coco_box([1, 2, 30, 40])]) for part in ("train", "val")]
    convert(",".join(map(str, files)), tmp_path / "out")
    assert yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())["val"] == "images/val"
    for part in ("train", "val"):
        assert_labels(tmp_path / "out", "a", [(1, (1, 2, 31, 42))], part)


def test_a_plain_folder_and_its_subfolders_are_read(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        write_pair(tmp_path / "in" / part, "x.rf.12", xml(xml_object((5, 6, 50, 60), "bolt")))
    report = convert(tmp_path / "in", tmp_path / "out", split=["train", "valid"])
    assert report.names == ["bolt"] and not report.problems
    assert_labels(tmp_path / "out", "x.rf.12", [(0, (5, 6, 50, 60))], "valid")
    one = convert(tmp_path / "in" / "train", tmp_path / "one")
    assert "split train is both train and val" in str(one)
    assert_labels(tmp_path / "one", "x.rf.12", [(0, (5, 6, 50, 60))])


edges = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted).filter(lambda pair: pair[1] - pair[0] > 1e-6)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    boxes=st.lists(st.tuples(edges, edges), min_size=1, max_size=6, unique_by=str),
    size=st.tuples(st.integers(10, 3000), st.integers(10, 3000)),
    coco=st.booleans(),
)
def test_any_box_returns_within_a_hundredth_of_a_pixel(
    boxes: list[Any], size: tuple[int, int], coco: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("any")
    width, height = size
    pixels = [(x1 * width, y1 * height, x2 * width, y2 * height) for (x1, x2), (y1, y2) in boxes]
    write_image(root / "a.png", width, height)
    if coco:
        source = write_coco(
            root / "a.json", [coco_box([a, b, c - a, d - b], i) for i, (a, b, c, d) in enumerate(pixels)]
        )
        write_image(root / "a.png", width, height)
    else:
        source = root
        (root / "a.xml").write_text(xml(*(xml_object(box) for box in pixels), size=size))
    report = convert(source, root / "out")
    rows = np.loadtxt(root / "out" / "labels" / "train" / "a.txt", dtype=np.float32, ndmin=2)  # as Ultralytics reads
    decoded = np.concatenate([rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2], 1) * [*size, *size]
    kept = [problem for problem in report.problems if problem.kind is not Kind.SIZE]
    if not kept:  # boxes of one row are merged, and said to be
        assert abs(decoded - pixels).max() < 0.01
    assert len(rows) == len(boxes) - len(kept)
    assert rows.min() >= 0 and decoded.min() > -0.01 and (decoded[:, 2:] < np.array(size) + 0.01).all()


# ---------------------------------------------------------------------------------------------------- Ultralytics


def _dataset(data: Path, split: str) -> Any:
    settings = check_det_dataset(str(data))
    arguments = get_cfg(overrides={"imgsz": 64, "task": "detect", "data": str(data)})
    return build_yolo_dataset(arguments, settings[split], 2, settings, mode="val")


def test_ultralytics_finds_the_labels_and_takes_a_training_step(tmp_path: Path) -> None:
    source = write_voc(
        tmp_path / "VOC2007",
        {"train": {name: xml(xml_object((11, 21, 60, 70), "cat", difficult=name == "b")) for name in "ab"}},
    )
    convert(source, tmp_path / "out", split="train")
    dataset = _dataset(tmp_path / "out" / "data.yaml", "train")
    assert [Path(each["im_file"]).stem for each in dataset.labels] == ["a", "b"]
    assert [each["cls"].tolist() for each in dataset.labels] == [[[0]], [[0]]]
    batch = dataset.collate_fn([dataset[0], dataset[1]])
    model = DetectionModel("yolo11n.yaml", nc=20, verbose=False)
    model.args = get_cfg()
    loss = model.loss({**batch, "img": batch["img"].float() / 255})[0]
    loss.sum().backward()
    assert (loss > 0).all() and next(model.parameters()).grad is not None


def test_flags_are_found_again_however_ultralytics_orders_the_rows(tmp_path: Path) -> None:
    boxes = [(60, 10, 90, 40), (10, 20, 30, 60), (5, 5, 50, 70)]
    objects = [xml_object(box, "cat", difficult=i == 1) for i, box in enumerate(boxes)]
    write_pair(tmp_path / "in", "a", xml(*objects))
    convert(tmp_path / "in", tmp_path / "out")
    labels = tmp_path / "out" / "labels" / "train" / "a.txt"
    labels.write_text(labels.read_text() + labels.read_text().splitlines()[0] + "\n")  # a duplicate: rows get sorted
    entry = _dataset(tmp_path / "out" / "data.yaml", "val").labels[0]
    rows = np.concatenate([entry["cls"], entry["bboxes"]], 1)
    flags = read_flags(tmp_path / "out" / "labels" / "train")["a"]
    assert not np.allclose(rows, flags["rows"], atol=1e-3)
    is_second = abs(rows[:, 3] * WIDTH - 20) < 0.01  # by its width
    assert difficult_rows(flags, rows).tolist() == is_second.tolist() and is_second.sum() == 1
    assert difficult_rows(flags, rows[is_second]).tolist() == [True]  # classes= dropped the others
    assert difficult_rows(flags, rows * [0, 1, 1, 1, 1]).tolist() == is_second.tolist()  # single_cls
    assert difficult_rows(flags, rows + np.array([0, 0.01, 0, 0, 0])).tolist() == [False] * 3  # other boxes
    assert difficult_rows(flags, rows[:0]).tolist() == [] and difficult_rows(None, rows).tolist() == [False] * 3


def test_of_one_box_with_two_classes_each_row_has_its_own_flag() -> None:
    rows = np.array([[0, 0.5, 0.5, 0.2, 0.2], [1, 0.5, 0.5, 0.2, 0.2]])
    flags = ImageFlags(rows=rows, difficult=np.array([True, False]), crowd=np.empty((0, 5)))
    assert difficult_rows(flags, rows).tolist() == [True, False]
    assert difficult_rows(flags, rows * [0, 1, 1, 1, 1] + [5, 0, 0, 0, 0]).tolist() == [False, False]


def test_a_set_without_sidecar_has_no_flags(tiny_data: Path) -> None:
    assert read_flags(tiny_data) == {}
    assert read_flags([tiny_data.parent / "images" / "val"]) == {}


def test_a_damaged_sidecar_and_equal_stems_are_told(tmp_path: Path) -> None:
    write_pair(tmp_path / "in", "a", xml(xml_object((1, 2, 30, 40))))
    for name in ("one", "two"):
        convert(tmp_path / "in", tmp_path / name)
    folders = [tmp_path / name / "images" / "train" for name in ("one", "two")]
    assert read_flags(folders[:1])["a"]["rows"].shape == (1, 5)
    with pytest.raises(ValueError, match="two folders of this split hold an image 'a'"):
        read_flags(folders)
    (tmp_path / "one" / "flags" / "train.json").write_text('{"version": 1, "images": [3]}')
    with pytest.raises(ValueError, match=r"train\.json is not a sidecar"):
        read_flags(tmp_path / "one" / "data.yaml")


# ------------------------------------------------------------------------------------------- hostile XML and images


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("<annotation><object>", "no element found"),
        ("<html/>", "its root is <html>"),
        ("<?xml version='1.0' encoding='nonsense'?><annotation/>", "unknown encoding"),
        ('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>', "document type"),
    ],
)
def test_a_broken_xml_is_told_and_the_others_are_converted(text: str, message: str, tmp_path: Path) -> None:
    write_pair(tmp_path / "in", "good", xml(xml_object((1, 2, 30, 40))))
    write_pair(tmp_path / "in", "bad", text)
    report = convert(tmp_path / "in", tmp_path / "out")
    name, detail = only(report, Kind.ANNOTATION)
    assert name == "bad.xml" and message in detail
    assert sorted(os.listdir(tmp_path / "out" / "images" / "train")) == ["good.png"]
    told = (tmp_path / "out" / "report.txt").read_text()
    assert "1 problems:\n  1 x annotation unreadable: image left out" in told and "bad.xml" in told


@pytest.mark.parametrize(
    ("box", "kind", "message"),
    [
        ((-5, 10, 30, 40), Kind.CLIPPED, "(-5, 10, 30, 40) in 100 x 80 px"),
        ((10, 10, 30, 80.02), Kind.CLIPPED, "80.02"),
        ((100, 10, 130, 40), Kind.BOX, "outside the image"),
        ((30, 10, 10, 40), Kind.BOX, "reversed"),
        ((10, 10, 10, 40), Kind.BOX, "empty"),
        (("nan", 10, 30, 40), Kind.BOX, "not finite"),
        ((10, 10, "inf", 40), Kind.BOX, "not finite"),
        ((10, 10, "", 40), Kind.BOX, "not finite"),
        ((10, "ten", 30, 40), Kind.BOX, "could not convert"),
        ((10, 10, 10.0000001, 40), Kind.BOX, "too small for a label"),
    ],
)
def test_a_bad_box_of_an_xml_is_told(box: Any, kind: Kind, message: str, tmp_path: Path) -> None:
    write_pair(tmp_path / "in", "a", xml(xml_object((1, 2, 30, 40)), xml_object(box, "cat")))
    report = convert(tmp_path / "in", tmp_path / "out")
    name, detail = only(report, kind)
    assert name == "a.xml" and message in detail
    assert len(labels_of(tmp_path / "out", "a")) == (2 if kind is Kind.CLIPPED else 1)


def test_a_clipped_box_ends_at_the_image_and_a_hair_beyond_it_is_no_problem(tmp_path: Path) -> None:
    write_pair(tmp_path / "in", "a", xml(xml_object((-5, 10, 130, 90)), xml_object((10, 10, 100.005, 80.005))))
    report = convert(tmp_path / "in", tmp_path / "out")
    assert only(report, Kind.CLIPPED)[1].startswith("object 1 (dog)")
    assert_labels(tmp_path / "out", "a", [(0, (0, 10, 100, 80)), (0, (10, 10, 100, 80))])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<object><bndbox><xmin>1</xmin></bndbox></object>", "object 1 (without a name) has no name"),
        ("<object><name>dog</name></object>", "object 1 (dog) has no bndbox"),
    ],
)
def test_an_incomplete_object_is_told(content: str, message: str, tmp_path: Path) -> None:
    write_pair(tmp_path / "in", "a", xml(content, xml_object((1, 2, 30, 40))))
    assert only(convert(tmp_path / "in", tmp_path / "out"), Kind.BOX) == ("a.xml", message)


def test_the_image_wins_over_the_size_in_the_xml(tmp_path: Path) -> None:
    write_pair(tmp_path / "in", "a", xml(xml_object((10, 20, 30, 40)), size=(50, 40)))
    report = convert(tmp_path / "in", tmp_path / "out")
    assert only(report, Kind.SIZE) == ("a.xml", "the image is 100 x 80 px, annotated as 50 x 40")
    assert_labels(tmp_path / "out", "a", [(0, (10, 20, 30, 40))])


def test_a_turned_image_has_the_size_it_is_shown_with(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    (tmp_path / "in").mkdir()
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "in" / "a.jpg", exif=exif)
    (tmp_path / "in" / "a.xml").write_text(xml(xml_object((60, 20, 90, 40))))
    report = convert(tmp_path / "in", tmp_path / "out")
    assert not report.problems
    dataset = _dataset(tmp_path / "out" / "data.yaml", "val")
    assert dataset.load_image(0)[1] == (HEIGHT, WIDTH)
    assert_labels(tmp_path / "out", "a", [(0, (60, 20, 90, 40))])


def test_images_that_are_missing_or_unusable_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "in"
    annotation = xml(xml_object((1, 2, 9, 9)))
    write_pair(folder, "good", annotation)
    for stem in ("missing", "empty", "noise", "tiny", "gif", "twice"):
        (folder / f"{stem}.xml").write_text(annotation)
    (folder / "empty.jpg").touch()
    (folder / "noise.jpg").write_bytes(b"this is no image")
    write_image(folder / "tiny.png", 9, 50)
    Image.new("RGB", (20, 20)).save(folder / "gif.jpg", format="GIF")
    write_image(folder / "twice.jpg")
    write_image(folder / "twice.png")
    write_image(folder / "alone.jpg")
    report = convert(folder, tmp_path / "out")
    told = {Path(problem.file).name: (problem.kind, problem.detail) for problem in report.problems}
    assert told["missing.xml"] == (Kind.NO_IMAGE, f"no image missing.* in {folder}")
    assert told["empty.jpg"] == (Kind.IMAGE, "the file is empty")
    assert told["noise.jpg"][0] is Kind.IMAGE and "cannot identify" in told["noise.jpg"][1]
    assert told["tiny.png"][0] is Kind.IMAGE and "9 x 50 px" in told["tiny.png"][1]
    assert told["gif.jpg"][0] is Kind.IMAGE and "a gif file named *.jpg" in told["gif.jpg"][1]
    assert told["twice.xml"] == (Kind.NO_IMAGE, "twice.jpg, twice.png all bear its name")
    assert told["alone.jpg"][0] is Kind.NO_ANNOTATION
    assert len(told) == 7 == len(report.problems)
    assert "pi-heif" not in caplog.text  # upstream would install it on meeting a damaged file
    assert report.splits["train"]["images"] == 1


def test_an_image_is_found_by_the_name_in_the_xml_and_used_once(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_pair(folder, "a", xml(xml_object((1, 2, 30, 40))))
    write_image(folder / "other.png")
    (folder / "b.xml").write_text(xml(xml_object((1, 2, 30, 40)), filename="C:\\photos\\other.png"))
    (folder / "c.xml").write_text(xml(xml_object((5, 2, 30, 40)), filename="a.png"))
    report = convert(folder, tmp_path / "out")
    name, detail = only(report, Kind.DUPLICATE)
    assert name == "c.xml" and "a.png has boxes from" in detail
    assert sorted(os.listdir(tmp_path / "out" / "labels" / "train")) == ["a.txt", "other.txt"]


def test_one_object_given_twice_is_used_once_and_difficult_only_if_both_are(tmp_path: Path) -> None:
    box, other = (1, 2, 30, 40), (5, 6, 50, 60)
    objects = [
        xml_object(box, difficult=1),
        xml_object(other, difficult=1),
        xml_object(box),
        xml_object(other, difficult=1),
    ]
    write_pair(tmp_path / "in", "a", xml(*objects))
    report = convert(tmp_path / "in", tmp_path / "out")
    assert [problem.kind for problem in report.problems] == [Kind.DUPLICATE] * 2
    assert len(labels_of(tmp_path / "out", "a")) == 2
    assert read_flags(tmp_path / "out" / "data.yaml")["a"]["difficult"].tolist() == [False, True]


def test_an_unreadable_flag_is_told(tmp_path: Path) -> None:
    write_pair(tmp_path / "in", "a", xml(xml_object((1, 2, 30, 40), difficult="perhaps", truncated="Unspecified")))
    report = convert(tmp_path / "in", tmp_path / "out")
    assert only(report, Kind.FLAG) == ("a.xml", "object 1 (dog): difficult is 'perhaps'")


def test_a_split_tells_of_missing_files_and_of_names_listed_twice(tmp_path: Path) -> None:
    source = write_voc(tmp_path / "VOC", {"train": {"a": xml(xml_object((1, 2, 30, 40))), "b": xml()}})
    (source / "ImageSets" / "Main" / "train.txt").write_text("a 1\nb  -1\na\nnowhere\n")
    (source / "JPEGImages" / "b.jpg").unlink()
    report = convert(source, tmp_path / "out", split="train")
    assert [problem.kind for problem in report.problems] == [Kind.DUPLICATE, Kind.NO_IMAGE, Kind.NO_ANNOTATION]
    assert report.problems[2].file.endswith("nowhere.xml")
    assert report.splits["train"]["images"] == 1


# ---------------------------------------------------------------------------------------------------- hostile JSON


@pytest.mark.parametrize(
    ("annotation", "kind", "message"),
    [
        (coco_box([-5, 10, 30, 40], 2), Kind.CLIPPED, "annotation 2 (dog) of a.png, (-5, 10, 25, 50)"),
        (coco_box([30, 10, -10, 40], 2), Kind.BOX, "reversed"),
        (coco_box([30, 10, 0, 40], 2), Kind.BOX, "empty"),
        (coco_box([float("nan"), 10, 30, 40], 2), Kind.BOX, "not finite"),
        (coco_box([10, 10, float("inf"), 40], 2), Kind.BOX, "not finite"),
        (coco_box([10, 10, "x", None], 2), Kind.BOX, "not finite"),
        (coco_box([200, 10, 30, 40], 2), Kind.BOX, "outside the image"),
        (coco_box([10, 10, 30], 2), Kind.BOX, "bbox [10, 10, 30]"),
        (coco_box(None, 2, segmentation=[[1, 2, 3, 4, 5, 6]]), Kind.BOX, "a segmentation but no bbox"),
        (coco_box([1, 2, 3, 4], 2, image_id=8), Kind.REFERENCE, "annotation 2: no image_id 8"),
        (coco_box([1, 2, 3, 4], 2, image_id=[7]), Kind.REFERENCE, "no image_id [7]"),
        (coco_box([1, 2, 3, 4], 2, category_id=1), Kind.REFERENCE, "no category_id 1"),
        (coco_box([1, 2, 3, 4], 1), Kind.DUPLICATE, "annotation 1 (dog)"),
        (coco_box([1, 2, 30, 40], 2), Kind.DUPLICATE, "two objects of a.png"),
        (coco_box([1, 2, 3, 4], 2, iscrowd="perhaps"), Kind.FLAG, "iscrowd is 'perhaps'"),
        ("dog", Kind.BOX, "annotation 2 in the list is 'dog'"),
    ],
)
def test_a_bad_annotation_of_a_json_is_told(annotation: Any, kind: Kind, message: str, tmp_path: Path) -> None:
    source = write_coco(tmp_path / "x.json", [coco_box([1, 2, 30, 40]), annotation])
    report = convert(source, tmp_path / "out")
    name, detail = only(report, kind)
    assert name == "x.json" and message in detail
    assert labels_of(tmp_path / "out", "a")[0][0] == 1


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        ({"id": 7, "file_name": "b.png"}, Kind.DUPLICATE, "image id 7, here for b.png"),
        ({"id": 8, "file_name": "a.png"}, Kind.DUPLICATE, "a.png is image 7 and again image 8"),
        ({"id": 8, "file_name": "gone.png"}, Kind.NO_IMAGE, "no gone.png in"),
        ({"id": 8, "file_name": "../secret.png"}, Kind.NO_IMAGE, "no ../secret.png in"),
        ({"id": 8, "file_name": "/etc/passwd"}, Kind.NO_IMAGE, "no /etc/passwd in"),
        ({"id": 8}, Kind.NO_IMAGE, "no id or no file_name"),
        ({"id": None, "file_name": "b.png"}, Kind.NO_IMAGE, "no id or no file_name"),
        ("b.png", Kind.NO_IMAGE, "no id or no file_name"),
        ({"id": 8, "file_name": "b.png", "width": 1, "height": 80}, Kind.SIZE, "annotated as 1 x 80"),
    ],
)
def test_a_bad_image_of_a_json_is_told(image: Any, kind: Kind, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_image(tmp_path / "secret.png")
    write_image(folder / "b.png")
    first = {"id": 7, "file_name": "a.png"}
    report = convert(write_coco(folder / "x.json", [coco_box([1, 2, 30, 40])], images=[first, image]), tmp_path / "out")
    name, detail = only(report, kind)
    assert name == "x.json" and message in detail
    assert len(os.listdir(tmp_path / "out" / "labels" / "train")) == (2 if kind is Kind.SIZE else 1)


def test_images_of_one_name_in_different_folders_keep_their_labels_apart(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{folder}/1.png"} for i, folder in enumerate(("left", "right"))]
    for folder in ("left", "right"):
        write_image(tmp_path / folder / "1.png")
    boxes = [coco_box([10 * i, 2, 30, 40], i, image_id=i) for i in range(2)]
    report = convert(write_coco(tmp_path / "x.json", boxes, images=images), tmp_path / "out")
    assert only(report, Kind.RENAMED) == ("x.json", "right/1.png is 1-2.png in the output")
    assert_labels(tmp_path / "out", "1", [(1, (0, 2, 30, 42))])
    assert_labels(tmp_path / "out", "1-2", [(1, (10, 2, 40, 42))])
    assert json.loads((tmp_path / "out" / "flags" / "train.json").read_text())["images"]["1-2"]["file"] == "right/1.png"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "x.json cannot be read as JSON: the file is empty"),
        ("{", "x.json cannot be read as JSON"),
        ("[" * 100_000, "x.json cannot be read as JSON"),
        ("[]", "lacks the lists images, annotations, categories"),
        ('{"images": [], "annotations": {}}', "lacks the lists annotations, categories"),
        ('{"images": [], "annotations": [], "categories": []}', "has no category"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', "no id or no name"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            "category id 1 is both 'a' and 'b'",
        ),
        (
            '{"images": [], "categories": [], "annotations": [{"id": 1, "segmentation": [[1, 2, 3, 4, 5, 6]]}]}',
            "no annotation has a bbox",
        ),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "No usable image in split train"),
    ],
)
def test_a_json_that_cannot_be_converted_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError) as error:
        convert(tmp_path / "x.json", tmp_path / "out")
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------- the call as a whole


def test_the_source_is_checked_before_anything_is_done(tmp_path: Path) -> None:
    voc = write_voc(tmp_path / "kit" / "VOC2007", {"train": {"a": xml(xml_object((1, 2, 30, 40)))}})
    (voc / "ImageSets" / "Main" / "dog_train.txt").touch()
    (voc / "ImageSets" / "Main" / "empty.txt").touch()
    (voc / "ImageSets" / "Main" / "leaves.txt").write_text("../../a\n")
    (tmp_path / "void").mkdir()
    json_file = write_coco(tmp_path / "a.json", [])
    cases: list[tuple[dict[str, Any], str]] = [
        ({"source": tmp_path / "nowhere"}, "nowhere does not exist"),
        ({"source": ""}, "source is empty"),
        ({"source": tmp_path / "void"}, "holds no XML file."),
        ({"source": tmp_path / "kit"}, "Take one of its VOC2007"),
        ({"source": voc, "split": "tests"}, "there are: empty, leaves, train."),
        ({"source": voc, "split": "empty"}, "empty.txt lists no image"),
        ({"source": voc, "split": "leaves"}, "outside"),
        ({"source": voc, "split": "../train"}, "cannot name a folder"),
        ({"source": voc, "split": "images"}, "cannot name a folder"),
        ({"source": voc, "split": "train,train"}, "different names"),
        ({"source": voc, "images": json_file}, "folder of images"),
        ({"source": voc / "Annotations", "split": "train"}, "has no ImageSets/Main"),
        ({"source": [voc, json_file]}, "source must be one folder"),
        ({"source": voc / "ImageSets" / "Main" / "train.txt"}, "source must be one folder"),
        ({"source": json_file, "split": "train,val"}, "one split per JSON file"),
        ({"source": json_file, "images": [voc, voc]}, "one folder of images, or one per JSON file"),
        ({"source": json_file, "link": "yes"}, "link and strict must be True or False"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError) as error:
            convert(**arguments, output=tmp_path / "out")
        assert message in str(error.value), arguments
    assert not (tmp_path / "out").exists()


def test_a_set_without_any_object_in_xml_has_no_classes_and_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path / "in", "a", xml())
    with pytest.raises(ValueError, match="No usable object"):
        convert(tmp_path / "in", tmp_path / "out")


def test_nothing_is_written_over_and_an_empty_folder_is_taken(tmp_path: Path) -> None:
    write_pair(tmp_path / "in", "a", xml(xml_object((1, 2, 30, 40))))
    (tmp_path / "out").mkdir()
    convert(tmp_path / "in", tmp_path / "out")
    before = (tmp_path / "out" / "data.yaml").stat().st_mtime_ns
    for taken in (tmp_path / "out", tmp_path / "in" / "a.xml"):
        with pytest.raises(FileExistsError, match="nothing is written over"):
            convert(tmp_path / "in", taken)
    assert (tmp_path / "out" / "data.yaml").stat().st_mtime_ns == before


def test_strict_raises_what_would_be_reported_and_writes_nothing(tmp_path: Path) -> None:
    write_pair(tmp_path / "in", "a", xml(xml_object((1, 2, 300, 40))))
    with pytest.raises(ValueError, match=r"a\.xml: box reaches outside the image"):
        convert(tmp_path / "in", tmp_path / "out", strict=True)
    assert os.listdir(tmp_path) == ["in"]
    (tmp_path / "in" / "a.xml").write_text(xml(xml_object((1, 2, 30, 40))))
    assert not convert(tmp_path / "in", tmp_path / "out", strict=True).problems


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pair(tmp_path / "in", "a", xml(xml_object((1, 2, 30, 40))))

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="no space left"):
        convert(tmp_path / "in", tmp_path / "out", link=False)
    assert os.listdir(tmp_path) == ["in"]


def test_images_are_linked_or_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pair(tmp_path / "real", "a", xml(xml_object((1, 2, 30, 40))))
    original = tmp_path / "real" / "a.png"
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").symlink_to("../real/a.png")
    shutil.copy(tmp_path / "real" / "a.xml", folder)

    convert(folder, tmp_path / "hard")
    image = tmp_path / "hard" / "images" / "train" / "a.png"
    assert image.samefile(original) and not image.is_symlink()

    report = convert(folder, tmp_path / "copy", link=False)
    image = tmp_path / "copy" / "images" / "train" / "a.png"
    assert image.read_bytes() == original.read_bytes() and not image.samefile(original)
    assert "1 images were copied" in str(report)

    def refuse(*_: Any) -> None:
        raise OSError("another file system")

    monkeypatch.setattr(os, "link", refuse)
    report = convert(folder, tmp_path / "soft")
    image = tmp_path / "soft" / "images" / "train" / "a.png"
    assert image.is_symlink() and image.samefile(original)
    assert "1 images are symbolic links" in str(report)


def test_the_report_lists_every_problem_or_the_first_of_them(tmp_path: Path) -> None:
    write_pair(tmp_path / "in", "a", xml(*(xml_object((i, 2, 200, 40)) for i in range(5))))
    report = convert(tmp_path / "in", tmp_path / "out")
    assert str(report).count("a.xml: box reaches outside") == 5
    short = report.text(most=2)
    assert short.count("a.xml: box reaches outside") == 2 and short.endswith("... and 3 more")
    assert "5 x box reaches outside the image: clipped" in short
    assert (tmp_path / "out" / "report.txt").read_text() == f"{report}\n"
