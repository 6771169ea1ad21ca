"""The papers' rows as files, and how their schedules shrink."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ultralytics.utils import DEFAULT_CFG_DICT

from mlc_yolo.detectors.config import find_config
from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.options import specification as options
from mlc_yolo.paper.reproduce import COLUMNS, PAPER_IMAGES
from mlc_yolo.paper.rows import find_row, read_row, rescaled
from mlc_yolo.resources import resource_dir

PAPER = resource_dir("cfg") / "paper"
FILES = sorted(PAPER.glob("*.yaml"))
#: Decides the result of any row; a row that left one out would follow a default that may change.
NEEDED = {
    *("model", "pretrained", "assigner", "assigner_base", "assigner_warmup", "quality", "align_gain", "rescore"),
    *("nms_by", "val"),
    *("epochs", "lr_steps", "optimizer", "lr0", "lrf", "cos_lr", "momentum", "weight_decay", "batch", "nbs"),
    *("warmup_epochs", "warmup_momentum", "warmup_bias_lr", "time", "patience", "amp", "freeze", "seed"),
    *("imgsz", "rect", "multi_scale", "fraction", "single_cls", "classes", "fliplr", "flipud", "hsv_h", "hsv_s"),
    *("hsv_v", "degrees", "translate", "scale", "shear", "perspective", "bgr", "mosaic", "close_mosaic", "mixup"),
    *("cutmix", "copy_paste", "auto_augment", "erasing", "split", "conf", "iou", "max_det", "agnostic_nms", "augment"),
    *("warmup_iters", "ema", "ssl", "resize", "augmentation", "coco_eval", "voc_eval"),
}
NEEDED_BY_ASSIGNER = {"mlc": {"mlc_alpha", "mlc_tasks", "mlc_candidates"}, "mutual_guidance": {"mg_tasks", "mg_sigma"}}
NEEDED_BY_SED = {
    f"ssl_{name}" for name in ("reweight", "scale", "weight", "burn_in", "ramp", "ema", "ratio", "threshold")
}
SCHEDULE = {"epochs": 19, "lr_steps": [16, 18], "assigner_warmup": 12, "warmup_epochs": 0.068, "close_mosaic": 0}
TINY = """# A tiny row.
# paper: AP=12.5 spearman=0.25
model: yolo11n.yaml
epochs: 3
"""


# The files ------------------------------------------------------------------------------------------------------------


def test_every_row_of_the_papers_tables_has_a_file() -> None:
    # Rows that two tables share have one file: FCOS-, + mutual labelling and + IUR of table 3 are in tables 1 and 2.
    count = Counter("_".join(file.stem.split("_")[:2]) for file in FILES)
    mlc = {"mlc_table1": 3, "mlc_table2": 3, "mlc_table3": 5, "mlc_table4": 4, "mlc_table5": 5}
    # Mutual Guidance: five detectors, with each task guided alone in table 1 only. SED: five steps of its ablation.
    assert count == {**mlc, "mg_table1": 5 * 4, "mg_table2": 5 * 2, "sed_5pct": 5, "sed_10pct": 5}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_row_is_flat_complete_and_known(file: Path) -> None:
    row = read_row(file)
    assert row.arguments == yaml.safe_load(file.read_text(encoding="utf-8"))  # options as `options.check` gives them
    needed = NEEDED | NEEDED_BY_ASSIGNER.get(row.arguments["assigner"], set())
    needed |= {"iou_training", "iou_gain", "iou_warmup"} if row.arguments["quality"] == "iou" else set()
    needed |= NEEDED_BY_SED if row.arguments["ssl"] != "none" else set()
    assert needed - set(row.arguments) == set()
    assert set(row.arguments) - set(DEFAULT_CFG_DICT) - set(options.defaults()) == set()
    assert not any(isinstance(value, dict) for value in row.arguments.values())
    assert {"data", "unlabeled"} & set(row.arguments) == set()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_rows_header_says_how_to_run_it_what_to_expect_and_how_long(file: Path) -> None:
    header = file.read_text(encoding="utf-8").split("\n\n")[0]
    row = read_row(file)
    data = {"mlc": "coco", "mg_table1": "voc0712", "mg_table2": "coco", "sed_5pct": "coco-splits/coco-5pct-fold0"}
    data |= {"sed_10pct": "coco-splits/coco-10pct-fold0"}
    (expected,) = (name for start, name in data.items() if file.stem.startswith(start))
    assert f"mlc-yolo reproduce cfg/paper/{file.name} data={expected}.yaml" in header
    assert re.search(r"expected: about \d+ hours on (8 V100s|one V100)\. An estimate, nothing was run", header)
    assert set(row.paper) <= set(COLUMNS)
    if "sed" in file.stem:  # its table could not be read
        assert not row.paper and "more than 10 AP above the supervised row" in header
    else:
        assert set(PAPER_IMAGES) & set(row.paper)
    assert ("AR1000" in row.paper) == row.arguments["single_cls"] == row.arguments["model"].startswith("rpn")
    assert ("VOC_AP" in row.paper) == row.arguments["voc_eval"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_rows_model_takes_its_weights(file: Path) -> None:
    row = read_row(file).arguments
    model = yaml.safe_load((resource_dir("cfg") / "models" / row["model"]).read_text(encoding="utf-8"))
    name, _, version = row["pretrained"].partition("_Weights.")
    assert (name.lower(), version) == (model["backbone"], "IMAGENET1K_V1")


def test_mlcs_table_five_has_the_long_schedule_and_the_others_the_short_one() -> None:
    for file in FILES:
        if file.stem.startswith("mlc"):
            row = read_row(file).arguments
            expected = (24, [18, 22]) if "table5" in file.stem else (19, [16, 18])
            assert (row["epochs"], row["lr_steps"]) == expected


def test_mutual_guidance_has_voc_and_coco_schedules_and_the_tasks_its_name_says() -> None:
    assigners = {
        "static": ("max_iou", None),
        **{tasks: ("mutual_guidance", tasks) for tasks in ("l2c", "c2l", "both")},
    }
    for file in FILES:
        if file.stem.startswith("mg"):
            row = read_row(file).arguments
            assert row["epochs"] == (250 if "table1" in file.stem else 140)
            assert row["lr0"] * row["lrf"] == pytest.approx(1e-6) and row["cos_lr"]
            assert (row["assigner"], row.get("mg_tasks")) == assigners[file.stem.rpartition("_")[2]]


def test_mutual_guidances_rows_say_where_they_leave_the_authors_code() -> None:
    everywhere = ("Priors are not clipped", "Balanced L1 is its paper's integral", "momentum 0.1, theirs 0.01")
    for file in PAPER.glob("mg_*.yaml"):
        differences = file.read_text(encoding="utf-8").split("# Known differences")[1].split("\n\n")[0]
        assert all(text in differences for text in everywhere), file
        static, guided = "forced positive" in differences, "capped at the priors that overlap" in differences
        assert (static, guided) == ("_static" in file.stem, "_static" not in file.stem), file


@pytest.mark.slow
def test_mutual_guidances_batch_normalisation_has_the_momentum_that_the_rows_say() -> None:
    for name in {read_row(file).arguments["model"] for file in PAPER.glob("mg_*.yaml")}:
        config = find_config(name)
        assert config is not None
        with torch.device("meta"):
            model = DetectorModel(config, verbose=False)
        norms = [m for m in model.get_submodule("model.1").modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert norms and {norm.momentum for norm in norms} == {0.1}


def test_guiding_both_tasks_is_the_papers_best_row_of_every_detector() -> None:
    # A number in another row's file would stand out.
    for table, column, rows in (("mg_table1", "VOC_AP", 4), ("mg_table2", "AP", 2)):
        values: dict[str, dict[str, float]] = {}
        for file in FILES:
            if file.stem.startswith(table):
                detector, _, how = file.stem.rpartition("_")
                values.setdefault(detector, {})[how] = read_row(file).paper[column]
        assert len(values) == 5 and {len(numbers) for numbers in values.values()} == {rows}
        for numbers in values.values():
            assert min(numbers, key=numbers.__getitem__) == "static" and max(numbers, key=numbers.__getitem__) == "both"


def test_semi_supervised_rows_switch_one_part_on_after_another() -> None:
    parts = {"supervised": ("none", None, None), "pseudo": ("pseudo", 0, False), "soft": ("soft", 0, False)}
    parts |= {"reweight": ("soft", 2, False), "sed": ("sed", 2, True)}
    for file in FILES:
        if file.stem.startswith("sed"):
            row = read_row(file).arguments
            switched = (row["ssl"], row.get("ssl_reweight"), row.get("ssl_scale"))
            assert switched == parts[file.stem.rpartition("_")[2]]


@pytest.mark.parametrize(("start", "labelled"), [("sed_5pct", 5_914), ("sed_10pct", 11_829)])
def test_semi_supervised_rows_take_the_steps_of_published_protocols(start: str, labelled: int) -> None:
    for file in FILES:
        if file.stem.startswith(start):
            row = read_row(file).arguments
            per_epoch = -(-labelled // row["batch"])
            steps = [epochs * per_epoch for epochs in (*row["lr_steps"], row["epochs"])]
            assert steps == pytest.approx([120_000, 160_000, 180_000], rel=0.003)
            assert row["imgsz"] % 64 == 0  # half of it is still a multiple of the stride 32


@pytest.mark.slow
def test_rows_of_one_detector_and_schedule_differ_in_the_papers_switches_alone() -> None:
    switches = {"assigner", "assigner_warmup", "quality", "iou_training", "iou_gain", "iou_warmup"}
    switches |= {"align_gain", "rescore", "nms_by"}
    families: dict[tuple[str, int], dict[str, Any]] = {}
    for file in FILES:
        row = read_row(file).arguments
        rest = {name: row[name] for name in row if name not in switches and not name.startswith(("mlc_", "mg_", "ssl"))}
        assert families.setdefault((row["model"], row["epochs"]), rest) == rest
    assert len(families) == 5 + 5 * 2 + 2  # MLC's, each of Mutual Guidance's on two data sets, two shares of COCO


# Finding and reading --------------------------------------------------------------------------------------------------


def test_a_row_is_found_by_path_and_by_name() -> None:
    file = PAPER / "mlc_table3_retinanet_ml.yaml"
    assert find_row(file) == find_row("mlc_table3_retinanet_ml") == find_row(file.name) == file


def test_an_unknown_row_names_the_nearest() -> None:
    with pytest.raises(FileNotFoundError, match="Did you mean 'mlc_table3_retinanet_ml"):
        find_row("mlc_table3_retinanet_mll")
    with pytest.raises(FileNotFoundError, match=r"Rows: mg_table1_\*, .* sed_5pct_\*$"):
        find_row("x")


def test_the_papers_numbers_are_read_from_the_header(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY)
    row = read_row(file)
    assert (row.name, row.paper) == ("tiny", {"AP": 12.5, "spearman": 0.25})
    assert row.arguments == {"model": "yolo11n.yaml", "epochs": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a list", "must hold 'key: value' lines"),
        ("model: yolo11n.yaml", "model and epochs"),
        ("model: [", "cannot be read"),
        (TINY + "epohcs: 3\n", "Did you mean 'epochs'"),
        (TINY.replace("AP=12.5", "AP=high"), "expected '# paper: AP=37.1'"),
    ],
)
def test_a_file_that_is_no_row_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "row.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_row(file)


# A run of another length ----------------------------------------------------------------------------------------------


def test_a_schedule_of_its_own_length_stays_as_it_is() -> None:
    assert {"epochs": 19, **rescaled(SCHEDULE, 19)} == SCHEDULE


def test_boundaries_move_in_proportion_to_whole_epochs() -> None:
    # 10/19 of 16, 18 and 12 is 8.42, 9.47 and 6.32
    moved = rescaled(SCHEDULE, 10)
    assert moved.pop("warmup_epochs") == pytest.approx(0.068 * 10 / 19)
    assert moved == {"lr_steps": [8, 9], "assigner_warmup": 6, "close_mosaic": 0}


def test_the_two_switches_of_the_paper_move_together() -> None:
    moved = rescaled({**SCHEDULE, "iou_warmup": 12}, 10)
    assert moved["iou_warmup"] == moved["assigner_warmup"] == 6


def test_a_longer_run_moves_boundaries_too() -> None:
    doubled = rescaled(SCHEDULE, 38)
    assert doubled == {"lr_steps": [32, 36], "assigner_warmup": 24, "warmup_epochs": 0.136, "close_mosaic": 0}


def test_whole_warm_up_epochs_stay_whole_and_mosaic_closes_in_proportion() -> None:
    assert rescaled({"epochs": 100, "warmup_epochs": 3.0, "close_mosaic": 10}, 50) == {
        "warmup_epochs": 2,  # 1.5, and halves go to the even side
        "close_mosaic": 5,
    }


def test_a_warm_up_that_is_a_fraction_of_the_run_or_left_open_needs_no_change() -> None:
    assert rescaled({"epochs": 20, "assigner_warmup": 0.4}, 10) == {}
    assert rescaled({"epochs": 20, "assigner_warmup": None, "iou_warmup": 0.4}, 10) == {}
    assert rescaled({"epochs": 20, "assigner_warmup": 0}, 1) == {"assigner_warmup": 0}


def test_what_is_set_by_hand_is_left_alone() -> None:
    assert set(rescaled(SCHEDULE, 4, by_hand={"lr_steps", "epochs"})) == {
        "assigner_warmup",
        "warmup_epochs",
        "close_mosaic",
    }


@pytest.mark.parametrize("epochs", range(1, 10))
def test_too_few_epochs_for_every_stage_are_refused_and_the_fewest_are_named(epochs: int) -> None:
    # At 9: 16 -> 7.58, 18 -> 8.53, both rounded up: 8 and 9, and 9 is the end.
    with pytest.raises(ValueError, match="Take epochs=10 or more"):
        rescaled(SCHEDULE, epochs)


def test_every_accepted_length_keeps_every_stage() -> None:
    for epochs in range(10, 60):
        moved = rescaled(SCHEDULE, epochs)
        assert 0 < moved["warmup_epochs"] < moved["assigner_warmup"] < moved["lr_steps"][0]
        assert moved["lr_steps"][0] < moved["lr_steps"][1] < epochs


def test_closing_mosaic_must_keep_an_epoch() -> None:
    with pytest.raises(ValueError, match="close_mosaic=1"):
        rescaled({"epochs": 30, "close_mosaic": 1}, 10)


def test_burn_in_and_ramp_move_unless_they_are_fractions() -> None:
    row = {"epochs": 20, "ssl_burn_in": 4, "ssl_ramp": 6}
    assert rescaled(row, 10) == {"ssl_burn_in": 2, "ssl_ramp": 3}
    assert rescaled({**row, "ssl_ramp": 0.3}, 10) == {"ssl_burn_in": 2}
    # The ramp follows the burn-in: at 3 epochs they are 1 (0.6) and 1 (0.9) and leave one; at 2 the run ends with them.
    assert rescaled(row, 3) == {"ssl_burn_in": 1, "ssl_ramp": 1}
    with pytest.raises(ValueError, match="Take epochs=3 or more"):
        rescaled(row, 2)


def test_a_warm_up_in_iterations_stays_the_same_part_of_the_run_and_never_vanishes() -> None:
    assert rescaled({"epochs": 250, "warmup_iters": 500}, 25) == {"warmup_iters": 50}
    assert rescaled({"epochs": 250, "warmup_iters": 100}, 1) == {"warmup_iters": 1}  # 0.4
    assert rescaled({"epochs": 250, "warmup_iters": 0}, 25) == {"warmup_iters": 0}
    assert rescaled({"epochs": 250, "warmup_iters": None}, 25) == {}
    assert rescaled({"epochs": 250, "warmup_iters": 500}, 25, by_hand={"warmup_iters"}) == {}


@pytest.mark.parametrize("epochs", [0, -1, 2.5, True, "ten"])
def test_a_length_that_is_none_is_refused(epochs: Any) -> None:
    with pytest.raises(ValueError, match="must be a whole number"):
        rescaled(SCHEDULE, epochs)
