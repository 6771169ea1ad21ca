"""Models without pickles: written and read again with the same outputs, by the format's own rules, nothing run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detector_runs import TINY, detector_yaml, train
from nets import SMALL
from ultralytics.nn.tasks import DetectionModel

from mlc_yolo import MLCYOLO
from mlc_yolo.checkpoints import tensors_file
from mlc_yolo.checkpoints.marker import write_marker
from mlc_yolo.checkpoints.safe_load import RefusedCheckpoint
from mlc_yolo.heads.iou_aware import rank_by_iou, set_rescore

IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def outputs(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IMAGE)[0]
    return found


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolo26n"])
def test_an_iou_aware_model_comes_back_the_same(
    name: str, iou_aware: Callable[..., DetectionModel], tmp_path: Path
) -> None:
    model = iou_aware(name, IMAGE)
    model.names = {0: "a", 1: "b", 2: "ç"}
    tensors_file.save(tmp_path / "model.safetensors", model, {"imgsz": 64, "project": tmp_path})
    loaded = MLCYOLO(tmp_path / "model.safetensors")
    assert torch.equal(outputs(loaded.model), outputs(model)) and loaded.names == model.names
    assert loaded.model.args["imgsz"] == 64 and loaded.task == "detect"
    assert loaded.predict(IMAGE, verbose=False)[0].names == model.names


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolo11n", "yolo26n"])
def test_a_model_that_started_from_more_classes_comes_back_the_same(name: str, tmp_path: Path) -> None:
    model = DetectionModel(f"{name}.yaml", nc=3, verbose=False)
    model.load(DetectionModel(f"{name}.yaml", verbose=False), verbose=False)  # recent versions keep its wide branches
    tensors_file.save(tmp_path / "model.safetensors", model)
    loaded, _ = tensors_file.load(tmp_path / "model.safetensors")
    assert torch.equal(outputs(loaded), outputs(model))


def test_how_a_model_ranks_comes_along(iou_aware: Callable[..., DetectionModel], tmp_path: Path) -> None:
    model = iou_aware("yolo11n", IMAGE)
    write_marker(model, iou_head=True, rescore=False, nms_by="iou", resize="warp")
    rank_by_iou(model.model[-1], True)
    set_rescore(model, False)
    tensors_file.save(tmp_path / "model.safetensors", model)
    loaded, _ = tensors_file.load(tmp_path / "model.safetensors")
    assert loaded.yaml["mlc"] == model.yaml["mlc"] and torch.equal(outputs(loaded), outputs(model))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["retinanet", "fcos", "rpn"])
def test_a_ported_detector_comes_back_the_same(kind: str, tmp_path: Path) -> None:
    model = MLCYOLO(detector_yaml(tmp_path, kind))
    model.save(tmp_path / "model.pt")  # in half precision, as checkpoints are
    saved = MLCYOLO(tmp_path / "model.pt")
    saved.save(tmp_path / "model.safetensors")
    again = MLCYOLO(tmp_path / "model.safetensors")
    assert again.model.kind == kind and torch.equal(outputs(again.model), outputs(saved.model))


def test_the_file_is_what_the_format_says(iou_aware: Callable[..., DetectionModel], tmp_path: Path) -> None:
    model = iou_aware("yolo11n", IMAGE).half()
    path = tmp_path / "model.safetensors"
    tensors_file.save(path, model)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert (8 + length) % 8 == 0, "aligned"
    metadata = header.pop("__metadata__")
    assert all(isinstance(value, str) for value in metadata.values()) and metadata["format"] == "pt"
    assert json.loads(metadata["mlc_yolo"])["yaml"]["mlc"] == {"iou_head": True}
    assert header.keys() == model.state_dict().keys()
    end = 0
    for entry in sorted(header.values(), key=lambda entry: entry["data_offsets"]):  # no gap, no overlap
        assert entry["data_offsets"][0] == end
        end = entry["data_offsets"][1]
    assert end == len(content) - 8 - length
    first = header["model.0.conv.weight"]
    start, stop = (8 + length + offset for offset in first["data_offsets"])
    read = torch.frombuffer(bytearray(content[start:stop]), dtype=torch.float16).reshape(first["shape"])
    assert first["dtype"] == "F16" and torch.equal(read, model.state_dict()["model.0.conv.weight"])


def test_a_fused_model_is_refused_and_the_random_state_is_kept(tmp_path: Path) -> None:
    model = MLCYOLO(SMALL)
    state = torch.get_rng_state()
    model.save(tmp_path / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    model.fuse(verbose=False)
    with pytest.raises(ValueError, match="Is it fused"):
        model.save(tmp_path / "fused.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("cut", [0, 7, 100, -1000, -1])
def test_a_file_that_is_cut_off_is_said(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    MLCYOLO(SMALL).save(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="cut off"):
        MLCYOLO(path)


def _written(path: Path, **told: Any) -> Path:
    """A file whose description has other entries."""
    MLCYOLO(SMALL).save(path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    described = json.loads(header["__metadata__"]["mlc_yolo"])
    header["__metadata__"]["mlc_yolo"] = json.dumps({**described, **told})
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return path


def test_a_description_that_is_a_program_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    config = {**DetectionModel(SMALL, verbose=False).yaml, "activation": f"open({str(mark)!r}, 'w')"}
    with pytest.raises(RefusedCheckpoint, match="activation"):
        MLCYOLO(_written(tmp_path / "model.safetensors", yaml=config))
    assert not mark.exists()


@pytest.mark.parametrize("data", ["https://example.org/data.yaml", " http://example.org/data.yaml"])
def test_data_that_lies_elsewhere_is_not_fetched_because_a_description_names_it(data: str, tmp_path: Path) -> None:
    model = MLCYOLO(_written(tmp_path / "model.safetensors", train_args={"data": data}))
    with pytest.raises(RefusedCheckpoint, match=r"was trained on .*example\.org.* give data="):
        model.val()


def test_a_description_that_would_fetch_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *_, **__: pytest.fail("fetched"))
    config = {"nc": 1, "backbone": [[-1, 1, "TorchVision", [512, "resnet18"]]], "head": [[[0], 1, "Detect", ["nc"]]]}
    with pytest.raises(RefusedCheckpoint, match="TorchVision, for which weights are fetched"):
        MLCYOLO(_written(tmp_path / "model.safetensors", yaml=config))


def test_a_description_that_names_another_file_is_refused(tmp_path: Path) -> None:
    mark, other = tmp_path / "ran", tmp_path / "other.yaml"
    other.write_text(f"activation: open({str(mark)!r}, 'w') and nn.SiLU()\nnc: 1\nbackbone: []\nhead: []\n")
    with pytest.raises(ValueError, match="its YAML is"):
        MLCYOLO(_written(tmp_path / "model.safetensors", yaml=str(other)))
    assert not mark.exists()


@pytest.mark.slow
def test_a_model_that_started_from_torchvisions_weights_needs_them_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *_, **__: pytest.fail("fetched"))
    row = [-1, 1, "TorchVision", [512, "squeezenet1_1", None, True, 2]]
    model = DetectionModel({"nc": 1, "backbone": [row], "head": [[[0], 1, "Detect", ["nc"]]]}, verbose=False)
    model.yaml["backbone"][0][3][2] = "DEFAULT"  # as if it had been built so
    tensors_file.save(tmp_path / "model.safetensors", model)
    loaded, _ = tensors_file.load(tmp_path / "model.safetensors")
    assert torch.equal(outputs(loaded), outputs(model))
    assert loaded.yaml["backbone"][0][3][2] is None and model.yaml["backbone"][0][3][2] == "DEFAULT"


@pytest.mark.parametrize("told", [{"yaml": {}}, {"yaml": None}, {"names": 1}, {"train_args": None}, {"channels": 1}])
def test_a_description_that_does_not_fit_is_said(told: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a model written by mlc-yolo"):
        MLCYOLO(_written(tmp_path / "model.safetensors", **told))


@pytest.mark.slow
def test_training_starts_from_a_file_without_pickles(tiny_data: Path, run_dir: Path) -> None:
    source = MLCYOLO(SMALL)
    source.save(run_dir / "model.safetensors")
    net = MLCYOLO(run_dir / "model.safetensors")
    train(net, tiny_data, run_dir / "run", lr0=0.0, optimizer="SGD", **{k: TINY[k] for k in ("imgsz", "batch")})
    name = "model.0.conv.weight"
    assert torch.equal(net.trainer.model.state_dict()[name], source.model.state_dict()[name])
    loaded = MLCYOLO(SMALL).load(run_dir / "model.safetensors")
    assert torch.equal(loaded.model.state_dict()[name], source.model.state_dict()[name])
