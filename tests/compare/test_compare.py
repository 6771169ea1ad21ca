"""The grid of a comparison, its processes and what survives their death, and what is said in the end."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
import torch
import yaml
from comparing_here import run_here
from made_records import made_records
from nets import SMALL, SMALL26, enliven
from own_labels import labelled_by, noise
from ultralytics.nn.tasks import DetectionModel

from mlc_yolo.compare import Comparison, compare, executors, latency, rehearsal, split_values
from mlc_yolo.compare import grid as grid_module
from mlc_yolo.compare import run as module
from mlc_yolo.compare.cell import LAST, read_epochs, run_cell
from mlc_yolo.compare.executors import Task, parse_devices, run_local, run_ray
from mlc_yolo.compare.grid import plan
from mlc_yolo.compare.latency import measure
from mlc_yolo.compare.rehearsal import refusals
from mlc_yolo.evaluation.recording import RecordingValidator, record
from mlc_yolo.metrics.coco import coco_evaluate
from mlc_yolo.metrics.oracles import Oracles, Repair
from mlc_yolo.metrics.records import Records
from mlc_yolo.metrics.weighted_ap import WeightedAP
from mlc_yolo.model import MLCYOLO
from mlc_yolo.report import write_report

#: A training of seconds.
TINY: dict[str, Any] = {
    **{"model": SMALL, "epochs": 2, "imgsz": 64, "batch": 4, "workers": 0, "plots": False, "val": False},
    **{"optimizer": "SGD", "warmup_epochs": 0, "mosaic": 0.0, "iou_head": False},
}


def _grid(**given: Any) -> Any:
    return plan({"data": "coco8.yaml", "model": "yolo11n.yaml", **given})


# The grid -------------------------------------------------------------------------------------------------------------


def test_the_grid_is_the_product_of_all_lists_a_seed_of_each_variant_first() -> None:
    grid = _grid(assigner=["tal", "mlc"], iou_head=[True, False], seed=[0, 1], epochs=3)
    assert len(grid.cells) == 8
    assert [cell.seed for cell in grid.cells] == [0] * 4 + [1] * 4
    assert grid.cells[1].name == "assigner=tal,iou_head=False,seed=0"
    assert grid.cells[1].variant == "assigner=tal,iou_head=False"
    assert grid.cells[1].options["iou_head"] is False and grid.cells[1].options["epochs"] == 3
    assert grid.baseline == "assigner=tal,iou_head=True"


def test_words_of_the_command_line_with_commas_are_lists() -> None:
    given = {"assigner": "tal,mlc", "seed": (0, 1), "ssl": "none,sed", "iou_head": "None,True", "epochs": 3}
    assert split_values(given) == {
        **{"assigner": ["tal", "mlc"], "seed": [0, 1], "ssl": ["none", "sed"], "iou_head": [None, True], "epochs": 3}
    }


def test_an_option_whose_value_may_be_a_list_varies_only_as_a_list_of_lists() -> None:
    assert _grid(assigner=["tal", "mlc"], lr_steps=[1, 2]).fixed["lr_steps"] == [1, 2]
    assert _grid(**split_values({"lr_steps": (8, 11), "seed": (0, 1)})).fixed["lr_steps"] == [8, 11]
    grid = _grid(**split_values({"lr_steps": ([8, 11], [16, 18])}))
    assert [cell.variant for cell in grid.cells] == ["lr_steps=8-11", "lr_steps=16-18"]
    assert [cell.options["lr_steps"] for cell in _grid(**split_values({"lr_steps": "none,[8]"})).cells] == [None, [8]]
    assert split_values({"classes": (0, 2), "unlabeled": "a/,b/"}) == {"classes": [0, 2], "unlabeled": "a/,b/"}


def test_a_path_with_a_comma_is_written_in_brackets() -> None:
    assert split_values({"model": ["a,b.pt"], "data": "x.yaml"}) == {"model": ["a,b.pt"], "data": "x.yaml"}


def test_models_and_data_sets_may_vary_and_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    grid = _grid(model=["a/weights/best.pt", "b/weights/best.pt"], data=["x/data.yaml", "y/data.yaml"])
    assert [cell.name for cell in grid.cells] == [
        f"model={m}-weights-best,data={d},seed=0" for d in ("x", "y") for m in ("a", "b")
    ]
    assert [cell.data for cell in grid.cells] == ["x", "x", "y", "y"]
    assert grid.variants == ["model=a-weights-best", "model=b-weights-best"]  # data make no variant


@pytest.mark.parametrize(
    "given",
    [
        {"data": ["/d/16 my set/data.yaml", "/d/16-my-set/data.yaml"]},
        {"model": ["Mine.yaml", "mine.yaml"]},
        {"model": ["\uac00.yaml", "\u1100\u1161.yaml"]},  # one syllable of Korean, written in two ways
        {"lr0": [1, -1]},
        {"lr_steps": [[8, 11], ["8-11"]]},
        {"model": ["(a).yaml", "[a].yaml"], "data": ["x y.yaml", "x-y.yaml"]},
    ],
)
def test_names_of_different_values_differ_on_any_file_system(given: dict[str, Any]) -> None:
    for name, values in given.items():
        labels = [unicodedata.normalize("NFC", label).casefold() for label in grid_module._labels(values)]
        assert len(set(labels)) == len(values), name
        assert all(labels) and not any(set(label) & set(" /()[]") for label in labels)
    assert grid_module._labels(list(reversed(given[name]))) == list(reversed(grid_module._labels(given[name])))


@pytest.mark.parametrize(
    "given",
    [
        {"data": [f"{'数据' * 38}/{end}/{'集' * 80}/data.yaml" for end in "一二"]},
        {
            "model": [f"{'x' * 150}/{end}{'y' * 150}.yaml" for end in "ab"],
            "data": [f"{'z' * 240}{e}.yaml" for e in "ab"],
        },
        {name: [0.12345678901234, 0.98765432109876] for name in ("warmup_momentum", "warmup_bias_lr", "weight_decay")}
        | {
            name: [0.00012345678901234, 0.00012345678901235]
            for name in ("perspective", "translate", "momentum", "copy_paste", "lr0")
        },
    ],
)
def test_names_fit_a_file_system_however_long_the_values_are_and_stay_one_to_one(given: dict[str, Any]) -> None:
    grid = _grid(**given)
    assert len({cell.name for cell in grid.cells}) == len(grid.cells) == 2 ** len(given)
    assert len({(cell.data, cell.variant) for cell in grid.cells}) == len(grid.cells)
    assert max(len(f".latency-{cell.data}.yaml.part".encode()) for cell in grid.cells) <= 255
    assert max(len(cell.name.encode()) for cell in grid.cells) <= 200


def test_names_that_fit_and_do_not_clash_stay_as_they_are() -> None:
    grid = _grid(data=["a/data.yaml", "b/data.yaml"], model=["m.pt", "n.pt"])
    assert grid.cells[0].name == "model=m,data=a,seed=0"


def test_a_run_whose_folder_is_anothers_is_refused(finished: Any) -> None:
    folder = finished(assigner=["tal", "mlc"])
    place = folder / "assigner=mlc,seed=0"
    (place / "records.npz").unlink()
    (place / "cell.yaml").write_text(yaml.safe_dump({"digest": "f" * 64}))
    said = _refused(folder.parent, data="coco8.yaml", assigner=["tal", "mlc"], name="compare")
    assert "assigner=mlc,seed=0 holds a run of other options" in said and "ffffffffffff" in said


def test_weights_without_the_options_that_made_them_are_not_gone_on_from(finished: Any) -> None:
    folder = finished(assigner=["tal", "mlc"])
    place = folder / "assigner=mlc,seed=0"
    for file in ("records.npz", "cell.yaml"):
        (place / file).unlink()
    (place / "weights").mkdir()
    (place / LAST).touch()
    said = _refused(folder.parent, data="coco8.yaml", assigner=["tal", "mlc"], name="compare")
    assert "holds weights without cell.yaml" in said


def test_a_latency_that_was_measured_is_not_measured_again(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finished(assigner=["tal", "mlc"], vote=True)
    grid = _grid(assigner=["tal", "mlc"], vote=True)
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((32, 32, 3), np.uint8))
    monkeypatch.setattr(latency, "WARM_UP", 0)
    monkeypatch.setattr(latency, "ROUNDS", 1)
    weights = str(tmp_path / "model.pt")
    MLCYOLO(SMALL).save(weights)
    tasks: list[str] = []

    def run(given: list[Task]) -> Iterator[tuple[Task, int]]:
        for task in given:
            path = Path(task.arguments[0])
            asked = yaml.safe_load(path.read_text())
            models = {name: {**asked["models"][name], "model": weights, "imgsz": 32} for name in asked["models"]}
            assert all(model["vote"] is True for model in models.values()), "it is timed as it was judged"
            before = {name: dict(model) for name, model in models.items()}
            measured = measure(models, [str(tmp_path / "image.png")], "cpu", asked["trusted"])
            assert models == before  # what is written back is what was asked for
            path.write_text(yaml.safe_dump({**asked, "milliseconds": measured}))
            tasks.append(task.name)
            yield task, 0

    module._measure_latency(grid, folder, run, written={grid.cells[0].name})
    module._measure_latency(grid, folder, run, written=())
    assert len(tasks) == 1
    (file,) = folder.glob("latency-*.yaml")
    assert yaml.safe_load(file.read_text())["trusted"] == ["assigner=tal"]


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_model_is_timed_with_its_own_number_of_bands(tmp_path: Path, channels: int) -> None:
    file = str(tmp_path / "bands.tiff")
    pages = [np.full((24, 32), 10 * band, np.uint8) for band in range(channels)]
    assert cv2.imwritemulti(file, pages) if channels != 3 else cv2.imwrite(file, np.stack(pages, axis=2))
    pixels = latency._pixels(file, channels)
    assert pixels.shape == (24, 32, channels) and pixels[0, 0].tolist() == [10 * band for band in range(channels)]
    with pytest.raises(ValueError, match=f"expected the 4 channels of the model, got {channels}"):
        latency._pixels(file, 4)


def test_a_model_that_is_not_judged_by_boxes_is_refused_before_it_trains(tiny_data: Path, tmp_path: Path) -> None:
    said = rehearsal._refusal({**TINY, "model": "yolo11n-cls.yaml", "data": str(tiny_data)}, str(tmp_path))
    assert said is not None and "finds no boxes" in said and "classify model" in said
    assert list(tmp_path.glob("run*")) == []


@pytest.mark.slow
@pytest.mark.parametrize("model", [SMALL, SMALL26, "fcos-r18-fpn.yaml"], ids=["yolo11", "yolo26", "fcos"])
def test_judging_is_rehearsed_on_a_blank_image_and_what_would_end_it_is_told(
    model: str, tiny_data: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**TINY, "model": model, "data": str(tiny_data), "imgsz": 96, "pretrained": False}
    del options["iou_head"]
    before = sorted(tiny_data.parent.rglob("*"))
    assert rehearsal._refusal(dict(options), str(run_dir)) is None
    assert sorted(tiny_data.parent.rglob("*")) == before  # no cache of labels: no image was read

    def fail(*args: Any) -> None:
        raise RuntimeError("no boxes to judge")

    monkeypatch.setattr(RecordingValidator, "get_stats", fail)
    assert rehearsal._refusal(dict(options), str(run_dir)) == "no boxes to judge"


def test_aliases_and_short_words_get_their_full_names() -> None:
    grid = _grid(assigner=["mg", "tal"], nms_by="iou")
    assert grid.cells[0].options["assigner"] == "mutual_guidance" and grid.fixed["nms_by"] == "iou"


@pytest.mark.parametrize("baseline", ["assigner=mlc", {"assigner": "mlc"}])
def test_the_baseline_may_be_named_and_is_the_first_elsewhere(baseline: Any) -> None:
    given = {"data": "coco8.yaml", "model": "yolo11n.yaml", "assigner": ["tal", "mlc"], "iou_head": [True, False]}
    grid = plan(given, baseline)
    assert grid.baseline == "assigner=mlc,iou_head=True"
    assert grid.variants[0] == grid.baseline and len(grid.variants) == 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"assigner": "mlc"}, "nothing to compare"),
        ({"asigner": ["tal", "mlc"]}, "Did you mean 'assigner'"),
        ({"assigner": ["tal", "mcl"]}, "Did you mean 'mlc'"),
        ({"assigner": ["mg", "mutual_guidance"]}, "twice"),
        ({"assigner": []}, "empty list"),
        ({"seed": [0, "one"]}, "whole number"),
        ({"seed": [0, 0.5]}, "whole number"),
        ({"single_cls": [True, False]}, "what is judged"),
        ({"workers": [0, 2]}, "does not change"),
        ({"resume": True, "seed": [0, 1]}, "leave it out"),
        ({"tracker": object(), "seed": [0, 1]}, "text or numbers"),
    ],
)
def test_what_cannot_be_a_grid_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        _grid(**given)


@pytest.mark.parametrize("baseline", ["assigner=fcos", "epochs=3", "mlc", {"seed": 1}])
def test_a_baseline_that_is_not_in_the_grid_is_refused(baseline: Any) -> None:
    with pytest.raises(ValueError, match=r"no run has .*assigner is one of tal, mlc"):
        plan({"data": "coco8.yaml", "assigner": ["tal", "mlc"], "epochs": 3}, baseline)


def test_the_digest_follows_what_matters_and_nothing_else() -> None:
    digest = _grid(seed=[0, 1]).cells[0].digest
    assert _grid(seed=[0, 1, 2], workers=3, plots=False, trust=True).cells[0].digest == digest
    assert _grid(seed=[0, 1], epochs=3).cells[0].digest != digest
    assert _grid(seed=[0, 1]).cells[1].digest != digest


def test_the_command_of_a_cell_repeats_its_training() -> None:
    command = _grid(assigner=["tal", "mlc"], lr_steps=[1, 2], workers=3, trust=True).cells[1].command
    assert command.startswith("mlc-yolo train ") and "assigner=mlc" in command and "seed=0" in command
    assert "'lr_steps=[1, 2]'" in command and "workers" not in command
    assert "trust" not in command  # which only whoever types the command can give


# Folders --------------------------------------------------------------------------------------------------------------


def _refused(folder: Path, **given: Any) -> str:
    """Call `compare` with what must be refused, and check that nothing was written."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError) as caught:
        compare(project=folder, **given)
    assert sorted(folder.rglob("*")) == before
    return str(caught.value)


@pytest.mark.slow
def test_every_run_is_checked_by_its_trainer_before_any_file_is_touched(run_dir: Path, tiny_data: Path) -> None:
    said = _refused(run_dir, **{**TINY, "data": tiny_data, "assigner": ["tal", "mlc"], "assigner_warmup": 2})
    assert "assigner=mlc,seed=0: assigner_warmup=2 must end before the run" in said
    assert "assigner=tal" in said  # which has a warm-up of that length as well


def test_the_trainers_own_errors_are_reasons(run_dir: Path) -> None:
    for wrong in ({"data": "absent.yaml"}, {"model": "absent.pt", "data": "coco8.yaml"}):
        (name,) = {"absent.yaml", "absent.pt"} & set(wrong.values())
        assert name in str(rehearsal._refusal({**TINY, **wrong}, str(run_dir)))


def test_where_nothing_is_to_be_trained_nothing_is_rehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal.subprocess, "run", lambda *given, **named: pytest.fail("a process is started"))
    assert refusals({}) == {}


@pytest.mark.parametrize(
    ("given", "said"), [({"jobs": 0}, "jobs"), ({"executor": "slurm"}, "local, ray"), ({"device": "0,0"}, "once")]
)
def test_a_place_to_run_that_cannot_be_is_refused(run_dir: Path, given: dict[str, Any], said: str) -> None:
    assert said in _refused(run_dir, seed=[0, 1], **given)


@pytest.fixture
def finished(tmp_path: Path) -> Callable[..., Path]:
    """A function that makes the folder of a comparison in which every run is finished, without training."""

    def make(records: Callable[[Any], Records] | None = None, **given: Any) -> Path:
        grid = _grid(**given)
        folder = tmp_path / "compare"
        folder.mkdir(exist_ok=True)
        module._write_grid(folder, grid)
        for cell in grid.cells:
            place = folder / cell.name
            place.mkdir(exist_ok=True)
            (place / "cell.yaml").write_text(yaml.safe_dump({"version": "1"}))
            seconds = 20 if "mlc" in cell.name else 10
            (place / "epochs.csv").write_text(
                f"epoch,seconds,memory,device\n1,{seconds},100.0,cpu\n2,{seconds},110.0,cpu\n"
            )
            made = records(cell) if records else made_records(images=12, noise_seed=cell.seed)
            replace(made, digest=cell.digest).save(place / "records.npz")
        return folder

    return make


def test_a_folder_of_other_options_is_refused_and_the_difference_named(finished: Any) -> None:
    folder = finished(assigner=["tal", "mlc"], seed=[0, 1], epochs=3)
    given = {"data": "coco8.yaml", "assigner": ["tal"], "seed": [0, 1], "epochs": 5, "name": "compare"}
    said = _refused(folder.parent, **given)
    assert "epochs was 3 and is 5" in said and "assigner was tal,mlc and is tal" in said and "name=" in said


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    assert "holds no comparison" in _refused(tmp_path, data="coco8.yaml", seed=[0, 1], name="mine")


def test_without_a_name_other_options_get_a_new_folder_and_the_same_ones_theirs(finished: Any) -> None:
    folder = finished(assigner=["tal", "mlc"], epochs=3)

    def chosen(fixed: bool = False, **given: Any) -> str:
        return module._choose_folder(folder.parent, "compare", _grid(**given), fixed=fixed).name

    assert chosen(assigner=["tal", "mlc"], epochs=3, workers=5) == "compare"
    assert chosen(assigner=["tal", "mlc"], epochs=4) == "compare2"
    assert chosen(assigner=["tal", "mlc", "mg"], seed=[0, 1], epochs=3) == "compare"  # lists that grew
    assert chosen(assigner="tal", seed=[0, 1], epochs=3) == "compare2"


def test_two_processes_do_not_work_on_one_comparison(tmp_path: Path) -> None:
    with module._locked(tmp_path), pytest.raises(RuntimeError, match="another process"), module._locked(tmp_path):
        pass
    with module._locked(tmp_path):
        assert True  # free again


# Results --------------------------------------------------------------------------------------------------------------


def _better_with_mlc(cell: Any) -> Records:
    return made_records(images=60, noise=0.07 if "mlc" in cell.name else 0.14, noise_seed=cell.seed)


@pytest.mark.slow
def test_a_known_effect_is_found_and_its_size_told(finished: Any) -> None:
    found = Comparison(finished(_better_with_mlc, assigner=["tal", "mlc"], seed=[0, 1, 2]))
    row = next(row for row in found.differences if row["metric"] == "AP75")
    assert row["verdict"] == "higher" and 0 < row["low"] < row["difference"] < row["high"]
    runs = {(run["variant"], run["seed"]): run["AP75"] for run in found.runs}
    pairs = [runs["assigner=mlc", seed] - runs["assigner=tal", seed] for seed in range(3)]
    assert row["difference"] == pytest.approx(np.mean(pairs), abs=1e-3)
    assert row["difference_sd"] == pytest.approx(np.std(pairs, ddof=1), abs=1e-3)
    assert row["seeds"] == 3


def test_without_an_effect_none_is_shown(finished: Any) -> None:
    found = Comparison(finished(assigner=["tal", "mlc"], seed=[0, 1]))
    verdicts = {row["metric"]: row["verdict"] for row in found.differences}
    assert verdicts["AP"] == "no difference shown" and verdicts["spearman"] == "nothing to judge"


def test_costs_are_ratios(finished: Any) -> None:
    folder = finished(assigner=["tal", "mlc"])
    told = {"milliseconds": {"assigner=tal": 10.0, "assigner=mlc": 11.0}}
    (folder / "latency-coco8.yaml").write_text(yaml.safe_dump(told))
    ratios = {row["metric"]: row["ratio"] for row in Comparison(folder).differences if row["ratio"] is not None}
    assert ratios == {"training_time": 2.0, "memory": 1.0, "latency": 1.1}


def test_times_of_different_devices_have_no_ratio(finished: Any) -> None:
    folder = finished(assigner=["tal", "mlc"])
    file = folder / "assigner=mlc,seed=0" / "epochs.csv"
    file.write_text(file.read_text().replace("cpu", "another"))
    assert [row["ratio"] for row in Comparison(folder).differences] == [None] * 10


def test_variants_are_compared_within_each_data_set(finished: Any) -> None:
    sizes = {"x": 8, "y": 13}
    folder = finished(
        lambda cell: made_records(images=sizes[cell.data]),
        assigner=["tal", "mlc"],
        data=["x/data.yaml", "y/data.yaml"],
    )
    found = Comparison(folder)
    assert {(row["data"], row["variant"]) for row in found.differences} == {
        ("x", "assigner=mlc"),
        ("y", "assigner=mlc"),
    }


def test_only_seeds_that_both_have_finished_are_paired(finished: Any) -> None:
    folder = finished(assigner=["tal", "mlc"], seed=[0, 1])
    (folder / "assigner=tal,seed=1" / "records.npz").unlink()
    found = Comparison(folder)
    assert len(found.runs) == 3 and {row["seeds"] for row in found.differences} == {1}
    assert "With one seed" in str(found)
    with pytest.raises(FileNotFoundError, match="not finished"):
        found.records("assigner=tal,seed=1")
    with pytest.raises(KeyError, match="there are assigner=tal,seed=0"):
        found.records("assigner=tal,seed=7")


def test_runs_on_changed_data_are_not_compared(finished: Any) -> None:
    folder = finished(lambda cell: made_records(images=9, seed=len(cell.variant)), mlc_alpha=[0, 0.25])
    with pytest.raises(ValueError, match="data set has changed"):
        Comparison(folder).differences  # noqa: B018


@pytest.mark.slow
def test_the_table_says_what_was_compared_with_what(finished: Any) -> None:
    found = Comparison(finished(_better_with_mlc, assigner=["tal", "mlc"], seed=[0, 1, 2]), failed={"x": "oops"})
    lines = str(found).splitlines()
    assert lines[0] == "assigner=mlc against assigner=tal on coco8, 3 seeds"
    ap = next(line for line in lines if line.split()[:1] == ["AP75"])
    assert ap.endswith("higher") and ap.count("±") == 3 and "[+" in ap
    assert any("training time" in line and "x 2.00" in line for line in lines)
    assert "Failed: x" in str(found)
    assert max(map(len, lines[:12])) <= 110


def test_tables_are_written_and_become_frames(finished: Any) -> None:
    found = Comparison(finished(assigner=["tal", "mlc"], seed=[0, 1]))
    found.write()
    with open(found.folder / "runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["cell"] for row in rows] == [cell.name for cell in found.grid.cells]
    assert rows[0]["command"].startswith("mlc-yolo train") and rows[0]["spearman"] == ""
    with open(found.folder / "differences.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 10
    frame = found.to_polars()
    assert frame.shape == (10, 15) and frame["metric"][0] == "AP"
    assert found.to_polars("runs").shape[0] == 4
    with pytest.raises(ValueError, match="'differences' or 'runs'"):
        found.to_polars("cells")


def test_pandas_is_used_where_it_is_installed(finished: Any) -> None:
    pytest.importorskip("pandas", reason="pandas is not installed")
    assert Comparison(finished(assigner=["tal", "mlc"])).to_pandas()["metric"].tolist()[:2] == ["AP", "AP50"]


# Processes ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Task]]:
    """A function that makes tasks of programs: source by name; the last argument is the device."""
    monkeypatch.chdir(tmp_path)  # python -m finds them here

    def make(**programs: str) -> list[Task]:
        for name, source in programs.items():
            (tmp_path / f"{name}.py").write_text(source)
        return [Task(name, name, (), tmp_path / f"{name}.txt") for name in programs]

    return make


_SAY_DEVICE = "import sys; print('on', sys.argv[-1])"
_LIVE_ON = """import os, subprocess, sys, time
from mlc_yolo.compare.parent import end_with_parent
end_with_parent()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(90)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(60)
"""


def test_a_task_that_fails_does_not_keep_the_others_from_running(tasks: Any) -> None:
    given = tasks(a=_SAY_DEVICE, b="raise SystemExit(3)", c=_SAY_DEVICE, d=_SAY_DEVICE)
    ended = dict((task.name, status) for task, status in filter(None, run_local(given, devices=["0", "1"], jobs=2)))
    assert ended == {"a": 0, "b": 3, "c": 0, "d": 0}
    said = [task.log.read_text().strip() for task in given if task.name != "b"]
    assert set(said) <= {"on 0", "on 1"} and said[0] == "on 0"


def test_tasks_run_at_once_as_many_as_there_are_jobs(tasks: Any, tmp_path: Path) -> None:
    meet = "import sys, time, pathlib\npathlib.Path(__name__ + sys.argv[0][-4:] + '.here').touch()\n"
    meet += "end = time.time() + 30\nwhile len(list(pathlib.Path('.').glob('*.here'))) < 2:\n"
    meet += "    time.sleep(.05)\n    assert time.time() < end\n"
    ended = [each for each in run_local(tasks(a=meet, b=meet), devices=["cpu"], jobs=2) if each]
    assert [status for _, status in ended] == [0, 0]


def test_when_nobody_listens_any_more_tasks_and_their_children_are_killed(tasks: Any) -> None:
    (task,) = tasks(a=_LIVE_ON)
    listening = run_local([task], devices=["cpu"], jobs=1)
    pids = _wait_for(lambda: next(listening) or task.log.read_text().split())
    listening.close()
    _wait_for(lambda: not any(map(_alive, pids)))


@pytest.mark.slow
def test_tasks_end_when_their_parent_is_killed(tasks: Any, tmp_path: Path) -> None:
    tasks(a=_LIVE_ON)
    code = "from pathlib import Path; from mlc_yolo.compare.executors import *\n"
    code += "list(run_local([Task('a', 'a', (), Path('a.txt'))], devices=['cpu'], jobs=1))"
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=_environment()) as parent:
        pids = _wait_for(lambda: (tmp_path / "a.txt").exists() and (tmp_path / "a.txt").read_text().split())
        parent.kill()
    _wait_for(lambda: not any(map(_alive, pids)))


def test_devices_are_read_in_every_form() -> None:
    assert parse_devices("0,1") == parse_devices([0, 1]) == parse_devices(("cuda:0", 1)) == ["0", "1"]
    assert parse_devices("cpu") == ["cpu"] and parse_devices(2) == ["2"]
    assert parse_devices(None) == ([str(i) for i in range(torch.cuda.device_count())] or ["cpu"])


@pytest.fixture
def ray_head(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray head of its own on this machine, in processes of its own; only these are ended."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}"]
    command += ["--num-cpus=2", "--num-gpus=0", "--include-dashboard=false", "--disable-usage-stats"]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    environment = {**os.environ, "RAY_worker_niceness": "0"}  # Ray's 15 would starve beside other tests
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as head:
        started = _wait_for(lambda: _connects(port) and psutil.Process(head.pid).children(recursive=True), 120)
        yield
        ray.shutdown()
        own = {*started, *psutil.Process(head.pid).children(recursive=True)}
        head.terminate()  # which ends them
        _, left = psutil.wait_procs(own, timeout=30)
        for process in left:
            process.kill()


def _connects(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_a_ray_head_runs_tasks_and_kills_what_nobody_waits_for(
    tasks: Any, ray_head: None, run_dir: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tasks(a=_SAY_DEVICE, b="raise SystemExit(3)", c=_SAY_DEVICE)
    assert {task.name: status for task, status in filter(None, run_ray(given))} == {"a": 0, "b": 3, "c": 0}
    assert given[0].log.read_text().strip() == "on cpu"
    (task,) = tasks(d=_LIVE_ON)
    listening = run_ray([task])
    # Ray kills the process alone; workers of data loaders, which it may have, watch for that.
    pid, _ = _wait_for(lambda: next(listening) or (task.log.exists() and task.log.read_text().split()))
    listening.close()
    _wait_for(lambda: not _alive(pid))

    monkeypatch.setattr(module, "refusals", lambda trainings: {})
    given = {**TINY, "data": str(tiny_data), "seed": [0, 1], "epochs": 1, "project": run_dir}
    found = compare(**given, executor="ray")
    assert not found.failed and len(found.runs) == 2


def test_without_ray_its_executor_says_how_to_get_it(tasks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match="pip install"):
        list(run_ray(tasks(a=_SAY_DEVICE)))


# Trainings ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_records_hold_what_the_validation_judges(tiny_data: Path, run_dir: Path) -> None:
    model = MLCYOLO(SMALL)
    place = {"data": str(tiny_data), "imgsz": 64, "project": str(run_dir), "device": "cpu", "workers": 0}
    model.train(epochs=1, batch=4, name="train", plots=False, **place)
    records = record(model, batch=4, name="val", **place)
    found = np.column_stack((records.boxes, records.scores, records.labels))
    objects = np.column_stack((records.gt_boxes, records.gt_labels))
    images = range(len(records.images))
    expected = coco_evaluate(
        [found[records.image == i] for i in images], [objects[records.gt_image == i] for i in images], 3
    )
    metrics = model.val(coco_eval=True, name="val2", conf=0.001, batch=4, plots=False, **place)
    assert expected["AP"] == pytest.approx(metrics.results_dict["metrics/coco_AP"], abs=1e-6)
    assert WeightedAP(records)()["AP"][0] == pytest.approx(expected["AP"], abs=1e-3)  # which rounds
    assert WeightedAP(records)()["spearman"][0] == pytest.approx(metrics.spearman, abs=1e-6, nan_ok=True)
    assert [Path(image).name for image in records.images] == ["0.png", "1.png", "2.png", "3.png"]
    assert records.names == {0: "square", 1: "disc", 2: "cross"} and len(records.image) > 0
    assert measure({"a": {"model": model.trainer.last, "imgsz": 64}}, records.images[:1], "cpu")["a"] > 0


def test_the_rank_correlations_of_objects_are_numbered_through_the_images() -> None:
    from mlc_yolo.evaluation.recording import object_correlations

    rising = np.array([[s, s, 1, 0] for s in (0.1, 0.2, 0.3, 0.4, 0.5)], dtype=np.float32)
    falling = np.array([[s, 1 - s, 0, 0] for s in (0.1, 0.2, 0.3, 0.4, 0.5)], dtype=np.float32)
    background = np.array([[0.9, 0.0, -1, 0]], dtype=np.float32)
    rho = object_correlations([np.concatenate((rising, background)), background, falling], [2, 0, 1])
    assert np.isnan(rho[0]) and rho[1:].tolist() == [1.0, -1.0]
    assert object_correlations([background], [0]).shape == (0,)


@pytest.mark.slow
def test_a_comparison_that_is_stopped_says_how_to_go_on_ends_its_processes_and_goes_on(
    run_dir: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given = {**TINY, "data": str(tiny_data), "assigner": ["tal", "fcos"], "epochs": 8, "project": str(run_dir)}
    given |= {"device": "cpu", "seed": [3]}
    folder, first, second = (run_dir / "compare" / name for name in ("", "assigner=tal,seed=3", "assigner=fcos,seed=3"))

    def sleep(seconds: float) -> None:
        if (second / LAST).exists():
            raise KeyboardInterrupt  # as Ctrl-C in the midst of it
        time.sleep(seconds)

    monkeypatch.setattr(module, "refusals", lambda trainings: {})  # other tests rehearse, and time
    monkeypatch.setattr(module, "_measure_latency", lambda *given, **written: None)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(executors, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
        patched.setattr(executors, "_PAUSE", 0.02)
        compare(**given)
    assert "the same command goes on" in caplog.text and "1 of 2 runs ended" in caplog.text
    assert not [child for child in psutil.Process().children() if "mlc_yolo.compare.cell" in child.cmdline()]
    kept = (first / "records.npz").stat().st_mtime_ns
    assert not (second / "records.npz").exists()
    assert 1 <= len(read_epochs(second)) <= 8

    found = compare(**given)
    assert (first / "records.npz").stat().st_mtime_ns == kept  # not repeated
    assert "Resuming training" in (second / "log.txt").read_text()  # not begun anew
    assert [epoch.number for epoch in read_epochs(second)] == [*range(1, 9)]
    assert (second / "results.csv").read_text().count("\n") == 9
    assert not found.failed and len(found.runs) == 2 and len(found.differences) == 10
    assert Comparison(folder).runs == found.runs
    assert found.records(first.name).images == found.records(second.name).images

    monkeypatch.setattr(executors, "start", lambda *task: pytest.fail("there is nothing to do"))
    compare(**given)


@pytest.mark.slow
def test_a_run_that_fails_is_told_with_the_end_of_its_log_and_the_others_go_on(
    run_dir: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The trainer knows the number of its batches only when it has begun.
    monkeypatch.setattr(module, "refusals", lambda trainings: {})
    run_here(monkeypatch)
    given = {**TINY, "data": str(tiny_data), "epochs": 1, "project": run_dir, "device": "cpu"}
    found = compare(**given, warmup_iters=[99, 0])
    ((name, told),) = found.failed.items()
    assert name == "warmup_iters=99,seed=0" and "exit status 1" in told
    assert "warmup_iters=99 must end before the run" in told
    assert [run["cell"] for run in found.runs] == ["warmup_iters=0,seed=0"]


@pytest.mark.slow
def test_voting_is_a_variant_like_any_other_and_its_gaps_are_told(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "refusals", lambda trainings: {})  # other tests rehearse, and time
    monkeypatch.setattr(module, "_measure_latency", lambda *given, **written: None)
    run_here(monkeypatch)
    torch.manual_seed(0)
    net = DetectionModel("yolov8n.yaml", nc=3, verbose=False)
    enliven(net, torch.rand(2, 3, 64, 64))
    net.names, net.args = {0: "square", 1: "disc", 2: "cross"}, {"task": "detect", "imgsz": 64}
    torch.save({"model": net, "train_args": {}}, tmp_path / "lively.pt")
    given = {**TINY, "model": str(tmp_path / "lively.pt"), "epochs": 1, "lr0": 1e-9}
    data = labelled_by(MLCYOLO(given["model"]), tmp_path, noise(64))
    found = compare(**{**given, "data": str(data)}, vote=[False, True], vote_iou=0.3, project=run_dir, device="cpu")
    assert not found.failed and found.baseline == "vote=False"
    plain, voted = (found.records(f"vote={vote},seed=0") for vote in (False, True))
    assert np.array_equal(plain.scores, voted.scores) and np.array_equal(plain.labels, voted.labels)
    assert np.abs(plain.boxes - voted.boxes).max() > 1, "the boxes that were kept moved"
    assert plain.reach is not None and voted.reach is not None and plain.reach.max() > 0.3
    assert np.array_equal(plain.reach, voted.reach), "what NMS saw did not"
    page = write_report(found, found.folder / "report.html").read_text(encoding="utf-8")
    with open(found.folder / "gaps.csv", encoding="utf-8", newline="") as file:
        rows = {row["mistake"]: row for row in csv.DictReader(file)}
    assert list(rows) == [repair.value for repair in Repair]
    for side, records in (("baseline_gap", plain), ("gap", voted)):
        oracles = Oracles(records, reach=records.reach)
        assert oracles((Repair.INSIDE,))["AP"] > oracles()["AP"]
        gain = 100 * float((oracles((Repair.INSIDE,))["AP"] - oracles()["AP"])[0])
        assert float(rows[Repair.INSIDE.value][side]) == pytest.approx(gain)
    assert rows[Repair.INSIDE.value]["variant"] == "vote=True" and Repair.INSIDE.value in page


@pytest.mark.slow
def test_a_training_that_had_ended_is_only_validated(run_dir: Path, tiny_data: Path) -> None:
    folder = run_dir / "cell"
    folder.mkdir()
    options = {**TINY, "data": str(tiny_data), "epochs": 1, "seed": 0}
    (folder / "cell.yaml").write_text(yaml.safe_dump({"options": options, "digest": "d", "version": "1"}))
    run_cell(folder, "cpu")
    weights = (folder / "weights" / "last.pt").stat().st_mtime_ns
    first = Records.load(folder / "records.npz")
    (folder / "records.npz").unlink()
    run_cell(folder, "cpu")
    again = Records.load(folder / "records.npz")
    assert (folder / "weights" / "last.pt").stat().st_mtime_ns == weights
    assert np.array_equal(first.boxes, again.boxes) and again.digest == "d"
    (epoch,) = read_epochs(folder)
    assert epoch.seconds > 0 and epoch.memory > 50 and epoch.device


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2])}


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


def _wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found
