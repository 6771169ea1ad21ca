"""SSD's augmentation: boxes stay on their objects, and chance comes from one generator."""

from __future__ import annotations

import random
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from ultralytics.utils.instance import Instances

from mlc_yolo.data.ssd_augmentation import GREY, SSDAugmentation

#: One colour per class, BGR and far from the grey of the canvas and from one another.
COLOURS = np.array([(10, 130, 250), (250, 20, 60), (30, 240, 20)])
#: Class, then xyxy in pixels of an image of 120 x 160; none touches another.
OBJECTS = [(0, 10, 20, 50, 60), (1, 90, 10, 150, 50), (2, 60, 70, 110, 110)]


def sample(objects: list[tuple[float, ...]], size: tuple[int, int] = (120, 160)) -> dict[str, Any]:
    """A black image with a filled rectangle for every object, and its labels as an Ultralytics data set gives them."""
    image = np.zeros((*size, 3), np.uint8)
    for label, x1, y1, x2, y2 in objects:
        cv2.rectangle(image, (int(x1), int(y1)), (int(x2) - 1, int(y2) - 1), COLOURS[int(label)].tolist(), -1)
    rows = np.array(objects, np.float32).reshape(-1, 5)
    boxes = rows[:, 1:] / np.array([size[1], size[0]] * 2, np.float32)
    instances = Instances(boxes, np.zeros((0, 1000, 2), np.float32), None, "xyxy", True)
    instances.convert_bbox("xywh")
    return {"img": image, "cls": rows[:, :1], "instances": instances, "im_file": "a.jpg"}


def undistorted() -> SSDAugmentation:
    """The augmentation with colours as they are."""
    augmentation = SSDAugmentation()
    augmentation._distort = lambda inputs: inputs
    return augmentation


@pytest.mark.parametrize("seed", range(40))
def test_every_box_and_class_stays_on_its_object(seed: int) -> None:
    torch.manual_seed(seed)
    augmented = undistorted()(sample(OBJECTS))
    image, boxes, classes = augmented["img"], augmented["instances"].bboxes, augmented["cls"]
    height, width = image.shape[:2]
    assert len(boxes) == len(classes) > 0
    assert (boxes >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
    for (x1, y1, x2, y2), label in zip(boxes, classes[:, 0].astype(int), strict=True):
        rows, columns = (image == COLOURS[label]).all(-1).nonzero()
        found = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        assert np.abs(np.array(found) - (x1, y1, x2, y2)).max() <= 1
    shown = {label for label in range(3) if (image == COLOURS[label]).all(-1).any()}
    assert set(classes[:, 0].astype(int)) <= shown  # others may be cut: their centres are outside


@pytest.mark.slow
def test_all_that_ssd_does_happens_at_its_rate() -> None:
    torch.manual_seed(0)
    sizes, mirrored, cropped = [], 0, 0
    for _ in range(300):
        image = undistorted()(sample([]))["img"]
        sizes.append(image.shape[1] / 160)
        if image.shape[1] > 160:
            assert np.isin(image, (0, GREY)).all() and (image == GREY).any()
    expanded = [size for size in sizes if size > 1]
    assert 0.5 < len(expanded) / 300 < 0.7 and 3.5 < max(sizes) <= 4 and min(sizes) == 1
    for _ in range(300):
        augmented = undistorted()(sample(OBJECTS))
        left = {label: box[0] for label, box in zip(augmented["cls"][:, 0], augmented["instances"].bboxes, strict=True)}
        mirrored += 0 in left and 1 in left and left[0] > left[1]
        cropped += augmented["img"].shape[0] < 120
    assert 50 < mirrored < 200 and cropped > 30


@pytest.mark.slow
def test_colours_are_distorted_and_sometimes_kept() -> None:
    torch.manual_seed(0)
    centres = []
    for _ in range(100):
        augmented = SSDAugmentation()(sample([(0, 0, 0, 160, 120)]))
        x1, y1, x2, y2 = augmented["instances"].bboxes[0]
        centres.append(tuple(augmented["img"][int(y1 + y2) // 2, int(x1 + x2) // 2].tolist()))
    assert len(set(centres)) > 30 and tuple(COLOURS[0]) in centres


def test_an_image_without_objects_is_never_cropped() -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        augmented = SSDAugmentation()(sample([]))
        assert augmented["img"].shape[0] >= 120 and augmented["img"].shape[1] >= 160
        assert augmented["cls"].shape == (0, 1) and augmented["instances"].bboxes.shape == (0, 4)


def test_boxes_below_a_pixel_go_together_with_their_class() -> None:
    kept = []
    for seed in range(20):
        torch.manual_seed(seed)
        augmented = undistorted()(sample([(1, 20, 20, 20.4, 60), OBJECTS[2], (0, 5, 5, 30, 5.2)]))
        assert len(augmented["cls"]) == len(augmented["instances"])
        kept += augmented["cls"][:, 0].tolist()
    assert set(kept) == {2.0} and len(kept) > 10  # now and then the crop cuts all but the tiny ones


def test_polygons_are_dropped_and_other_entries_kept() -> None:
    labels = sample(OBJECTS)
    labels["instances"] = Instances(labels["instances"].bboxes, np.full((3, 1000, 2), 0.5, np.float32))
    augmented = undistorted()(labels)
    assert not len(augmented["instances"].segments) and augmented["im_file"] == "a.jpg"


@pytest.mark.parametrize("size", [(1, 300), (300, 2), (4, 400), (1, 1)])
def test_the_thinnest_images_pass(size: tuple[int, int]) -> None:
    for seed in range(30):
        torch.manual_seed(seed)
        augmented = SSDAugmentation()(sample([(0, 0, 0, size[1], size[0])], size))
        assert min(augmented["img"].shape[:2]) >= 1 and augmented["cls"].tolist() == [[0.0]]


def test_chance_comes_from_torchs_generator_alone() -> None:
    def once(seed: int, other: int) -> np.ndarray:
        torch.manual_seed(seed)
        np.random.seed(other)
        random.seed(other)
        augmented: np.ndarray = SSDAugmentation()(sample(OBJECTS))["img"]
        return augmented

    first, again, different = once(3, 0), once(3, 1), once(4, 0)
    assert np.array_equal(first, again) and not np.array_equal(first, different)
    assert first.dtype == np.uint8 and first.flags.c_contiguous
