"""What we lean on in Ultralytics beyond its documented interface, each checked by `tests/engine/test_compat.py`.

| upstream behaviour | who leans on it |
|---|---|
| `get_cfg` checks only the overrides' names against the base's | trainer: own options in the base |
| `set_class_weights` runs once the model is on its device and the loaders are built | trainer: attaches the criterion |
| `resume_training` may replace the criterion of a dual-branch head | trainer: attaches it again |
| `_model_train` opens every epoch, `epoch` already set | trainer: tells the criterion the epoch |
| a criterion that is no `nn.Module` stays out of `state_dict`, and is dropped on saving | criterion |
| `E2ELoss(model, loss_fn)` builds both branches; only the one-to-one branch passes `tal_topk2` | criterion |
| `get_assigned_targets_and_loss` returns ((positive, _, boxes, _, _), losses, items) | criterion |
| `BboxLoss` weighs a positive by the sum of its `target_scores` and divides by `target_scores_sum` | criterion |
| `Detect.fuse` leaves the branch in use, with modules whose names start as that branch's do | IoU-aware head |
| `forward` calls `forward_head(x, **one2many)`, then `_inference`, which calls `_get_decode_boxes` | IoU-aware head |
| `C3.forward` is cv3(cat(m(cv1(x)), cv2(x))) | stock rewrite |
| Hailo's exporter asks for `type(head) is Detect`; IMX's replaces `_inference` and counts modules | stock rewrite |
| `DetectionModel.load` takes every tensor that agrees in name and shape | checkpoint |
| keys of `model.yaml` the parser does not know are kept | checkpoint |
| `DetMetrics.stats` is gathered over ranks; `keys`, `mean_results` and `class_result` make the table | validator |
| `DetectionValidator._process_batch` runs once per image, in order, and its dict reaches `update_stats` | validator |
| `DetMetrics.process(save_dir, plot, on_plot)` turns what was gathered into metrics | validator |
| `Detect` in evaluation returns (decoded, raw), raw holding "one2many" where there are two branches | assignments |
| a detection dataset has `labels[i]["cls"]`; its samples carry `ori_shape` and `ratio_pad` | assignments |
| `read_results_csv` fills the checkpoint's `train_results` | trainer |
| `Model._new` builds from a YAML; `train` leaves the building to the trainer while `ckpt` is None | model: detectors |
| `setup_model` returns at once when the model is a module already | trainer: torchvision weights |
| `freeze` entries may be names; whatever is not named is made to train | trainer: frozen stages |
| `_setup_scheduler` sets `lf` and a `LambdaLR` `scheduler` | trainer: `lr_steps` |
| `save_model` writes `last` and `best` by these attributes and reads neither | trainer: whole checkpoints |
| `_predict_once` reads `f`, `i` and `save` of a model's layers | detectors |
| exporter and predictor set `export`, `format`, `dynamic`, `xyxy`, `max_det` on a head | detectors' heads |
| `AutoBackend` keeps a PyTorch model in `model`, with `format` "pt" | NMS that a head asks for |
| `DetectionPredictor.construct_results(preds, img, orig_imgs)` makes `Results` of (n, 6) rows | predictor |
| `patches._image_open` is Pillow's own `Image.open`; upstream's replacement installs packages | convert |
| `exif_size` gives an image's size as shown; `IMG_FORMATS` are the suffixes it reads | convert |
| `_YOLO_CLI_COMMAND` is the command a tuning iteration starts | tuner |
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

#: Tested range; `pyproject.toml` asks for the same.
LOWEST, BELOW = "8.4.170", "8.5"


@contextmanager
def training_command(command: list[str]) -> Iterator[None]:
    """Let the tuner start its trainings with `command`; upstream's own is put back whatever happens.

    Upstream offers no argument for it, and a tuning that ran stock trainings would ignore our options without a word.

    Args:
        command: words to which upstream appends `train key=value ...`.
    """
    name = "_YOLO_CLI_COMMAND"
    modules = [importlib.import_module(f"ultralytics.engine.{part}") for part in ("trainer", "tuner")]
    stock = [(vars(module), vars(module)[name]) for module in modules if name in vars(module)]
    try:
        for module, _ in stock:
            module[name] = command
        yield
    finally:
        for module, original in stock:
            module[name] = original
