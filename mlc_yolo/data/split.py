"""Split a data set into labelled and unlabelled images by COCO's protocol: percents of training images, in folds.

    output/
      mine-5pct-fold0.yaml            trains directly; its `unlabeled:` is the list of the rest
      mine-5pct-fold0-labeled.txt     absolute paths of the images whose labels are used
      mine-5pct-fold0-unlabeled.txt   absolute paths of all other training images

1. Every percent and fold is an independent draw without replacement, as published splits of COCO are: 1 % is not part
   of 2 %, and folds may share images.
2. A class that was not drawn is brought in, rarest first: of its images the one with most missing classes (the first in
   random order) replaces the drawn image that is needed least, if that leaves fewer classes missing.

The second step changes little as long as there are clearly more images than classes: of 2,407 images of 80 classes a
plain draw of 5 % lacks 9 classes on average and this one none, with 7 of 120 images swapped and 9.0 boxes per image
either way. Of 1 %, 24 images, it picks crowded ones: 13 boxes per image instead of 9, 5 classes missing instead of 42.

Drawn by seed, percent and fold alone: the same images on any machine, wherever the data set lies. An image without
label file is background, as in training; one whose label file is not valid is left out, as in training, and named. So
is an image whose path is not in UTF-8, as a list of paths is.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from ultralytics.data.utils import img2label_paths
from ultralytics.utils import LOGGER

from mlc_yolo import whole_files
from mlc_yolo.data.fonts import provide_fonts
from mlc_yolo.data.listing import image_files, printable, warn_of_blanks
from mlc_yolo.data.resolve import open_data
from mlc_yolo.faults import begin_work

Percents = str | float | Sequence[str | float]


def split(
    data: str | Path,
    *,
    percent: Percents = (1, 2, 5, 10),
    folds: int = 5,
    seed: int = 0,
    output: str | Path | None = None,
) -> list[Path]:
    """Write data YAMLs that label a part of the training images and name the rest as unlabelled.

    Args:
        data: the data set, as in training; `train` may be a folder, a list file, or several of either.
        percent: of the training images to keep labelled, each between 0 and 100; a text with commas does as well.
        folds: draws per percent, >= 1.
        seed: another seed, other draws.
        output: the folder to write to; default `<name of the data set>-splits` in the current folder.

    Returns:
        The YAMLs, percent by percent, fold by fold. Files that are there with the same content are left alone.

    Raises:
        ValueError: a wrong argument; a percent that leaves nothing labelled or nothing unlabelled; no labels; an image
            of a list that does not exist.
        FileExistsError: `output` holds one of the files with other content; nothing is written.
        OSError: the data set cannot be found, or something cannot be written.
    """
    percents = _percents(percent)
    folds, seed = _whole("folds", folds), _whole("seed", seed)
    if folds < 1:
        raise ValueError(f"folds must be at least 1, got {folds}.")
    provide_fonts()
    settings = open_data(data, download=False)
    name = _name(Path(data))
    images, classes = _read_classes(list_images(settings["train"]), len(settings["names"]))
    counts = {share: round(len(images) * share / 100) for share in percents}
    for share, count in counts.items():
        if not 0 < count < len(images):
            raise ValueError(
                f"percent={share:g} of {len(images)} training images is {count}; expected 1 or more, not all."
            )

    folder = Path(output if output is not None else f"{name}-splits").expanduser().absolute()
    files: dict[Path, str] = {}
    written, table = [], []
    for share, count in counts.items():
        for fold in range(folds):
            stem = f"{name}-{share:g}pct-fold{fold}"
            labelled = draw(classes, count, random.Random(f"{seed} {share:g} {fold}"))
            lists = {key: folder / f"{stem}-{key}.txt" for key in ("labeled", "unlabeled")}
            files[lists["labeled"]] = _lines(images[i] for i in labelled)
            files[lists["unlabeled"]] = _lines(images[i] for i in sorted(set(range(len(images))) - set(labelled)))
            files[folder / f"{stem}.yaml"] = _yaml(settings, lists)
            written.append(folder / f"{stem}.yaml")
            table.append(_row(stem, [classes[i] for i in labelled], settings["names"]))
    _write(files)
    width = max(len(row[0]) for row in table)
    head = f"{'split':<{width}}  labelled images  boxes  classes missing"
    rows = [f"{stem:<{width}}  {count:>15}  {boxes:>5}  {missing}" for stem, count, boxes, missing in table]
    LOGGER.info("\n".join([f"{len(images)} training images -> {folder}", head, *rows]))
    return written


def list_images(source: str | Sequence[str]) -> list[Path]:
    """List the images that Ultralytics would train on, each once, in order of their paths.

    Args:
        source: a folder or a list file (an image a line, "./" being the list's folder), or several of them.

    Returns:
        Absolute paths. Blanks before or behind a path hide it, as in training, which is said. Links are not followed:
        labels lie beside the link.

    Raises:
        FileNotFoundError: nothing is found.
        ValueError: a listed image does not exist.
    """
    images = [Path(file) for file in image_files(source)]
    warn_of_blanks(source)
    if missing := [str(image) for image in images if not image.is_file()]:
        raise ValueError(f"{len(missing)} images of {source} do not exist, {missing[0]} among them.")
    return images


def draw(classes: Sequence[Counter[int]], count: int, generator: random.Random) -> list[int]:
    """Draw images, and swap some so that as many classes as possible keep one (greedily; see the head of this file).

    Args:
        classes: class -> boxes, of each image.
        count: how many images to draw, at most all.
        generator: what is drawn with.

    Returns:
        Indices of the drawn images, ascending.

    Example:
        Of four images only the last has class 1.

        >>> draw([Counter({0: 1}), Counter({0: 3}), Counter(), Counter({1: 1})], 2, random.Random(0))[-1]
        3
    """
    order = list(range(len(classes)))
    generator.shuffle(order)
    drawn, rest = order[:count], order[count:]
    frequency = Counter(label for counts in classes for label in counts)
    covered = Counter(label for i in drawn for label in classes[i])
    for label in sorted(frequency, key=lambda label: (frequency[label], label)):
        having = [] if covered[label] else [i for i in rest if label in classes[i]]
        if not having:
            continue
        new = max(having, key=lambda i: sum(not covered[label] for label in classes[i]))
        gain = sum(not covered[label] for label in classes[new])
        after = covered + Counter(dict.fromkeys(classes[new], 1))
        old = min(reversed(drawn), key=lambda i: sum(after[label] == 1 for label in classes[i]))
        if sum(after[label] == 1 for label in classes[old]) < gain:
            drawn[drawn.index(old)], rest[rest.index(new)] = new, old
            covered = after - Counter(dict.fromkeys(classes[old], 1))
    return sorted(drawn)


def _percents(value: Percents) -> list[float]:
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, Sequence) else [value]
    try:
        percents = [float(f"{float(part):g}") for part in parts]  # as file names have them
    except (TypeError, ValueError):
        percents = []
    if not percents or isinstance(value, bool) or not all(0 < share < 100 for share in percents):  # NaN is not either
        raise ValueError(f"percent takes numbers between 0 and 100, such as 1,2,5,10; got {value!r}.")
    return list(dict.fromkeys(percents))


def _whole(name: str, value: Any) -> int:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not number.is_integer():
        raise ValueError(f"{name} must be a whole number, got {value!r}.")
    return int(number)


def _name(data: Path) -> str:
    """Name the data set: by its YAML, or by the folder where that is just data.yaml."""
    if data.is_dir() or data.stem in {"data", "dataset"}:
        return (data if data.is_dir() else data.parent).resolve().name
    return data.stem


def _read_classes(images: Sequence[Path], num_classes: int) -> tuple[list[Path], list[Counter[int]]]:
    """Count each image's boxes by class, and name and leave out the images that cannot be in a split.

    Returns:
        The images that stay, and class -> boxes of each.

    Raises:
        ValueError: no row at all.
    """
    kept, classes = [], []
    for image, labels in zip(images, img2label_paths([str(image) for image in images]), strict=True):
        path = printable(str(image))
        try:
            if path != str(image):
                raise ValueError(f"the path {path} is not in UTF-8, as a list of paths is")
            counts = _count_classes(Path(labels), num_classes)
        except ValueError as error:
            LOGGER.warning(f"{error}: {path} is left out")
            continue
        kept.append(image)
        classes.append(counts)
    if not any(classes):
        raise ValueError(
            f"No labels for the {len(images)} training images, such as {printable(str(images[0]))}: a split needs them."
        )
    return kept, classes


def _count_classes(file: Path, num_classes: int) -> Counter[int]:
    """Count the boxes of a label file by class; none where it is not there.

    Raises:
        ValueError: a row without a class of this data set, or bytes that are not UTF-8.
    """
    counts: Counter[int] = Counter()
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines() if file.is_file() else []
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not in UTF-8") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        label = _label(line.split()[0])
        if label is None or not 0 <= label < num_classes:
            raise ValueError(f"{file}, line {number}: expected a class from 0 to {num_classes - 1}, got {line!r}")
        counts[label] += 1
    return counts


def _label(word: str) -> int | None:
    try:
        return int(float(word)) if float(word).is_integer() else None
    except ValueError:
        return None


def _lines(images: Iterable[Path]) -> str:
    return "".join(f"{image}\n" for image in images)


def _yaml(settings: dict[str, Any], lists: dict[str, Path]) -> str:
    """Return the data set's YAML, as Ultralytics has resolved it, with other training images."""
    kept = {key: value for key, value in settings.items() if key not in {"yaml_file", "download"}}
    changed = {"path": str(settings["path"]), "train": str(lists["labeled"]), "unlabeled": str(lists["unlabeled"])}
    return yaml.safe_dump({**kept, **changed}, sort_keys=False, allow_unicode=True)


def _row(stem: str, drawn: Sequence[Counter[int]], names: dict[int, str]) -> tuple[str, int, int, str]:
    boxes = sum(drawn, Counter[int]())
    missing = [name for label, name in names.items() if label not in boxes]
    listed = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
    return stem, len(drawn), boxes.total(), f"{len(missing)}: {listed}" if missing else "none"


def _write(files: dict[Path, str]) -> None:
    """Write missing files, YAMLs after their lists.

    Raises:
        FileExistsError: a file is there with other content.
    """
    new = {}
    for file, text in files.items():
        if not file.exists():
            new[file] = text
        elif file.read_text(encoding="utf-8") != text:
            raise FileExistsError(f"{file} exists with other content; nothing is written over. Name another output=.")
    begin_work()
    for file, text in new.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        whole_files.write(file, text)  # a run that was stopped leaves no half list
