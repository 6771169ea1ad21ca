"""Voting, choosing and ordering by placement, in prediction, tracking and validation of every kind of head."""

from __future__ import annotations

from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectors.lively import lively_detector
from nets import SMALL_NETS, enliven
from own_labels import labelled_by, noise
from torch import Tensor
from ultralytics.nn.tasks import DetectionModel

from mlc_yolo import MLCYOLO
from mlc_yolo.boxes import pairwise_iou
from mlc_yolo.evaluation.placement import Placement, Placing, placed_detections
from mlc_yolo.evaluation.postprocess import detections_with_anchors, extra_channels

SIZE = 96
NMS: dict[str, Any] = {"confidence": 0.1, "iou_threshold": 0.6, "max_det": 50, "agnostic": False, "multi_label": True}
VOTE = Placing(vote=True, vote_iou=0.3, vote_sigma=0.3, min_iou=0, by_iou=False)


def batch(seed: int = 0, images: int = 2) -> Tensor:
    return torch.rand(images, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def yolo(name: str = "yolov8n") -> DetectionModel:
    """A stock YOLO with lively outputs; of YOLO26, the branch that needs NMS."""
    torch.manual_seed(0)
    model = DetectionModel(f"{name}.yaml", nc=3, verbose=False).eval()
    model.end2end = False
    enliven(model, batch())
    return model


@pytest.fixture
def image() -> np.ndarray:
    """61 x 97 px: neither side fits a stride."""
    return np.random.default_rng(0).integers(0, 256, (61, 97, 3), dtype=np.uint8)


@pytest.fixture
def opened(tmp_path: Path) -> Any:
    """A function: model -> `MLCYOLO` of its checkpoint."""

    def make(model: Any) -> MLCYOLO:
        model.args = {"task": "detect", "imgsz": SIZE}
        model.names = {0: "square", 1: "disc", 2: "cross"}
        torch.save({"model": model, "train_args": {}}, tmp_path / "model.pt")
        return MLCYOLO(tmp_path / "model.pt")

    return make


def spread(raw: dict[str, Any], strides: Tensor, image: int, anchor: int) -> list[float]:
    """Return the variance of each side of one anchor's box, in Python's own numbers."""
    found = []
    for side in raw["boxes"][image, :, anchor].double().reshape(4, -1).tolist():
        weights = [exp(logit) for logit in side]
        mean = sum(k * w for k, w in enumerate(weights)) / sum(weights)
        variance = sum(w * (k - mean) ** 2 for k, w in enumerate(weights)) / sum(weights)
        found.append(variance * float(strides[anchor]) ** 2)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("multi_label", [True, False])
@pytest.mark.parametrize("name", ["yolov8n", "yolo26n", "retinanet"])
def test_detections_become_the_mean_of_the_candidates_that_nms_saw(name: str, multi_label: bool) -> None:
    model: Any = lively_detector(name, quality="none", width=32, nc=3) if name == "retinanet" else yolo(name)
    options = {**NMS, "multi_label": multi_label}
    with torch.no_grad():
        dense, raw = model(batch())
    placement = Placement(model, (dense, raw))
    plain, anchors = detections_with_anchors(dense.clone(), (), **options)
    voted, same = placed_detections((dense, raw), (), VOTE, placement, **options)
    known = name == "yolov8n"
    strides = model.model[-1].strides.flatten() if known else None
    moved = 0.0
    for i in range(2):
        assert torch.equal(anchors[i], same[i]) and torch.equal(plain[i][:, 4:], voted[i][:, 4:])
        scores = dense[i, 4:].T
        pairs = [(a, c) for a, c in (scores > 0.1).nonzero().tolist() if multi_label or c == int(scores[a].argmax())]
        centre, half = dense[i, :2].T, dense[i, 2:4].T / 2
        boxes = torch.cat((centre - half, centre + half), 1)
        spreads = {a: spread(raw, strides, i, a) for a, _ in pairs} if strides is not None else {}
        for row, result, anchor in zip(plain[i], voted[i], anchors[i], strict=True):
            rivals = [a for a, c in pairs if c == int(row[5])]
            overlaps = dict(zip(rivals, pairwise_iou(boxes[anchor][None], boxes[rivals])[0].tolist(), strict=True))
            for side in range(4):
                weights = {
                    a: float(scores[a, int(row[5])]) * exp(-((1 - iou) ** 2) / 0.3) / spreads.get(a, [1] * 4)[side]
                    for a, iou in overlaps.items()
                    if iou > 0.3
                }
                mean = float(row[side])  # a box of no area overlaps nothing, and stays
                if weights:
                    mean = sum(w * float(boxes[a, side]) for a, w in weights.items()) / sum(weights.values())
                assert float(result[side]) == pytest.approx(mean, abs=0.01)
                moved = max(moved, abs(mean - float(row[side])))
    assert moved > 1 and sum(map(len, plain)) > 20


def test_classes_compete_in_the_vote_where_they_do_in_nms_and_levels_never() -> None:
    two = torch.tensor([[[50.0, 52], [50, 50], [20, 20], [20, 20], [0.8, 0.1], [0.1, 0.8]]])
    placing = Placing(vote=True, vote_iou=0.5, vote_sigma=1, min_iou=0, by_iou=False)

    def voted(dense: Tensor, extras: tuple[str, ...] = (), **options: Any) -> list[float]:
        chosen = {**NMS, "confidence": 0.3, "iou_threshold": 0.95, **options}
        (rows,), _ = placed_detections(dense, extras, placing, Placement(torch.nn.Identity(), dense), **chosen)
        return sorted(((rows[:, 0] + rows[:, 2]) / 2).tolist())

    assert voted(two) == [50, 52]
    assert voted(two, agnostic=True) == [pytest.approx(51, abs=0.2)] * 2
    assert voted(two, agnostic=True, classes=[1]) == [52]
    two[:, 4:] = 0.8
    levels = torch.cat((two, torch.tensor([[[0.0, 1]]])), 1)
    assert voted(levels, ("level",), multi_label=False) == [50, 52]
    one = torch.cat((two, torch.zeros(1, 1, 2)), 1)
    assert voted(one, ("level",), multi_label=False) == [pytest.approx(51, abs=0.2)] * 2
    sure = torch.cat((two, torch.tensor([[[1.0, 1e-6]]])), 1)
    assert voted(sure, ("iou",), multi_label=False, iou_threshold=0.99) == [pytest.approx(50, abs=1e-3)] * 2
    assert voted(sure, ("iou",), multi_label=False, classes=[1]) == [pytest.approx(50, abs=1e-3)] * 2


def test_an_empty_batch_and_images_without_candidates_have_no_detections() -> None:
    nothing = torch.zeros(2, 7, 5)
    for dense in (nothing, nothing[:0]):
        rows, anchors = placed_detections(dense, (), VOTE, Placement(torch.nn.Identity(), dense), **NMS)
        assert [len(each) for each in rows] == [len(each) for each in anchors] == [0] * len(dense)


def test_predictions_say_how_sure_each_side_is_in_pixels_of_the_image(opened: Any) -> None:
    net = opened(yolo())
    image = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    small = net.predict(image, imgsz=SIZE, conf=0.1, verbose=False)[0].boxes
    twice = image.repeat(2, 0).repeat(2, 1)  # which is brought back to the same input
    large = net.predict(twice, imgsz=SIZE, conf=0.1, verbose=False)[0].boxes
    assert len(small) == len(large) > 5 and small.iou.isnan().all()
    assert small.sigma.shape == (len(small), 4) and (small.sigma > 0).all()
    torch.testing.assert_close(large.xyxy, 2 * small.xyxy, rtol=0, atol=1e-3)
    torch.testing.assert_close(large.sigma, 2 * small.sigma, rtol=1e-4, atol=1e-4)

    predicting = net.predictor.model.model
    with torch.no_grad():
        dense, raw = predicting(torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None] / 255)
    strides = predicting.model[-1].strides.flatten()
    chosen = {**NMS, "iou_threshold": 0.7, "multi_label": False, "max_det": 300}
    _, (anchors,) = detections_with_anchors(dense, (), **chosen)
    for anchor, sigmas in zip(anchors.tolist(), small.sigma.tolist(), strict=True):
        assert sigmas == [pytest.approx(variance**0.5, rel=1e-3) for variance in spread(raw, strides, 0, anchor)]


def test_a_warped_image_has_a_scale_for_each_axis(opened: Any) -> None:
    net = opened(yolo())
    image = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    square = net.predict(image, imgsz=SIZE, conf=0.1, verbose=False, resize="warp")[0].boxes
    wide = net.predict(image.repeat(3, 1), imgsz=SIZE, conf=0.1, verbose=False, resize="warp")[0].boxes
    assert len(square) == len(wide) > 5
    scale = torch.tensor([3.0, 1, 3, 1])
    torch.testing.assert_close(wide.sigma, square.sigma * scale, rtol=0.02, atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["yolo11n", "retinanet", "fcos"])
def test_predictions_say_the_iou_that_the_head_predicts_for_each_box(
    kind: str, image: np.ndarray, opened: Any, iou_aware: Any
) -> None:
    model = iou_aware(kind, batch()) if kind == "yolo11n" else lively_detector(kind, quality="iou", width=64, nc=3)
    net = opened(model)
    for chosen in ({"rescore": True}, {"rescore": False}, {"nms_by": "iou"}):
        boxes = net.predict(image, imgsz=SIZE, conf=0.05, verbose=False, **chosen)[0].boxes
        assert len(boxes) > 5 and ((boxes.iou > 0) & (boxes.iou < 1)).all() and boxes.iou.std() > 0.01
        assert boxes.sigma.isnan().all() == (kind != "yolo11n")
    # ranked by it, the score being the class score alone: an extra channel says which IoU belongs to which box
    net.model.model[-1].rank_by_iou = True
    with torch.no_grad():
        dense, raw = net.model.eval()(batch(3))
    placement = Placement(net.model, (dense, raw))
    rows, anchors = placed_detections((dense, raw), extra_channels(net.model), VOTE, placement, **NMS)
    for i, anchor in enumerate(anchors):
        assert len(rows[i]) > 3
        torch.testing.assert_close(placement.ious(i, anchor), dense[i, -1, anchor])


@pytest.mark.slow
def test_detections_are_chosen_and_ordered_by_their_predicted_iou(
    image: np.ndarray, opened: Any, iou_aware: Any
) -> None:
    net = opened(iou_aware("yolo11n", batch()))
    chosen = {"imgsz": SIZE, "conf": 0.05, "verbose": False}
    every = net.predict(image, **chosen)[0].boxes
    bar = float(every.iou.median())
    placed = net.predict(image, min_iou=bar, **chosen)[0].boxes
    assert 0 < len(placed) < len(every) and torch.equal(placed.data, every.data[every.iou >= bar])
    ordered = net.predict(image, sort="iou", min_iou=bar, **chosen)[0].boxes
    order = placed.iou.argsort(descending=True, stable=True)
    assert torch.equal(ordered.data, placed.data[order]) and not torch.equal(ordered.data, placed.data)
    assert torch.equal(net.predict(image, **chosen)[0].boxes.data, every.data), "each choice is for one call"


def test_voting_is_off_unless_asked_for_and_moves_boxes_alone(image: np.ndarray, opened: Any) -> None:
    net = opened(yolo())
    chosen = {"imgsz": SIZE, "conf": 0.1, "verbose": False}
    plain, voted, again = (
        net.predict(image, vote=vote, vote_iou=0.3, **chosen)[0].boxes for vote in (False, True, False)
    )
    assert torch.equal(plain.data, again.data) and torch.equal(plain.data[:, 4:], voted.data[:, 4:])
    assert (plain.xyxy - voted.xyxy).abs().max() > 0.5 and torch.equal(plain.sigma, voted.sigma)


@pytest.mark.slow
def test_what_is_not_known_is_refused_by_name(image: np.ndarray, opened: Any, iou_aware: Any, tiny_data: Path) -> None:
    chosen = {"imgsz": SIZE, "verbose": False}
    stock = opened(yolo())
    for asked in ({"min_iou": 0.5}, {"sort": "iou"}):
        with pytest.raises(ValueError, match=f"{next(iter(asked))}=.*predicted IoU.*of this model"):
            stock.predict(image, **asked, **chosen)
        with pytest.raises(ValueError, match="predicted IoU"):
            stock.val(data=tiny_data, plots=False, workers=0, **asked, **chosen)
    aware = opened(iou_aware("yolo11n", batch()))
    with pytest.raises(ValueError, match="augment=True"):
        aware.predict(image, min_iou=0.5, augment=True, **chosen)
    ending = yolo("yolo26n")
    ending.end2end = True
    with pytest.raises(ValueError, match="end2end=False"):
        opened(ending).predict(image, vote=True, nms=False, **chosen)
    final = torch.zeros(1, 5, 6)
    with pytest.raises(ValueError, match="nms=True"):
        placed_detections(final, (), VOTE, Placement(torch.nn.Identity(), final), **NMS)


def test_augmented_prediction_votes_over_all_views_and_knows_no_more(image: np.ndarray, opened: Any) -> None:
    net = opened(yolo())
    chosen = {"imgsz": SIZE, "conf": 0.1, "verbose": False, "augment": True}
    plain, voted = (net.predict(image, vote=vote, vote_iou=0.3, **chosen)[0].boxes for vote in (False, True))
    assert plain.sigma.isnan().all() and (plain.xyxy - voted.xyxy).abs().max() > 0.5


@pytest.mark.slow
def test_an_exported_file_votes_without_variances_and_knows_no_more(image: np.ndarray, opened: Any) -> None:
    net = opened(yolo())
    exported = MLCYOLO(net.export(format="torchscript", imgsz=SIZE, verbose=False), task="detect")
    chosen = {"imgsz": SIZE, "conf": 0.1, "verbose": False}
    plain, voted = (exported.predict(image, vote=vote, vote_iou=0.3, **chosen)[0].boxes for vote in (False, True))
    assert torch.equal(plain.data[:, 4:], voted.data[:, 4:]) and (plain.xyxy - voted.xyxy).abs().max() > 0.5
    assert plain.iou.isnan().all() and voted.sigma.isnan().all()
    with pytest.raises(ValueError, match="its export with placement=True"):
        exported.predict(image, min_iou=0.5, **chosen)


def test_a_benchmark_refuses_what_upstream_s_validation_of_a_file_would_ignore() -> None:
    net = MLCYOLO(SMALL_NETS["yolov8n"])
    for asked in ({"vote": True}, {"min_iou": 0.5}, {"coco_eval": True}):
        with pytest.raises(ValueError, match="does not go with benchmark"):
            net.benchmark(data="demo.yaml", format="onnx", imgsz=64, **asked)


@pytest.mark.slow
def test_tracks_know_the_placement_of_the_detections_they_follow(
    image: np.ndarray, opened: Any, iou_aware: Any, tmp_path: Path
) -> None:
    net = opened(iou_aware("yolo11n", batch()))
    tracker = tmp_path / "tracker.yaml"
    tracker.write_text(
        "tracker_type: bytetrack\ntrack_high_thresh: 0.1\ntrack_low_thresh: 0.05\nnew_track_thresh: 0.1\n"
        "track_buffer: 30\nmatch_thresh: 0.8\nfuse_score: True\n"
    )
    chosen = {"imgsz": SIZE, "conf": 0.1, "verbose": False}
    detected = net.predict(image, **chosen)[0].boxes
    tracks = net.track(image, tracker=str(tracker), **chosen)[0].boxes
    assert tracks.is_track and len(tracks) > 3
    for track in tracks:
        match = (detected.conf == track.conf).nonzero().item()  # scores are all different
        assert track.iou == detected.iou[match] and torch.equal(track.sigma[0], detected.sigma[match])


@pytest.mark.slow
def test_validation_votes_and_chooses_as_prediction_does(opened: Any, iou_aware: Any, tiny_data: Path) -> None:
    net = opened(iou_aware("yolo11n", batch()))
    seen: list[list[Tensor]] = []

    def validate(**asked: Any) -> list[Tensor]:
        from mlc_yolo.evaluation.validator import MLCValidator

        class Keeping(MLCValidator):
            def postprocess(self, preds: Any) -> list[dict[str, Tensor]]:
                images = super().postprocess(preds)
                seen[-1].extend(torch.cat((x["bboxes"], x["conf"][:, None]), 1) for x in images)
                return images

        seen.append([])
        net.val(Keeping, data=tiny_data, imgsz=SIZE, plots=False, workers=0, verbose=False, conf=0.1, **asked)
        return seen[-1]

    plain, voted = validate(), validate(vote=True, vote_iou=0.3)
    assert len(plain) == len(voted) == 4
    for before, after in zip(plain, voted, strict=True):
        assert torch.equal(before[:, 4], after[:, 4])
    assert max(float((a - b).abs().max()) for a, b in zip(plain, voted, strict=True) if len(a)) > 0.5
    assert 0 < sum(map(len, validate(min_iou=0.6))) < sum(map(len, plain))


@pytest.mark.slow
def test_calibration_makes_deviations_honest_here_and_in_the_checkpoint(
    opened: Any, tmp_path: Path, image: np.ndarray
) -> None:
    net = opened(yolo())
    data = labelled_by(net, tmp_path, noise(SIZE))
    before = net.predict(image, imgsz=SIZE, conf=0.1, verbose=False)[0].boxes
    chosen: dict[str, Any] = {
        "data": data,
        "imgsz": SIZE,
        "rect": False,
        "plots": False,
        "workers": 0,
        "verbose": False,
    }
    stated = net.val(**chosen).coverage
    assert stated.count > 10 and abs(stated.factor - 1) > 0.02, "the untrained net has something to put right"
    net.val(**chosen, calibrate=True)
    for other in (net, MLCYOLO(net.ckpt_path)):
        boxes = other.predict(image, imgsz=SIZE, conf=0.1, verbose=False)[0].boxes
        assert torch.equal(boxes.data, before.data)
        torch.testing.assert_close(boxes.sigma, before.sigma * stated.factor)
        assert other.val(**chosen).coverage.factor == pytest.approx(1, rel=1e-4)
    state = MLCYOLO(net.ckpt_path).model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in yolo().state_dict().items()), "weights stay"


@pytest.mark.slow
def test_calibration_needs_a_checkpoint_of_a_head_with_distributions(opened: Any, tiny_data: Path) -> None:
    chosen: dict[str, Any] = {"data": tiny_data, "imgsz": SIZE, "plots": False, "workers": 0, "verbose": False}
    with pytest.raises(ValueError, match="writes to a checkpoint"):
        MLCYOLO(SMALL_NETS["yolov8n"]).val(**chosen, calibrate=True)
    net = opened(lively_detector("fcos", quality="iou", width=64, nc=3))
    kept = Path(net.ckpt_path).read_bytes()
    with pytest.raises(ValueError, match="distributions"):
        net.val(**chosen, calibrate=True)
    assert Path(net.ckpt_path).read_bytes() == kept
