"""Figure 4 of Mutual Guidance: positives under static IoU, L2C and C2L, on predictions as the assigner sees them."""

from __future__ import annotations

from mlc_yolo.assigners import MutualGuidance
from mlc_yolo.data.listing import printable
from mlc_yolo.figures.assignments import check_request, open_split, scenes
from mlc_yolo.figures.request import CROWD, Drawn, Request, name_of
from mlc_yolo.plots.guidance_stages import GuidedImage, guidance_figure


def draw_guidance(request: Request) -> Drawn:
    """Draw the positives of the first images that hold objects, those of few objects before others."""
    sigma = request.option("mg_sigma")
    guided, static = MutualGuidance(sigma=sigma), MutualGuidance(sigma=sigma, tasks="c2l")
    check_request(request.model, request.count)
    split = open_split(request.model, request.data, request.stock, resize=request.option("resize"))
    chosen = split.with_objects(request.count, crowd=CROWD)
    images = []
    for scene in scenes(request.model.model, split, chosen, prior_scale=request.option("prior_scale")):
        inputs = (scene.predictions, scene.priors, scene.targets)
        both = guided(*inputs)
        images.append(
            GuidedImage(
                scene.image,
                scene.view,
                scene.targets.boxes[0],
                scene.priors.boxes,
                static=static(*inputs).classification.positive[0],
                l2c=both.classification.positive[0],
                c2l=both.localization.positive[0],
                source=printable(scene.file.name),
            )
        )
    source = f"predictions of {name_of(request.model)}"
    figure = guidance_figure(images, source=f"{source}  ·  prior boxes  ·  σ = {sigma:g}")
    files = ", ".join(image.source for image in images)
    return Drawn(figure, split.args, f"Positive priors under static IoU, L2C and C2L by {source}, on {files}.")
