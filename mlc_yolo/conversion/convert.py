"""Convert Pascal VOC XML or COCO JSON to a data set that Ultralytics trains on.

    output/
      data.yaml                  no path in it: the folder can be moved
      images/<split>/*           links to the source's images, or copies
      labels/<split>/*.txt       class cx cy w h, fractions of the image
      flags/<split>.json         difficult, truncated, occluded, crowd, ids, areas (see `mlc_yolo.data.flags`)
      report.txt                 counts, and every problem with its file

Everything is read before anything is written, and the output appears complete or not at all.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlc_yolo import whole_files
from mlc_yolo.conversion.coco_json import class_names as coco_names
from mlc_yolo.conversion.coco_json import load_coco, read_categories, read_coco
from mlc_yolo.conversion.pictures import Kind, Picture, Problem
from mlc_yolo.conversion.voc_xml import class_names as voc_names
from mlc_yolo.conversion.voc_xml import read_voc
from mlc_yolo.conversion.yolo_set import ROLES, Labelled, class_counts, count, label_pictures, write_set

Paths = str | Path | Sequence[str | Path]


@dataclass
class Report:
    """The report of a conversion. `str` gives the text of report.txt.

    Attributes:
        source: what was read.
        output: the data set's folder.
        names: class names by label.
        splits: split -> counts of "images", "without objects", "objects", "difficult", "crowd regions".
        problems: everything that was wrong, in the order of reading.
        notes: what else should be known.
    """

    source: str
    output: Path
    names: list[str] = field(default_factory=list)
    splits: dict[str, Counter[str]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return self.text()

    def text(self, most: int | None = None) -> str:
        """Return the report with at most so many problems listed; they are counted in any case."""
        lines = [f"{self.source} -> {self.output}"]
        for split, counts in self.splits.items():
            lines.append(f"  {split}: " + ", ".join(f"{number} {what}" for what, number in counts.items()))
        lines.append(f"  {len(self.names)} classes: {', '.join(self.names)}")
        lines += [f"  {note}" for note in self.notes]
        lines.append(f"{len(self.problems)} problems" + (":" if self.problems else ""))
        kinds = Counter(problem.kind.value for problem in self.problems)
        lines += [f"  {number} x {kind}" for kind, number in kinds.most_common()]
        listed = self.problems[:most]
        lines += ["", *map(str, listed)] if listed else []
        if len(listed) < len(self.problems):
            lines.append(f"... and {len(self.problems) - len(listed)} more")
        return "\n".join(lines)


def convert(
    source: Paths,
    output: str | Path,
    *,
    images: Paths | None = None,
    split: str | Sequence[str] | None = None,
    link: bool = True,
    strict: bool = False,
) -> Report:
    """Convert a data set.

    Args:
        source: a VOC folder (Annotations, JPEGImages, ImageSets/Main); a folder of XML files; or a COCO JSON file, or
            several, one per split. Wherever several are possible, a text with commas does as well.
        output: the folder to make; may exist if it is empty.
        images: the folder of images if not JPEGImages or the annotations' own; for several JSON files one for all, or
            one each.
        split: of a VOC folder, the lists in ImageSets/Main to take; of a plain folder, its subfolders; of JSON files,
            their names in the output. The first is trained on, the second validated on, the third is "test"; a single
            one is both trained and validated on. Default: everything as "train", JSON files as "train", "val", "test".
        link: make hard links to the images, or symbolic ones where the file system has none; False copies them.
        strict: raise at any problem instead of reporting it; nothing is written.

    Returns:
        The report, which is in report.txt as well.

    Raises:
        ValueError: the source cannot be read at all, no usable image is in a split, no object to train on, or `strict`
            and any problem.
        FileExistsError: `output` is there and not empty.
        OSError: something cannot be read or written.
    """
    if not isinstance(link, bool) or not isinstance(strict, bool):
        raise ValueError(f"link and strict must be True or False, got link={link!r}, strict={strict!r}.")
    target = Path(output).expanduser().resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"output={output} exists and is not an empty folder; nothing is written over.")
    sources = [Path(entry).expanduser() for entry in _listed(source)]
    folders = [Path(entry).expanduser() for entry in _listed(images)]
    splits = [str(entry) for entry in _listed(split)]
    _check_splits(splits)
    if missing := [str(path) for path in (*sources, *folders) if not path.exists()]:
        raise ValueError(f"{', '.join(missing)} does not exist.")
    if not sources:
        raise ValueError("source is empty: name a VOC folder, a folder of XML files or COCO JSON files.")

    report = Report(", ".join(map(str, sources)), target)
    parts: dict[str, list[Picture]]
    if all(path.is_file() and path.suffix.lower() == ".json" for path in sources):
        parts, names = _read_jsons(sources, folders, splits, report)
    elif len(sources) == 1 and sources[0].is_dir() and len(folders) <= 1:
        parts, names = _read_xmls(sources[0], folders[0] if folders else None, splits, report)
    else:
        raise ValueError(
            "source must be one folder of Pascal VOC XML, with one folder of images at most, or COCO files *.json; "
            f"got source={', '.join(map(str, sources))}, images={', '.join(map(str, folders)) or None}."
        )
    report.names = names
    labels = {name: label for label, name in enumerate(names)}
    entries = {split: label_pictures(pictures, labels, report.problems) for split, pictures in parts.items()}
    report.splits = {split: count(labelled) for split, labelled in entries.items()}
    if empty := [split for split, labelled in entries.items() if not labelled]:
        raise ValueError(f"No usable image in split {', '.join(empty)}; nothing was written.\n{report.text(most=20)}")
    _check_objects(entries, report)
    if strict and report.problems:
        raise ValueError(f"strict=True: nothing was written.\n{report.text(most=20)}")

    with whole_files.folder(target) as new:
        how = write_set(new, entries, report.names, link)
        report.notes += [f"{number} images {verb}" for verb, number in how.items()]
        if len(parts) == 1:
            report.notes.append(f"split {next(iter(parts))} is both train and val in data.yaml: there is no other")
        (new / "report.txt").write_text(f"{report}\n", encoding="utf-8", errors="backslashreplace")
    return report


def _listed(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    if not isinstance(value, (str, Path)):
        return list(value)
    if isinstance(value, Path) or Path(value).exists():
        return [value]
    return [part.strip() for part in value.split(",") if part.strip()]


def _check_splits(splits: list[str]) -> None:
    if len(splits) > len(ROLES) or len(set(splits)) < len(splits):
        raise ValueError(
            f"split takes up to {len(ROLES)} different names ({', '.join(ROLES)}), got {', '.join(splits)}."
        )
    for split in splits:
        # Ultralytics finds labels by replacing the last "/images/" of a path.
        if not re.fullmatch(r"\w[\w.-]*", split) or split in {"images", "labels"}:
            raise ValueError(f"split={split} cannot name a folder of images.")


def _check_objects(entries: dict[str, list[Labelled]], report: Report) -> None:
    """Refuse a set without an object to train on, and list what makes a set suspicious.

    Raises:
        ValueError: the training split has no object.
    """
    first, *later = entries
    if not report.splits[first]["objects"]:
        crowds = report.splits[first]["crowd regions"]
        reason = f" All {crowds} boxes are crowd regions (iscrowd: 1), which are not trained on." if crowds else ""
        raise ValueError(f"No usable object in split {first}; nothing was written.{reason}\n{report.text(most=20)}")
    trained = class_counts(entries[first])
    for split, counts in report.splits.items():
        if counts["crowd regions"] > counts["objects"]:
            detail = f"{counts['crowd regions']} crowd regions (iscrowd: 1), {counts['objects']} objects"
            report.problems.append(Problem(split, Kind.CROWDS, detail))
    for split in later:
        judged = class_counts(entries[split])
        if not judged:
            report.problems.append(Problem(split, Kind.EMPTY, f"{report.splits[split]['images']} images"))
        for label in sorted(judged.keys() - trained.keys()):
            detail = f"{report.names[label]!r} has {judged[label]} objects here and none in {first}"
            report.problems.append(Problem(split, Kind.UNTRAINED, detail))


def _used(parts: dict[str, list[Picture]]) -> set[str]:
    """Return the class names that boxes have."""
    return {box.category for pictures in parts.values() for picture in pictures for box in picture.boxes}


def _read_xmls(
    source: Path, images: Path | None, splits: list[str], report: Report
) -> tuple[dict[str, list[Picture]], list[str]]:
    parts: dict[str, list[Picture]] = {}
    official = 0
    for split in splits or [""]:
        parts[split or ROLES[0]], number = read_voc(source, images, split or None, report.problems)
        official += number
    if official:
        report.notes.append(
            f"{official} images count pixels from 1, as VOC's own files do; their boxes were widened to edges"
        )
    return parts, voc_names(_used(parts), official=official > 0)


def _read_jsons(
    sources: list[Path], folders: list[Path], splits: list[str], report: Report
) -> tuple[dict[str, list[Picture]], list[str]]:
    splits = splits or list(ROLES[: len(sources)])
    if len(splits) != len(sources):
        raise ValueError(f"Expected one split per JSON file, got split={', '.join(splits)} for {len(sources)} of them.")
    if len(folders) not in {0, 1, len(sources)}:
        raise ValueError(f"Expected one folder of images, or one per JSON file, got {', '.join(map(str, folders))}.")
    contents = [load_coco(file) for file in sources]
    categories = [
        read_categories(file, content, report.problems) for file, content in zip(sources, contents, strict=True)
    ]
    if not categories[0]:
        raise ValueError(f"{sources[0]} has no category.")
    parts = {}
    for i, (file, content, split) in enumerate(zip(sources, contents, splits, strict=True)):
        images = folders[i % len(folders)] if folders else None
        parts[split] = read_coco(file, content, images, categories[i], report.problems)
    return parts, coco_names(categories, _used(parts))
