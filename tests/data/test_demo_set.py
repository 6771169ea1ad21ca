"""The demo set: what is drawn, how it is kept in the cache, and how a data= argument finds it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from mlc_yolo.data import resolve
from mlc_yolo.data.demo_set import scenes, sprites
from mlc_yolo.data.demo_set.scenes import Canvas, DemoSpec, Sprite, draw_scene
from mlc_yolo.resources import resource_dir

SMALL = DemoSpec(train_images=20, val_images=6, imgsz=96)
ROOT = Path(resolve.__file__).parents[2]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private, still missing cache folder."""
    monkeypatch.setenv("MLC_YOLO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_yaml(file: Path, **changes: object) -> Path:
    """A small demo YAML; a change of None leaves the key out."""
    settings = {"generator": "demo", "train_images": 20, "val_images": 6, "imgsz": 96, **changes}
    file.write_text(yaml.safe_dump({k: v for k, v in settings.items() if v is not None}))
    return file


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every image and label below the folder."""
    files = [file for kind in ("images", "labels") for file in (folder / kind).rglob("*.*")]
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def start(source: Path, cache: Path) -> subprocess.Popen[str]:
    """Resolve `source` in a fresh process, which prints the result."""
    code = f"from mlc_yolo.data.resolve import resolve_data; print(resolve_data({str(source)!r}))"
    env = {**os.environ, "MLC_YOLO_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)


def disc(centre: tuple[int, int], radius: int, size: int, badge: tuple[slice, slice] | None) -> Sprite:
    """A white disc on a patch as large as the image."""
    ys, xs = np.mgrid[0:size, 0:size]
    inside = (xs - centre[0]) ** 2 + (ys - centre[1]) ** 2 <= radius**2
    marked = None
    if badge is not None:
        marked = np.zeros((size, size), bool)
        marked[badge] = True
    alpha = np.where(inside, 255, 0).astype(np.uint8)
    return Sprite((0, 0), alpha, np.full((size, size, 3), 255, np.uint8), marked)


# what is drawn --------------------------------------------------------------------------------------------------------


def test_the_box_of_a_disc_is_its_extent_clipped_to_the_image() -> None:
    # pixels 20..40 are covered in x, 10..30 in y; edges lie between pixels, so the box ends at 41 and 31
    canvas = Canvas(np.zeros((64, 64, 3), np.uint8))
    assert canvas.paint(disc((30, 20), 10, 64, np.s_[18:22, 22:26]), label=3)
    scene = canvas.scene()
    assert scene.boxes.tolist() == [[20, 10, 41, 31]]
    assert scene.labels.tolist() == [3]

    sprite = disc((30, 20), 10, 64, np.s_[18:22, 36:40])
    canvas = Canvas(np.zeros((64, 64, 3), np.uint8))
    assert canvas.paint(replace(sprite, origin=(-25, 40)), label=0)  # now -5..15 in x and 50..70 in y
    assert canvas.scene().boxes.tolist() == [[0, 50, 16, 64]]


def test_a_hidden_part_still_belongs_to_the_box() -> None:
    canvas = Canvas(np.zeros((64, 64, 3), np.uint8))
    canvas.paint(disc((30, 30), 12, 64, np.s_[28:32, 20:24]), label=0)
    assert canvas.paint(disc((45, 30), 8, 64, None))
    assert canvas.scene().boxes.tolist() == [[18, 18, 43, 43]]


def test_what_would_hide_an_object_or_its_badge_is_not_painted() -> None:
    canvas = Canvas(np.zeros((64, 64, 3), np.uint8))
    canvas.paint(disc((30, 30), 12, 64, np.s_[28:32, 20:24]), label=0)
    before = canvas.image.copy()
    assert not canvas.paint(disc((22, 30), 4, 64, None))  # the badge
    assert not canvas.paint(disc((38, 30), 14, 64, None))  # most of the body
    assert np.array_equal(canvas.image, before)


def test_an_object_that_lies_mostly_outside_is_not_painted() -> None:
    canvas = Canvas(np.zeros((64, 64, 3), np.uint8))
    sprite = disc((30, 20), 10, 64, np.s_[18:22, 36:40])
    assert not canvas.paint(replace(sprite, origin=(-34, 0)), label=0)
    assert len(canvas.scene().labels) == 0


def test_the_longer_side_of_a_drawn_object_is_the_one_asked_for() -> None:
    for seed, side in enumerate((28.0, 60.0, 120.0, 170.0)):
        canvas = Canvas(np.zeros((320, 320, 3), np.uint8))
        rng = np.random.default_rng(seed)
        assert canvas.paint(sprites.object_sprite(rng, np.array([160.0, 160.0]), side, 0, ("dot",)), label=0)
        (box,) = canvas.scene().boxes
        assert abs((box[2:] - box[:2]).max() - side) <= 2
        assert np.abs((box[:2] + box[2:]) / 2 - 160).max() <= 1.5


def test_the_class_changes_the_badge_and_nothing_else() -> None:
    drawn = [
        sprites.object_sprite(np.random.default_rng(5), np.array([80.0, 80.0]), 120.0, label, tuple(sprites.GLYPHS))
        for label in range(5)
    ]
    for other in drawn[1:]:
        assert other.badge is not None
        assert np.array_equal(other.alpha, drawn[0].alpha)
        changed = (other.colour != drawn[0].colour).any(2)
        rim = cv2.dilate(other.badge.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert changed.any()
        assert not (changed & ~rim).any()


def test_badges_are_small_and_lie_within_the_body_off_its_centre() -> None:
    shares = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        sprite = sprites.object_sprite(rng, np.array([100.0, 100.0]), float(rng.uniform(28, 180)), 0, ("dot",))
        assert sprite.badge is not None
        xs = np.flatnonzero(sprite.badge.any(0))
        round_area = np.pi * (len(xs) / 2) ** 2
        assert sprite.badge.sum() >= 0.8 * round_area  # `badge` is cut to the silhouette
        shares.append(sprite.badge.sum() / (sprite.alpha >= 128).sum())
    assert max(shares) < 0.35
    assert np.mean(shares) < 0.2


def test_an_image_depends_on_its_index_alone() -> None:
    longer = replace(SMALL, train_images=500)
    assert np.array_equal(draw_scene(SMALL, "train", 3).image, draw_scene(longer, "train", 3).image)
    assert not np.array_equal(draw_scene(SMALL, "train", 3).image, draw_scene(SMALL, "val", 3).image)
    assert not np.array_equal(draw_scene(SMALL, "train", 3).image, draw_scene(replace(SMALL, seed=1), "train", 3).image)


def test_a_wrong_parameter_is_named() -> None:
    with pytest.raises(ValueError, match=r"names .* dot, ring, cross, bars, triangle; got"):
        DemoSpec(names=("dot", "dog"))
    with pytest.raises(ValueError, match=r"imgsz .* at least 64; got 32"):
        DemoSpec(imgsz=32)
    with pytest.raises(ValueError, match=r"val_images .* got True"):
        DemoSpec(val_images=True)


# the files ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 + 32 images of the set's own size."""
    folder = tmp_path_factory.mktemp("written")
    scenes.write_demo(DemoSpec(train_images=120, val_images=32), folder)
    return folder


@pytest.mark.slow
def test_every_label_is_valid_and_some_images_have_none(written: Path) -> None:
    for split, count in (("train", 120), ("val", 32)):
        images = sorted(file.stem for file in (written / "images" / split).iterdir())
        labels = sorted((written / "labels" / split).iterdir())
        assert images == [file.stem for file in labels]
        assert len(images) == count
        empty = 0
        for file in labels:
            rows = np.array([line.split() for line in file.read_text().splitlines()], float).reshape(-1, 5)
            empty += len(rows) == 0
            assert set(rows[:, 0]) <= set(range(5))
            low, high = rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2
            assert (rows[:, 3:] > 8 / 320).all()
            assert (low >= -1e-6).all()
            assert (high <= 1 + 1e-6).all()
        assert 1 <= empty <= 0.15 * count
        assert cv2.imread(str(written / "images" / split / "0000.jpg")).shape == (320, 320, 3)


def test_labels_are_the_drawn_extents(written: Path) -> None:
    scene = draw_scene(DemoSpec(), "train", 7)
    rows = np.array([line.split() for line in (written / "labels/train/0007.txt").read_text().splitlines()], float)
    corners = np.concatenate([rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2], 1) * 320
    assert len(rows) > 0
    assert np.abs(corners - scene.boxes).max() < 1e-3
    assert rows[:, 0].astype(int).tolist() == scene.labels.tolist()


def test_classes_are_balanced_and_sizes_vary(written: Path) -> None:
    text = "".join(file.read_text() for file in (written / "labels").rglob("*.txt"))
    rows = np.array([line.split() for line in text.splitlines()], float)
    counts = np.bincount(rows[:, 0].astype(int), minlength=5)
    assert counts.min() > 0.6 * counts.max()
    sides = rows[:, 3:].max(1) * 320
    assert np.quantile(sides, 0.1) < 45
    assert np.quantile(sides, 0.9) > 100


# the cache ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_and_two_caches_give_identical_files(tmp_path: Path) -> None:
    source = write_yaml(tmp_path / "small.yaml")
    folders = []
    for name in ("one", "two"):
        out, _ = start(source, tmp_path / name).communicate(timeout=120)
        folders.append(Path(out.splitlines()[-1]).parent)
    assert folders[0] != folders[1]
    assert len(hashes(folders[0])) == 52
    assert hashes(folders[0]) == hashes(folders[1])


@pytest.mark.slow
def test_a_generation_killed_half_way_is_completed_by_the_next_call(tmp_path: Path) -> None:
    source = write_yaml(tmp_path / "set.yaml", train_images=150)
    cache = tmp_path / "killed"
    process = start(source, cache)
    deadline = time.monotonic() + 60
    while len(list(cache.rglob("*.jpg"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    written = len(list(cache.rglob("*.jpg")))
    assert 5 <= written < 150
    assert not list(cache.glob("demo-*"))

    out, _ = start(source, cache).communicate(timeout=120)
    scenes.write_demo(DemoSpec(train_images=150, val_images=6, imgsz=96), tmp_path)
    assert hashes(Path(out.splitlines()[-1]).parent) == hashes(tmp_path)


def test_an_abandoned_folder_is_removed_and_a_fresh_one_is_left(cache: Path, tmp_path: Path) -> None:
    old, fresh = cache / ".demo-0123-old", cache / ".demo-0123-fresh"
    old.mkdir(parents=True)
    fresh.mkdir()
    os.utime(old, (0, 0))
    resolve.resolve_data(write_yaml(tmp_path / "small.yaml"))
    assert not old.exists()
    assert fresh.exists()


@pytest.mark.slow
def test_processes_that_draw_at_once_share_one_whole_set(tmp_path: Path) -> None:
    source = write_yaml(tmp_path / "small.yaml", train_images=60)
    processes = [start(source, tmp_path / "cache") for _ in range(2)]
    found = {process.communicate(timeout=120)[0].splitlines()[-1] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(found) == 1
    scenes.write_demo(DemoSpec(train_images=60, val_images=6, imgsz=96), tmp_path)
    assert hashes(Path(found.pop()).parent) == hashes(tmp_path)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_complete_set_is_not_drawn_again(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_yaml(tmp_path / "small.yaml")
    first = resolve.resolve_data(source)
    (Path(first).parent / "labels" / "train.cache").write_bytes(b"left by Ultralytics")
    monkeypatch.setattr(scenes, "write_demo", lambda *_: pytest.fail("drawn twice"))
    assert resolve.resolve_data(source) == first
    assert (Path(first).parent / "labels" / "train.cache").exists()


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "altered", "no manifest"])
def test_a_damaged_set_is_drawn_again(cache: Path, tmp_path: Path, damage: str) -> None:
    source = write_yaml(tmp_path / "small.yaml")
    folder = Path(resolve.resolve_data(source)).parent
    good = hashes(folder)
    if damage == "missing":
        (folder / "images/train/0003.jpg").unlink()
    elif damage == "altered":
        (folder / "labels/val/0001.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    else:
        (folder / resolve.MANIFEST).unlink()
    assert resolve.resolve_data(source) == str(folder / "data.yaml")
    assert hashes(folder) == good


@pytest.mark.slow
def test_other_parameters_and_another_version_get_folders_of_their_own(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = resolve.resolve_data(write_yaml(tmp_path / "a.yaml"))
    second = resolve.resolve_data(write_yaml(tmp_path / "b.yaml", seed=1))
    monkeypatch.setattr(scenes, "VERSION", scenes.VERSION + 1)
    third = resolve.resolve_data(tmp_path / "a.yaml")
    assert len({first, second, third}) == 3


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MLC_YOLO_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OSError, match="MLC_YOLO_CACHE"):
        resolve.resolve_data(write_yaml(tmp_path / "small.yaml"))


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLC_YOLO_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert resolve.cache_dir() == tmp_path / "own"
    monkeypatch.delenv("MLC_YOLO_CACHE")
    assert resolve.cache_dir() == tmp_path / "xdg" / "mlc-yolo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert resolve.cache_dir() == Path.home() / ".cache" / "mlc-yolo"


# data= ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def specs(monkeypatch: pytest.MonkeyPatch) -> list[DemoSpec]:
    """Collects what would be generated instead of drawing it."""
    asked: list[DemoSpec] = []

    def generated(spec: DemoSpec) -> Path:
        asked.append(spec)
        return Path("/cache/data.yaml")

    monkeypatch.setattr(resolve, "generated", generated)
    return asked


@pytest.mark.parametrize("data", ["demo.yaml", "demo", None])
def test_the_demo_set_has_a_name_and_is_the_default(
    data: str | None, specs: list[DemoSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    from ultralytics.utils import LOGGER

    monkeypatch.setattr(LOGGER, "info", said.append)
    assert resolve.resolve_data(data) == str(Path("/cache/data.yaml"))
    assert specs == [DemoSpec()]  # the YAML and the code agree on the defaults
    assert len(said) == (data is None)
    assert data is not None or "data=path/to/your.yaml" in said[0]


def test_an_existing_path_is_itself(specs: list[DemoSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo.yaml").write_text("train: images\nnames: [a]\n")
    Path("odd.yaml").write_text("a: [unclosed")
    Path("folder").mkdir()
    assert resolve.resolve_data("demo.yaml") == "demo.yaml"  # the user's own wins
    assert resolve.resolve_data(tmp_path / "demo.yaml") == str(tmp_path / "demo.yaml")
    assert resolve.resolve_data("odd.yaml") == "odd.yaml"
    assert resolve.resolve_data("folder") == "folder"
    assert specs == []


def test_an_unknown_name_is_left_to_ultralytics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("coco8.yaml", "no/such/demo.yaml", "https://example.org/coco.zip"):
        assert resolve.resolve_data(name) == name


def test_a_yaml_of_ours_without_generator_is_its_path(
    specs: list[DemoSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "datasets"
    folder.mkdir()
    (folder / "plain.yaml").write_text("train: x\nval: y\nnames: [a]\n")
    monkeypatch.setattr(resolve, "resource_dir", lambda _: folder)
    assert resolve.resolve_data("plain") == str(folder / "plain.yaml")
    assert resolve.resolve_data("plain.yaml") == str(folder / "plain.yaml")


def test_a_copy_of_the_yaml_with_other_numbers_is_a_set_of_its_own(specs: list[DemoSpec], tmp_path: Path) -> None:
    settings = yaml.safe_load((resource_dir("datasets") / "demo.yaml").read_text(encoding="utf-8"))
    settings |= {"seed": 4, "nc": 2, "names": ["ring", "bars"]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    resolve.resolve_data(tmp_path / "mine.yaml")
    assert specs == [DemoSpec(names=("ring", "bars"), seed=4)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generator": "dmeo"}, "only generator is 'demo'; got 'dmeo'"),
        ({"sede": 1}, "takes imgsz, seed, task, train_images, val_images, names and nc; got .'sede'"),
        ({"seed": -1}, "seed .* at least 0; got -1"),
        ({"names": ["dog"]}, "got .'dog'"),
        ({"names": {1: "dot", 2: "ring"}}, "numbered 0..1"),
        ({"nc": 7}, "nc is 7 but there are 5 names"),
    ],
)
def test_a_wrong_generator_yaml_is_named(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"small.yaml: .*{message}"):
        resolve.resolve_data(write_yaml(tmp_path / "small.yaml", **changes))


def test_the_drawn_set_is_one_that_ultralytics_reads(cache: Path, tmp_path: Path) -> None:
    from ultralytics.data.utils import check_det_dataset

    found = check_det_dataset(resolve.resolve_data(write_yaml(tmp_path / "small.yaml")), autodownload=False)
    assert found["nc"] == 5
    assert found["names"] == dict(enumerate(sprites.GLYPHS))
    assert len(list(Path(found["train"]).iterdir())) == 20


def test_importing_the_module_imports_neither_torch_nor_ultralytics() -> None:
    code = "import sys, mlc_yolo.data.resolve; print({'torch', 'ultralytics'} & set(sys.modules))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert result.stdout.strip() == "set()"


@pytest.mark.slow
def test_a_drawn_set_that_a_checkpoint_remembers_is_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLC_YOLO_CACHE", str(tmp_path))
    monkeypatch.setattr(resolve, "DEFAULT", str(write_yaml(tmp_path / "small.yaml")))
    data = Path(resolve.resolve_data(resolve.DEFAULT))
    shutil.rmtree(data.parent)
    resolve.redraw_missing(data)
    assert data.exists()
    drawn: list[str] = []
    monkeypatch.setattr(resolve, "generated", lambda spec: drawn.append(spec.task))
    for name in ("demo-seg", "demo-pose", "demo-obb"):
        settings = yaml.safe_load((ROOT / "datasets" / f"{name}.yaml").read_text())
        resolve.redraw_missing(resolve._folder(resolve.demo_spec(settings, Path(name))) / "data.yaml")
    assert drawn == ["segment", "pose", "obb"]
    elsewhere = tmp_path / "mine" / "data.yaml"
    resolve.redraw_missing(elsewhere)
    assert not elsewhere.exists()
