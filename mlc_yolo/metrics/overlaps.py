"""By what the detections and objects of records are compared: the IoU of boxes, or what a task's own AP goes by."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

from mlc_yolo.boxes import xywh
from mlc_yolo.metrics.records import Records

Int64Array = NDArray[np.int64]
Float64Array = NDArray[np.float64]
#: Of n rows of detections and m rows of objects, all of one image, their overlaps (n, m) in [0, 1].
Overlaps = Callable[[Int64Array, Int64Array], Float64Array]


def upright(records: Records) -> Overlaps:
    """Return what gives the IoU of upright boxes, as pycocotools computes it."""
    boxes, objects = xywh(records.boxes), xywh(records.gt_boxes)

    def overlaps(rows: Int64Array, there: Int64Array) -> Float64Array:
        return np.asarray(mask.iou(boxes[rows], objects[there], np.zeros(len(there))))

    return overlaps


def similar(records: Records) -> Overlaps:
    """Return what gives the similarity that the task's own AP goes by; 0 below `LEAST_SIMILARITY`.

    Raises:
        ValueError: records of detection, which have none.
    """
    known = records.similarities()

    def overlaps(rows: Int64Array, there: Int64Array) -> Float64Array:
        return np.asarray(known[rows][:, there].toarray())

    return overlaps


def of_boxes(records: Records) -> Overlaps:
    """Return what boxes are placed by: IoU, and the probiou of oriented boxes."""
    return similar(records) if records.task == "obb" else upright(records)
