"""What is tried without training changes AP by the difference of two validations, on the same draws of the images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_records import made_records
from nets import SMALL
from own_labels import labelled_by, noise
from teaching import detector, saved

from mlc_yolo import MLCYOLO, cli
from mlc_yolo.evaluation.diagnosis import Diagnosis, Observations, Tried
from mlc_yolo.evaluation.remedies import parse_remedies
from mlc_yolo.evaluation.verdict import verdict
from mlc_yolo.faults import UsageError
from mlc_yolo.metrics.bootstrap import Difference

SETTINGS: dict[str, Any] = {"batch": 2, "workers": 0, "device": "cpu", "verbose": False, "rect": False}


@pytest.fixture
def net(tmp_path: Path) -> MLCYOLO:
    return MLCYOLO(saved(detector("yolov8"), tmp_path / "net.pt"))


@pytest.fixture
def diagnosis() -> Diagnosis:
    records = made_records(images=40)
    return Diagnosis(Observations(records, None, np.ones(len(records.gt_labels))))


@pytest.mark.slow
def test_what_a_remedy_changes_is_the_difference_of_two_validations(
    net: MLCYOLO, tmp_path: Path, run_dir: Path
) -> None:
    data = labelled_by(net, tmp_path, noise(96))
    common = {**SETTINGS, "data": str(data), "project": str(run_dir)}
    diagnosis = net.diagnose(imgsz=96, remedies=[64, 96, 100, "vote"], **common)
    ways = {"imgsz=64": {"imgsz": 64}, "imgsz=128": {"imgsz": 128}, "vote=True": {"imgsz": 96, "vote": True}}
    assert [row.name for row in diagnosis.tried] == list(ways), "its own size is no remedy"
    held = json.loads((diagnosis.folder / "diagnosis.json").read_text())["tried"]
    for row, written in zip(diagnosis.tried, held, strict=True):
        alone = net.diagnose(remedies=False, name="alone", exist_ok=True, **common, **ways[row.name])
        assert row.change.mean == pytest.approx(alone.ap.mean - diagnosis.ap.mean, abs=1e-6) != 0
        assert row.own is None and row.pixels == pytest.approx((alone_size(row.name) / 96) ** 2)
        assert (written["remedy"], written["change"]["AP"], written["own"]) == (row.name, row.change.mean, None)
    assert {path.name for path in run_dir.iterdir() if "diagnose" in path.name} == {"diagnose"}
    assert {path.name for path in diagnosis.folder.iterdir()} == {"diagnosis.csv", "diagnosis.json", "coverage.csv"}
    voted = net.diagnose(imgsz=96, vote=True, name="voted", **common)
    assert [row.name for row in voted.tried] == ["imgsz=128"], "who votes already is not told to"


def alone_size(name: str) -> int:
    return int(name.removeprefix("imgsz=")) if name.startswith("imgsz=") else 96


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "asked", "expected"),
    [
        ("yolo11", [], ["vote=True", "imgsz=128"]),
        ("yolo26", ["nms=False"], ["imgsz=128"]),  # nothing competes there
        ("yolo11", ["remedies=vote,160"], ["vote=True", "imgsz=160"]),
        ("yolo11", ["remedies=64,128"], ["imgsz=64", "imgsz=128"]),
        ("yolo11", ["remedies=False"], []),
    ],
)
def test_the_command_tries_a_vote_and_a_larger_size_or_what_is_asked_for(
    family: str, asked: list[str], expected: list[str], tiny_data: Path, run_dir: Path, tmp_path: Path
) -> None:
    file = saved(detector(family), tmp_path / "net.pt")
    place = [f"data={tiny_data}", f"project={run_dir}", "imgsz=96", "workers=0", "device=cpu", "batch=2"]
    assert cli.main(["diagnose", f"model={file}", *place, *asked]) == 0
    held = json.loads((run_dir / "diagnose" / "diagnosis.json").read_text())
    assert [row["remedy"] for row in held["tried"]] == expected
    assert [words.split(" alone: ")[0] for words in held["verdict"] if words.startswith("Tried")] == [
        f"Tried without training, {name}" for name in expected
    ]


@pytest.mark.slow
def test_a_vote_that_is_asked_for_where_nothing_competes_is_refused(
    tiny_data: Path, run_dir: Path, tmp_path: Path
) -> None:
    model = MLCYOLO(saved(detector("yolo26"), tmp_path / "net.pt"))
    with pytest.raises(UsageError, match="this model has no NMS"):
        model.diagnose(data=str(tiny_data), project=str(run_dir), imgsz=64, nms=False, remedies="vote", **SETTINGS)


@pytest.mark.parametrize("remedies", [0, -64, 64.5, "large", True, [], "vote,", [64, "x"]])
def test_what_is_no_remedy_is_refused_before_anything_is_done(remedies: Any, tiny_data: Path, run_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"remedies=.* must be vote, image sizes in px or both"):
        MLCYOLO(SMALL).diagnose(data=str(tiny_data), project=str(run_dir), remedies=remedies)
    assert not any(run_dir.iterdir())


def test_what_is_asked_for_is_read_and_sizes_are_for_checkpoints() -> None:
    assert parse_remedies(None) is None and parse_remedies(False) == ()
    assert parse_remedies([np.int64(64), " vote", "96"]) == (64, "vote", 96)
    assert parse_remedies("vote", resizable=False) == ("vote",)
    with pytest.raises(ValueError, match="sizes are tried with checkpoints: leave 64 out"):
        parse_remedies(["vote", 64], resizable=False)
    with pytest.raises(ValueError, match=r"remedies=array.* must be vote, image sizes"):
        parse_remedies(np.array([64, 128]))


@pytest.mark.slow
def test_the_diagnosis_is_kept_whatever_becomes_of_a_remedy(
    net: MLCYOLO, tiny_data: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    validate = MLCYOLO.val

    def full(self: MLCYOLO, *args: Any, **kwargs: Any) -> Any:
        if kwargs["imgsz"] > 96:
            raise torch.OutOfMemoryError("no room")
        return validate(self, *args, **kwargs)

    monkeypatch.setattr(MLCYOLO, "val", full)
    common = {**SETTINGS, "data": str(tiny_data), "project": str(run_dir), "imgsz": 96, "vote_iou": 0.9}
    assert [row.name for row in net.diagnose(**common).tried] == ["vote=True vote_iou=0.9"]
    assert "imgsz=128 is left out: no room" in caplog.text
    with pytest.raises(torch.OutOfMemoryError):
        net.diagnose(remedies=128, name="asked", **common)
    assert (run_dir / "asked" / "diagnosis.json").is_file()
    with pytest.raises(ValueError, match="vote=True is what is diagnosed"):
        net.diagnose(remedies="vote", vote=True, **common)


def test_the_same_detections_change_nothing(diagnosis: Diagnosis) -> None:
    same, own = diagnosis.changed(diagnosis.seen.records)
    assert own is None and (same.mean, same.low, same.high) == (0, 0, 0)


def _change(mean: float, low: float, high: float) -> Difference:
    return Difference(mean, float("nan"), low, high, 1)


GAIN, LOSS, OPEN, TINY = _change(5.2, 0.7, 9.8), _change(-6.8, -9, -4), _change(0.3, -0.5, 1), _change(0.02, 0.01, 0.03)


@pytest.mark.parametrize(
    ("change", "own", "images", "said"),
    [
        (GAIN, None, 60, "+5.2 AP [0.7, 9.8], for 1.6 times the pixels and about that cost. Give imgsz=320 to val"),
        (OPEN, None, 60, "No difference is shown."),
        (TINY, None, 60, "No difference is shown."),
        (LOSS, None, 60, "Leave it out."),
        (GAIN, None, 12, "a hint at most."),
        (GAIN, LOSS, 60, "Leave it out."),  # masks or keypoints decide where there are any
        (OPEN, GAIN, 60, "Give imgsz=320"),
    ],
)
def test_the_verdict_says_what_the_interval_allows(
    change: Difference, own: Difference | None, images: int, said: str
) -> None:
    records = made_records(images=images)
    diagnosis = Diagnosis(Observations(records, None, np.ones(len(records.gt_labels))))
    diagnosis.tried = [Tried("imgsz=320", 1.5625, change, own)]
    (sentence,) = (words for words in verdict(diagnosis) if words.startswith("Tried without training, imgsz=320 alone"))
    assert said in sentence


def test_of_several_gains_the_largest_is_advised() -> None:
    records = made_records(images=60)
    diagnosis = Diagnosis(Observations(records, None, np.ones(len(records.gt_labels))))
    diagnosis.tried = [
        Tried("imgsz=288", 1.3, _change(4.5, 0.9, 8.1), None),
        Tried("imgsz=320", 1.6, GAIN, None),
        Tried("imgsz=352", 1.9, _change(9, -1, 19), None),
    ]
    said = [words for words in verdict(diagnosis) if words.startswith("Tried")]
    assert [words.rpartition(". ")[2] for words in said] == [
        "A gain as well.",
        "Give imgsz=320 to val and predict.",
        "No difference is shown.",
    ]


def test_a_vote_that_was_tried_is_not_promised() -> None:
    records = made_records(images=40)
    best = np.concatenate((records.gt_boxes, np.full((len(records.gt_labels), 2), (0.5, 0.99))), 1).astype(np.float32)
    diagnosis = Diagnosis(Observations(records, best, np.ones(len(best))))
    promise = "vote=True can win a part of that"
    assert promise in " ".join(verdict(diagnosis))
    diagnosis.votes = True
    assert promise not in " ".join(verdict(diagnosis))
    diagnosis.votes, diagnosis.tried = False, [Tried("vote=True", 1.0, _change(0.1, -0.2, 0.4), None)]
    assert promise not in " ".join(verdict(diagnosis))
