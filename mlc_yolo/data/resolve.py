"""Turn a `data=` argument into a data set that Ultralytics reads. The demo set is drawn here, once, into the cache.

A drawn set is written to a temporary folder and renamed when complete. An interrupted run therefore leaves no partial
set; when several processes draw at once, the first to finish provides the set and the others use it. A manifest of
SHA-256 sums is checked at each use, and a damaged set is drawn again. The folder's name holds a hash of the parameters
and of the generator's version.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from mlc_yolo import whole_files
from mlc_yolo.data.data_yaml import SPLITS, check_settings, image_paths
from mlc_yolo.data.demo_set import scenes
from mlc_yolo.data.demo_set.labels import KEYPOINTS
from mlc_yolo.resources import resource_dir

DEFAULT = "demo.yaml"
MANIFEST = "manifest.json"
ABANDONED = 3600.0  # s; an unfinished folder this old belongs to a process that was killed


def resolve_data(data: str | Path | None, *, split: str | None = None) -> str:
    """Find the data set that a `data=` argument means, and draw it first if it is a drawn one.

    Args:
        data: an existing path; the name of a YAML in our `datasets/` folder, with or without ".yaml"; None for the demo
            set, which is said in the log; or anything else that Ultralytics knows.
        split: the split that will be read beside "train"; default "val".

    Returns:
        What to hand to Ultralytics: the absolute path of a drawn set's data.yaml, the path of one of our YAMLs, that
        of a YAML fetched from an address, or `data` itself.

    Raises:
        ValueError: a YAML names a generator that does not exist or gives it wrong parameters, or holds what
            `check_settings` refuses.
        TypeError: no path.
        OSError: the cache folder cannot be written; the message names MLC_YOLO_CACHE.

    Example:
        >>> resolve_data("coco8.yaml")
        'coco8.yaml'
    """
    if data is None:
        from ultralytics.utils import LOGGER

        LOGGER.info(
            "No data given: using the demo set (data=demo.yaml). For images of your own: data=path/to/your.yaml"
        )
        data = resource_dir("datasets") / DEFAULT
    if not isinstance(data, str | os.PathLike) or "\0" in str(data):
        raise TypeError(f"data={data!r} ({type(data).__name__}) must be the path of a data YAML.")
    data = str(data).strip()  # as upstream reads it
    if data.lower().startswith(("http://", "https://")):
        from ultralytics.utils import clean_url
        from ultralytics.utils.checks import check_file

        if Path(clean_url(data)).suffix.lower() not in {".yaml", ".yml"}:
            return data
        data = str(check_file(data))
    path = Path(data)
    if not path.exists() and path.name == str(data):  # a bare name
        ours = resource_dir("datasets") / (path.name if path.suffix else f"{path.name}.yaml")
        path = ours if ours.is_file() else path
    if not path.exists():
        return str(data)
    settings_file = _settings_file(path)
    if settings_file is not None:
        from ultralytics.utils import YAML

        try:
            settings: dict[str, Any] = YAML.load(settings_file)  # as Ultralytics will read it, mended where it mends
        except ValueError:  # reported by Ultralytics, in the same words
            return str(path)
        if "generator" in settings:
            return str(generated(demo_spec(settings, path)))
        check_settings(settings, settings_file, split=split or "val")
    return str(path)


def resolve_for_upstream(data: str | Path | None, *, split: str | None = None) -> str:
    """Resolve a data set that plain Ultralytics will open: as `resolve_data` does, and check its caches too.

    Args:
        data: as for `resolve_data`; a folder of folders of images, for classification.
        split: as for `resolve_data`.

    Returns:
        As `resolve_data`.

    Raises:
        ValueError: as for `resolve_data`, or a cache of labels that is more than data.
        TypeError: no path.
        OSError: the cache folder cannot be written.
    """
    from ultralytics.utils import YAML

    from mlc_yolo.data.label_cache import check_cache, check_label_caches

    resolved = resolve_data(data, split=split)
    settings_file = _settings_file(Path(resolved))
    if settings_file is not None:
        settings = YAML.load(settings_file)
        folders = ("labels", str(settings.get("masks_dir") or "masks"), "depth")
        for key in SPLITS:
            check_label_caches(image_paths(settings, settings_file, key), folders)
    elif os.path.isdir(resolved):
        for folder in Path(resolved).iterdir():
            check_cache(folder.with_suffix(".cache"))
    return resolved


def open_data(
    data: str | Path | None, *, split: str | None = None, fraction: Any = 1.0, download: bool = True
) -> dict[str, Any]:
    """Read the description of a data set as a training does, for commands that list its images themselves.

    Args:
        data: as for `resolve_data`, or an NDJSON file or address, which is converted as upstream does before training.
        split: the split that is read beside "train"; default "val".
        fraction: upstream's, of an NDJSON set: the images that are fetched.
        download: fetch a set that is not here.

    Returns:
        Upstream's description: absolute paths by split, `names`, `nc`, `channels`, `path`, `yaml_file`.

    Raises:
        ValueError: as for `resolve_data`.
        TypeError: no path.
        OSError: no such data set or split; or the cache folder cannot be written.
        SyntaxError: a YAML that lacks an entry.
    """
    from ultralytics.data.utils import check_det_dataset, convert_ndjson_to_yolo_if_needed

    resolved = resolve_data(data, split=split)
    converted = str(convert_ndjson_to_yolo_if_needed(resolved, fraction, split=split or "val"))
    if converted != resolved:
        converted = resolve_data(converted, split=split)  # a YAML that holds what the NDJSON said
    description: dict[str, Any] = check_det_dataset(converted, autodownload=download, split=split or "")
    return description


def look_at_data(data: str, *, split: str | None = None) -> dict[str, Any] | None:
    """Check that a training set is complete before a run folder is made; upstream checks afterwards.

    Args:
        data: what `resolve_data` returned; anything but a YAML is left to upstream.
        split: the split that is read beside "train"; default "val".

    Returns:
        Upstream's description of the set; None where it was left to upstream.

    Raises:
        RuntimeError: a YAML that upstream refuses, in its words.
        FileNotFoundError: no images, or a folder in which upstream would find no data YAML.
    """
    from ultralytics.data.utils import check_det_dataset
    from ultralytics.utils import clean_url

    from mlc_yolo.data.listing import image_files

    if os.path.isdir(data) and _settings_file(Path(data)) is None:
        raise FileNotFoundError(
            f"data={data} must be a data YAML, or a folder that holds one, and is a folder with none or several. "
            "A data YAML names path, train, val and names; give its path."
        )
    if not data.endswith((".yaml", ".yml")):
        return None
    split = split or "val"
    try:
        description: dict[str, Any] = check_det_dataset(data, split=split)
    except Exception as error:
        raise RuntimeError(f"Dataset '{clean_url(data)}' error ❌ {error}") from error
    for key in ("train", split):
        try:
            image_files(description[key])
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{data}: '{key}': {error}") from error
    return description


def _settings_file(path: Path) -> Path | None:
    """The YAML that Ultralytics would read for an existing path; None where it reads none or refuses to choose."""
    if path.is_dir():
        from ultralytics.data.utils import find_dataset_yaml

        with suppress(AssertionError):
            return Path(find_dataset_yaml(path))
        return None
    return path if path.suffix.lower() in {".yaml", ".yml"} and path.is_file() else None


def demo_spec(settings: dict[str, Any], source: Path) -> scenes.DemoSpec:
    """Read the parameters of a demo set from its YAML.

    Args:
        settings: the YAML's content: `generator: demo`, `names` as list or mapping, any of `DemoSpec`'s other fields.
        source: where it was read, for messages.

    Raises:
        ValueError: another generator, an unknown key, or a value out of its domain.
    """
    rest = dict(settings)
    generator, names, nc = rest.pop("generator"), rest.pop("names", None), rest.pop("nc", None)
    if generator != "demo":
        raise ValueError(f"{source}: the only generator is 'demo'; got {generator!r}.")
    known = set(scenes.DemoSpec.__dataclass_fields__) - {"names"}
    if unknown := sorted(set(rest) - known, key=str):
        raise ValueError(f"{source}: generator 'demo' takes {', '.join(sorted(known))}, names and nc; got {unknown}.")
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise ValueError(f"{source}: names must be numbered 0..{len(names) - 1}; got {sorted(names)}.")
        names = [names[label] for label in range(len(names))]
    if names is not None:
        rest["names"] = tuple(names)
    try:
        spec = scenes.DemoSpec(**rest)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    if nc not in (None, len(spec.names)):
        raise ValueError(f"{source}: nc is {nc} but there are {len(spec.names)} names.")
    return spec


def cache_dir() -> Path:
    """Where drawn sets are kept: $MLC_YOLO_CACHE, else $XDG_CACHE_HOME/mlc-yolo, else ~/.cache/mlc-yolo; absolute."""
    if own := os.environ.get("MLC_YOLO_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return (Path(shared).expanduser() / "mlc-yolo").absolute()


def generated(spec: scenes.DemoSpec) -> Path:
    """The data.yaml of a demo set in the cache, drawn if it is not there whole.

    Raises:
        OSError: the cache folder cannot be written.
    """
    target = _folder(spec)
    config = {"path": str(target), "train": "images/train", "val": "images/val", "names": dict(enumerate(spec.names))}
    if spec.task == "pose":
        config |= {"kpt_shape": list(KEYPOINTS), "flip_idx": list(range(KEYPOINTS[0]))}
    text = yaml.safe_dump(config, sort_keys=False)
    if not _complete(target, text):
        try:
            _publish(spec, target, text)
        except OSError as error:
            raise OSError(
                f"The demo set could not be written to {target.parent}: {error}. "
                "Set the environment variable MLC_YOLO_CACHE to a folder that can be written and has 20 MB free."
            ) from error
    return target / "data.yaml"


def redraw_missing(data: str | Path) -> None:
    """Draw a demo set of ours again if `data` names a file of it and the cache was emptied since.

    Args:
        data: what a checkpoint remembers of its data.

    Raises:
        OSError: the cache folder cannot be written.
    """
    path = Path(data)
    if not path.exists() and path.parent.parent == cache_dir() and path.parent.name.startswith("demo-"):
        folder = resource_dir("datasets")
        for source in (folder / DEFAULT, *sorted(folder.glob("demo-*.yaml"))):
            spec = demo_spec(yaml.safe_load(source.read_text(encoding="utf-8")), source)
            if _folder(spec) == path.parent:
                generated(spec)


def _folder(spec: scenes.DemoSpec) -> Path:
    """Return where a demo set is kept."""
    fields = asdict(spec)
    if spec.task == "detect":
        del fields["task"]  # as before there were others: drawn sets keep their folders
    version = json.dumps([scenes.VERSION, fields], sort_keys=True)
    return cache_dir() / f"demo-{hashlib.sha256(version.encode()).hexdigest()[:12]}"


def _complete(folder: Path, text: str) -> bool:
    """Whether it holds every file of its manifest, unaltered; others may be there (Ultralytics' label caches)."""
    try:
        if (folder / "data.yaml").read_text(encoding="utf-8") != text:
            return False
        sums = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return all(whole_files.sha256(folder / name) == value for name, value in sums.items())
    except (OSError, ValueError):
        return False


def _publish(spec: scenes.DemoSpec, target: Path, text: str) -> None:
    """Draw the set beside `target` and rename it into place; a damaged set there is removed first."""
    from ultralytics.utils import LOGGER

    LOGGER.info(f"Drawing the demo set ({spec.train_images} + {spec.val_images} images, once) into {target} ...")
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(".demo-*"):
        with suppress(FileNotFoundError):  # its owner has just removed it
            if time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
    try:
        with whole_files.folder(target) as new:
            scenes.write_demo(spec, new)
            files = sorted(file.relative_to(new).as_posix() for file in new.rglob("*") if file.is_file())
            sums = {name: whole_files.sha256(new / name) for name in files}
            whole_files.write_json(new / MANIFEST, sums, indent=0)
            (new / "data.yaml").write_text(text, encoding="utf-8")
            if not _complete(target, text):
                with suppress(FileNotFoundError):
                    target.rename(new.with_name("old"))
    except OSError:  # another process was first
        if not _complete(target, text):
            raise
