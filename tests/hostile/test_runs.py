"""Whole runs on hostile data: they end as they should, or stop with a word."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from mlc_yolo import MLCYOLO
from mlc_yolo.cli import main

from .reading import encoded, listening, patience

#: Strides 8 to 32 and next to nothing in between.
MODEL = {
    "nc": 2,
    "backbone": [[-1, 1, "Conv", [8, 3, 2]]] * 3 + [[-1, 1, "Conv", [16, 3, 2]]] * 2,
    "head": [[[2, 3, 4], 1, "Detect", ["nc"]]],
}
RUN = {"epochs": 1, "imgsz": 64, "batch": 4, "workers": 0, "plots": False, "device": "cpu"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(MODEL))
    return file


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A set whose training images are four sound ones and others that are not."""
    root = tmp_path / "set"
    good = "0 0.5 0.5 0.4 0.4\n1 0.3 0.3 0.2 0.2\n"
    pictures = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for i, picture in enumerate(pictures):
            cv2.imwrite(str(root / "images" / split / f"{i}.png"), picture)
            (root / "labels" / split / f"{i}.txt").write_text(good)
    labels = {
        "nan": "0 nan .5 .2 .2",
        "class": "2147483648 .5 .5 .2 .2",
        "flat": f"{good}0 .5 .5 0 .2",
        "twice": good + good,
        "none": "",
        "cut": f"{good}1 0.3 0.",
        "crowd": "".join(f"0 {x / 400:.4f} .5 .01 .01\n" for x in range(400)),
    }
    for name, text in labels.items():
        (root / "images" / "train" / f"{name}.png").write_bytes(encoded(".png"))
        (root / "labels" / "train" / f"{name}.txt").write_text(text)
    for name, content in {"empty.jpg": b"", "text.png": b"hello", "short.jpg": encoded(".jpg")[:-70]}.items():
        (root / "images" / "train" / name).write_bytes(content)
    file = root / "data.yaml"
    file.write_text(yaml.safe_dump({"train": "images/train", "val": "images/val", "names": ["a", "b"]}))
    return file


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # upstream leaves broken files open
@pytest.mark.parametrize("assigner", ["tal", "mlc", "mutual_guidance"])
def test_a_training_leaves_out_what_is_broken_and_ends(
    tried: Counter[str], model: Path, data: Path, run_dir: Path, assigner: str
) -> None:
    trained = MLCYOLO(model)
    with patience(), listening() as said:
        trained.train(data=data, project=run_dir, name="run", assigner=assigner, assigner_warmup=0, **RUN)
    text = "\n".join(said)
    for name in ("nan.png", "class.png", "cut.png", "empty.jpg", "text.png", "short.jpg"):
        assert f"{name}: ignoring corrupt image/label" in text
        tried["refused"] += 1
    assert "twice.png: 2 duplicate labels removed" in text
    assert "1 boxes in 1 images have no area inside their image" in text and "flat.png" in text
    tried["warned of"] += 2
    state = trained.model.state_dict().values()
    assert all(bool(tensor.isfinite().all()) for tensor in state)


def test_an_image_that_cannot_be_decoded_stops_the_training_by_name(
    tried: Counter[str], model: Path, data: Path, run_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("nan", "class", "cut"):
        (data.parent / "images" / "train" / f"{name}.png").unlink()
    for file in data.parent.glob("images/train/*.jpg"):
        file.unlink()
    (data.parent / "images" / "train" / "text.png").write_bytes(encoded(".bmp")[:-40])
    with patience(), pytest.raises(ValueError, match=r"text\.png cannot be decoded: it is damaged"):
        MLCYOLO(model).train(data=data, project=run_dir, name="run", mosaic=0.0, **RUN)
    tried["refused"] += 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": "cat"}, "classes='cat' .* must be class numbers"),
        ({"classes": [7]}, r"classes=\[7\]: the data has classes 0 to 1, not 7"),
        ({"freeze": "backbone"}, "freeze='backbone' .* must be a number of layers"),
        ({"box": float("nan")}, "box=nan must be a finite number"),
        ({"lr0": "fast"}, "lr0=fast"),
        ({"iou_gain": "much"}, "iou_gain='much'"),
        ({"data": ["set", 5]}, "data=5 .* must be the path of a data YAML"),
    ],
)
def test_a_wrong_option_stops_a_training_before_it_begins(
    tried: Counter[str], model: Path, data: Path, run_dir: Path, arguments: dict[str, Any], message: str
) -> None:
    for name in ("nan", "class", "cut"):
        (data.parent / "images" / "train" / f"{name}.png").unlink()
    for file in [*data.parent.glob("images/train/*.jpg"), data.parent / "images" / "train" / "text.png"]:
        file.unlink()
    with patience(), pytest.raises((TypeError, ValueError), match=message):
        MLCYOLO(model).train(**{"data": data, "project": run_dir, "name": "run", **RUN, **arguments})
    tried["refused"] += 1
    assert not list(run_dir.rglob("*.pt"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": {"x": "a"}}, "'names' must be numbered 0 to 0"),
        ({"val": "nothing", "download": "print('run')"}, "'download' holds a program"),
        ({"train": "nothing"}, "'train': there is no"),
        ({"names": []}, "'names' is empty"),
    ],
)
def test_the_command_line_says_what_is_wrong_with_the_data_in_a_line(
    tried: Counter[str],
    model: Path,
    data: Path,
    run_dir: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    message: str,
) -> None:
    data.write_text(yaml.safe_dump({**yaml.safe_load(data.read_text()), **change}))
    with patience():
        status = main(["train", f"model={model}", f"data={data}", f"project={run_dir}", "imgsz=64", "epochs=1"])
    tried["refused"] += 1
    assert status == 2 and message in capsys.readouterr().err
