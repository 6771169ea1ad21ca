"""Starting from torchvision's weights: ImageNet backbones, and its own RetinaNet and FCOS.

A source is a state-dict file (`.pth`) or the name of a torchvision weight enum such as
`RetinaNet_ResNet50_FPN_Weights.COCO_V1`, which torchvision downloads. Its tensors' names say what it holds.

A detector's state dict makes the model follow torchvision's conventions, so that it gives torchvision's own boxes. Of
its 91 COCO outputs the 80 that stand for a class are kept, in COCO's order, which is Ultralytics' too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models import get_weight
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights
from ultralytics.utils import LOGGER

from mlc_yolo.detectors.config import fill_empty
from mlc_yolo.detectors.model import DetectorModel

_PREFIXES = {"backbone.body.": "model.0.body.", "backbone.fpn.": "model.1.fpn.", "head.": "model.2."}
_ENUM = re.compile(r"^\w+_Weights\.\w+$")
_ANCHORS = {"retinanet": 9, "fcos": 1}


def is_torchvision(source: Any) -> bool:
    """Return whether a `pretrained` value names torchvision weights: a .pth file or a weight enum."""
    return isinstance(source, str | Path) and (Path(source).suffix == ".pth" or bool(_ENUM.match(str(source))))


def start_from(
    config: Mapping[str, Any], source: str | Path, *, nc: int | None = None, verbose: bool = True
) -> DetectorModel:
    """Build a detector and put torchvision's weights into it.

    Args:
        config: a complete detector configuration.
        source: a .pth state dict or the name of a weight enum.
        nc: classes of the model; None takes the source's, where it has any.
        verbose: log what was loaded.

    Returns:
        The model. Class layers of another width start fresh.

    Raises:
        FileNotFoundError: no such file.
        OSError: an enum's weights that cannot be downloaded.
        ValueError: the weights do not fit this detector.
    """
    state = _read(source)
    kind = _kind(state, source)
    if kind == "backbone":
        model = DetectorModel(fill_empty(config, pretrained=True), nc=nc, verbose=False)
        _load_backbone(model, state, source, verbose)
        return model
    if kind != config["detector"]:
        raise ValueError(
            f"pretrained={source} holds torchvision's {kind}, but the model is a {config['detector']}; "
            f"use model={kind}-r50-fpn.yaml, or other weights"
        )
    if kind == "retinanet":
        state = {_todays_tower(name): value for name, value in state.items()}
        if "head.classification_head.conv.0.1.weight" in state:
            raise ValueError(
                f"pretrained={source} is torchvision's second RetinaNet (v2), whose towers have group norm; "
                "this model is the first: use RetinaNet_ResNet50_FPN_Weights.COCO_V1"
            )
    state = {_todays_pyramid(name): value for name, value in state.items()}
    state, names = _coco80(state, _ANCHORS[kind])
    classes = len(state["head.classification_head.cls_logits.bias"]) // _ANCHORS[kind]
    published = state.pop("norm_eps", None)
    settled = {
        **fill_empty(config, pretrained=True),
        "follows": "torchvision",
        "norm_eps": config["norm_eps"] if published is None else float(published),
        "quality": config["quality"] or ("centerness" if kind == "fcos" else "iou"),
    }
    model = DetectorModel(settled, nc=nc or classes, verbose=False)
    if nc in (None, classes) and names:
        model.names = dict(enumerate(names))
    _load_detector(model, state, source, verbose)
    return model


def _read(source: str | Path) -> dict[str, Tensor]:
    if _ENUM.match(str(source)):
        try:
            weights = get_weight(str(source))
        except (ValueError, AttributeError, KeyError) as error:
            raise ValueError(f"pretrained={source} is not a weight enum of torchvision: {error}") from error
        try:
            state = dict(weights.get_state_dict(progress=True, check_hash=True))
        except OSError as error:
            raise OSError(
                f"pretrained={source} could not be downloaded ({error}); "
                f"download {weights.url} on another machine and give the file"
            ) from error
        if weights is RetinaNet_ResNet50_FPN_Weights.COCO_V1:
            state["norm_eps"] = torch.tensor(0.0)  # trained before torchvision's normalisation had an epsilon
        return state
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"pretrained={source}: no such file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"pretrained={source} is not a state dict that loads without running code: {error}") from error
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"pretrained={source} must hold a state dict, with names and tensors only")
    if path.name.startswith("retinanet_resnet50_fpn_coco-"):
        state["norm_eps"] = torch.tensor(0.0)
    return dict(state)


def _kind(state: Mapping[str, Tensor], source: Any) -> str:
    if "conv1.weight" in state and any(name.startswith("layer4.") for name in state):
        return "backbone"
    if "features.0.weight" in state and "classifier.0.weight" in state:
        return "backbone"
    if "head.classification_head.cls_logits.weight" in state:
        return "fcos" if "head.regression_head.bbox_ctrness.weight" in state else "retinanet"
    raise ValueError(
        f"pretrained={source} is neither a torchvision ResNet nor VGG nor torchvision's RetinaNet or FCOS; "
        f"its tensors are called {', '.join(list(state)[:3])}, ..."
    )


def _load_backbone(model: DetectorModel, state: Mapping[str, Tensor], source: Any, verbose: bool) -> None:
    body: Any = model.get_submodule("model.0.body")
    wanted = body.state_dict()
    classifier = ("fc.", "classifier.")
    tensors = {name.removeprefix("features."): v for name, v in state.items() if not name.startswith(classifier)}
    _refuse_misfits(wanted, tensors, f"pretrained={source} does not fit backbone={model.yaml['backbone']}")
    body.load_state_dict(tensors, strict=False)
    if verbose:
        LOGGER.info(f"Backbone from {source}: {len(wanted)} tensors, norm {model.yaml['norm']}, frozen {model.frozen}")


def _load_detector(model: DetectorModel, state: Mapping[str, Tensor], source: Any, verbose: bool) -> None:
    tensors = {}
    for name, value in state.items():
        prefix = next((p for p in _PREFIXES if name.startswith(p)), None)
        if prefix is not None:
            tensors[_PREFIXES[prefix] + name.removeprefix(prefix)] = value
    wanted = model.state_dict()
    ours: tuple[str, ...] = ("cv_iou", "model.0.mean", "model.0.std")
    unused = "bbox_ctrness" if model.yaml["quality"] != "centerness" else None
    tensors = {name: value for name, value in tensors.items() if unused is None or unused not in name}
    for name in [n for n in tensors if ".cls_logits." in n and n in wanted and wanted[n].shape != tensors[n].shape]:
        if verbose:
            LOGGER.info(f"{name} starts fresh: {len(tensors[name])} outputs there, {len(wanted[name])} here")
        ours, tensors = (*ours, name), {n: v for n, v in tensors.items() if n != name}
    required = {name: value for name, value in wanted.items() if not any(part in name for part in ours)}
    _refuse_misfits(required, tensors, f"pretrained={source} does not fit model {model.yaml['detector']}")
    model.load_state_dict(tensors, strict=False)
    if verbose:
        eps = model.yaml["norm_eps"]
        LOGGER.info(
            f"{len(tensors)} tensors from {source}; the model follows torchvision's conventions, "
            f"quality {model.yaml['quality']}, norm_eps {1e-5 if eps is None else eps:g}"
        )


def _todays_pyramid(name: str) -> str:
    """Return today's name of a pyramid's tensor in weights published before torchvision 0.13."""
    return re.sub(r"(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2", name)


def _todays_tower(name: str) -> str:
    """Return today's name of a RetinaNet tower's tensor in such weights: convolutions 0, 2, 4, 6 are 0 to 3 now."""
    return re.sub(r"(_head\.conv)\.(\d)\.(weight|bias)$", lambda m: f"{m[1]}.{int(m[2]) // 2}.0.{m[3]}", name)


def _refuse_misfits(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], complaint: str) -> None:
    """Compare names and shapes; counters of normalisation batches may be on either side."""
    names = {name for name in wanted if not name.endswith("num_batches_tracked")}
    extra = {name for name in tensors if not name.endswith("num_batches_tracked")} - names
    wrong = [name for name in names if name in tensors and wanted[name].shape != tensors[name].shape]
    missing = names - set(tensors)
    for what, misfits in (("missing", missing), ("not of this model", extra), ("of another shape", wrong)):
        if misfits:
            listed = ", ".join(sorted(misfits)[:3])
            raise ValueError(f"{complaint}: {len(misfits)} tensors {what}, such as {listed}")


def _coco80(state: dict[str, Tensor], anchors: int) -> tuple[dict[str, Tensor], list[str] | None]:
    """Drop the outputs of torchvision's 91 that stand for no class; return the classes' names where it is COCO."""
    names = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    prefix = "head.classification_head.cls_logits."
    if len(state[f"{prefix}bias"]) != anchors * len(names):
        return state, None
    real = [i for i, name in enumerate(names) if name not in ("__background__", "N/A")]
    kept = {
        f"{prefix}{part}": state[f"{prefix}{part}"].unflatten(0, (anchors, len(names)))[:, real].flatten(0, 1)
        for part in ("weight", "bias")
    }
    return {**state, **kept}, [names[i] for i in real]
