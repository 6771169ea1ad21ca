"""Data sets of warped and of SSD-augmented images: sizes, boxes, the way back, caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from ultralytics.cfg import get_cfg
from ultralytics.data.utils import check_det_dataset
from ultralytics.utils.ops import scale_boxes, xywh2xyxy

from mlc_yolo.data.datasets import CheckedDataset, SSDDataset, WarpedDataset, build

SIZE = 96
#: Height and width of the images of `shapes`.
SHAPES = [(40, 200), (200, 40), (96, 96), (300, 250), (12, 400)]


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """The data.yaml of noise of many shapes, each with one object of a quarter of each side."""
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    rng = np.random.default_rng(0)
    for i, shape in enumerate(SHAPES):
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
        (tmp_path / "labels" / f"{i}.txt").write_text("0 0.375 0.625 0.25 0.25\n")
    data = tmp_path / "data.yaml"
    data.write_text(f"path: {tmp_path.as_posix()}\ntrain: images\nval: images\nnames: [thing]\n")
    return data


def dataset(data: Path, mode: str, *, warp: bool, ssd: bool = False, **options: Any) -> Any:
    args = get_cfg(overrides={"imgsz": SIZE, "task": "detect", **options})
    content = check_det_dataset(data)
    given = {"data": content, "batch": 2, "mode": mode, "rect": mode == "val"}
    before = vars(args).copy()
    built = build(content["train"], args, warp=warp, ssd=ssd, **given)
    assert vars(args) == before
    return built


def test_neither_option_leaves_the_stock_data_set(shapes: Path) -> None:
    built = dataset(shapes, "val", warp=False)
    assert type(built) is CheckedDataset and built.rect


@pytest.mark.parametrize("cache", [False, "ram"])
def test_validation_sees_every_image_stretched_to_the_square_and_finds_the_way_back(cache: Any, shapes: Path) -> None:
    built = dataset(shapes, "val", warp=True, cache=cache)
    assert type(built) is WarpedDataset and not built.rect and len(built) == len(SHAPES)
    for item in built:
        original = cv2.imread(item["im_file"])
        stretched = cv2.resize(original, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
        assert np.array_equal(item["img"].numpy(), stretched[..., ::-1].transpose(2, 0, 1))
        assert item["bboxes"].tolist() == [[0.375, 0.625, 0.25, 0.25]]
        height, width = item["ori_shape"]
        assert (height, width) == original.shape[:2]
        boxes = xywh2xyxy(item["bboxes"]) * SIZE
        back = scale_boxes((SIZE, SIZE), boxes, (height, width), ratio_pad=item["ratio_pad"])
        expected = torch.tensor([[0.25 * width, 0.5 * height, 0.5 * width, 0.75 * height]])
        torch.testing.assert_close(back, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_ultralytics_own_augmentation_takes_warped_images(mosaic: float, shapes: Path) -> None:
    still = dict.fromkeys(("hsv_h", "hsv_s", "hsv_v", "fliplr", "translate", "scale"), 0.0)
    built = dataset(shapes, "train", warp=True, mosaic=mosaic, **still)
    for item in built:
        assert item["img"].shape == (3, SIZE, SIZE)
        if not mosaic:
            torch.testing.assert_close(item["bboxes"], torch.tensor([[0.375, 0.625, 0.25, 0.25]]))


@pytest.mark.slow
@pytest.mark.parametrize("cache", [False, "ram", "disk"])
@pytest.mark.parametrize("warp", [False, True])
def test_ssd_samples_fill_the_input_and_their_boxes_stay_inside(warp: bool, cache: Any, shapes: Path) -> None:
    built = dataset(shapes, "train", warp=warp, ssd=True, cache=cache, rect=True, deterministic=False)
    assert type(built) is SSDDataset and not built.rect
    for i, shape in enumerate(SHAPES):
        image, original, loaded = built.load_image(i)
        assert original == shape and image.shape[:2] == loaded
        assert max(loaded) == min(max(shape), 2 * SIZE)  # as it is, but not beyond twice the input
    torch.manual_seed(0)
    for item in [*built, *built]:
        assert item["img"].shape == (3, SIZE, SIZE) and item["img"].dtype == torch.uint8
        corners = xywh2xyxy(item["bboxes"])
        assert len(corners) == len(item["cls"]) and corners.min() >= -1e-6 and corners.max() <= 1 + 1e-6
    batch = built.collate_fn([built[0], built[1]])
    assert batch["img"].shape == (2, 3, SIZE, SIZE) and len(batch["batch_idx"]) == len(batch["bboxes"])


@pytest.mark.slow
def test_a_seed_settles_what_ssd_draws(shapes: Path) -> None:
    built = dataset(shapes, "train", warp=True, ssd=True)

    def images(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.stack([item["img"] for item in built])

    assert torch.equal(images(1), images(1)) and not torch.equal(images(1), images(2))
    built.close_mosaic(get_cfg())  # what upstream does for the last epochs
    assert torch.equal(images(1), images(1)) and images(1).shape[-2:] == (SIZE, SIZE)
