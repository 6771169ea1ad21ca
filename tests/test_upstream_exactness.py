"""Every place where Ultralytics asks for an exact class is known, and what becomes of our subclasses there."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
import ultralytics
from ultralytics.engine import exporter
from ultralytics.nn import tasks
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.callbacks import base

from mlc_yolo import MLCYOLO, upstream
from mlc_yolo.detectors.config import bundled, find_config
from mlc_yolo.detectors.model import DetectorModel
from mlc_yolo.heads.dense import DenseDetect
from mlc_yolo.heads.iou_aware import IoUAwareDetect, add_iou_channel
from mlc_yolo.training.semi_trainer import SemiTrainer

#: `type(x) is Detect`, `{...}.get(type(x))`, `x.__class__.__name__ == "Detect"`, `m is Detect`, `m in {Detect, ...}`.
EXACT = re.compile(
    r"type\([^()]*(\([^()]*\))?[^()]*\)(\.__name__)? (is|is not|==|!=|in|not in) |\.get\(type\("
    r"|\b__class__(\.__name__)? (is|is not|==|!=|in|not in) |in [\w.]+\.__class__\.__name__"
    r"|\bm (is|is not) (?!None)[A-Z]|\bm in (base_modules|repeat_modules|frozenset|\{[A-Z])"
)
#: Questions about numbers, and about what has no part in detection.
OTHER = re.compile(r"type\((x|limit)\) is (int|float)")


def questions() -> dict[str, list[str]]:
    """Return the lines of the installed version that ask for an exact class, by file below the package."""
    root = Path(ultralytics.__file__).parent
    asked: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.py")):
        for line in path.read_text(encoding="utf-8").splitlines():
            code = line.partition("#")[0]
            if EXACT.search(code) and not OTHER.search(code):
                asked.setdefault(path.relative_to(root).as_posix(), []).append(code.strip())
    return asked


@pytest.mark.slow
def test_every_file_that_asks_for_an_exact_class_is_listed() -> None:
    listed = set(re.findall(r"^\| `([\w/*]+\.py)` \|", upstream.__doc__ or "", re.MULTILINE))
    asked = questions()
    unknown = {file for file in asked if not any(Path(file).match(pattern) for pattern in listed)}
    assert not unknown, {file: asked[file] for file in unknown}
    assert {"nn/tasks.py", "engine/exporter.py", "solutions/solutions.py", "utils/callbacks/base.py"} <= asked.keys()


@pytest.mark.slow
def test_these_are_all_the_questions_that_concern_detection() -> None:
    asked = [line for file in ("engine/exporter.py", "nn/tasks.py") for line in questions()[file]]
    parser = inspect.getsource(tasks.parse_model)
    assert [line for line in asked if line not in parser] == [
        'task26 = {Segment26: "segmentation", Pose26: "pose", OBB26: "OBB"}.get(type(model.model[-1]))',
        "or type(model.model[-1]) not in {Detect, Segment, Pose, OBB, Classify, SemanticSegment, Depth}",
        'if getattr(self, "end2end", False) or type(self.model[-1]) is not Detect:',
    ]


def test_upstream_augments_the_exact_class_of_head_only(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("ultralytics.nn.tasks.LOGGER.warning", said.append)
    model, image = DetectionModel("yolo11n.yaml", nc=2, verbose=False).eval(), torch.zeros(1, 3, 64, 64)
    anchors = 8**2 + 4**2 + 2**2
    with torch.no_grad():
        augmented = model.predict(image, augment=True)[0]
        assert augmented.shape[2] == (anchors - 4) + anchors + (anchors - 64) and said == []
        add_iou_channel(model.model[-1])
        assert model.predict(image, augment=True)[0].shape[2] == anchors and len(said) == 1
    assert inspect.getsource(DetectionModel._predict_augment).count("self._") == 3  # once, back to size, tails clipped


def test_exporters_that_replace_methods_of_a_head_are_known() -> None:
    replaced = set()
    for path in sorted((Path(ultralytics.__file__).parent / "utils" / "export").glob("*.py")):
        for name in re.findall(r"\bm\.(_?[a-z_]+) = types\.MethodType", path.read_text(encoding="utf-8")):
            replaced.add((path.stem, name))
    heads = {(file, name) for file, name in replaced if name not in {"kpts_decode", "forward"}}
    assert heads <= {("imx", "_inference"), ("tensorflow", "_get_decode_boxes")} | {
        (file, "_gather") for file in ("coreml", "litert")
    }
    assert "_get_decode_boxes" in inspect.getsource(IoUAwareDetect._inference)
    assert "_gather" not in inspect.getsource(DenseDetect)
    assert "Hailo export currently supports" in inspect.getsource(exporter)


def test_what_asks_for_a_kind_of_head_takes_ours_for_one() -> None:
    config = find_config(sorted(bundled())[0])
    assert config is not None
    for kind in (IoUAwareDetect, type(DetectorModel(config, verbose=False).head)):
        assert issubclass(kind, Detect) and kind.__name__.endswith("Detect")
    assert "Trainer" in SemiTrainer.__name__ and '"Trainer" in ' in inspect.getsource(base)


@pytest.mark.parametrize("target", ["edgetpu", "imx", "hailo"])
def test_formats_that_replace_or_refuse_a_ported_head_are_refused_before_anything_is_made(target: str) -> None:
    with pytest.raises(ValueError, match=f"format={target} is for YOLO"):
        MLCYOLO("retinanet-r18-fpn.yaml").export(format=target)
