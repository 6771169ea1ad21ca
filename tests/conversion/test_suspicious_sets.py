"""What tools write beside COCO's and VOC's formats is read as it was meant; a set that trains nothing is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
from PIL import Image

from mlc_yolo.conversion.convert import convert
from mlc_yolo.conversion.pictures import Kind
from mlc_yolo.conversion.voc_xml import NAMES

BOX = [10, 20, 30, 40]
CORNERS = (10, 20, 40, 60)


def names_of(output: Path) -> list[str]:
    return list(yaml.safe_load((output / "data.yaml").read_text(encoding="utf-8"))["names"].values())


# ------------------------------------------------------------------------------------------------------- categories


def test_a_category_that_only_groups_others_is_no_class(tmp_path: Path) -> None:
    groups = [
        {"id": 0, "name": "animals", "supercategory": "none"},
        {"id": 3, "name": "cat", "supercategory": "animals"},
        {"id": 18, "name": "dog", "supercategory": "animals"},
    ]
    report = convert(write_coco(tmp_path / "x.json", [coco_box(BOX)], categories=groups), tmp_path / "out")
    assert only(report, Kind.GROUP) == ("x.json", "category 0 (animals)")
    assert names_of(tmp_path / "out") == ["cat", "dog"]
    assert_labels(tmp_path / "out", "a", [(1, CORNERS)])


def test_a_group_with_the_name_of_its_only_class_leaves_one_class(tmp_path: Path) -> None:
    groups = [
        {"id": 0, "name": "dog", "supercategory": "none"},
        {"id": 18, "name": "dog", "supercategory": "dog"},
    ]
    convert(write_coco(tmp_path / "x.json", [coco_box(BOX)], categories=groups), tmp_path / "out")
    assert names_of(tmp_path / "out") == ["dog"]
    assert_labels(tmp_path / "out", "a", [(0, CORNERS)])


def test_a_group_with_objects_of_its_own_and_a_class_that_is_its_own_group_stay(tmp_path: Path) -> None:
    groups = [
        {"id": 3, "name": "animal", "supercategory": "none"},
        {"id": 18, "name": "dog", "supercategory": "animal"},
        {"id": 20, "name": "person", "supercategory": "person"},  # as COCO has it
    ]
    boxes = [coco_box(BOX), coco_box([1, 2, 3, 4], 2, category_id=3)]
    report = convert(write_coco(tmp_path / "x.json", boxes, categories=groups), tmp_path / "out")
    assert names_of(tmp_path / "out") == ["animal", "dog", "person"] and not report.problems


def test_categories_of_one_name_are_one_class(tmp_path: Path) -> None:
    twice = [{"id": 3, "name": "dog"}, {"id": 18, "name": "dog"}]
    boxes = [coco_box(BOX), coco_box([1, 2, 3, 4], 2, category_id=3)]
    report = convert(write_coco(tmp_path / "x.json", boxes, categories=twice), tmp_path / "out")
    assert only(report, Kind.NAMESAKE) == ("x.json", "'dog' has ids 3, 18")
    assert names_of(tmp_path / "out") == ["dog"]
    assert [label for label, _ in labels_of(tmp_path / "out", "a")] == [0, 0]


@pytest.mark.parametrize(
    "categories",
    [
        pytest.param([{"id": 18, "name": "dog"}], id="one is missing"),
        pytest.param([{"id": 3, "name": "dog"}, {"id": 4, "name": "car"}], id="other ids, another order"),
        pytest.param([{"id": 18, "name": "dog"}, {"id": 1, "name": "cow"}], id="one more, without objects"),
    ],
)
def test_a_second_file_is_read_by_the_names_of_its_categories(categories: list[Any], tmp_path: Path) -> None:
    first = write_coco(tmp_path / "train" / "x.json", [coco_box(BOX), coco_box([1, 2, 3, 4], 2, category_id=3)])
    number = categories[0]["id"]
    second = write_coco(tmp_path / "val" / "x.json", [coco_box(BOX, category_id=number)], categories=categories)
    report = convert([first, second], tmp_path / "out")
    assert names_of(tmp_path / "out") == ["car", "dog"] and not report.problems
    assert_labels(tmp_path / "out", "a", [(1, CORNERS)], "val")


def test_a_class_without_an_object_to_train_on_is_said(tmp_path: Path) -> None:
    first = write_coco(tmp_path / "train" / "x.json", [coco_box(BOX)])
    cat = [{"id": 1, "name": "cat"}]
    second = write_coco(tmp_path / "val" / "x.json", [coco_box(BOX, category_id=1)], categories=cat)
    report = convert([first, second], tmp_path / "out")
    assert only(report, Kind.UNTRAINED) == ("val", "'cat' has 1 objects here and none in train")
    assert names_of(tmp_path / "out") == ["car", "dog", "cat"]
    assert_labels(tmp_path / "out", "a", [(2, CORNERS)], "val")


def test_only_vocs_own_files_have_vocs_twenty_classes(tmp_path: Path) -> None:
    own = write_pair(tmp_path / "own", "a", xml(xml_object((1, 2, 30, 40), "person")))
    convert(own.parent, tmp_path / "one")
    assert names_of(tmp_path / "one") == ["person"]
    text = xml(xml_object((1, 2, 30, 40), "person"), database="The VOC2012 Database")
    convert(write_voc(tmp_path / "VOC2012", {"train": {"a": text}}), tmp_path / "twenty")
    assert names_of(tmp_path / "twenty") == list(NAMES)


# --------------------------------------------------------------------------------------------------------------- ids


@pytest.mark.parametrize("write", [str, float, lambda number: f"{number}.0"], ids=["text", "float", "text of a float"])
@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
def test_ids_are_the_same_as_numbers_texts_or_floats(write: Any, part: str, tmp_path: Path) -> None:
    file = write_coco(tmp_path / "x.json", [coco_box(BOX)])
    content = json.loads(file.read_text())
    for entry in content[part]:
        entry.update({key: write(entry[key]) for key in ("id", "image_id", "category_id") if key in entry})
    file.write_text(json.dumps(content))
    report = convert(file, tmp_path / "out")
    assert not report.problems
    assert_labels(tmp_path / "out", "a", [(1, CORNERS)])


def test_texts_that_are_no_plain_numbers_are_ids_of_their_own(tmp_path: Path) -> None:
    write_image(tmp_path / "b.png")
    images = [{"id": "007", "file_name": "a.png"}, {"id": "7", "file_name": "b.png"}]
    boxes = [coco_box(BOX, image_id="007"), coco_box([1, 2, 3, 4], 2, image_id=7)]
    report = convert(write_coco(tmp_path / "x.json", boxes, images=images), tmp_path / "out")
    assert not report.problems
    assert_labels(tmp_path / "out", "a", [(1, CORNERS)])
    assert_labels(tmp_path / "out", "b", [(1, (1, 2, 4, 6))])


# -------------------------------------------------------------------------------------------------------- file names


@pytest.mark.parametrize(
    "name",
    ["{folder}/deep/b.png", "/elsewhere/photos/deep/b.png", "C:\\photos\\deep\\b.png", "../photos/deep/b.png"],
)
def test_whole_paths_are_found_by_their_longest_end_in_the_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_image(folder / "deep" / "b.png")
    write_image(folder / "b.png", 50, 50)  # a shorter end
    images = [{"id": 7, "file_name": name.format(folder=folder), "width": WIDTH, "height": HEIGHT}]
    report = convert(write_coco(folder / "x.json", [coco_box(BOX)], images=images), tmp_path / "out")
    assert not report.problems
    assert_labels(tmp_path / "out", "b", [(1, CORNERS)])


def test_a_json_of_another_encoding_is_read(tmp_path: Path) -> None:
    file = write_coco(tmp_path / "x.json", [coco_box(BOX)], categories=[{"id": 18, "name": "Dürüm"}])
    file.write_text(json.dumps(json.loads(file.read_text()), ensure_ascii=False), encoding="utf-16")
    convert(file, tmp_path / "out")
    assert names_of(tmp_path / "out") == ["Dürüm"]


# ---------------------------------------------------------------------------------------------------- nothing usable


@pytest.mark.parametrize(
    ("boxes", "reason"),
    [
        ([coco_box(BOX, iscrowd=1)], "All 1 boxes are crowd regions"),
        ([coco_box(BOX, image_id=99)], "no image_id 99"),
        ([], "0 objects"),
    ],
    ids=["crowds", "lost references", "nothing"],
)
def test_a_json_without_an_object_to_train_on_is_refused(boxes: list[Any], reason: str, tmp_path: Path) -> None:
    source = write_coco(tmp_path / "x.json", boxes)
    with pytest.raises(ValueError, match="No usable object in split train") as error:
        convert(source, tmp_path / "out")
    assert reason in str(error.value) and not (tmp_path / "out").exists()


def test_a_set_with_more_crowds_than_objects_is_suspicious(tmp_path: Path) -> None:
    boxes = [coco_box(BOX), *(coco_box([n, 2, 3, 4], n, iscrowd=1) for n in (2, 3))]
    report = convert(write_coco(tmp_path / "x.json", boxes), tmp_path / "out")
    assert only(report, Kind.CROWDS) == ("train", "2 crowd regions (iscrowd: 1), 1 objects")


@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_a_validation_split_without_objects_is_suspicious(kind: str, tmp_path: Path) -> None:
    if kind == "voc":
        write_pair(tmp_path / "in" / "train", "a", xml(xml_object((1, 2, 30, 40))))
        write_pair(tmp_path / "in" / "val", "b", xml())
        report = convert(tmp_path / "in", tmp_path / "out", split="train,val")
    else:
        files = [write_coco(tmp_path / part / "x.json", boxes) for part, boxes in (("a", [coco_box(BOX)]), ("b", []))]
        report = convert(files, tmp_path / "out")
    assert only(report, Kind.EMPTY) == ("val", "1 images")


# ------------------------------------------------------------------------------------------------------------- turns


def rotated(box: tuple[float, float, float, float], degrees: object) -> str:
    """An object of CVAT's export to VOC."""
    attribute = f"<attributes><attribute><name>rotation</name><value>{degrees}</value></attribute></attributes>"
    return xml_object(box).replace("</object>", f"{attribute}</object>")


@pytest.mark.parametrize(
    ("degrees", "hull"),
    [
        (90, (30, 10, 50, 50)),  # 40 x 20 about (40, 30), upright
        (-90, (30, 10, 50, 50)),
        (45, (40 - 30 * 0.5**0.5, 30 - 30 * 0.5**0.5, 40 + 30 * 0.5**0.5, 30 + 30 * 0.5**0.5)),  # (40 + 20) / sqrt 2
    ],
)
@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_of_a_rotated_box_the_upright_one_around_it_is_used(
    kind: str, degrees: float, hull: tuple[float, float, float, float], tmp_path: Path
) -> None:
    if kind == "voc":
        write_pair(tmp_path / "in", "a", xml(rotated((20, 20, 60, 40), degrees)))
        report = convert(tmp_path / "in", tmp_path / "out")
    else:
        box = coco_box([20, 20, 40, 20], attributes={"rotation": degrees})
        report = convert(
            write_coco(tmp_path / "x.json", [box], categories=[{"id": 18, "name": "dog"}]), tmp_path / "out"
        )
    assert only(report, Kind.ROTATED)[1].endswith(f"by {degrees} degrees")
    assert_labels(tmp_path / "out", "a", [(0, hull)])


@pytest.mark.parametrize("degrees", [0, 180, -180.0, "left", "nan", ""])
def test_a_box_turned_by_nothing_a_half_turn_or_a_word_is_as_it_is(degrees: object, tmp_path: Path) -> None:
    write_pair(tmp_path / "in", "a", xml(rotated((20, 20, 60, 40), degrees)))
    report = convert(tmp_path / "in", tmp_path / "out")
    assert not report.problems
    assert_labels(tmp_path / "out", "a", [(0, (20, 20, 60, 40))])


def turned_image(file: Path, orientation: int) -> None:
    """Write an image stored as 80 x 100 px, shown as 100 x 80 px."""
    exif = Image.Exif()
    exif[274] = orientation
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (HEIGHT, WIDTH)).save(file, exif=exif)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_boxes_in_the_stored_image_are_turned_with_it(kind: str, orientation: int, tmp_path: Path) -> None:
    x1, y1, x2, y2 = 5, 10, 25, 60  # in 80 x 100 px
    turned_image(tmp_path / "in" / "a.jpg", orientation)
    if kind == "voc":
        (tmp_path / "in" / "a.xml").write_text(xml(xml_object((x1, y1, x2, y2)), size=(HEIGHT, WIDTH)))
        report = convert(tmp_path / "in", tmp_path / "out")
    else:
        images = [{"id": 7, "file_name": "a.jpg", "width": HEIGHT, "height": WIDTH}]
        content = write_coco(
            tmp_path / "in" / "x.json",
            [coco_box([x1, y1, x2 - x1, y2 - y1])],
            images=images,
            categories=[{"id": 18, "name": "dog"}],
        )
        report = convert(content, tmp_path / "out")
    assert only(report, Kind.TURNED)[1].endswith("is 100 x 80 px, annotated as 80 x 100")
    # The same corner pixels, turned by Pillow, judge where the box went.
    stored = Image.new("L", (HEIGHT, WIDTH))
    stored.paste(255, (x1, y1, x2, y2))
    methods = {
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    expected = stored.transpose(methods[orientation]).getbbox()
    assert expected is not None
    assert_labels(tmp_path / "out", "a", [(0, expected)])


def test_an_image_whose_sides_have_changed_places_without_a_word_of_how_is_left_out(tmp_path: Path) -> None:
    write_pair(tmp_path / "in", "a", xml(xml_object((5, 10, 25, 60)), size=(HEIGHT, WIDTH)))
    write_pair(tmp_path / "in", "b", xml(xml_object((5, 10, 25, 60))))
    report = convert(tmp_path / "in", tmp_path / "out")
    assert only(report, Kind.SIDEWAYS) == ("a.xml", "the image is 100 x 80 px, annotated as 80 x 100")
    assert report.splits["train"]["images"] == 1
