"""The IoU channel on heads of segmentation, pose and oriented boxes, against the stock heads they extend."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import enliven
from task_sets import write_net
from ultralytics.utils.export.executorch import executorch_wrapper

from mlc_yolo import MLCYOLO
from mlc_yolo.checkpoints.stock_export import needs_stock, to_stock
from mlc_yolo.heads.iou_aware import add_iou_channel, has_iou_channel, rank_by_iou, set_rescore, stock_head

TASKS = ["segment", "pose", "obb"]
HEADS = [(task, family) for task in TASKS for family in (11, 26)]
Pair = tuple[Any, Any]


def _image() -> torch.Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def _decoded(model: Any, image: torch.Tensor | None = None) -> torch.Tensor:
    """What NMS gets: boxes, confidences and the task's values."""
    (output, *_) = model(_image() if image is None else image)
    decoded: torch.Tensor = output[0] if isinstance(output, tuple) else output  # a head of masks adds its prototypes
    return decoded


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Pair]:
    """A function (task, family) -> a stock model, and the same with a channel that differs from anchor to anchor."""

    @cache
    def make(task: str, family: int) -> Pair:
        torch.manual_seed(0)
        aware = MLCYOLO(write_net(tmp_path_factory.getbasetemp(), task, family)).model.eval()
        add_iou_channel(aware.model[-1])
        enliven(aware, _image())
        aware.end2end = False
        stock = deepcopy(aware)
        head = stock.model[-1]
        head.__class__ = stock_head(head)
        for channel in ("cv_iou", "one2one_cv_iou"):
            head._modules.pop(channel, None)
        return stock, aware

    return make


@pytest.mark.parametrize(("task", "family"), HEADS)
def test_confidence_is_class_score_times_quality_and_all_else_is_the_stock_heads(
    task: str, family: int, pair: Callable[[str, int], Pair]
) -> None:
    stock, aware = pair(task, family)
    expected, decoded, raw = _decoded(stock), _decoded(aware), aware(_image())[1]
    quality = raw.get("one2many", raw)["iou"].sigmoid()
    classes = slice(4, 4 + stock.model[-1].nc)
    assert quality.shape == (2, 1, expected.shape[2]) and quality.std() > 0.05
    torch.testing.assert_close(decoded[:, classes], expected[:, classes] * quality)
    assert torch.equal(decoded[:, :4], expected[:, :4]) and torch.equal(
        decoded[:, classes.stop :], expected[:, classes.stop :]
    )
    set_rescore(aware, False)
    assert torch.equal(_decoded(aware), expected)
    set_rescore(aware, True)
    fresh = deepcopy(stock)
    add_iou_channel(fresh.model[-1])
    torch.testing.assert_close(_decoded(fresh)[:, classes], expected[:, classes] / (1 + math.exp(-5)))


@pytest.mark.parametrize(("task", "family"), HEADS)
def test_the_stock_rewrite_and_fusing_change_scores_by_rounding_alone(
    task: str, family: int, pair: Callable[[str, int], Pair]
) -> None:
    stock, aware = pair(task, family)
    rewritten, expected = to_stock(aware), _decoded(aware)
    assert not has_iou_channel(rewritten) and type(rewritten.model[-1]) is type(stock.model[-1])
    assert type(rewritten) is type(stock) and "mlc" not in rewritten.yaml
    assert (_decoded(rewritten) - expected)[:, 4:6].abs().max() < 1e-6
    fused = deepcopy(aware).fuse(verbose=False)
    assert (_decoded(fused) - expected)[:, 4:6].abs().max() < 1e-4
    half = _decoded(deepcopy(aware).half(), _image().half()).float()
    assert (half - expected)[:, 4:6].abs().max() < 0.03


@pytest.mark.parametrize("task", TASKS)
def test_the_one_to_one_branch_ranks_by_a_channel_of_its_own(task: str, pair: Callable[[str, int], Pair]) -> None:
    aware = deepcopy(pair(task, 26)[1])
    aware.end2end = True
    raw = aware(_image())[1]["one2one"]
    scores = (raw["scores"].sigmoid() * raw["iou"].sigmoid()).flatten(1).sort(descending=True).values
    best = _decoded(aware)[..., 4]
    torch.testing.assert_close(best, scores[:, : best.shape[1]])
    assert aware.fuse(verbose=False).model[-1].cv_iou is None
    torch.testing.assert_close(_decoded(aware)[..., 4], best, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(_decoded(to_stock(aware))[..., 4], best, rtol=1e-3, atol=1e-4)


def test_exporters_that_decode_keypoints_by_the_heads_class_are_given_the_rewrite(
    pair: Callable[[str, int], Pair],
) -> None:
    aware = pair("pose", 26)[1]
    for task, family in HEADS:
        asked = [needs_stock(pair(task, family)[1], target) for target in ("imx", "executorch", "edgetpu", "onnx")]
        assert asked == [True, *[(task, family) == ("pose", 26)] * 2, False]
    assert not needs_stock(pair("pose", 26)[0], "executorch")
    expected, rewritten = (_decoded(model)[:, -6:] for model in (aware, executorch_wrapper(to_stock(aware))))
    torch.testing.assert_close(rewritten, expected)
    assert (_decoded(executorch_wrapper(deepcopy(aware)))[:, -6:] - expected).abs().max() > 1  # as an older head's


def test_ranking_in_nms_by_the_channel_is_refused_with_the_reason(pair: Callable[[str, int], Pair]) -> None:
    with pytest.raises(ValueError, match="nms_by=iou ranks in the NMS of detection models alone"):
        rank_by_iou(pair("segment", 11)[1].model[-1], True)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "family"), [("segment", 11), ("pose", 26), ("obb", 11)])
def test_an_onnx_file_gives_what_pytorch_gives(
    task: str, family: int, pair: Callable[[str, int], Pair], tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    net = MLCYOLO(write_net(tmp_path, task, family))
    net.model = deepcopy(pair(task, family)[1])
    expected = _decoded(net.model, _image()[:1]).detach().numpy()
    file = net.export(format="onnx", imgsz=[64, 96], simplify=False)
    decoded = onnxruntime.InferenceSession(file).run(None, {"images": _image()[:1].numpy()})[0]
    np.testing.assert_allclose(decoded[:, 4:6], expected[:, 4:6], atol=1e-4)
    np.testing.assert_allclose(decoded, expected, rtol=1e-3, atol=1e-2)
