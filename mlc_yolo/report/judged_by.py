"""The metrics of a comparison in words, and which of them its task is judged by first."""

from __future__ import annotations

from mlc_yolo.report.gather import DataSet

#: Metric -> how it is called, what it is, and its digits after the point.
METRICS = {
    **{
        f"{name}{end}": (f"{called} {end}".strip(), f"COCO’s AP by {by}{at}", 1)
        for name, called, by in (
            ("mask_AP", "Mask AP", "the IoU of masks"),
            ("pose_AP", "Pose AP", "the similarity of keypoints (OKS)"),
            ("obb_AP", "Oriented AP", "probiou; AP beside it is of the upright boxes around them"),
        )
        for end, at in (("", ", mean over 0.50 to 0.95"), ("50", " at 0.50"), ("75", " at 0.75"))
    },
    "AP": ("AP", "COCO’s AP in percent: mean over IoU 0.50 to 0.95", 1),
    "AP50": ("AP50", "AP at IoU 0.50", 1),
    "AP75": ("AP75", "AP at IoU 0.75", 1),
    "APs": ("AP small", "AP of objects below 32 × 32 px", 1),
    "APm": ("AP medium", "AP of objects from 32 × 32 to 96 × 96 px", 1),
    "APl": ("AP large", "AP of objects above 96 × 96 px", 1),
    "spearman": ("Spearman", "rank correlation of score and IoU over an object’s candidates, mean over objects", 3),
}
#: Those that a task may be judged by first.
LEADING = ("mask_AP", "pose_AP", "obb_AP", "AP")


def leading(data: DataSet) -> str:
    """Return the metric that the baseline's task is judged by first: its own AP, of detection that of boxes."""
    return next(metric for metric in LEADING if any(metric in run for run in data.baseline.runs))
