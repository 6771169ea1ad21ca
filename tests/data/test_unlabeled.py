"""Images without labels: how they are found and checked, and the two views of each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from ultralytics.cfg import get_cfg
from ultralytics.data.dataset import YOLODataset

from mlc_yolo.data.listing import image_files
from mlc_yolo.data.unlabeled import TwoViews, UnlabeledDataset

STILL = dict.fromkeys(("degrees", "translate", "scale", "shear", "perspective", "flipud", "fliplr"), 0.0)
DATA = {"names": {0: "one"}, "nc": 1, "channels": 3}


def write(path: Path, height: int = 40, width: int = 60, seed: int = 0, channels: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    cv2.imwrite(str(path), image if channels > 1 else image[..., 0])
    return path


def dataset(source: Any, *, size: int = 64, data: dict[str, Any] | None = None, **options: Any) -> UnlabeledDataset:
    given = {name: options.pop(name) for name in ("cache", "warp") if name in options}
    hyp = get_cfg(overrides={**STILL, **options})
    return UnlabeledDataset(img_path=source, imgsz=size, augment=True, hyp=hyp, data=data or DATA, **given)


# Where they are -------------------------------------------------------------------------------------------------------


def test_a_folder_is_searched_at_every_depth_for_images_alone(tmp_path: Path) -> None:
    wanted = [write(tmp_path / name) for name in ("a.png", "deep/er/b.JPG", "deep/c.webp")]
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "deep" / "b.mp4").write_bytes(b"")
    assert image_files(tmp_path) == image_files(str(tmp_path)) == sorted(map(str, wanted))


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A folder with a linked folder, a linked image, a hidden file and a name that looks like a pattern."""
    write(tmp_path / "elsewhere" / "far.png")
    folder = tmp_path / "my [best] photos"
    write(folder / "near.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (folder / "link.png").symlink_to(tmp_path / "elsewhere" / "far.png")
    (folder / "._near.png").write_bytes(b"left by another system")
    return folder


def test_links_hidden_files_and_strange_names_are_taken_as_ultralytics_takes_them(strange: Path) -> None:
    upstream = YOLODataset(img_path=str(strange), imgsz=64, augment=False, data=DATA)
    found = image_files(strange)
    assert found == upstream.im_files and [Path(file).name for file in found] == ["link.png", "far.png", "near.png"]


def test_lists_name_paths_and_those_with_a_dot_are_relative_to_the_list(tmp_path: Path) -> None:
    here, there = write(tmp_path / "lists" / "a.png"), write(tmp_path / "b b.png")
    listed = tmp_path / "lists" / "all.txt"
    listed.write_text(f"\ufeff./a.png\n\n{there}\nnotes.md\n", encoding="utf-8")
    assert image_files(listed) == sorted(map(str, (here, there)))


@pytest.mark.parametrize("name", ["all.list", "all", "all.csv"])
def test_any_file_that_is_no_image_is_a_list_as_ultralytics_reads_it(name: str, tmp_path: Path) -> None:
    listed = tmp_path / name
    listed.write_text(f"./a.png\n{write(tmp_path / 'b.png')}\n")
    write(tmp_path / "a.png")
    upstream = YOLODataset(img_path=str(listed), imgsz=64, augment=False, data=DATA)
    assert image_files(listed) == upstream.im_files and len(upstream.im_files) == 2


def test_a_file_that_is_no_text_is_no_list(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(FileNotFoundError, match=r"a\.mp4' is not a list of image paths"):
        image_files(tmp_path / "a.mp4")


def test_several_sources_are_joined(tmp_path: Path) -> None:
    files = [write(tmp_path / "one" / "a.png"), write(tmp_path / "two" / "b.png"), write(tmp_path / "c.png")]
    assert image_files([tmp_path / "two", str(tmp_path / "one"), tmp_path / "c.png"]) == sorted(map(str, files))


@pytest.mark.parametrize("several", [False, True])
def test_a_missing_folder_is_named(several: bool, tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"there is no '.*nowhere'. Give a folder of images"):
        image_files([str(write(tmp_path / "a.png").parent), missing] if several else missing)


@pytest.mark.parametrize("content", [None, "", "notes.md\n"])
def test_a_source_without_images_is_named(content: str | None, tmp_path: Path) -> None:
    source = tmp_path / "here"
    if content is None:
        source.mkdir()
    else:
        source = source.with_suffix(".txt")
        source.write_text(content)
    with pytest.raises(FileNotFoundError, match=r"no images in '.*here.*'. Expected .jpg, .png"):
        image_files(source)


# The two views --------------------------------------------------------------------------------------------------------


def test_the_weak_view_is_the_letterboxed_image_in_rgb(tmp_path: Path) -> None:
    file = write(tmp_path / "a.png", 32, 64)
    item = dataset(str(tmp_path))[0]
    weak = item["weak"]
    assert weak.dtype == item["strong"].dtype == torch.uint8 and weak.shape == item["strong"].shape == (3, 64, 64)
    photo = torch.from_numpy(cv2.imread(str(file))[..., ::-1].copy()).permute(2, 0, 1)
    assert torch.equal(weak[:, 16:48], photo) and (weak[:, :16] == 114).all() and item["im_file"] == str(file)


def test_the_strong_view_keeps_the_geometry(tmp_path: Path) -> None:
    """Brightness of the two goes together wherever nothing was cut out."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[10:30, 5:50] = 255
    cv2.imwrite(str(tmp_path / "a.png"), image)
    moved = {"degrees": 20.0, "translate": 0.2, "scale": 0.3, "fliplr": 0.5}
    source = dataset(str(tmp_path), **moved)
    torch.manual_seed(0)
    related = []
    for _ in range(20):
        item = source[0]
        pair = torch.stack([item[name].float().mean(0).flatten() for name in ("weak", "strong")])
        related.append(float(torch.corrcoef(pair)[0, 1]))
    assert np.median(related) > 0.8


def test_the_strong_view_differs_and_is_drawn_anew(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    source = dataset(str(tmp_path))
    torch.manual_seed(0)
    items = [source[0] for _ in range(6)]
    assert all(torch.equal(item["weak"], items[0]["weak"]) for item in items)
    strong = [item["strong"] for item in items]
    assert not any(torch.equal(item["weak"], item["strong"]) for item in items)
    assert not torch.equal(strong[0], strong[1])


def test_a_seed_repeats_the_views() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    views = []
    for _ in range(2):
        torch.manual_seed(3)
        views.append(TwoViews()({"img": image.copy(), "im_file": "a.png"})["strong"])
    assert torch.equal(*views)


@pytest.mark.parametrize("value", [0, 255])
def test_black_and_white_images_stay_within_range(value: int) -> None:
    torch.manual_seed(0)
    views = TwoViews()
    for _ in range(10):
        item = views({"img": np.full((64, 64, 3), value, np.uint8), "im_file": "a.png"})
        assert (item["weak"] == value).all() and item["strong"].dtype == torch.uint8


@pytest.mark.parametrize(("file_channels", "channels"), [(1, 3), (3, 1), (1, 1), (4, 3)])
def test_grey_and_transparent_images_give_the_channels_of_the_data(
    file_channels: int, channels: int, tmp_path: Path
) -> None:
    write(tmp_path / "a.png", channels=file_channels)
    torch.manual_seed(0)
    source = dataset(str(tmp_path), data={**DATA, "channels": channels})
    for _ in range(10):
        item = source[0]
        assert item["weak"].shape == item["strong"].shape == (channels, 64, 64)


def test_warped_images_fill_the_input(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((31, 64, 3), 200, np.uint8))
    assert (dataset(str(tmp_path), warp=True)[0]["weak"] == 200).all()
    assert not (dataset(str(tmp_path))[0]["weak"] == 200).all()


@pytest.mark.parametrize("cache", ["ram", "disk", False])
def test_cached_images_are_the_same_ones(cache: Any, tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.png", 40 + i, seed=i)
    plain = [item["weak"] for item in dataset(str(tmp_path))]
    cached = dataset(str(tmp_path), cache=cache, deterministic=False)
    assert all(torch.equal(a, b["weak"]) for a, b in zip(plain, cached, strict=True))


def test_images_of_any_size_are_stacked(tmp_path: Path) -> None:
    for i, (height, width) in enumerate([(97, 131), (20, 200), (300, 40)]):
        write(tmp_path / f"{i}.png", height, width)
    source = dataset(str(tmp_path), translate=0.1, scale=0.5)
    batch = source.collate_fn([source[i] for i in range(3)])
    assert batch["weak"].shape == batch["strong"].shape == (3, 3, 64, 64) and len(batch["im_file"]) == 3


# Labels and broken files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["7 0.5 0.5 0.4 0.4\n", "no numbers\n", "0 0.5 0.5 0.2 0.2\n", ""])
def test_a_label_file_beside_an_image_is_never_read(label: str, tmp_path: Path) -> None:
    for i in range(2):
        write(tmp_path / "images" / "train" / f"{i}.png", seed=i)
    plain = [item["weak"] for item in dataset(str(tmp_path / "images"))]
    (tmp_path / "images" / "train.unlabeled.cache").unlink()
    for i in range(2):
        for folder in ("labels", "images"):
            (tmp_path / folder / "train").mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / "train" / f"{i}.txt").write_text(label)
    source = dataset(str(tmp_path / "images"))
    assert len(source) == 2 and all(len(each["cls"]) == 0 for each in source.labels)
    assert all(torch.equal(a, b["weak"]) for a, b in zip(plain, source, strict=True))
    assert not (tmp_path / "labels" / "train.cache").exists()


def break_files(folder: Path) -> list[str]:
    whole = write(folder / "whole.jpg", 200, 200)
    (folder / "cut.jpg").write_bytes(whole.read_bytes()[:2000])
    (folder / "cut.png").write_bytes(write(folder / "cut.png", 200, 200).read_bytes()[:2000])
    (folder / "nothing.png").write_bytes(b"")
    (folder / "text.jpg").write_text("no image")
    (folder / "dangling.png").symlink_to(folder / "gone.png")
    (folder / "folder.png").mkdir()
    return ["cut.jpg", "cut.png", "dangling.png", "folder.png", "nothing.png", "text.jpg"]


# Upstream's check leaves a file it could not read open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_broken_images_are_left_out_and_named_each_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = break_files(tmp_path / "photos")
    for _ in range(2):  # scanned, then from the cache
        caplog.clear()
        source = dataset(str(tmp_path / "photos"))
        assert [Path(file).name for file in source.im_files] == ["whole.jpg"]
        assert all(f"{name}: ignoring corrupt image" in caplog.text for name in broken)
        for item in source:
            assert item["weak"].shape == (3, 64, 64)
    assert (tmp_path / "photos.unlabeled.cache").is_file()


def test_no_image_that_can_be_read_is_an_error(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"")
    with pytest.raises(RuntimeError, match="none of 3 images can be read"):
        dataset(str(tmp_path))


def test_an_image_added_or_replaced_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    write(folder / "a.png")
    assert len(dataset(str(folder))) == 1
    write(folder / "b.png", seed=1)
    assert len(dataset(str(folder))) == 2
    (folder / "a.png").write_bytes(b"")
    os.utime(folder / "a.png", (0, 0))
    assert [Path(file).name for file in dataset(str(folder)).im_files] == ["b.png"]
