"""Checkpoints are data: what would run a program is refused by name, what we and upstream write loads."""

from __future__ import annotations

import builtins
import os
import pickle
import subprocess
import sys
import types
import warnings
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detector_runs import TINY, detector_yaml, train
from nets import SMALL
from torchvision.transforms import InterpolationMode
from ultralytics import YOLO
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import YAML, downloads

from mlc_yolo import MLCYOLO
from mlc_yolo.checkpoints import model_yaml, safe_load
from mlc_yolo.checkpoints.safe_load import RefusedCheckpoint, check
from mlc_yolo.cli import main
from mlc_yolo.resources import resource_dir
from mlc_yolo.training.trainer import MLCTrainer


class Call:
    """Pickled, it calls a function with arguments."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self) -> tuple[Any, ...]:
        return (self.function, self.arguments, *([] if self.state is None else [self.state]))


#: How numpy writes one of its numbers, and the state of a type whose flags deny that it holds objects.
SCALAR = np.float64(1).__reduce__()[0]
FLAGS = (3, "|", None, None, None, 16, 1, 0)


class Foreign(torch.nn.Module):
    """A layer that is nobody's we know."""


@pytest.fixture
def evil(mark: Path, tmp_path: Path) -> Path:
    path = tmp_path / "evil.pt"
    torch.save({"model": Call(os.system, f"touch {mark}")}, path)
    return path


def _yaml(**entries: Any) -> dict[str, Any]:
    layer = [-1, 1, "Conv", [8, 3, 2]]
    return {"nc": 1, "backbone": [layer, layer, layer], "head": [[[0, 1, 2], 1, "Detect", ["nc"]]], **entries}


def _torchvision(*arguments: Any) -> dict[str, Any]:
    return {"yaml": _yaml(backbone=[[-1, 1, "TorchVision", [512, *arguments]]])}


def _with_attribute(**entries: Any) -> OrderedDict[str, Any]:
    made: OrderedDict[str, Any] = OrderedDict(entries)
    made.get = torch.nn.Identity()  # type: ignore[method-assign, assignment]
    return made


def _payloads(mark: Path) -> dict[str, tuple[Any, str]]:
    """What a file may hold -> it, and how it is named."""
    program = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    opening = f"[{program}][0] or nn.SiLU()"
    return {
        "os.system": (Call(os.system, f"touch {mark}"), f"{os.name}.system"),
        "eval": (Call(eval, program), "builtins.eval"),
        "exec": (Call(exec, program), "builtins.exec"),
        "popen": (Call(subprocess.Popen, ["touch", str(mark)]), "subprocess.Popen"),
        "partial": (Call(partial, os.system), "functools.partial"),
        "import": (Call(builtins.__import__, "antigravity"), "builtins.__import__"),
        "getattr": (Call(getattr, torch.nn.Identity(), "__class__"), "builtins.getattr"),
        "getattr of a text": (Call(getattr, "text", "forward"), "builtins.getattr"),
        "download": (Call(downloads.safe_download, "file:///etc/passwd"), "ultralytics.utils.downloads.safe_download"),
        "objects": (np.array([{}], dtype=object), "_reconstruct"),
        "object scalar": (Call(np.dtype, "O", False, True), "a call of numpy.dtype('O'"),
        "dtype with objects": (Call(np.dtype, "i8,O", False, True), "a call of numpy.dtype('i8,O'"),
        "dtype with flags": (Call(np.dtype, "i8", False, True, state=FLAGS), "a numpy.dtype with the state (3, '|'"),
        "dtype of all": (Call(np.dtype, "i8", False, False), "a call of numpy.dtype('i8', False, False"),
        "scalar of no dtype": (Call(SCALAR, "O", b"A" * 8), "scalar('O'"),
        "state of an enum": (Call(InterpolationMode, "nearest", state={"_value_": 1}), "with the state {'_value_'"),
        "class": (defaultdict(list), "collections.defaultdict"),
        "class held": ({"hook": DetectionModel}, "ultralytics.nn.tasks.DetectionModel itself"),
        "function held": ({"hook": getattr}, "builtins.getattr itself"),
        "own module": (Foreign(), f"{__name__}.Foreign"),
        # Classes on the list, called: their constructors would evaluate the activation, or open the other file.
        "model": (Call(DetectionModel, _yaml(activation=opening)), "a call of ultralytics.nn.tasks.DetectionModel"),
        "teacher": (Call(DistillationModel, "evil.pt", None), "a call of ultralytics.nn.distill_model"),
        # Data that Ultralytics makes a program of when it rebuilds the model.
        "activation": ({"yaml": _yaml(activation=opening)}, "a model YAML with activation"),
        "tuple": ({"yaml": _yaml(backbone=((-1, 1, "load_checkpoint", ["evil.pt"]),))}, "with the layer load_check"),
        "layer": ({"yaml": _yaml(head=[[-1, 1, "DetectionModel", [{}]]])}, "with the layer DetectionModel"),
        "torchvision": (_torchvision("resnet18"), "for which weights are fetched: [512, 'resnet18']"),
        "torchvision's default": (_torchvision("resnet18", "DEFAULT", True), "for which weights are fetched"),
        "torchvision's backbone": (_torchvision("fasterrcnn_resnet50_fpn", None), "for which weights are fetched"),
        # What Ultralytics would open as a file, or ask in place of a YAML.
        "YAML's path": ({"yaml": "other.yaml"}, "a model whose YAML is other.yaml"),
        "teacher's path": ({"teacher_model": "evil.pt"}, "a teacher_model that is no model: evil.pt"),
        "teacher's Path": ({"teacher_model": Path("evil.pt")}, "a teacher_model that is no model"),
        "layers": ({"yaml": {"backbone": torch.nn.ModuleList()}}, "a model YAML whose backbone is no list"),
        "attributes": ({"yaml": _with_attribute(**_yaml())}, "a dict with attributes of its own: get"),
        "no module": ({"yaml": _yaml(head=[[-1, 1, "nn.functional", []]])}, "with the layer nn.functional"),
    }


PAYLOADS = list(_payloads(Path("none")))


@pytest.mark.parametrize("name", PAYLOADS)
def test_what_is_more_than_data_is_refused_by_name_and_does_not_run(name: str, mark: Path, tmp_path: Path) -> None:
    payload, named = _payloads(mark)[name]
    path = tmp_path / "file.pt"
    torch.save({"epoch": 1, "model": payload, "train_args": {}}, path)
    with pytest.raises(RefusedCheckpoint, match="trust=True") as refusal:
        MLCYOLO(path)
    assert named in str(refusal.value) and str(path) in str(refusal.value)
    assert not mark.exists()


def test_a_refusal_names_only_what_is_not_allowed(tmp_path: Path) -> None:
    plain = [{1}, 1j, bytearray(b"a"), Counter("a"), OrderedDict(a=1), b"a", torch.float16, torch.Size([1])]
    torch.save({"extra": plain, "train_args": {}}, tmp_path / "plain.pt")
    check(tmp_path / "plain.pt")
    torch.save({"extra": [*plain, torch.device("cpu"), Foreign()], "train_args": {}}, tmp_path / "file.pt")
    with pytest.raises(RefusedCheckpoint, match=f"it holds {__name__}.Foreign. A checkpoint"):
        check(tmp_path / "file.pt")


def test_a_checkpoint_of_yolov5s_repository_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = types.ModuleType("models.common")
    common.Conv = type("Conv", (torch.nn.Module,), {"__module__": "models.common"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "models", types.ModuleType("models"))
    monkeypatch.setitem(sys.modules, "models.common", common)
    torch.save({"model": common.Conv(), "extra": np.arange(2)}, tmp_path / "old.pt")
    with pytest.raises(RefusedCheckpoint, match="YOLOv5's own format") as refusal:
        MLCYOLO(tmp_path / "old.pt")
    assert "trust" not in str(refusal.value)


def test_a_bare_module_is_called_so(tmp_path: Path) -> None:
    for module, name in ((torch.nn.Sequential(torch.nn.Identity()), "Sequential"), (DetectionModel(_yaml()),) * 2):
        torch.save(module, tmp_path / "module.pt")
        name = name if isinstance(name, str) else "DetectionModel"
        with pytest.raises(ValueError, match=f"holds a bare {name}, not a checkpoint") as error:
            MLCYOLO(tmp_path / "module.pt")
        assert "\n" not in str(error.value) and not isinstance(error.value, RefusedCheckpoint)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_every_way_of_writing_a_pickle_is_read(mark: Path, tmp_path: Path) -> None:
    payload = Call(os.system, f"touch {mark}")
    path = tmp_path / "file.pt"
    for protocol in (2, 4, 5):
        torch.save({"model": payload}, path, pickle_protocol=protocol)
        with pytest.raises(RefusedCheckpoint, match=rf"{os.name}\.system"):
            check(path)
        path.write_bytes(pickle.dumps(payload, protocol=protocol))
        with pytest.raises(RefusedCheckpoint, match=rf"{os.name}\.system"):
            check(path)
    torch.save({"model": payload}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(RefusedCheckpoint, match=rf"{os.name}\.system"):
        check(path)
    assert not mark.exists()


@pytest.mark.slow
def test_a_state_that_hides_another_is_refused(mark: Path, tmp_path: Path) -> None:
    class Twice(pickle._Pickler):
        def save_reduce(self, *arguments: Any, obj: Any = None, **more: Any) -> None:
            super().save_reduce(*arguments, obj=obj, **more)  # type: ignore[misc]
            if isinstance(obj, DetectionModel):  # which would merge the two
                self.save({"training": False})  # type: ignore[attr-defined]
                self.write(pickle.BUILD)  # type: ignore[attr-defined]

    writing: Any = types.ModuleType("writing")
    vars(writing).update(vars(pickle), Pickler=Twice)
    model = DetectionModel("yolo11n.yaml", verbose=False)
    model.yaml["activation"] = f"open({str(mark)!r}, 'w') and nn.SiLU()"
    torch.save({"model": model, "train_args": {}}, tmp_path / "file.pt", pickle_module=writing)
    with pytest.raises(RefusedCheckpoint, match="two states of one ultralytics"):
        check(tmp_path / "file.pt")


def test_an_object_made_without_a_call_is_looked_at_too(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(b"\x80\x02cnumpy\ndtype\nX\x01\x00\x00\x00O\x89\x88\x87\x81.")  # NEWOBJ of ("O", False, True)
    with pytest.raises(RefusedCheckpoint, match=r"a call of numpy\.dtype\('O'"):
        check(path)


def test_numbers_of_numpy_are_data(tmp_path: Path) -> None:
    numbers = [np.float64(0.5), np.float32(1), np.int64(2), np.bool_(True), np.uint8(3)]
    torch.save({"best_fitness": numbers, "train_args": {}}, tmp_path / "file.pt")
    check(tmp_path / "file.pt")
    torch.save({"best_fitness": np.datetime64("2020"), "train_args": {}}, tmp_path / "file.pt")
    with pytest.raises(RefusedCheckpoint, match="numpy"):
        check(tmp_path / "file.pt")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["net.", "net.pt.", "net.pt?.yaml", "net.yaml?.pt", "net.pt?v=1", "net", "net.bin", "net.pt.zip", "net.%70t"],
)
def test_a_name_does_not_hide_a_checkpoint(name: str, evil: Path, mark: Path) -> None:
    given = str(evil.rename(evil.with_name(name)))
    for spaced in (given, f" {given} "):
        with pytest.raises(RefusedCheckpoint, match="system"):
            check(spaced)
        with pytest.raises(RefusedCheckpoint, match="system"):
            MLCYOLO("yolo11n.yaml").load(spaced)
    assert not mark.exists()


@pytest.mark.parametrize(
    "name", ["net.onnx", "net.pt.onnx", "net.torchscript", "net.engine", "net.yaml", "net.YML", "net.pth", "net.tflite"]
)
def test_what_is_of_another_kind_is_left_alone(name: str, evil: Path) -> None:
    given = evil.rename(evil.with_name(name))
    check(given)
    check(f" {given} ")
    folder = evil.with_name("net_openvino_model")
    folder.mkdir()
    check(folder)


@pytest.mark.slow
def test_trust_is_the_way_out(evil: Path, mark: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError):  # it is no model, but it was opened
        MLCYOLO(evil, trust=True)
    assert mark.exists()
    own = tmp_path / "own.pt"
    model = DetectionModel("yolo11n.yaml", verbose=False)
    model.extra = Foreign()
    torch.save({"model": model, "train_args": {}}, own)
    with pytest.raises(RefusedCheckpoint, match="Foreign"):
        MLCYOLO(own)
    assert type(MLCYOLO(own, trust=True).model.extra) is Foreign


def test_every_argument_that_takes_a_checkpoint_is_looked_at(
    evil: Path, mark: Path, tiny_data: Path, run_dir: Path
) -> None:
    place = {**TINY, "data": str(tiny_data), "project": str(run_dir), "epochs": 1}
    net = MLCYOLO("yolo11n.yaml")
    for option in ("pretrained", "distill_model", "resume"):
        with pytest.raises(RefusedCheckpoint):
            net.train(**place, **{option: str(evil)})
        with pytest.raises(RefusedCheckpoint):
            MLCTrainer(overrides={**place, "model": "yolo11n.yaml", option: evil})
    with pytest.raises(RefusedCheckpoint):
        net.load(evil)
    with pytest.raises(RefusedCheckpoint):
        MLCTrainer(overrides={**place, "model": evil}).setup_model()
    with pytest.raises(RefusedCheckpoint):
        MLCYOLO("yolo11n-seg.yaml").train(pretrained=str(evil))
    world = evil.rename(evil.with_name("yolo-world.pt"))  # some upstream versions open this one by its name
    with pytest.raises(RefusedCheckpoint):
        MLCYOLO(world)
    odd = world.rename(evil.with_name("net.PT?version=2"))  # upstream takes what follows for a URL's query
    with pytest.raises(RefusedCheckpoint):
        net.load(odd)
    assert not mark.exists()


@pytest.mark.slow
def test_a_checkpoint_cannot_trust_itself(evil: Path, mark: Path, tiny_data: Path, tmp_path: Path) -> None:
    last = tmp_path / "last.pt"
    held = {"trust": True, "data": str(tiny_data), "distill_model": str(evil), "model": "yolo11n.yaml"}
    torch.save({"epoch": 0, "model": DetectionModel("yolo11n.yaml", verbose=False), "train_args": held}, last)
    with pytest.raises(RefusedCheckpoint, match=r"evil\.pt"):
        MLCTrainer(overrides={"resume": str(last), "model": str(last)})
    assert not mark.exists()


FETCHED = [
    *("https://example.org/data.yaml", " http://example.org/data.yaml", "HTTP:/example.org/data.zip"),
    *("gs://bucket/data.yaml", "ul://someone/project/model", ["here.yaml", "https://example.org/data.yaml"]),
    Path("https://example.org/data.zip"),
]


@pytest.mark.parametrize("data", FETCHED, ids=str)
def test_data_at_an_address_is_told_from_data_that_lies_here(data: Any) -> None:
    assert safe_load.is_fetched(data)
    with pytest.raises(RefusedCheckpoint, match=r"best\.pt was trained on .* give data="):
        safe_load.refuse_fetching(data, "best.pt")


@pytest.mark.parametrize(
    "data", [None, "coco8.yaml", "C:/data.yaml", "/a:/b.yaml", "ul://someone/datasets/name", Path("data.yaml")], ids=str
)
def test_data_that_lies_here_or_on_the_platform_is_no_reason(data: Any) -> None:
    assert not safe_load.is_fetched(data)
    safe_load.refuse_fetching(data, "best.pt")


def test_arguments_of_a_run_are_a_dict(tmp_path: Path) -> None:
    arguments = torch.nn.ModuleDict()  # Ultralytics would read its entries all the same
    arguments._modules["data"] = "https://example.org/data.yaml"  # type: ignore[assignment]
    torch.save({"model": None, "train_args": arguments}, tmp_path / "last.pt")
    with pytest.raises(RefusedCheckpoint, match="arguments of a run that are no dict"):
        check(tmp_path / "last.pt")


def test_the_command_line_refuses_and_trusts(
    evil: Path, mark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", f"model={evil}", f"source={tmp_path}"]) == 2
    assert main(["train", "resume", f"model={evil}"]) == 2
    assert "is refused" in capsys.readouterr().err and not mark.exists()
    assert main(["predict", f"model={evil}", f"source={tmp_path}", "trust=True"]) == 2
    assert "is refused" not in capsys.readouterr().err and mark.exists()


def test_looking_leaves_torchs_own_list_as_it_was(evil: Path) -> None:
    with torch.serialization.safe_globals([Foreign]):
        before = set(torch.serialization.get_safe_globals())
        with pytest.raises(RefusedCheckpoint):
            check(evil)
        assert set(torch.serialization.get_safe_globals()) == before and Foreign in before


@pytest.mark.parametrize(
    "content", [b"", b"not a model", b"PK\x05\x06" + bytes(18), b"\x89PNG\r\n"], ids=["empty", "text", "zip", "image"]
)
def test_what_is_no_checkpoint_is_said(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"file\.pt"):
        MLCYOLO(path)


def test_a_checkpoint_that_is_cut_off_is_said(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.pt", tmp_path / "cut.pt"
    YOLO("yolo11n.yaml").save(whole)
    cut.write_bytes(whole.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="cut off"):
        MLCYOLO(cut)


def test_a_torchscript_archive_is_not_opened_as_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # recent torch versions advise against them
        torch.jit.trace(torch.nn.Identity(), torch.zeros(1)).save(str(path))
    with pytest.raises(ValueError, match="TorchScript"):
        MLCYOLO(path)


# What loads -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["yolov8n", "yolo11n", "yolo12n", "yolo26n", "yolo11n-seg", "yolo11n-pose", "yolo11n-obb", "yolo11n-cls"]
)
def test_official_models_load(name: str, tmp_path: Path) -> None:
    model = YOLO(f"{name}.yaml")
    model.save(tmp_path / "plain.pt")
    assert MLCYOLO(tmp_path / "plain.pt").task == model.task
    if name == "yolo11n":
        model.fuse(verbose=False)  # its layers then hold a `forward` of their own, by getattr
        model.save(tmp_path / "fused.pt")
        assert MLCYOLO(tmp_path / "fused.pt").model.is_fused()


@pytest.mark.parametrize("module", ["ultralytics.yolo.utils.loss", "ultralytics.yolo.utils.tal"])
def test_names_of_early_versions_that_upstream_translates_are_known(module: str, tmp_path: Path) -> None:
    present = sys.modules[module.replace("yolo.", "")]
    kind = present.DFLoss if module.endswith("loss") else present.TaskAlignedAssigner
    criterion = type(kind.__name__, (kind,), {"__module__": module, "__qualname__": kind.__name__})
    former = types.ModuleType(module)
    setattr(former, kind.__name__, criterion)
    model = DetectionModel(_yaml(), verbose=False)
    model.criterion = criterion()
    with pytest.MonkeyPatch.context() as patch:  # as the version that wrote it had them
        for name in ("ultralytics.yolo", "ultralytics.yolo.utils"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, module, former)
        torch.save({"model": model, "train_args": {}}, tmp_path / "early.pt")
    assert type(MLCYOLO(tmp_path / "early.pt").model.criterion).__name__ == kind.__name__


@pytest.mark.slow
def test_a_model_with_an_activation_of_its_own_loads(tmp_path: Path) -> None:
    model = DetectionModel({**DetectionModel("yolo11n.yaml", verbose=False).yaml, "activation": "nn.LeakyReLU(0.1)"})
    torch.save({"model": model, "train_args": {}}, tmp_path / "own.pt")
    assert MLCYOLO(tmp_path / "own.pt").model.yaml["activation"] == "nn.LeakyReLU(0.1)"


@pytest.mark.parametrize("weights", [None, "None"])
def test_a_torchvision_layer_without_weights_is_data(weights: str | None) -> None:
    config = _torchvision("resnet18", weights, True, 2)["yaml"]
    assert model_yaml.program_in(config) is None
    fetching = _torchvision("resnet18", "DEFAULT", True, 2)["yaml"]
    assert model_yaml.without_fetching(fetching) == _torchvision("resnet18", None, True, 2)["yaml"]
    assert model_yaml.program_in(fetching), "left as it was"
    assert model_yaml.program_in(model_yaml.without_fetching(_torchvision("resnet18")["yaml"])) is None


@pytest.mark.slow
def test_what_official_training_writes_loads(tiny_data: Path, run_dir: Path) -> None:
    saved: list[Any] = []
    stock = YOLO(SMALL)
    stock.add_callback("on_model_save", lambda trainer: saved.append(check(trainer.last)))
    stock.train(data=str(tiny_data), project=str(run_dir), name="run", **{**TINY, "epochs": 1})
    assert saved == [None], "with optimizer and average"
    for name in ("best.pt", "last.pt"):
        assert MLCYOLO(run_dir / "run" / "weights" / name).task == "detect"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["yolo11", "retinanet", "fcos", "pafpn-r18"])
def test_every_file_of_a_run_loads(kind: str, tiny_data: Path, run_dir: Path) -> None:
    small = {"nc": 3, "width": 32, "levels": 4}
    source: str | Path = SMALL
    if "-" in kind:
        source = run_dir / f"{kind}.yaml"
        YAML.save(source, {**YAML.load(resource_dir("cfg") / "models" / source.name), **small})
    elif kind != "yolo11":
        source = detector_yaml(run_dir, kind)
    net, looked = MLCYOLO(source), []
    net.add_callback("on_model_save", lambda t: looked.extend(check(file) for file in t.wdir.iterdir()))
    train(net, tiny_data, run_dir / "run", save_period=1)
    assert looked == [None] * 3, "last.pt with all of the run's state, best.pt and epoch0.pt"
    files = sorted((run_dir / "run" / "weights").iterdir())
    assert [file.name for file in files] == [
        *("best.pt", "best.safetensors", "epoch0.pt", "last.pt", "last.safetensors")
    ]
    image = torch.rand(1, 3, 64, 64)
    models = [MLCYOLO(file).model for file in files]
    with torch.no_grad():
        outputs = [model(image)[0] for model in models]
    for pickled, plain in ((0, 1), (3, 4)):
        states = [models[index].state_dict() for index in (pickled, plain)]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        torch.testing.assert_close(outputs[pickled], outputs[plain], rtol=0, atol=1e-5)  # where memory lies may round
    if kind == "yolo11n":
        check(MLCYOLO(files[0]).export(format="stock"))
