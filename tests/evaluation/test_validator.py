"""Real validations of small biased models: upstream's numbers untouched, ours beside them, every mode and odd input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from nets import SMALL
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import stats
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer, DetectionValidator
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.plotting import plot_results

from mlc_yolo.evaluation.detection_metrics import MLCMetrics
from mlc_yolo.evaluation.divergence_rows import PLOT_NAME
from mlc_yolo.evaluation.validator import MLCValidator
from mlc_yolo.metrics.coco import NAMES
from mlc_yolo.metrics.divergence import IOU, SCORE

SPEARMAN, POOLED = "metrics/spearman(B)", "metrics/spearman_pooled(B)"
COCO_KEYS = [f"metrics/coco_{name}" for name in NAMES]


def biased_model(name: str, *, score_bias: float = -2.0, score_std: float = 0.1) -> DetectionModel:
    """An untrained model whose scores spread around sigmoid(score_bias) and whose boxes are a few cells wide."""
    torch.manual_seed(0)
    model = DetectionModel(f"{name}.yaml", nc=3, verbose=False)
    head = model.model[-1]
    for prefix in ("", "one2one_") if hasattr(head, "one2one_cv2") else ("",):
        for box, score in zip(getattr(head, f"{prefix}cv2"), getattr(head, f"{prefix}cv3"), strict=True):
            if head.reg_max > 1:  # a distribution over 16 distances, near 2 cells
                box[-1].bias.data.view(4, head.reg_max)[:] = -((torch.arange(head.reg_max) - 2.0) ** 2)
            torch.nn.init.normal_(box[-1].weight, std=0.05 if head.reg_max > 1 else 0.02)
            torch.nn.init.normal_(score[-1].weight, std=score_std)
            score[-1].bias.data.fill_(score_bias)
    model.names = {0: "square", 1: "disc", 2: "cross"}
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for momentum in (1.0, 0.03):  # the first pass measures the features' statistics; without them all scores are equal
        for norm in norms:
            norm.momentum = momentum
        if momentum == 1.0:
            model.train()(torch.rand(4, 3, 96, 96))
    return model.eval()


def validate(
    cls: type[DetectionValidator], model: torch.nn.Module | str, data: Path, run_dir: Path, /, **args: Any
) -> tuple[DetectionValidator, dict[str, Any]]:
    overrides = {"data": str(data), "imgsz": 96, "batch": 3, "plots": False, "device": "cpu", "mode": "val"}
    overrides |= {"model": "biased.pt", "project": str(run_dir), "name": "run", "exist_ok": True} | args
    validator = cls(args=overrides)
    return validator, validator(model=model)


def same_as_stock(stock: dict[str, Any], ours: dict[str, Any]) -> None:
    assert set(stock) <= set(ours)
    assert {key: ours[key] for key in stock} == stock


CASES = [
    ("yolo11n", {}),
    ("yolo11n", {"rect": False, "conf": 0.2, "single_cls": True}),
    ("yolo11n", {"half": True, "batch": 2, "agnostic_nms": True}),
    ("yolo26n", {}),
    ("yolo26n", {"nms": False}),
    ("yolo26n", {"nms": False, "single_cls": True, "max_det": 20}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "args"), CASES, ids=lambda value: str(value))
def test_upstream_numbers_stay_exactly_and_ours_are_added(
    name: str, args: dict[str, Any], tiny_data: Path, run_dir: Path
) -> None:
    model = biased_model(name)
    _, stock = validate(DetectionValidator, model, tiny_data, run_dir, **args)
    validator, ours = validate(MLCValidator, model, tiny_data, run_dir, **args)
    same_as_stock(stock, ours)
    assert set(ours) - set(stock) == {SPEARMAN, POOLED}
    metrics = validator.metrics
    assert isinstance(metrics, MLCMetrics)
    assert -1 < metrics.spearman_pooled < 1
    assert (ours[SPEARMAN], ours[POOLED]) == (metrics.spearman, metrics.spearman_pooled)
    assert metrics.results_dict == ours
    assert list(ours) == [*metrics.keys, "fitness"]


class Recorder(MLCValidator):
    """Keeps what NMS was given and the objects it was compared with."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen_by_nms: list[torch.Tensor] = []
        self.truth: list[tuple[torch.Tensor, torch.Tensor]] = []

    def postprocess(self, preds: Any) -> Any:
        self.seen_by_nms.extend((preds[0] if isinstance(preds, (tuple, list)) else preds).clone())
        return super().postprocess(preds)

    def _process_batch(self, preds: Any, batch: Any) -> Any:
        self.truth.append((batch["bboxes"], batch["cls"]))
        return super()._process_batch(preds, batch)


@pytest.mark.parametrize(("name", "args"), [("yolo11n", {}), ("yolo26n", {}), ("yolo26n", {"nms": False})])
def test_both_coefficients_equal_a_loop_over_what_nms_was_given(
    name: str, args: dict[str, Any], tiny_data: Path, run_dir: Path
) -> None:
    validator, found = validate(Recorder, biased_model(name), tiny_data, run_dir, **args)
    assert isinstance(validator, Recorder)
    pooled, per_object = [], []
    for prediction, (boxes, labels) in zip(validator.seen_by_nms, validator.truth, strict=True):
        if args:
            rows = [(row[:4], row[4], int(row[5])) for row in prediction.numpy()]
        else:
            xy, wh = prediction[:2].T.numpy(), prediction[2:4].T.numpy()
            corners = np.hstack((xy - wh / 2, xy + wh / 2))
            rows = [(corners[a], s, k) for k, line in enumerate(prediction[4:].numpy()) for a, s in enumerate(line)]
        candidates: dict[int, list[tuple[float, float]]] = {}
        rows = sorted((row for row in rows if row[1] > 0.05), key=lambda row: -row[1])[:1000]
        for box, score, label in rows:
            same = [m for m in range(len(labels)) if labels[m] == label]
            if not same:
                continue
            iou, best = max((overlap(box, boxes[m].numpy()), -m) for m in same)
            pooled.append((score, iou))
            if iou > 0:
                candidates.setdefault(-best, []).append((score, iou))
        varied = [np.array(c) for c in candidates.values() if len(c) >= 5 and np.ptp(c, axis=0).all()]
        per_object += [stats.spearmanr(c).statistic for c in varied]
    assert len(per_object) >= 3
    assert found[SPEARMAN] == pytest.approx(np.mean(per_object), abs=1e-4)  # float32 IoU ties a little more often
    assert found[POOLED] == pytest.approx(stats.spearmanr(np.array(pooled)).statistic, abs=1e-4)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(w, 0) * max(h, 0)
    return float(inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolo11n", "yolo26n"])
def test_a_model_without_confident_boxes_has_undefined_coefficients_and_a_picture(
    name: str, tiny_data: Path, run_dir: Path
) -> None:
    model = biased_model(name, score_bias=-12, score_std=0)
    validator, found = validate(MLCValidator, model, tiny_data, run_dir, plots=True)
    assert math.isnan(found[SPEARMAN])
    assert math.isnan(found[POOLED])
    assert (validator.save_dir / PLOT_NAME).stat().st_size > 10_000


@pytest.mark.slow
def test_the_picture_is_drawn_and_registered_only_with_plots(tiny_data: Path, run_dir: Path) -> None:
    model = biased_model("yolo11n")
    without, _ = validate(MLCValidator, model, tiny_data, run_dir, name="without")
    assert not (without.save_dir / PLOT_NAME).exists()
    assert without.plots == {}
    with_plots, found = validate(MLCValidator, model, tiny_data, run_dir, name="with", plots=True, save_txt=True)
    assert with_plots.save_dir / PLOT_NAME in with_plots.plots
    assert cv2.imread(str(with_plots.save_dir / PLOT_NAME)).std() > 5
    assert found["fitness"] == without.metrics.fitness


def test_one_validator_gives_the_same_numbers_twice(tiny_data: Path, run_dir: Path) -> None:
    model = biased_model("yolo11n")
    validator, first = validate(MLCValidator, model, tiny_data, run_dir, coco_eval=True)
    assert validator(model=model) == first


def test_every_class_has_its_coefficients(tiny_data: Path, run_dir: Path) -> None:
    validator, _ = validate(MLCValidator, biased_model("yolo11n"), tiny_data, run_dir)
    metrics = validator.metrics
    for i, row in enumerate(metrics.summary()):
        *box, spearman, pooled = metrics.class_result(i)
        assert tuple(box) == tuple(metrics.box.class_result(i))
        np.testing.assert_equal([row["Spearman"], row["Spearman-pooled"]], [round(spearman, 5), round(pooled, 5)])
        assert -1 <= pooled <= 1


def test_the_table_shows_the_coefficients_under_their_names(
    tiny_data: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr("mlc_yolo.evaluation.validator.LOGGER.info", lambda line="", *_: lines.append(str(line)))
    validator, found = validate(MLCValidator, biased_model("yolo11n"), tiny_data, run_dir, coco_eval=True, verbose=True)
    head = validator.get_desc()
    row = next(line for line in lines if line.split()[:1] == ["all"])
    assert head.endswith("   Spearman   (pooled)")
    assert len(head) == len(row)
    assert row.split()[-2:] == [f"{found[SPEARMAN]:.3g}", f"{found[POOLED]:.3g}"]
    assert sum(len(line) == len(head) for line in lines) == 4  # "all" and three classes
    line = next(line for line in lines if line.startswith("COCO: AP "))
    assert f"AP50 {found['metrics/coco_AP50']:.3f}" in line


# Odd data -------------------------------------------------------------------------------------------------------------


def write_data(root: Path, labels: list[str]) -> Path:
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (root / kind / "val").mkdir(parents=True)
    for i, text in enumerate(labels):
        size = (96, 64) if i % 2 else (64, 96)
        cv2.imwrite(str(root / f"images/val/{i}.png"), rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        (root / f"labels/val/{i}.txt").write_text(text)
    data = root / "data.yaml"
    data.write_text(f"path: {root.as_posix()}\ntrain: images/val\nval: images/val\nnames: [square, disc, cross]\n")
    return data


@pytest.mark.slow
def test_a_set_with_objects_in_one_image_only_is_measured(tmp_path: Path, run_dir: Path) -> None:
    data = write_data(tmp_path / "data", ["", "1 0.5 0.5 0.4 0.4\n", "", ""])
    model = biased_model("yolo11n")
    _, stock = validate(DetectionValidator, model, data, run_dir)
    _, ours = validate(MLCValidator, model, data, run_dir, coco_eval=True, plots=True)
    same_as_stock(stock, ours)
    assert -1 <= ours[SPEARMAN] <= 1
    assert ours["metrics/coco_AP"] >= 0


def test_images_with_and_without_predictions_mix(tmp_path: Path, run_dir: Path) -> None:
    data = write_data(tmp_path / "data", ["0 0.5 0.5 0.4 0.4\n", "1 0.5 0.5 0.3 0.3\n", "2 0.4 0.5 0.3 0.3\n"])
    model = biased_model("yolo11n")
    _, stock = validate(DetectionValidator, model, data, run_dir, conf=0.999)
    _, ours = validate(MLCValidator, model, data, run_dir, conf=0.999, coco_eval=True)
    same_as_stock(stock, ours)
    assert np.isfinite(ours[POOLED])  # divergence does not follow conf
    assert ours["metrics/coco_AP"] == 0


# COCO -----------------------------------------------------------------------------------------------------------------


def test_coco_numbers_equal_pycocotools_run_by_hand_on_predictions_json(
    tiny_data: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Upstream's own judge of save_json would be installed from the network where it is missing.
    monkeypatch.setattr(MLCValidator, "eval_json", lambda self, stats: stats)
    validator, found = validate(
        MLCValidator, biased_model("yolo11n"), tiny_data, run_dir, coco_eval=True, save_json=True
    )
    predictions = validator.save_dir / "predictions.json"
    images, annotations = [], []
    for label_file in sorted((tiny_data.parent / "labels/val").glob("*.txt")):
        height, width = cv2.imread(str(tiny_data.parent / f"images/val/{label_file.stem}.png")).shape[:2]
        images.append({"id": int(label_file.stem)})
        for line in label_file.read_text().splitlines():
            label, cx, cy, w, h = (float(v) for v in line.split())
            box = [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": images[-1]["id"], "category_id": int(label) + 1}
                | {"bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            )
    truth = validator.save_dir / "truth.json"
    categories = [{"id": k} for k in (1, 2, 3)]
    truth.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    api = COCO(truth)
    judge = COCOeval(api, api.loadRes(str(predictions)), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    assert found["metrics/coco_AP50"] > 0
    assert [found[key] for key in COCO_KEYS] == pytest.approx(judge.stats.tolist(), abs=1e-12)


def test_coco_numbers_are_named_in_keys_and_left_out_unless_asked_for(tiny_data: Path, run_dir: Path) -> None:
    assert MLCMetrics().keys[-2:] == [SPEARMAN, POOLED]
    metrics = MLCMetrics(coco_eval=True)
    assert metrics.keys[-12:] == COCO_KEYS
    assert len(metrics.keys) == len(metrics.mean_results()) == 18
    _, found = validate(MLCValidator, biased_model("yolo11n"), tiny_data, run_dir)
    assert not set(COCO_KEYS) & set(found)


def test_unknown_and_wrong_options_are_refused(tiny_data: Path, run_dir: Path) -> None:
    with pytest.raises(TypeError, match="coco_eval"):
        MLCValidator(args={"data": str(tiny_data), "project": str(run_dir), "coco_eval": 3})
    with pytest.raises(SyntaxError, match="coco_evil"):
        MLCValidator(args={"data": str(tiny_data), "project": str(run_dir), "coco_evil": True})
    options = MLCValidator(args={"data": str(tiny_data), "project": str(run_dir), "assigner": "mg"}).arguments.ours
    assert options["assigner"] == "mutual_guidance"
    assert options["coco_eval"] is False


# Training and export --------------------------------------------------------------------------------------------------


class Trainer(DetectionTrainer):
    """Upstream's trainer with our validator."""

    coco_eval = True

    def get_validator(self) -> MLCValidator:
        self.loss_names = "box_loss", "cls_loss", "dfl_loss"
        args = vars(self.args) | {"coco_eval": self.coco_eval}
        return MLCValidator(self.test_loader, self.save_dir, args, self.callbacks)


@pytest.mark.slow
def test_training_writes_undefined_coefficients_to_csv_and_plots_them(tiny_data: Path, run_dir: Path) -> None:
    args = {"model": SMALL, "data": str(tiny_data), "imgsz": 96, "batch": 4, "epochs": 2, "workers": 0}
    args |= {"device": "cpu", "project": str(run_dir), "name": "train", "val": True, "plots": True}
    trainer = Trainer(overrides=args)
    trainer.train()
    header, *rows = ((trainer.save_dir / "results.csv").read_text()).splitlines()
    columns = header.split(",")
    assert {SPEARMAN, POOLED, *COCO_KEYS} < set(columns)
    assert len(rows) == 2
    assert all(len(row.split(",")) == len(columns) for row in rows)
    assert rows[0].split(",")[columns.index(SPEARMAN)] == "nan"
    assert (trainer.save_dir / "results.png").exists()
    assert (trainer.save_dir / PLOT_NAME).exists()
    assert {SPEARMAN, *COCO_KEYS} < set(trainer.metrics)
    history = torch.load(trainer.last, weights_only=False)["train_results"]
    assert [math.isnan(float(v)) for v in history[SPEARMAN]] == [True, True]


def test_results_csv_with_some_undefined_values_is_plotted_without_complaint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaints: list[str] = []
    monkeypatch.setattr("ultralytics.utils.plotting.LOGGER.error", complaints.append)
    csv = tmp_path / "results.csv"
    csv.write_text(f"epoch,time,train/box_loss,{SPEARMAN},{POOLED}\n1,1,2,nan,nan\n2,2,1.5,nan,0.5\n3,3,1,0.25,0.5\n")
    plot_results(csv)
    assert complaints == []
    assert (tmp_path / "results.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("nms", [False, True])
def test_an_exported_model_is_measured_like_the_original(nms: bool, tiny_data: Path, run_dir: Path) -> None:
    checkpoint = run_dir / "biased.pt"
    torch.save({"model": biased_model("yolo11n"), "train_args": {"task": "detect", "imgsz": 96}}, checkpoint)
    exported = YOLO(checkpoint).export(format="torchscript", imgsz=96, nms=nms, device="cpu")
    _, stock = validate(DetectionValidator, str(exported), tiny_data, run_dir, rect=False, model=str(exported), batch=1)
    _, ours = validate(MLCValidator, str(exported), tiny_data, run_dir, rect=False, model=str(exported), batch=1)
    same_as_stock(stock, ours)
    assert -1 < ours[POOLED] < 1
    if not nms:
        _, original = validate(MLCValidator, biased_model("yolo11n"), tiny_data, run_dir, rect=False, batch=1)
        assert ours[SPEARMAN] == pytest.approx(original[SPEARMAN], abs=0.02)


def test_samples_of_every_image_are_gathered_with_upstreams_statistics(tiny_data: Path, run_dir: Path) -> None:
    gathered: list[dict[str, list[np.ndarray]]] = []

    class Spy(MLCValidator):
        def gather_stats(self) -> None:
            gathered.append({key: list(value) for key, value in self.metrics.stats.items()})
            super().gather_stats()

    validate(Spy, biased_model("yolo11n"), tiny_data, run_dir, coco_eval=True)
    stats_ = gathered[0]
    for key in ("score_iou", "coco_detections", "coco_objects"):
        assert len(stats_[key]) == len(stats_["tp"]) == 4
        assert all(image.dtype == np.float32 for image in stats_[key])
    assert [len(image) for image in stats_["coco_objects"]] == [len(image) for image in stats_["target_cls"]]
    samples = np.concatenate(stats_["score_iou"])
    assert samples[:, SCORE].min() > 0.05
    assert (samples[:, IOU] >= 0).all() and (samples[:, IOU] <= 1).all()
    assert max(len(image) for image in stats_["score_iou"]) <= 1000
