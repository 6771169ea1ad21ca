"""The command line as a newcomer types it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import ultralytics  # its log keeps the stdout of its first import, which must not be that of one test
from nets import SMALL, SMALL26

from mlc_yolo import __version__, cli, guide
from mlc_yolo.evaluation.validator import MLCValidator
from mlc_yolo.model import MLCYOLO
from mlc_yolo.modes import MODES
from mlc_yolo.options.idle import OF_MODE
from mlc_yolo.options.specification import specifications

TRAINING = {"train", "tune", "compare", "reproduce", "demo"}
TRAIN = ("train", f"model={SMALL}", "epochs=1", "imgsz=64", "batch=8", "plots=False")


#: The installed program, not `python -m`: upstream treats programs by their name.
PROGRAM = Path(sys.executable).with_name("mlc-yolo")


def _run(*words: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *map(str, words)], capture_output=True, text=True, check=False, cwd=cwd)


@pytest.mark.parametrize("words", [[], ["help"], ["--help"], ["-h"]])
def test_help_fits_one_screen_and_lists_every_mode(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 100
    assert all(
        any(line.split()[:1] == [name] and mode.purpose in line for line in lines) for name, mode in MODES.items()
    )
    assert sum(line.strip().startswith("mlc-yolo ") and "model=" in line for line in lines) == 3
    assert "mlc-yolo help MODE" in lines[-2] and "mlc-yolo help OPTION" in lines[-1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", ["help MODE", "MODE --help", "MODE help epochs=3"])
def test_help_on_a_mode_shows_what_it_takes_and_an_example(
    mode: str, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(form.replace("MODE", mode).split()) == 0
    shown = capsys.readouterr().out
    line = MODES[mode]
    assert shown.startswith(f"mlc-yolo {mode}: {line.purpose}\n") and f"    mlc-yolo {mode}" in shown
    assert all(f"    {name}=" in shown for name in (*line.own, *([line.bare] if line.bare else ())))
    assert ("    vote=False" in shown, "    ssl=none" in shown) == (line.stock, mode in TRAINING)


@pytest.mark.parametrize("mode", MODES)
def test_the_examples_of_a_mode_are_command_lines_of_that_mode(mode: str) -> None:
    assert guide.EXAMPLES_OF[mode]
    for example in guide.EXAMPLES_OF[mode]:
        program, *words = example.split()
        assert program == "mlc-yolo" and cli.parse(words)[0] == mode


def test_every_argument_of_one_mode_alone_is_described() -> None:
    for name, mode in MODES.items():
        described = guide.OWN_HELP.get(name, {})
        assert set(described) == {*mode.own, *([mode.bare] if mode.bare else [])}
        assert all(text.endswith(".") for text in described.values())


def test_options_of_use_are_options() -> None:
    assert set(guide.AFTER_TRAINING) == set().union(*OF_MODE.values()) <= set(specifications())


def test_help_on_an_option_shows_its_values_default_and_paper(capsys: pytest.CaptureFixture[str]) -> None:
    for name, spec in specifications().items():
        assert cli.main(["help", name]) == 0
        shown = capsys.readouterr().out
        assert " ".join(shown.split()).startswith(f"{name} {spec['help']} default"), name
        assert spec.get("source", "") in shown and guide.values_of(spec) in shown
    assert cli.main(["help", "mlc_alpha"]) == 0
    assert "arXiv 2103.08958), equations 7 and 8" in capsys.readouterr().out


def test_help_on_options_lists_each_with_its_first_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["help", "options"]) == 0
    shown = capsys.readouterr().out
    assert all(f"    {name}=" in shown for name in specifications())
    assert "Drops" not in shown and "Lowest predicted IoU of a detection.\n" in shown


def test_help_on_an_argument_of_ultralytics_or_of_one_mode_says_whose_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["help", "epochs"]) == 0
    assert capsys.readouterr().out.startswith("epochs=100\n\n(int) number of epochs")
    assert cli.main(["help", "percent"]) == 0
    assert capsys.readouterr().out.startswith("Of split alone:\n    percent=1,2,5,10 ")


@pytest.mark.parametrize(("word", "meant"), [("mlc_alfa", "mlc_alpha"), ("trian", "train"), ("epoch", "epochs")])
def test_help_on_an_unknown_word_names_the_nearest(word: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["help", word]) == 2
    shown = capsys.readouterr()
    assert f"'{word}' is neither a mode nor an option. Did you mean '{meant}'" in shown.err and not shown.out


def test_checks_show_versions_devices_and_folders_and_not_the_name_of_the_home_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MLC_YOLO_CACHE", str(tmp_path / "drawn"))
    monkeypatch.setenv("YOLO_OFFLINE", "1")
    assert cli.main(["checks"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    shown = {line[0]: line[1] for line in lines if len(line) == 2}
    assert shown["mlc-yolo"] == __version__ and torch.__version__.startswith(shown["torch"])
    assert shown["ultralytics"].startswith(ultralytics.__version__) and "tested: " in shown["ultralytics"]
    assert "cores" in shown["processor"] and shown["cfg"].endswith("cfg") and shown["YOLO_OFFLINE"] == "1"
    assert ["drawn", f"data sets         {Path('~') / 'drawn'}"] in lines and str(tmp_path) not in str(lines)


def test_help_loads_neither_torch_nor_ultralytics() -> None:
    code = (
        "import sys; from mlc_yolo import cli; "
        "[cli.main(['help', word]) for word in ('', 'train', 'vote', 'epochs', 'trian')]; "
        "print({'torch', 'ultralytics'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "set()"


@pytest.mark.parametrize("word", ["version", "--version"])
def test_version_is_printed(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([word]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "assigner=mcl"], "Did you mean 'mlc'"),
        (["train", "assginer=mlc"], "Did you mean 'assigner'"),
        (["trian"], "Did you mean 'train'"),
        (["data=demo.yaml"], "expected a mode first"),
        (["train", "epochs"], "'epochs' needs a value: epochs=100"),
        (["train", "mlc_alpha=-1"], "0 or more"),
        (["train", "mg_sigma=1"], "above 1"),
        (["train", "iou_head=maybe"], "True or False"),
        (["train", "data="], "missing 'data' value"),
        (["train", "cfg=nowhere.yaml"], "cannot be read"),
        (["train", "model=nowhere.yaml"], "nowhere.yaml"),
        (["train", "model=yolo11n.yaml", "data=nowhere.yaml"], "nowhere.yaml"),
        (["train", "model=yolo11n-cls.yaml", "assigner=mlc"], "classify model"),
        (["train", "model=yolo11n-seg.yaml", "resize=warp"], "segment model"),
        (["train", "model=yolo11n.yaml", "assigner=mlc", "assigner_warmup=200"], "must end before the run"),
        (["train", "model=yolo11n.yaml", "epochs=abc"], "epochs"),
        (["export", "model=yolo11n.yaml", "format=stok"], "Did you mean 'stock'"),
        (["reproduce"], "name a row, such as mg_table1_fssd_r18_both"),
        (["reproduce", "data=demo.yaml"], "Rows: mg_table1"),
        (["reproduce", "mlc_table3_retinanet_mll", "data=demo.yaml"], "Did you mean 'mlc_table3_retinanet_ml"),
        (["reproduce", "mlc_table3_retinanet_ml"], "data is missing"),
        (["reproduce", "mlc_table3_retinanet_ml", "data=nowhere.yaml"], "nowhere.yaml"),
        (["reproduce", "mlc_table3_retinanet_ml", "data=demo.yaml", "scale=2"], "scale=2 must be above 0"),
        (["reproduce", "mlc_table3_retinanet_ml", "data=demo.yaml", "epochs=9"], "Take epochs=10 or more"),
        (["reproduce", "mlc_table3_retinanet_ml", "epoch"], "Did you mean 'epochs'"),
        (["diagnose", "yolo11n.pt"], "Did you mean model=yolo11n.pt?"),
        (["diagnose", "mine.yaml"], "Did you mean data=mine.yaml or model=mine.yaml?"),
        (["convert"], "convert needs source=... and output=..."),
        (["convert", "source=here"], "convert needs output=..."),
        (["convert", "source=here", "outptu=there"], "Did you mean 'output'"),
        (["convert", "source=here", "output=there", "epochs=3"], "not epochs"),
        (["val", "executor=ray"], "executor is for compare"),
        (["compare", "model=yolo11n.yaml", "report=yes"], "report=yes must be True or False"),
        (["compare", "classify", "model=yolo11n.yaml"], "compare is for detection models"),
        (["diagnose", "model=yolo11n.yaml"], "diagnose needs data=..."),
        (["diagnose", "data=demo.yaml"], "diagnose needs model=..."),
        (["diagnose", "model=yolo11n.yaml", "dta=demo.yaml"], "Did you mean 'data'"),
        (["diagnose", "model=yolo11n.yaml", "data=nowhere.yaml"], "nowhere.yaml"),
        (["diagnose", "model=yolo11n.yaml", "data=demo.yaml", "conf=2"], "conf=2 must be a score threshold"),
        (["diagnose", "model=yolo11n.yaml", "data=demo.yaml", "report=maybe"], "report=maybe must be True or False"),
        (["diagnose", "model=yolo11n-cls.yaml", "data=demo.yaml"], "is a classify model, which finds no boxes"),
        (["diagnsoe"], "Did you mean 'diagnose'"),
        (["convert", "source=nowhere", "output=there"], "nowhere does not exist"),
        (["convert", "source=nowhere", "output=there", "link=maybe"], "True or False"),
        (["train", "model=yolo11n.yaml", "data=demo.yaml", "output=there"], "output"),
    ],
)
def test_a_wrong_command_line_says_what_to_do(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown


@pytest.mark.parametrize("mode", ["val", "diagnose"])
def test_a_refused_request_leaves_no_empty_folder(mode: str, run_dir: Path) -> None:
    words = [mode, f"model={SMALL}", "imgsz=64", f"project={run_dir}"]
    assert cli.main([*words, "data=nowhere.yaml"]) == 2
    assert list(run_dir.iterdir()) == []
    (run_dir / "mine").mkdir()
    assert cli.main([*words, "data=nowhere.yaml", "name=mine", "exist_ok=True"]) == 2
    assert (run_dir / "mine").is_dir()  # it was there before


@pytest.mark.parametrize(("net", "option"), [(SMALL, "sort=iou"), (SMALL26, "vote=True")])
def test_what_a_models_outputs_do_not_allow_is_a_line_and_no_file_in_prediction(
    net: str, option: str, tiny_data: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tiny_data.parent / "images" / "val"
    end = ["nms=False"] if net == SMALL26 else []
    assert (
        cli.main(["predict", f"model={net}", f"source={source}", "imgsz=64", f"project={run_dir}", option, *end]) == 2
    )
    shown = capsys.readouterr().err
    assert f"mlc-yolo: {option} " in shown and "Traceback" not in shown
    assert list(run_dir.iterdir()) == []


def test_a_calibration_without_detections_is_a_line(
    tiny_data: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    MLCYOLO(SMALL).save(run_dir / "untrained.pt")
    words = ["val", f"model={run_dir / 'untrained.pt'}", f"data={tiny_data}", "imgsz=64", f"project={run_dir}"]
    assert cli.main([*words, "calibrate=True", "conf=0.9", "plots=False", "workers=0"]) == 2
    assert "mlc-yolo: calibrate=True found no detection" in capsys.readouterr().err


def test_a_missing_package_is_named_with_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "onnx", None)  # as if it were not installed
    assert cli.main(["export", "model=yolo11n.yaml", "format=onnx", "imgsz=64"]) == 2
    assert "pip install onnx" in capsys.readouterr().err


def test_values_are_read_as_upstream_reads_them(tmp_path: Path) -> None:
    cfg = tmp_path / "mine.yaml"
    cfg.write_text("assigner: mlc\nepochs: 7\n")
    mode, arguments = cli.parse(
        ["train", f"cfg={cfg}", "epochs=3", "assigner_warmup", "=", "0.5", "cos_lr", "iou_head=True", "name=12"]
    )
    assert mode == "train"
    assert arguments == {
        "assigner": "mlc",
        "epochs": 3,
        "assigner_warmup": 0.5,
        "cos_lr": True,
        "iou_head": True,
        "name": "12",
    }


def test_the_row_to_reproduce_is_a_word_of_its_own() -> None:
    words = ["reproduce", "cfg/paper/mlc_table3_retinanet_ml.yaml", "data=coco.yaml", "scale=0.05", "results=mine.csv"]
    assert cli.parse(words) == (
        "reproduce",
        {
            "row": "cfg/paper/mlc_table3_retinanet_ml.yaml",
            "data": "coco.yaml",
            "scale": 0.05,
            "results": "mine.csv",
        },
    )


def test_names_and_folders_to_convert_are_texts() -> None:
    words = ["convert", "source=VOC2007", "output=2007", "split=2007,val", "images=None", "link=False", "strict"]
    assert cli.parse(words) == (
        "convert",
        {"source": "VOC2007", "output": "2007", "split": "2007,val", "link": False, "strict": True},
    )


def test_annotations_are_converted_and_problems_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "in").mkdir()
    assert cv2.imwrite(str(tmp_path / "in" / "a.png"), np.zeros((80, 100, 3), np.uint8))
    boxes = [{"id": i, "image_id": 1, "category_id": 1, "bbox": [1, 2, 300 * i + 9, 9]} for i in range(2)]
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": boxes,
    }
    (tmp_path / "in" / "a.json").write_text(json.dumps(content))
    words = ["convert", f"source={tmp_path / 'in' / 'a.json'}", f"output={tmp_path / 'out'}"]
    assert cli.main(words) == 0
    assert "train: 1 images" in caplog.text and "a.json: box reaches outside the image" in caplog.text
    assert len((tmp_path / "out" / "labels" / "train" / "a.txt").read_text().splitlines()) == 2
    assert cli.main(words) == 2  # nothing is written over


def test_a_diagnosis_says_its_folder_first_and_writes_its_page(
    tiny_data: Path, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = [
        f"model={SMALL}",
        f"data={tiny_data}",
        "imgsz=64",
        "single_cls=True",
        f"project={run_dir}",
        "report=True",
    ]
    assert cli.main(["diagnose", *words]) == 0
    assert caplog.messages[0] == f"Files of this run go to {run_dir / 'diagnose'}"
    assert caplog.messages[-1] == f"Report: {run_dir / 'diagnose' / 'report.html'}"
    page = (run_dir / "diagnose" / "report.html").read_text()
    assert "Diagnosis of tests/fixtures/small11.yaml" in page and str(tiny_data) in page


# Faults ---------------------------------------------------------------------------------------------------------------


def _place(data: Path, run_dir: Path) -> list[str]:
    return [f"model={SMALL}", f"data={data}", "imgsz=64", "batch=4", "workers=0", f"project={run_dir}"]


#: mode -> what is made to fail once its work has begun, words of its own, and a word that is a mistake.
FAULTS: dict[str, tuple[str, list[str], str]] = {
    "train": ("mlc_yolo.training.trainer.MLCTrainer._model_train", ["epochs=1", "plots=False"], "epochs=abc"),
    "val": ("mlc_yolo.evaluation.validator.MLCValidator.postprocess", [], "data=nowhere.yaml"),
    "predict": ("mlc_yolo.evaluation.predictor.MLCPredictor.postprocess", ["source=IMAGES"], "source=nowhere"),
    "track": ("mlc_yolo.evaluation.predictor.MLCPredictor.postprocess", ["source=IMAGES"], "source=nowhere"),
    "export": ("ultralytics.engine.exporter.Exporter.export_torchscript", ["format=torchscript"], "format=torch"),
    "benchmark": (
        "mlc_yolo.evaluation.validator.MLCValidator.postprocess",
        ["format=-", "verbose=True", "model=SAVED"],
        "format=onx",
    ),
    "tune": ("ultralytics.engine.tuner.Tuner.__call__", ["iterations=1"], "assigner_warmup=200"),
    "diagnose": ("mlc_yolo.evaluation.diagnosing.DiagnosingValidator.postprocess", ["single_cls"], "data=nowhere.yaml"),
    "compare": ("mlc_yolo.compare.run._train", ["seed=0,1", "epochs=1"], "executor=slurm"),
    "assignments": ("mlc_yolo.figures.assignments.assignment_figure", ["count=1"], "assigner=mcl"),
    "figure": ("mlc_yolo.figures.draw._save", ["guidance", "count=1"], "kind=guidence"),
    "reproduce": ("mlc_yolo.training.trainer.MLCTrainer._model_train", ["row=ROW"], "scale=2"),
    "convert": (
        "mlc_yolo.conversion.yolo_set.write_flags",
        ["source=JSON", "images=IMAGES", "output=OUT"],
        "source=nowhere",
    ),
    "split": ("mlc_yolo.whole_files.write", ["data=DATA", "percent=50", "output=OUT"], "folds=0"),
    "demo": ("mlc_yolo.training.trainer.MLCTrainer._model_train", ["epochs=3"], "data=nowhere.yaml"),
}


@pytest.fixture
def words_of(tiny_data: Path, run_dir: Path) -> Any:
    """A function from a mode to a command line that works."""
    row = run_dir / "small.yaml"
    row.write_text(f"model: {SMALL}\nepochs: 1\nimgsz: 64\nbatch: 4\nplots: False\n")
    image = next((tiny_data.parent / "images" / "val").glob("*.png"))
    annotations = {
        "images": [{"id": 1, "file_name": image.name}],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 9, 9]}],
    }
    json_file = run_dir / "a.json"
    json_file.write_text(json.dumps(annotations))
    names = {"IMAGES": image.parent, "ROW": row, "JSON": json_file, "OUT": run_dir / "out", "DATA": tiny_data}
    names["SAVED"] = run_dir / "saved.pt"
    MLCYOLO(SMALL).save(names["SAVED"])

    def words(mode: str) -> list[str]:
        own = [name + "=" + str(names.get(value, value)) if value else name for name, _, value in _pairs(mode)]
        common = _place(tiny_data, run_dir) if MODES[mode].stock else []
        unwanted = {"reproduce": common[:1], "export": common[1:2]}.get(mode, [])
        return [mode, *(word for word in common if word not in unwanted), *own]

    return words


def _pairs(mode: str) -> list[tuple[str, str, str]]:
    return [word.partition("=") for word in FAULTS[mode][1]]


def test_every_mode_is_made_to_fail() -> None:
    assert set(FAULTS) == set(MODES)


@pytest.mark.slow
@pytest.mark.parametrize("mode", FAULTS)
def test_a_fault_keeps_its_traceback_a_mistake_is_a_line_and_the_folder_comes_first(
    mode: str,
    words_of: Any,
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise ValueError("forced")  # of the kind that a mistake raises too

    assert cli.main([*words_of(mode), FAULTS[mode][2]]) == 2
    shown = capsys.readouterr().err
    assert "mlc-yolo: " in shown and "Traceback" not in shown and "forced" not in shown
    monkeypatch.setattr(FAULTS[mode][0], fail)
    monkeypatch.setattr("mlc_yolo.compare.run.refusals", lambda trainings: {})  # asked in a process of its own
    caplog.clear()
    with pytest.raises((ValueError, AssertionError), match="forced"):  # benchmark asserts
        cli.main(words_of(mode))
    if mode in {"export", "benchmark", "convert", "split"}:  # files beside the model, or where `output` says
        return
    folder = Path(caplog.messages[0].rpartition(" go to ")[2])
    assert folder.parent == run_dir and (
        folder.is_dir() or mode in {"figure", "tune", "diagnose"}
    )  # these make theirs late


def test_the_command_line_writes_the_page_of_a_comparison_whose_runs_failed_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    comparison = SimpleNamespace(failed={"a": "its log"}, folder=tmp_path)
    monkeypatch.setattr("mlc_yolo.compare.run.compare", lambda **_: comparison)
    monkeypatch.setattr("mlc_yolo.report.write_report", lambda *arguments: arguments)
    assert cli.main(["compare", "model=yolo11n.yaml", "data=demo.yaml", "assigner=tal,mlc", "report=True"]) == 1
    assert caplog.messages[-1] == f"Report: {(comparison, tmp_path / 'report.html')}"


def test_failed_runs_of_a_comparison_end_with_one_and_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mlc_yolo.compare.run.compare", lambda **_: SimpleNamespace(failed={"a": "its log"}))
    assert cli.main(["compare", "model=yolo11n.yaml", "data=demo.yaml", "assigner=tal,mlc"]) == 1
    assert capsys.readouterr().err == "mlc-yolo: 1 of the runs failed: a\n"


@pytest.mark.parametrize("mode", [name for name, mode in MODES.items() if mode.any_task])
@pytest.mark.parametrize(("task", "model"), [("classify", "yolo26n.yaml"), ("detect", "yolo11n-seg.yaml")])
def test_a_task_that_the_model_yaml_does_not_build_is_one_line(
    mode: str, task: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = ["data=demo.yaml"] if "data" in MODES[mode].required else []
    assert cli.main([mode, task, f"model={model}", *needed]) == 2
    assert f"model={model} builds a" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_trained_from_a_shell_is_validated_predicted_with_tracked_with_and_exported(
    tiny_data: Path, run_dir: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    place = (f"project={run_dir}", "exist_ok=True")
    trained = _run(*TRAIN, f"data={tiny_data}", "assigner=mlc", "name=train", *place, cwd=run_dir)
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.startswith(f"Files of this run go to {run_dir / 'train'}\n")
    best = run_dir / "train" / "weights" / "best.pt"

    words = ("imgsz=64", "coco_eval=True", "name=val", *place)
    assert cli.main(["val", f"model={best}", f"data={tiny_data}", *words]) == 0
    assert "Spearman" in capsys.readouterr().out

    image = next((tiny_data.parent / "images" / "val").glob("*.png"))
    assert cli.main(["predict", f"model={best}", f"source={image}", "imgsz=64", "name=predict", *place]) == 0
    assert list((run_dir / "predict").glob("*"))
    assert cli.main(["track", f"model={best}", f"source={image.parent}", "imgsz=64", "name=track", *place]) == 0
    assert list((run_dir / "track").glob("*"))

    caplog.clear()
    assert cli.main(["export", f"model={best}", "format=stock"]) == 0
    stock = best.with_name("best_stock.pt")
    assert stock.exists() and str(stock) in caplog.text

    assert cli.main(["train", "resume", f"model={best}"]) == 2
    assert "cannot be resumed" in capsys.readouterr().err


@pytest.mark.slow
def test_a_row_is_reproduced_from_the_command_line(
    tiny_data: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run_dir)
    row = run_dir / "small.yaml"
    row.write_text(f"model: {SMALL}\nepochs: 1\nimgsz: 64\nbatch: 8\nplots: False\ncoco_eval: True\n")
    words = ["reproduce", str(row), f"data={tiny_data}", "scale=0.5", f"project={run_dir}", "results=results.csv"]
    assert cli.main(words) == 0
    header, line = (run_dir / "results.csv").read_text().splitlines()
    assert header.startswith("row,model,data,images")
    assert line.startswith(f"small,small11,{tiny_data.parent.name}/data.yaml,4,1,64,8,0.5,0,")


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(tiny_data: Path, run_dir: Path) -> None:
    words = (*TRAIN[:2], "epochs=100", "val=False", *TRAIN[3:], f"data={tiny_data}", f"project={run_dir}", "name=cut")
    process = subprocess.Popen([PROGRAM, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    last = run_dir / "cut" / "weights" / "last.pt"
    for _ in range(1200):
        if last.exists():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"mlc-yolo train resume model={last}" in errors


@pytest.mark.slow
def test_ctrl_c_after_the_last_epoch_says_that_the_training_has_ended_and_a_new_run_claims_no_earlier_weights(
    tiny_data: Path, run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_args: Any) -> None:
        raise KeyboardInterrupt

    place = [f"data={tiny_data}", f"project={run_dir}", "name=cut", "exist_ok=True", "workers=0"]
    begin, validations = MLCValidator.init_metrics, iter((lambda *args: begin(*args), stop))  # the epoch's, the final
    monkeypatch.setattr(MLCValidator, "init_metrics", lambda *args: next(validations)(*args))
    assert cli.main([*TRAIN, *place]) == 130
    weights = run_dir / "cut" / "weights"
    assert f"The training has ended; judge it with: mlc-yolo val model={weights / 'best.pt'}" in capsys.readouterr().err
    monkeypatch.setattr("mlc_yolo.training.trainer.MLCTrainer.preprocess_batch", stop)
    assert cli.main([*TRAIN, *place]) == 130
    assert (weights / "last.pt").exists() and "No checkpoint was written yet" in capsys.readouterr().err


def test_ctrl_c_in_a_validation_leaves_no_empty_folder(
    tiny_data: Path, run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlc_yolo.evaluation.validator.MLCValidator.postprocess", stop)
    assert cli.main(["val", *_place(tiny_data, run_dir)]) == 130
    assert capsys.readouterr().err.endswith("mlc-yolo: stopped.\n") and list(run_dir.iterdir()) == []


@pytest.mark.slow
def test_tune_trains_candidates_with_our_options(tiny_data: Path, run_dir: Path) -> None:
    words = [word for word in TRAIN if word != "train"]
    place = (f"data={tiny_data}", f"project={run_dir}")
    assert cli.main(["tune", *words, *place, "assigner=atss", "iterations=1", "val=False"]) == 0
    arguments = [path.read_text() for path in run_dir.rglob("args.yaml")]
    assert arguments and all("assigner: atss" in text for text in arguments)
