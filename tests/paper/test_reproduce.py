"""What a run of a row takes from its command, and what it leaves in results.csv."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from nets import SMALL

from mlc_yolo.model import MLCYOLO
from mlc_yolo.paper import reproduce as module
from mlc_yolo.paper.reproduce import COLUMNS, append_line, prepare, reproduce
from mlc_yolo.resources import resource_dir

PAPER = resource_dir("cfg") / "paper"

#: A row as cfg/paper has them, of a size for a test.
TINY = f"""# A tiny row.
# paper: AP=12.5 spearman=0.25
model: {SMALL}
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


class Trained:
    """Stands in for a model whose training and validation take no time; set `folder` to where it trains."""

    folder: Path

    def __init__(self, name: str, trust: bool = False) -> None:
        arguments = SimpleNamespace(epochs=3, imgsz=64, batch=4, seed=3)
        self.trainer = SimpleNamespace(save_dir=self.folder, last="last.pt", args=arguments, device=torch.device("cpu"))

    def train(self, **options: Any) -> None:
        self.folder.mkdir(exist_ok=True)

    def val(self, **options: Any) -> Any:
        return SimpleNamespace(results_dict={"metrics/coco_AP": 0.15})


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Trained]:
    """The class that stands in, of 8 images."""
    monkeypatch.setattr(Trained, "folder", tmp_path / "run", raising=False)
    monkeypatch.setattr(module, "MLCYOLO", Trained)
    monkeypatch.setattr(module, "_image_count", lambda trainer: 8)
    return Trained


def _lines(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# Before anything is written -------------------------------------------------------------------------------------------


def test_scale_shrinks_every_stage_alike_by_the_share_of_the_images(tiny_row: Path, tiny_data: Path) -> None:
    whole = prepare(tiny_row, data=tiny_data)
    part = prepare(tiny_row, data=tiny_data, scale=0.05)
    assert part.arguments == {**whole.arguments, "fraction": 0.05}
    assert "fraction" not in whole.arguments


def test_a_warm_up_in_iterations_shrinks_by_both_factors(tiny_row: Path, tiny_data: Path) -> None:
    tiny_row.write_text(TINY + "warmup_iters: 50\n")
    assert prepare(tiny_row, data=tiny_data, epochs=6).arguments["warmup_iters"] == 100
    assert prepare(tiny_row, data=tiny_data, scale=0.1).arguments["warmup_iters"] == 5
    assert prepare(tiny_row, data=tiny_data, scale=0.1, epochs=6).arguments["warmup_iters"] == 10
    assert prepare(tiny_row, data=tiny_data, scale=0.1, epochs=6, warmup_iters=7).arguments["warmup_iters"] == 7


def test_a_warm_up_in_epochs_set_by_hand_replaces_one_in_iterations(tiny_row: Path, tiny_data: Path) -> None:
    tiny_row.write_text(TINY + "warmup_iters: 50\n")
    run = prepare(tiny_row, data=tiny_data, scale=0.1, warmup_epochs=1)
    assert (run.arguments["warmup_iters"], run.arguments["warmup_epochs"]) == (None, 1)


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


def test_the_committed_results_have_the_columns_that_runs_append() -> None:
    assert (PAPER / "results.csv").read_text(encoding="utf-8").splitlines()[0] == ",".join(COLUMNS)


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


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")
def test_processes_that_end_at_once_lose_no_line(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    code = (
        "import os, sys; from pathlib import Path; from mlc_yolo.paper.reproduce import COLUMNS, append_line\n"
        "other = os.fork()\n"  # once all is imported: both begin at once
        "for i in range(100):\n"
        "    row = 'a' if other else 'b'\n"
        "    append_line(Path(sys.argv[1]), {**dict.fromkeys(COLUMNS), 'row': row, 'seed': i})\n"
        "if other:\n"
        "    sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    found = sorted((line["row"], int(line["seed"])) for line in _lines(path))
    assert found == [(name, i) for name in "ab" for i in range(100)]


def test_a_line_that_the_results_do_not_take_is_kept_with_its_run(
    trained: type[Trained], tiny_row: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results.csv"
    train = trained.train

    def train_while_another_writes(model: Trained, **options: Any) -> None:
        train(model)
        results.write_text("another,file\n")  # which was not there when the run began

    monkeypatch.setattr(trained, "train", train_while_another_writes)
    with pytest.raises(ValueError, match=r"results\.csv has other columns"):
        reproduce(tiny_row, data=tiny_data, results=results)
    assert [line["AP"] for line in _lines(trained.folder / "results_of_row.csv")] == ["15.0"]
    assert results.read_text() == "another,file\n"


def test_the_word_of_trust_reaches_the_model_of_a_row_and_no_command(
    tiny_row: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[bool] = []
    monkeypatch.setattr(module, "MLCYOLO", lambda name, trust=False: opened.append(trust))
    monkeypatch.setattr(module.Run, "execute", lambda run, model: {"command": run.command})
    assert "trust" not in reproduce(tiny_row, data=tiny_data, trust=True)["command"]
    reproduce(tiny_row, data=tiny_data)
    assert opened == [True, False]


def test_what_was_not_measured_is_empty_and_the_rest_in_the_papers_unit() -> None:
    found = {
        "metrics/coco_AP": 0.37149,
        "metrics/coco_APs": -1.0,  # pycocotools: no object of that size
        "metrics/AR@1000": 0.586,
        "metrics/voc_AP_11": 0.5214,
        "metrics/voc_AP_area": 0.5,  # VOC2010's; the papers report 11 points
        "metrics/spearman(B)": -0.12345,
        "metrics/spearman_pooled(B)": math.nan,
    }
    line = {name: value for name, value in module._measured(found).items() if value is not None}
    assert line == {"AP": 37.15, "AR1000": 58.6, "VOC_AP": 52.14, "spearman": -0.123}


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
        "model": "small11",
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


def test_the_paper_stands_beside_an_unchanged_row_on_the_papers_images(
    trained: type[Trained], tiny_row: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results.csv"
    assert reproduce(tiny_row, data=tiny_data, results=results)["paper"] is None  # 8 images are not COCO
    monkeypatch.setitem(module.PAPER_IMAGES, "AP", range(8, 9))
    line = reproduce(tiny_row, data=tiny_data, results=results)
    assert (line["AP"], line["paper"], line["difference"]) == (15.0, 12.5, 2.5)
    changed = reproduce(tiny_row, data=tiny_data, results=results, seed=3, max_det=30)
    assert changed["paper"] is None and changed["difference"] is None
