"""Figure 3 of Mutual Guidance: amplified IoU, and a model's own pairs of object and prior as the assigner sees them."""

from __future__ import annotations

import torch
from ultralytics.cfg import DEFAULT_CFG_DICT, get_cfg

from mlc_yolo.assigners import MutualGuidance
from mlc_yolo.boxes import pairwise_iou
from mlc_yolo.figures.assignments import check_request, open_split, scenes
from mlc_yolo.figures.request import CROWD, Drawn, Request, name_of
from mlc_yolo.plots.amplified_iou import Pairs, amplification_figure


def draw_amplification(request: Request) -> Drawn:
    """Draw the curves, and the pairs of object and prior that a model makes beside them."""
    guidance = MutualGuidance(sigma=request.option("mg_sigma"))  # refuses a sigma without meaning
    curves = "Curves of amplified IoU over IoU, one per class score, for four values of sigma"
    if request.model is None:
        args = get_cfg(DEFAULT_CFG_DICT, {**request.stock, "mode": "val"})
        return Drawn(amplification_figure(), args, f"{curves}.")
    check_request(request.model, request.count)
    split = open_split(request.model, request.data, request.stock, resize=request.option("resize"))
    chosen = split.with_objects(request.count, crowd=CROWD)
    ious, scores = [torch.zeros(0)], [torch.zeros(0)]
    for scene in scenes(request.model.model, split, chosen, prior_scale=request.option("prior_scale")):
        iou = pairwise_iou(scene.targets.boxes[0], scene.priors.boxes)
        near = iou > 0
        ious.append(iou[near].cpu())
        scores.append(scene.predictions.scores[0].T[scene.targets.labels[0]][near].cpu())
    source = f"{name_of(request.model)} on {len(chosen)} image{'s' * (len(chosen) != 1)}"
    pairs = Pairs(torch.cat(ious), torch.cat(scores), guidance.sigma, source)
    return Drawn(amplification_figure(pairs), split.args, f"{curves}, and {len(pairs.ious)} pairs of {source}.")
