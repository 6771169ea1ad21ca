"""Make the pictures of the documentation from the demo set: python docs/pictures/make.py

Two assigners are trained twice each with fixed seeds, in build/pictures; runs that are finished are not repeated. The
same machine makes the same files again. Drawings take their colours from the reader's system, light or dark.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from drawings import gains, package_map, seam, standing
from markupsafe import Markup
from PIL import Image

from mlc_yolo import MLCYOLO
from mlc_yolo.assigners import TaskAligned, build_assigner
from mlc_yolo.compare import Comparison, compare
from mlc_yolo.data.resolve import resolve_data
from mlc_yolo.demo import validation_images
from mlc_yolo.evaluation.repaired_ap import MISTAKES
from mlc_yolo.figures.assignments import open_split, scenes
from mlc_yolo.metrics.oracles import Repair
from mlc_yolo.metrics.reliability import best_ious
from mlc_yolo.options.specification import defaults
from mlc_yolo.plots.positives import assignment_figure
from mlc_yolo.report import write_report
from mlc_yolo.report.charts import density_chart
from mlc_yolo.report.ladder import Rung, ladder_chart

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / "build" / "pictures"
LIMIT = 150_000  # bytes of a picture
GRID = {
    "model": "yolo11n.yaml",
    "data": "demo.yaml",
    "assigner": ["tal", "mlc"],
    "seed": [0, 1],
    "iou_head": False,
    "epochs": 30,
    "imgsz": 192,
    "batch": 16,
    "nbs": 16,
    "optimizer": "AdamW",
    "lr0": 0.002,
    "warmup_epochs": 1,
    "close_mosaic": 10,
    "workers": 0,
    "plots": False,
}
SCENE, PHOTOGRAPH = 13, 1  # images of the validation set: whose anchors, and whose deviations are shown
MARGIN = 14  # px around the largest object of the scene


def main() -> None:
    """Train what is not trained yet, and make every picture."""
    comparison = compare(**GRID, device="cpu", jobs=1, project=WORK, name="runs", exist_ok=True)
    weights = {name: comparison.folder / f"assigner={name},seed=0" / "weights" / "best.pt" for name in ("tal", "mlc")}
    _write("seam.svg", seam())
    _write("packages.svg", package_map())
    _write("rank_inside.svg", gains(HERE / "rank_inside.csv"))
    _write("who_learns_what.png", _who_learns_what(MLCYOLO(weights["mlc"])))
    _write("score_against_iou.svg", _score_against_iou(comparison))
    _write("ladder.svg", _ladder(MLCYOLO(weights["tal"])))
    _write("boxes_with_sigma.png", _boxes_with_sigma(MLCYOLO(weights["tal"])))
    _write("compare_report.png", _compare_report(comparison))


def _write(name: str, content: bytes | Markup) -> None:
    data = content if isinstance(content, bytes) else (str(content) + "\n").encode()
    if len(data) > LIMIT:
        raise ValueError(f"{name} has {len(data)} bytes, more than the {LIMIT} that a picture may have")
    (HERE / name).write_bytes(data)
    print(f"{name}: {len(data) / 1000:.0f} kB")


def _png(image: Image.Image) -> bytes:
    """Return a PNG of 255 colours, without what the machine would leave in it."""
    written = io.BytesIO()
    image.convert("RGB").quantize(255, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(
        written, "PNG", optimize=True
    )
    return written.getvalue()


def _who_learns_what(model: MLCYOLO) -> bytes:
    split = open_split(model, "demo.yaml", {"imgsz": GRID["imgsz"]})
    (scene,) = scenes(model.model, split, [split.with_objects()[SCENE]], prior_scale=defaults()["prior_scale"])
    inputs = scene.predictions, scene.priors, scene.targets
    options = {**defaults(), "mlc_candidates": "tal", "mlc_alpha": 0.5}
    boxes = scene.targets.boxes[0]
    largest = boxes[((boxes[:, 2:] - boxes[:, :2]).prod(1)).argmax()]
    side = float((largest[2:] - largest[:2]).max()) + 2 * MARGIN
    left, top = ((largest[:2] + largest[2:] - side) / 2).clamp(min=0, max=GRID["imgsz"] - side).tolist()
    figure = assignment_figure(
        scene.image,
        boxes,
        scene.targets.labels[0],
        split.names,
        priors=scene.priors,
        boxes=scene.predictions.boxes[0],
        assignments=[("tal", TaskAligned()(*inputs)), ("mlc", build_assigner("mlc", options)(*inputs))],
        view=(left, top, left + side, top + side),
    )
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=68)
    return _png(Image.open(drawn))


def _score_against_iou(comparison: Comparison) -> Markup:
    panels = []
    for name in ("tal", "mlc"):
        run = next(row for row in comparison.runs if row["assigner"] == name and row["seed"] == 0)
        records = comparison.records(run["cell"])
        kept = records.scores >= 0.05
        chart = density_chart(records.scores[kept], best_ious(records)[kept], description=f"score and IoU under {name}")
        panels.append((f"{name}: Spearman per object {run['spearman']:.2f}", chart))
    return standing(
        panels, "Density of detections over score and IoU, and the median IoU of a score, for two assigners"
    )


def _ladder(model: MLCYOLO) -> Markup:
    place = {"workers": 0, "device": "cpu", **_place("diagnosis")}
    diagnosis = model.diagnose(data="demo.yaml", imgsz=GRID["imgsz"], remedies=False, **place)
    base = diagnosis.baseline.values["AP"]
    order = sorted(diagnosis.gains, key=lambda repair: (repair in MISTAKES, -diagnosis.gains[repair].gain.mean))
    rungs = []
    for repair in order:
        gain = diagnosis.gains[repair]
        colour = 3 if repair is Repair.INSIDE else 2 if repair in MISTAKES else 1
        low, high = base + gain.gain.low, base + gain.gain.high
        rungs.append(Rung(gain.name, gain.values["AP"], low, high, colour))
    said = f"The detector's AP is {base:.1f}. A bar goes from there to its AP after one repair."
    return standing(
        [(f"AP {base:.1f} as it is, and after one repair", ladder_chart(base, rungs, description=said))],
        said,
    )


def _boxes_with_sigma(model: MLCYOLO) -> bytes:
    image = validation_images(resolve_data("demo.yaml"), PHOTOGRAPH + 1)[PHOTOGRAPH]
    chosen = {
        "conf": 0.15,
        "imgsz": GRID["imgsz"],
        "show_sigma": True,
        "line_width": 1,
        "show_labels": False,
        "show_conf": False,
        "save": True,
    }
    (result,) = model.predict(image, verbose=False, **chosen, **_place("sigma"))
    drawn = cv2.imread(str(Path(result.save_dir) / Path(image).name))
    return _png(Image.fromarray(np.ascontiguousarray(drawn[..., ::-1])).resize((448, 448), Image.Resampling.LANCZOS))


def _compare_report(comparison: Comparison) -> bytes:
    sys.path.append(str(ROOT / "tests"))
    from browser import browse

    page = write_report(comparison, WORK / "report.html")
    with tempfile.TemporaryDirectory() as folder, browse(Path(folder)) as browser:
        browser.show(1000)
        browser.open(Path(page))
        whole = Image.open(io.BytesIO(browser.screenshot()))
    return _png(whole.crop((0, 0, whole.width, 1150)).resize((int(0.8 * whole.width), 920), Image.Resampling.LANCZOS))


def _place(name: str) -> dict[str, object]:
    return {"project": str(WORK), "name": name, "exist_ok": True}


if __name__ == "__main__":
    main()
