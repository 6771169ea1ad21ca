"""The paper's rows as files, how a schedule shrinks, and what a run leaves in results.csv."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ultralytics.utils import DEFAULT_CFG_DICT

from mlc_yolo import reproduce as module
from mlc_yolo.engine import options
from mlc_yolo.engine.model import MLCYOLO
from mlc_yolo.reproduce import (
    COLUMNS,
    append_line,
    find_row,
    prepare,
    read_row,
    reproduce,
    rescaled,
)
from mlc_yolo.resources import resource_dir

PAPER = resource_dir("cfg") / "paper"
FILES = sorted(PAPER.glob("*.yaml"))
#: Decides the result of any row; a row that left one out would follow a default that may change.
NEEDED = {
    *(
        "model",
        "pretrained",
        "assigner",
        "assigner_base",
        "assigner_warmup",
        "quality",
        "align_gain",
        "rescore",
        "nms_by",
    ),
    *("epochs", "lr_steps", "optimizer", "lr0", "lrf", "cos_lr", "momentum", "weight_decay", "batch", "nbs"),
    *("warmup_epochs", "warmup_momentum", "warmup_bias_lr", "time", "patience", "amp", "freeze", "seed"),
    *("imgsz", "rect", "multi_scale", "fraction", "single_cls", "classes", "fliplr", "flipud", "hsv_h", "hsv_s"),
    *("hsv_v", "degrees", "translate", "scale", "shear", "perspective", "bgr", "mosaic", "close_mosaic", "mixup"),
    *("cutmix", "copy_paste", "auto_augment", "erasing", "split", "conf", "iou", "max_det", "agnostic_nms", "augment"),
    *("nms_by", "coco_eval"),
}
SCHEDULE = {"epochs": 19, "lr_steps": [16, 18], "assigner_warmup": 12, "warmup_epochs": 0.068, "close_mosaic": 0}

#: A row as cfg/paper has them, of a size for a test.
TINY = """# A tiny row.
# paper: AP=12.5 spearman=0.25
model: yolo11n.yaml
pretrained: False
assigner: mlc
assigner_warmup: 1
epochs: 3
warmup_epochs: 0.5
close_mosaic: 1
imgsz: 64
batch: 4
workers: 0
device: cpu
plots: False
rect: False
coco_eval: True
conf: 0.001
max_det: 20
seed: 3
"""


@pytest.fixture
def tiny_row(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY)
    return file


def _lines(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# The files ------------------------------------------------------------------------------------------------------------


def test_every_row_of_the_five_tables_has_a_file() -> None:
    # Rows that two tables share have one file: FCOS-, + mutual labelling and + IUR of table 3 are in tables 1 and 2.
    count = {f"mlc_table{table}": 0 for table in range(1, 6)}
    for file in FILES:
        count[file.stem[:10]] += 1
    assert count == {"mlc_table1": 3, "mlc_table2": 3, "mlc_table3": 5, "mlc_table4": 4, "mlc_table5": 5}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_row_is_flat_complete_and_known(file: Path) -> None:
    row = read_row(file)
    assert row.arguments == yaml.safe_load(file.read_text(encoding="utf-8"))  # options as `options.check` gives them
    needed = NEEDED | ({"mlc_alpha", "mlc_tasks", "mlc_candidates"} if row.arguments["assigner"] == "mlc" else set())
    needed |= {"iou_gain", "iou_warmup"} if row.arguments["quality"] == "iou" else set()
    assert needed - set(row.arguments) == set()
    assert set(row.arguments) - set(DEFAULT_CFG_DICT) - set(options.defaults()) == set()
    assert not any(isinstance(value, dict) for value in row.arguments.values())
    assert "data" not in row.arguments


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_rows_header_says_how_to_run_it_what_to_expect_and_how_long(file: Path) -> None:
    header = file.read_text(encoding="utf-8").split("\n\n")[0]
    row = read_row(file)
    assert f"mlc-yolo reproduce cfg/paper/{file.name} data=coco.yaml" in header
    assert "hours on 8 V100s" in header
    assert set(row.paper) <= set(COLUMNS) and {"AP", "AR1000"} & set(row.paper)
    assert ("AR1000" in row.paper) == row.arguments["single_cls"] == row.arguments["model"].startswith("rpn")


def test_table_five_has_the_long_schedule_and_the_others_the_short_one() -> None:
    for file in FILES:
        row = read_row(file).arguments
        expected = (24, [18, 22]) if "table5" in file.stem else (19, [16, 18])
        assert (row["epochs"], row["lr_steps"]) == expected


def test_rows_of_one_detector_and_schedule_differ_in_the_papers_switches_alone() -> None:
    switches = {
        "assigner",
        "assigner_warmup",
        "mlc_alpha",
        "mlc_tasks",
        "mlc_candidates",
        "quality",
        "iou_gain",
        "iou_warmup",
    }
    switches |= {"align_gain", "rescore", "nms_by"}
    families: dict[tuple[str, int], dict[str, Any]] = {}
    for file in FILES:
        row = read_row(file).arguments
        rest = {name: value for name, value in row.items() if name not in switches}
        assert families.setdefault((row["model"], row["epochs"]), rest) == rest
    assert len(families) == 5


def test_the_committed_results_have_the_columns_that_runs_append() -> None:
    assert (PAPER / "results.csv").read_text(encoding="utf-8").splitlines()[0] == ",".join(COLUMNS)


# Finding and reading --------------------------------------------------------------------------------------------------


def test_a_row_is_found_by_path_and_by_name() -> None:
    file = PAPER / "mlc_table3_retinanet_ml.yaml"
    assert find_row(file) == find_row("mlc_table3_retinanet_ml") == find_row(file.name) == file


def test_an_unknown_row_names_the_nearest() -> None:
    with pytest.raises(FileNotFoundError, match="Did you mean mlc_table3_retinanet_ml"):
        find_row("mlc_table3_retinanet_mll")
    with pytest.raises(FileNotFoundError, match="Rows: mlc_table1"):
        find_row("x")


def test_the_papers_numbers_are_read_from_the_header(tiny_row: Path) -> None:
    row = read_row(tiny_row)
    assert (row.name, row.paper) == ("tiny", {"AP": 12.5, "spearman": 0.25})
    assert row.arguments["epochs"] == 3


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
    assert set(rescaled(SCHEDULE, 4, given={"lr_steps", "epochs"})) == {
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


@pytest.mark.parametrize("epochs", [0, -1, 2.5, True, "ten"])
def test_a_length_that_is_none_is_refused(epochs: Any) -> None:
    with pytest.raises(ValueError, match="must be a whole number"):
        rescaled(SCHEDULE, epochs)


# Before anything is written -------------------------------------------------------------------------------------------


def test_scale_shrinks_every_stage_alike_by_the_share_of_the_images(tiny_row: Path, tiny_data: Path) -> None:
    whole = prepare(tiny_row, data=tiny_data)
    part = prepare(tiny_row, data=tiny_data, scale=0.05)
    assert part.arguments == {**whole.arguments, "fraction": 0.05}
    assert "fraction" not in whole.arguments


def test_epochs_and_scale_may_be_combined_and_overrides_win(tiny_row: Path, tiny_data: Path) -> None:
    run = prepare(tiny_row, data=tiny_data, scale=0.5, epochs=6, close_mosaic=0, model="yolov8n.yaml")
    chosen = {name: run.arguments[name] for name in ("fraction", "epochs", "close_mosaic", "assigner_warmup")}
    assert chosen == {"fraction": 0.5, "epochs": 6, "close_mosaic": 0, "assigner_warmup": 2}
    assert run.model == "yolov8n.yaml" and "model" not in run.arguments
    assert run.arguments["name"] == "tiny"


@pytest.mark.parametrize(
    ("changes", "comparable"),
    [
        ({}, True),
        ({"device": "0,1", "seed": 7, "workers": 2, "project": "here", "name": "x", "exist_ok": True}, True),
        ({"imgsz": 64}, True),  # what the row has already
        ({"imgsz": 96}, False),
        ({"epochs": 6}, False),
        ({"amp": True}, False),  # upstream's default, which the row does not state
        ({"scale": 0.5}, False),
    ],
)
def test_only_an_unchanged_row_is_compared_with_the_paper(
    tiny_row: Path, tiny_data: Path, changes: dict[str, Any], comparable: bool
) -> None:
    assert prepare(tiny_row, data=tiny_data, **changes).comparable is comparable


def test_the_command_repeats_the_result_and_names_no_place(tiny_row: Path, tiny_data: Path) -> None:
    run = prepare(tiny_row, data=tiny_data, scale=0.5, results="a.csv", seed=7, device="cpu", classes=[0, 1], imgsz=64)
    told = f"{tiny_data.parent.name}/data.yaml"  # every data set may call its file data.yaml
    assert run.command == f"mlc-yolo reproduce tiny data={told} scale=0.5 seed=7 'classes=[0, 1]'"
    assert run.data == told


@pytest.mark.parametrize("scale", [0, -0.1, 1.01, math.nan, True, "half"])
def test_a_scale_outside_its_range_is_refused(tiny_row: Path, tiny_data: Path, scale: Any) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        prepare(tiny_row, data=tiny_data, scale=scale)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epohcs": 3}, "Did you mean 'epochs'"),
        ({"epochs": 1}, "Take epochs=3 or more"),
        ({"assigner": "mcl"}, "Did you mean 'mlc'"),
        ({"fraction": 0.1, "scale": 0.5}, "give one of them"),
        ({"resume": True}, "mlc-yolo train resume=True"),
        ({"cfg": "mine.yaml"}, "mlc-yolo train cfg=mine.yaml"),
    ],
)
def test_wrong_arguments_are_refused(tiny_row: Path, tiny_data: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(tiny_row, data=tiny_data, **changes)


def test_missing_data_is_refused_before_a_folder_is_made(
    tiny_row: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"data=coco\.yaml"):
        reproduce(tiny_row, data="")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        reproduce(tiny_row, data="nowhere.yaml", results="a.csv", project=str(tmp_path / "runs"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.yaml"]


def test_a_csv_of_another_kind_is_refused_by_name_and_left_as_it_was(
    tiny_row: Path, tiny_data: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.csv"
    other.write_text("row,mAP\nx,1\n")
    with pytest.raises(ValueError, match=r"other\.csv has other columns .*mAP"):
        prepare(tiny_row, data=tiny_data, results=other)
    with pytest.raises(ValueError, match=r"other\.csv has other columns"):
        append_line(other, dict.fromkeys(COLUMNS))
    assert other.read_text() == "row,mAP\nx,1\n"


def test_an_installed_package_writes_into_the_working_directory(
    tiny_row: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepare(tiny_row, data=tiny_data).results == PAPER / "results.csv"
    monkeypatch.setattr(module, "__file__", str(resource_dir("cfg").parent / "reproduce.py"))
    monkeypatch.chdir(tmp_path)
    assert prepare(tiny_row, data=tiny_data).results == tmp_path / "results.csv"


# results.csv ----------------------------------------------------------------------------------------------------------


def test_a_line_is_appended_under_the_header(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.csv"
    append_line(path, {**dict.fromkeys(COLUMNS), "row": "a", "AP": 37.1, "command": "say 'x, y'"})
    append_line(path, {**dict.fromkeys(COLUMNS), "row": "b"})
    first, second = _lines(path)
    assert tuple(first) == COLUMNS
    assert (first["row"], first["AP"], first["command"], first["paper"]) == ("a", "37.1", "say 'x, y'", "")
    assert second["row"] == "b"


def test_a_last_line_without_its_end_is_not_run_into(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text(",".join(COLUMNS) + "\nedited" + "," * (len(COLUMNS) - 1))
    append_line(path, {**dict.fromkeys(COLUMNS), "row": "b"})
    assert [line["row"] for line in _lines(path)] == ["edited", "b"]


def test_processes_that_end_at_once_lose_no_line(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    code = (
        "import sys; from pathlib import Path; from mlc_yolo.reproduce import COLUMNS, append_line\n"
        "print('ready', flush=True)\n"
        "input()\n"  # until the other is ready too
        "for i in range(200):\n"
        "    append_line(Path(sys.argv[1]), {**dict.fromkeys(COLUMNS), 'row': sys.argv[2], 'seed': i})\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), name], **pipes) for name in ("a", "b")]
    assert [writer.stdout.readline() for writer in writers] == ["ready\n"] * 2
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    assert [writer.communicate() and writer.returncode for writer in writers] == [0, 0]
    found = sorted((line["row"], int(line["seed"])) for line in _lines(path))
    assert found == [(name, i) for name in "ab" for i in range(200)]


def test_what_was_not_measured_is_empty_and_the_rest_in_the_papers_unit() -> None:
    found = {
        "metrics/coco_AP": 0.37149,
        "metrics/coco_APs": -1.0,  # pycocotools: no object of that size
        "metrics/AR@1000": 0.586,
        "metrics/spearman(B)": -0.12345,
        "metrics/spearman_pooled(B)": math.nan,
    }
    line = {name: value for name, value in module._measured(found).items() if value is not None}
    assert line == {"AP": 37.15, "AR1000": 58.6, "spearman": -0.123}


def test_the_commit_is_the_checkouts_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "mlc_yolo" / "reproduce.py"
    package.parent.mkdir()
    monkeypatch.setattr(module, "__file__", str(package))
    assert module._commit() is None
    git = ("git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@x")
    for words in (("init", "-q"), ("commit", "-q", "--allow-empty", "-m", "x")):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert head.startswith(module._commit() or "none")


@pytest.mark.slow
def test_a_row_is_trained_judged_by_its_last_weights_and_recorded(
    tiny_row: Path, tiny_data: Path, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[tuple[Any, dict[str, Any]]] = []
    val = MLCYOLO.val

    def watched(model: MLCYOLO, **kwargs: Any) -> Any:
        judged.append((model.ckpt_path, kwargs))
        return val(model, **kwargs)

    monkeypatch.setattr(MLCYOLO, "val", watched)
    results = tmp_path / "results.csv"
    line = reproduce(tiny_row, data=tiny_data, scale=0.5, results=results, project=str(run_dir))
    (written,) = _lines(results)
    assert written == {name: "" if value is None else str(value) for name, value in line.items()}
    settings = {name: line[name] for name in ("row", "model", "data", "images", "epochs", "imgsz", "batch", "seed")}
    assert settings == {
        "row": "tiny",
        "model": "yolo11n",
        "data": f"{tiny_data.parent.name}/data.yaml",
        "images": 4,
        "epochs": 3,
        "imgsz": 64,
        "batch": 4,
        "seed": 3,
    }
    assert 0 <= line["AP"] <= line["AP50"] <= 100
    assert line["AR1000"] is None and line["paper"] is None and line["difference"] is None
    assert line["hours"] > 0 and line["device"] and line["scale"] == 0.5

    ((weights, validation),) = judged
    assert Path(weights) == run_dir / "tiny" / "weights" / "last.pt"
    assert (validation["conf"], validation["max_det"], validation["coco_eval"]) == (0.001, 20, True)
    assert "rect" not in validation  # rect=False is how the row trains; validation pads as little as it can
    arguments = yaml.safe_load((run_dir / "tiny" / "args.yaml").read_text())
    assert (arguments["fraction"], arguments["epochs"], arguments["assigner_warmup"]) == (0.5, 3, 1)
    assert (run_dir / "tiny" / "val").is_dir()


@pytest.mark.slow
def test_the_paper_stands_beside_an_unchanged_row_on_the_papers_images(
    tiny_row: Path, tiny_data: Path, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = {"project": str(run_dir), "results": tmp_path / "results.csv"}
    assert reproduce(tiny_row, data=tiny_data, **place)["paper"] is None  # 8 images are not COCO
    monkeypatch.setattr(module, "COCO_IMAGES", range(8, 9))
    line = reproduce(tiny_row, data=tiny_data, **place)
    assert line["paper"] == 12.5
    assert line["difference"] == pytest.approx(line["AP"] - 12.5, abs=0.005)
