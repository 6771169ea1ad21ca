"""Results keep what is known of each box, whatever is done to them; who does not ask sees Ultralytics' own."""

from __future__ import annotations

import csv
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ultralytics.engine.results import Boxes, Results

from mlc_yolo.evaluation.placed_results import COLUMNS, PlacedBoxes, PlacedResults, with_bands
from mlc_yolo.plots.bands import displayed

NAMES = {0: "square", 1: "disc"}
ROWS = torch.tensor([[10.0, 20, 50, 60, 0.9, 0], [30.0, 5, 70, 45, 0.6, 1], [60.0, 50, 90, 70, 0.3, 0]])
KNOWN = torch.tensor([[0.75, 1, 2, 3, 4], [0.5, 5, 6, 7, 8], [float("nan"), 1, 1, 1, 1]])


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)


def placed(known: torch.Tensor | None = KNOWN) -> PlacedResults:
    return PlacedResults(image(), "a.jpg", NAMES, ROWS.clone(), placement=known)


def boxes_of(result: PlacedResults) -> PlacedBoxes:
    assert result.boxes is not None
    return result.boxes


def test_users_who_do_not_ask_see_ultralytics_results(tmp_path: Path) -> None:
    ours, stock = placed(), Results(image(), "a.jpg", NAMES, ROWS.clone())
    assert isinstance(ours, Results) and isinstance(ours.boxes, Boxes)
    assert stock.boxes is not None and torch.equal(ours.boxes.data, stock.boxes.data) and ours.boxes.shape == (3, 6)
    assert len(ours) == 3 and ours.verbose() == stock.verbose()
    np.testing.assert_array_equal(ours.plot(), stock.plot())
    for save_conf in (False, True):
        texts = [Path(r.save_txt(tmp_path / f"{i}{save_conf}.txt", save_conf)) for i, r in enumerate((ours, stock))]
        assert texts[0].read_text() == texts[1].read_text()
    assert [{k: v for k, v in row.items() if k not in COLUMNS} for row in ours.summary()] == stock.summary()


@pytest.mark.parametrize(
    "rows", [1, -1, slice(1, None), [2, 0], torch.tensor([True, False, True]), np.array([2, 1]), slice(0, 0)]
)
def test_rows_that_are_picked_take_what_is_known_along(rows: Any) -> None:
    whole = placed()
    expected = ROWS[rows].reshape(-1, 6), KNOWN[rows].reshape(-1, 5)
    for picked in (boxes_of(whole[rows]), boxes_of(whole)[rows]):
        assert type(picked) is PlacedBoxes and torch.equal(picked.data, expected[0])
        torch.testing.assert_close(picked.iou, expected[1][:, 0], equal_nan=True, rtol=0, atol=0)
        assert torch.equal(picked.sigma, expected[1][:, 1:])
    numbers = rows.numpy() if isinstance(rows, torch.Tensor) else rows
    np.testing.assert_array_equal(boxes_of(whole.numpy()[numbers]).sigma, expected[1][:, 1:])


def test_copies_elsewhere_and_in_other_types_and_pickles_keep_what_is_known() -> None:
    whole = placed()
    whole.show_sigma = True
    for copy in (whole.cpu(), whole.to("cpu"), whole[:], pickle.loads(pickle.dumps(whole))):
        assert type(copy) is PlacedResults and copy.show_sigma
        torch.testing.assert_close(boxes_of(copy).placement, KNOWN, equal_nan=True)
    half = boxes_of(whole.to(torch.float16))
    assert half.data.dtype == half.iou.dtype == half.sigma.dtype == torch.float16
    arrays = boxes_of(whole.numpy())
    assert isinstance(arrays.data, np.ndarray) and isinstance(arrays.iou, np.ndarray)
    np.testing.assert_array_equal(arrays.sigma, KNOWN[:, 1:])
    assert arrays.cpu() is arrays and arrays.numpy() is arrays
    assert isinstance(arrays.to("cpu").sigma, torch.Tensor)
    if torch.cuda.is_available():
        assert boxes_of(whole.cuda()).sigma.is_cuda and boxes_of(whole.cuda().cpu()).sigma.device.type == "cpu"


def test_tracked_boxes_keep_what_is_known_and_new_ones_are_not_known() -> None:
    tracked, replaced = placed()[[1, 0]], placed()
    tracks = torch.tensor([[31.0, 5, 71, 45, 7, 0.6, 1], [10.0, 20, 50, 60, 4, 0.9, 0]])
    tracked.update(boxes=tracks)
    assert boxes_of(tracked).is_track and boxes_of(tracked).iou.tolist() == [0.5, 0.75]
    assert boxes_of(tracked).sigma[0].tolist() == [5, 6, 7, 8]
    replaced.update(boxes=ROWS + 1)
    assert boxes_of(replaced).placement.isnan().all()
    replaced.update(boxes=tracks)
    assert boxes_of(replaced).placement.isnan().all()


def test_tables_have_a_column_for_each_and_leave_empty_what_is_not_known() -> None:
    rows = placed().summary()
    assert [tuple(row)[-5:] for row in rows] == [COLUMNS] * 3
    assert [row["iou"] for row in rows] == [0.75, 0.5, None]
    assert [row["sigma_bottom"] for row in rows] == [4, 8, 1]
    fractions = placed().summary(normalize=True)[1]
    assert (fractions["iou"], fractions["sigma_left"], fractions["sigma_top"]) == (0.5, 0.05, 0.075)
    frame = placed().to_df()
    assert frame["sigma_right"].to_list() == [3, 7, 1] and frame["iou"].null_count() == 1
    assert [row["iou"] for row in json.loads(placed().to_json())] == [0.75, 0.5, None]
    table = list(csv.DictReader(io.StringIO(placed().to_csv())))
    assert [row["iou"] for row in table] == ["0.75", "0.5", ""] and table[1]["sigma_top"] == "6.0"
    assert all(row["iou"] is None and row["sigma_left"] is None for row in placed(None).summary())
    assert placed()[:0].summary() == []


def test_text_files_hold_what_is_known_where_that_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    placed().save_txt(file, save_conf=True)
    plain = file.read_text().splitlines()
    placed().save_txt(file, save_conf=True, placement=True)
    lines = file.read_text().splitlines()
    assert lines[:3] == plain, "earlier lines stay"
    assert lines[3:] == [
        f"{plain[0]} 0.75 0.01 0.025 0.03 0.05",
        f"{plain[1]} 0.5 0.05 0.075 0.07 0.1",
        f"{plain[2]} nan 0.01 0.0125 0.01 0.0125",
    ]
    placed()[:0].save_txt(tmp_path / "none.txt", placement=True)
    assert not (tmp_path / "none.txt").exists()


def test_bands_reach_a_standard_deviation_to_either_side_of_each_known_side() -> None:
    black = np.zeros((80, 100, 3), dtype=np.uint8)
    rows = torch.tensor([[20.0, 30, 60, 70, 0.9, 0]])
    boxes = PlacedBoxes(rows, (80, 100), torch.tensor([[0.5, 4, float("nan"), 0, 2]])).numpy()
    lit = with_bands(black, boxes).any(2)
    expected = np.zeros_like(lit)
    expected[30:71, 16:25] = True  # left: 20 +- 4, from top to bottom
    expected[30:71, 60] = True  # right: no width, still a line; the top is not known
    expected[68:73, 20:61] = True  # bottom: 70 +- 2
    np.testing.assert_array_equal(lit, expected)
    assert not black.any(), "the image itself stays"


def test_pictures_show_bands_where_they_are_asked_for() -> None:
    result = placed()
    plain, asked = result.plot(), result.plot(show_sigma=True)
    assert (plain != asked).any()
    result.show_sigma = True
    np.testing.assert_array_equal(result.plot(), asked)
    np.testing.assert_array_equal(result[:].plot(), asked)
    np.testing.assert_array_equal(result.plot(show_sigma=False), plain)
    np.testing.assert_array_equal(result[:0].plot(), result.orig_img)


@pytest.mark.parametrize("count", [1, 5])
def test_pictures_and_crops_of_any_number_of_bands_show_the_first_three_or_grey(count: int, tmp_path: Path) -> None:
    many = np.random.default_rng(0).integers(0, 256, (80, 100, count), dtype=np.uint8)
    result = PlacedResults(many, "a.tif", NAMES, ROWS.clone(), placement=KNOWN)
    first = PlacedResults(displayed(many), "a.jpg", NAMES, ROWS.clone(), placement=KNOWN)
    np.testing.assert_array_equal(result.plot(show_sigma=True), first.plot(show_sigma=True))
    for each, folder in ((result, "many"), (first, "first")):
        each.save_crop(tmp_path / folder, "a")
    crops = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*.jpg"))
    assert len(crops) == 3
    assert all((tmp_path / "many" / crop).read_bytes() == (tmp_path / "first" / crop).read_bytes() for crop in crops)
    assert result.orig_img is many
