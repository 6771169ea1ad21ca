"""What we lean on in Ultralytics beyond its documented interface, each checked by `tests/test_upstream.py`.

| upstream behaviour | who leans on it |
|---|---|
| `get_cfg` checks only the overrides' names against the base's | trainer: own options in the base |
| `set_class_weights` runs once the model is on its device and the loaders are built | trainer: attaches the criterion |
| `resume_training` may replace the criterion of a dual-branch head | trainer: attaches it again |
| `_model_train` opens every epoch, `epoch` already set | trainer: tells the criterion the epoch |
| `set_model_attributes` runs before the image size is checked and the loaders are built | semi: sizes to halve |
| `_build_train_pipeline` makes the loaders, again where memory ran out | semi |
| `resume_training` runs in every start, the average made | semi: its decay |
| `_load_checkpoint_state` is how a run resumes and recovers: model loaded before, new average within | semi, trainer |
| `_get_warmup_iterations(batches)` is the warm-up's length in batches | trainer: `warmup_iters`; optimizer steps |
| `accumulate` is the batches a step, before the warm-up changes it | optimizer steps |
| `_close_dataloader_mosaic` is what ends the mosaic, by the data set's `close_mosaic` | trainer: `augmentation=ssd` |
| `ModelEMA.enabled` holds the average still; `decay` is an attribute, called with the updates | trainer, semi |
| `ModelEMA` copies the model with its criterion, whose functions stay the same ones | semi |
| a step is one `preprocess_batch`, then the model: `criterion(preds, batch)` with every entry | semi, distillation |
| a criterion's items name the losses, also in `label_loss_items`; in validation some may be missing | distillation |
| `final_eval` strips last.pt and best.pt in place, validates best.pt, logs it as one more epoch | durable |
| `strip_optimizer(file, updates=)` gives what it writes, entries it does not know included | durable |
| `build_dataloader` gives a loader with `batch_size`, to go through again and again; `drop_last` | semi |
| a criterion that is no `nn.Module` stays out of `state_dict`, and is dropped on saving | criterion |
| `E2ELoss(model, loss_fn)` builds both branches; only the one-to-one branch passes `tal_topk2` | criterion |
| `get_assigned_targets_and_loss` returns ((positive, _, boxes, _, _), losses, items) | criterion |
| `assigner(scores, boxes, points, labels, goals, mask)` gives (_, _, soft targets, positive, slot) | criterion |
| `BboxLoss` weighs a positive by the sum of its `target_scores` and divides by `target_scores_sum` | criterion |
| `v8OBBLoss.loss` calls its `assigner` once; its items end with angle_loss; sides below 2 px are left out | oriented |
| ... `bbox_decode(points, distances, angles)` gives (B, A, 5); `calculate_angle_loss` takes weights | oriented |
| `Detect.fuse` leaves the branch in use, with modules whose names start as that branch's do | heads, teachers |
| `forward` calls `forward_head(x, **one2many)`, then `_inference`, which calls `_get_decode_boxes` | IoU-aware head |
| heads of tasks call `box_head[i](x[i])` once a level; their values follow the class scores | IoU-aware heads |
| `C3.forward` is cv3(cat(m(cv1(x)), cv2(x))) | stock rewrite |
| Hailo's exporter asks for `type(head) is Detect`; IMX's replaces `_inference` and counts modules | stock rewrite |
| `DetectionModel.load` takes every tensor that agrees in name and shape | checkpoint |
| keys of `model.yaml` the parser does not know are kept | checkpoint |
| `cfg/default.yaml` beside the package has a line `name: default # what it does` per argument | guide |
| `DetMetrics.stats` is gathered over ranks; `keys`, `mean_results` and `class_result` make the table | validator |
| `DetectionValidator._process_batch` runs once per image, in order, and its dict reaches `update_stats` | validator |
| validators of tasks call detection's `postprocess` for (n, 6 + E) rows, as "extra"; E is 1 for an angle | validators |
| validators match by `match_predictions(labels, gt_labels, overlap)`, last by what a task's AP goes by | recorders |
| what their constructors set beside `args.task` and `metrics` is set anew by `init_metrics` | validators |
| a segmentation validator's `process(prototypes, coefficients, boxes, shape=)` makes masks as AP has them | masks |
| predictors of tasks make `Results` by `construct_result`, of detection's rows and E more | predictors |
| `DetMetrics.process(save_dir, plot, on_plot)` turns what was gathered into metrics | validator |
| `Detect` in evaluation gives (decoded, raw), in training raw, by branch where there are two | semi, teachers |
| `build_dataset(img_path, mode, batch)` makes a loader's data set; a trainer's second is rectangular | data sets |
| `load_image(i)` brings the long side to `imgsz`; with `rect_mode=False`, both sides | data sets |
| `labels[i]["shape"]` is the image's (H, W) while `rect` is off | data sets |
| `build_yolo_dataset` gives `YOLODataset` these arguments, which our builder gives its own | data sets |
| `DetectionTrainer.build_dataset` and `DetectionValidator`'s call it with these arguments | data sets |
| a `YOLODataset` makes its `transforms` and cached images by methods that a subclass may replace | data sets |
| `get_labels` sets `im_files` to those it keeps, of all found; it opens caches by `_load_or_scan_cache` | data sets |
| a sample's transforms see `img` in BGR, `cls` (M, 1) and `instances`; `Format` comes last | SSD's augmentation |
| a `YOLODataset` finds and checks its images by hooks, `get_img_files` to `scan_summary` | images without labels |
| `_load_or_scan_cache(path, hash)` gives (cache, known), the cache with `labels` and `msgs` | images without labels |
| ... where there is none it is what `cache_labels(path)` gives | caches of labels |
| a detection dataset has `labels[i]["cls"]`; its samples carry `ori_shape` and `ratio_pad` | assignments |
| `read_results_csv` fills the checkpoint's `train_results` | trainer, diagnosis |
| `Model._new` builds from a YAML; `train` leaves the building to the trainer while `ckpt` is None | model: detectors |
| `setup_model` returns at once when the model is a module already | trainer: torchvision weights |
| `freeze` entries may be names; whatever is not named is made to train | trainer: frozen stages |
| `_setup_scheduler` sets `lf` and a `LambdaLR` `scheduler` | trainer: `lr_steps` |
| `save_model` writes to `last`, `best` and below `wdir`, by these attributes, and reads none of them | durable |
| ... best.pt and epoch*.pt by these two conditions; of `ema` and `optimizer` it takes the state alone | durable |
| `is_qat` tells a quantised model, whose layers `save_model` takes out of its copy | durable |
| `optimizer_step` is called where `batch - last step >= accumulate`, the last step being -1 at first | durable |
| a run that begins with `close_mosaic=0` closes nothing and keeps its loader's iterator | durable: resuming |
| `InfiniteDataLoader` goes on with one `iterator`, made by `_get_iterator` where there is none | exact resume |
| ... which draws from `generator`; `_next_index` of torch's iterator passes over a batch | exact resume |
| `buffer` lists the images that mosaics choose from; `load_image(i)` appends to it | exact resume |
| `load_checkpoint` opens what `check_file` and `attempt_download_asset` make of a name | safe load |
| `check_suffix` reads `clean_url(name)`'s last suffix, and takes an empty one for any | safe load |
| `export_formats()["Suffix"]` lists what exported models end in | safe load |
| `TorchVision` rows are (width, name, weights, ...); weights left out are fetched | model YAMLs |
| `check_resume` goes on from the file given if it exists, else from `get_latest_run()` | safe load |
| `parse_model` evaluates `activation`; layers are names of `nn`, `torchvision.ops` or its own module | safe load |
| `Model._load` sets `model`, `ckpt`, `task`, `overrides`, `ckpt_path` and `model_name` | model: files without pickles |
| class branches are `max(width, min(nc, 100))` wide, or as the weights' that were loaded | files without pickles |
| `_predict_once` reads `f`, `i` and `save` of a model's layers | detectors |
| exporter and predictor set `export`, `format`, `dynamic`, `xyxy`, `max_det` on a head | detectors' heads |
| `AutoBackend` keeps a PyTorch model in `model`, with `format` "pt" | NMS that a head asks for |
| at `on_export_start` an exporter has `metadata`, which it then writes, `output_shape` and `model` | placement |
| ... where `AutoBackend` finds it as `metadata`; `Detect.forward` decodes by `_inference` while exporting | placement |
| `DetectionPredictor.construct_results(preds, img, orig_imgs)` makes `Results` of (n, 6) rows | predictor |
| ... by `construct_result(pred, img, orig_img, img_path)`, an image each | predictor: resize |
| `Results` map their parts, `boxes` among them, into what `new()` gives; rows are picked by `boxes[...]` | results |
| a tracker picks a result's rows, then calls `update(boxes=)` with (n, 7), the track before the score | results |
| `write_results` draws what a result's `plot` gives | results: `show_sigma` |
| `Detect.strides` are (1, A) px a cell; raw `boxes` (B, 4 * R, A) are logits, R for each side in turn | placement |
| a predictor's `setup_model` sets `model`; `pre_transform` is what resizes images, to `imgsz` (H, W) | predictor |
| `Model.predict` makes a predictor of what `_smart_load("predictor")` gives while `predictor` is None | model: resize |
| `non_max_suppression` takes its patience as `max_time_img`; `return_idxs` adds anchors | NMS for all |
| a tracker that compares appearances sets `_feats`, what the head read; `get_obj_feats` picks cells | predictor |
| augmented prediction is the model's own `_predict_augment`, of `_descale_pred` and `_clip_augmented` | augmentation |
| `init_metrics` is a validator's first hook with the model; `inference` is where a predictor runs it | augmentation |
| `scale_boxes(ratio_pad=((gain_y, gain_x), (0, 0)))` undoes each axis by its gain and clips | predictor, validator |
| a validator's `get_model` runs before its loader is built | validator: resize |
| `patches._image_open` is Pillow's own `Image.open`; upstream's replacement installs packages | convert |
| `exif_size` gives an image's size as shown; `IMG_FORMATS` are the suffixes it reads | convert |
| `checks.parse_version` gives a version as a tuple of numbers | compat: untested versions |
| `check_font` takes any font matplotlib knows whose path holds the name | fonts |
| `load_image` raises FileNotFoundError for what it cannot decode | data sets |
| labels are cached beside the folder of the first image's labels, by its name with `.cache` | caches of labels |
| `find_dataset_yaml(folder)` is the YAML read for a folder; `YAML.load` what is read of it | data YAMLs |
| `convert_ndjson_to_yolo_if_needed` awaits the converter for `.ndjson` and returns anything else as it is | data sets |
| a line of a list of images is a path as it stands, blanks included | listing |
| `_YOLO_CLI_COMMAND` is the command a tuning iteration starts | tuner |
| first steps call back once all is checked: training, a batch of val or predict, export | command line: faults |
| `get_save_dir` names a run's folder of six arguments and makes nothing | command line: the first log line |

Where upstream asks for an exact class or a class's name, so that a subclass of ours falls through. A test looks for
such questions in the installed version's source and fails on one that is not listed.

| where | what it asks | a subclass of ours |
|---|---|---|
| `nn/tasks.py` | `_predict_augment`: is the head `Detect`? | `evaluation.augmentation` augments it |
| `nn/tasks.py` | `parse_model`: which layer is a row's? | a head becomes ours after the model was built |
| `engine/exporter.py` | Hailo: is the head one of these? | YOLO goes as the stock rewrite, others are refused |
| `engine/exporter.py` | Hailo: is it YOLO26's segment, pose, OBB head? | it goes as the stock rewrite |
| `engine/model.py` | is the predictor of the class asked for? | made anew where it is not |
| `models/yolo/model.py` | the same, of YOLOE's predictor | YOLOE is refused |
| `models/yolo/classify/predict.py` | are these torchvision's transforms? | classification is upstream's own |
| `solutions/solutions.py` | is it an `ObjectCropper`? | solutions are upstream's own |
| `utils/callbacks/base.py` | has the class "Trainer" in its name? | every trainer of ours has |
| `utils/export/*.py` | is it `Pose`, `Segment` or `Pose26`? | it goes as the stock rewrite |
| `utils/benchmarks.py` | is it an `AssertionError`? | with `verbose`, any other error ends a benchmark |
| `utils/torch_utils.py` | are there quantised layers? | layers are upstream's |

Two replace a head's methods instead of asking, whatever its class: Edge TPU's exporter `_get_decode_boxes`, which the
ported heads do not call (refused), and IMX's `_inference` (above).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import ultralytics
from ultralytics.utils import LOGGER
from ultralytics.utils.checks import parse_version

from mlc_yolo import __version__

#: The oldest and the newest version that the tests are run with, and where `pyproject.toml` ends.
LOWEST, NEWEST, BELOW = "8.4.170", "8.4.190", "8.5"


@cache
def warn_if_untested() -> None:
    """Say, once, that the installed Ultralytics is not one that the tests are run with, nor between two of them."""
    installed = ultralytics.__version__
    if not parse_version(LOWEST) <= parse_version(installed) <= parse_version(NEWEST):
        LOGGER.warning(
            f"Ultralytics {installed} is installed; mlc-yolo {__version__} was tested with {LOWEST} to {NEWEST}. "
            f"If something fails: pip install ultralytics=={NEWEST}"
        )


@contextmanager
def training_command(command: list[str]) -> Iterator[None]:
    """Let the tuner start its trainings with `command`, and restore upstream's command in any case.

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
