"""Image files: each is loaded as it should look, or named with what is wrong."""

from __future__ import annotations

import gc
import io
import shutil
import struct
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from .reading import PICTURE, Found, encoded, read

# Pillow warns of damage, and upstream leaves broken files open: what counts here is what becomes of the image.
pytestmark = pytest.mark.filterwarnings("ignore")

LABEL = "0 0.25 0.5 0.4 0.4\n"
RGB = Image.fromarray(PICTURE[..., ::-1].copy())
#: The top left quarter is bright: turned by EXIF, it is somewhere else.
MARKED = np.zeros((48, 64, 3), np.uint8)
MARKED[:24, :32] = 250


def pillow(format_name: str, image: Image.Image = RGB, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def turned(orientation: int, format_name: str) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return pillow(format_name, Image.fromarray(MARKED), exif=exif)


def png(width: int, height: int, pixels: bytes) -> bytes:
    """A PNG that says it is so large, whose checksums are right whatever the pixels are."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def wide_tiff(width: int) -> bytes:
    """A TIFF whose header claims another width than its pixels have."""
    content = bytearray(pillow("TIFF"))
    (directory,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, directory)
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        if struct.unpack_from("<H", content, entry)[0] == 256:  # ImageWidth
            struct.pack_into("<HII", content, entry + 2, 4, 1, width)
    return bytes(content)


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Let files that upstream left open go now, rather than in a test that counts warnings as errors."""
    yield
    gc.collect()


SOURCES = {suffix: encoded(suffix) for suffix in (".jpg", ".png", ".bmp")} | {
    ".tif": pillow("TIFF"),
    ".webp": pillow("WEBP"),
    ".jp2": pillow("JPEG2000"),
}


def read_all(files: dict[str, bytes], mode: str = "val") -> Found:
    """Read a folder of a sound image and these, each with one object."""
    root = Path(tempfile.mkdtemp())
    (root / "images").mkdir()
    (root / "labels").mkdir()
    for name, content in {"sound.png": encoded(".png"), **files}.items():
        (root / "images" / name).write_bytes(content)
        (root / "labels" / name).with_suffix(".txt").write_text(LABEL)
    try:
        return read(root / "images", mode)
    finally:
        shutil.rmtree(root)


def became(found: Found, name: str) -> str:
    """Return what became of an image, which must be one thing."""
    refused = f"{name}: ignoring corrupt image/label: " in found.said
    failed = f"{name} cannot be decoded" in found.errors.get(name, "")
    loaded = name in found.samples
    assert refused + failed + loaded == 1, found.said
    return "read" if loaded else "refused"


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """A suffix, and an image file cut short or with some bytes changed."""
    suffix = draw(st.sampled_from(sorted(SOURCES)))
    content = bytearray(SOURCES[suffix])
    if draw(st.booleans()):
        content = content[: draw(st.integers(0, len(content) - 1))]
    for _ in range(draw(st.integers(0, 3))):
        if content:
            content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return draw(st.sampled_from([suffix, suffix, ".png", ".jpg"])), bytes(content)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(files=st.lists(damaged(), min_size=1, max_size=12), mode=st.sampled_from(["train", "val"]))
def test_no_damaged_image_vanishes_without_a_word(
    tried: Counter[str], capfd: pytest.CaptureFixture[str], files: list[tuple[str, bytes]], mode: str
) -> None:
    named = {f"case{i}{suffix}": content for i, (suffix, content) in enumerate(files)}
    found = read_all(named, mode)
    for name in named:
        tried[became(found, name)] += 1
        if name in found.samples and mode == "val":
            assert found.samples[name]["img"].shape == (3, 64, 64)
            assert len(found.samples[name]["cls"]) == 1


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        pytest.param(".png", encoded(".png", PICTURE[..., 0].astype(np.uint16) * 257), id="16-bit grey"),
        pytest.param(".png", encoded(".png", PICTURE.astype(np.uint16) * 257), id="16-bit colour"),
        pytest.param(".tif", encoded(".tif", PICTURE[..., 0].astype(np.uint16) * 257), id="16-bit TIFF"),
        pytest.param(".jpg", encoded(".jpg", PICTURE[..., 0]), id="grey"),
        pytest.param(".png", pillow("PNG", RGB.convert("1")), id="black and white"),
        pytest.param(".png", pillow("PNG", RGB.convert("P")), id="palette"),
        pytest.param(".png", pillow("PNG", RGB.convert("RGBA")), id="transparent"),
        pytest.param(".png", pillow("PNG", RGB.convert("LA")), id="grey and transparent"),
        pytest.param(".jpg", pillow("JPEG", RGB.convert("CMYK")), id="CMYK"),
        pytest.param(".tif", pillow("TIFF", RGB.convert("CMYK")), id="CMYK TIFF"),
        pytest.param(".jpg", encoded(".png"), id="PNG named jpg"),
        pytest.param(".png", encoded(".jpg"), id="JPEG named png"),
        pytest.param(".JPG", encoded(".jpg"), id="upper case"),
        pytest.param(".heic", encoded(".jpg"), id="JPEG named heic"),
        pytest.param(".tif", pillow("TIFF", save_all=True, append_images=[RGB]), id="two pages"),
        pytest.param(".webp", pillow("WEBP", save_all=True, append_images=[RGB.rotate(90)]), id="animated"),
    ],
)
@pytest.mark.parametrize("mode", ["train", "val"])
def test_kinds_of_image_are_read_in_three_channels(tried: Counter[str], suffix: str, content: bytes, mode: str) -> None:
    found = read_all({f"case{suffix}": content}, mode)
    tried[became(found, f"case{suffix}")] += 1
    image = found.samples[f"case{suffix}"]["img"]
    assert image.shape == (3, 64, 64)
    if mode == "val":  # a picture, not a blank or one of its bytes only
        assert 20 < float(image[:, 8:56].float().mean()) < 235 and float(image[:, 8:56].float().std()) > 5


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "size", "corner"),
    [(1, (48, 64), (0, 0)), (3, (48, 64), (1, 1)), (6, (64, 48), (0, 1)), (8, (64, 48), (1, 0)), (9, (48, 64), (0, 0))],
)
def test_a_turned_image_is_read_upright(
    tried: Counter[str], orientation: int, size: tuple[int, int], corner: tuple[int, int], format_name: str
) -> None:
    name = f"case.{format_name.lower()}"
    found = read_all({name: turned(orientation, format_name)})
    tried[became(found, name)] += 1
    sample = found.samples[name]
    assert sample["ori_shape"] == size
    image = sample["img"][0, (64 - size[0]) // 2 :, (64 - size[1]) // 2 :]
    bright = [
        [float(image[y : y + 8, x : x + 8].float().mean()) > 128 for x in (4, size[1] - 12)] for y in (4, size[0] - 12)
    ]
    assert [(y, x) for y in (0, 1) for x in (0, 1) if bright[y][x]] == [corner]


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        pytest.param(".png", encoded(".png", PICTURE[:1, :1]), "image size (1, 1) <10 pixels", id="1 x 1"),
        pytest.param(
            ".png", encoded(".png", np.zeros((1, 10000, 3), np.uint8)), "image size (1, 10000)", id="1 x 10000"
        ),
        pytest.param(".jpg", b"", "ignoring corrupt", id="empty"),
        pytest.param(".jpg", b"hello", "ignoring corrupt", id="a text"),
        pytest.param(".heic", b"\0" * 99, "ignoring corrupt", id="zeros"),
        pytest.param(".jpg", pillow("GIF"), "Invalid image format GIF", id="GIF named jpg"),
        pytest.param(".jpg", SOURCES[".jpg"][:-60], "image file is truncated", id="cut JPEG"),
        pytest.param(".png", SOURCES[".png"][:-60], "Truncated File Read", id="cut PNG"),
        pytest.param(".png", png(60000, 60000, zlib.compress(bytes(99))), "decompression bomb", id="huge"),
    ],
)
@pytest.mark.parametrize("mode", ["train", "val"])
def test_an_unusable_image_is_left_out_and_said(
    tried: Counter[str], suffix: str, content: bytes, message: str, mode: str
) -> None:
    found = read_all({f"case{suffix}": content}, mode)
    tried[became(found, f"case{suffix}")] += 1
    assert f"case{suffix}: ignoring corrupt image/label: " in found.said and message in found.said


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        pytest.param(".bmp", SOURCES[".bmp"][:-40], id="cut BMP"),
        pytest.param(".tif", SOURCES[".tif"][:-40], id="cut TIFF"),
        pytest.param(".png", SOURCES[".png"][:-2], id="PNG without its last bytes"),
        pytest.param(".png", png(64, 48, b"garbage"), id="PNG of garbage"),
        pytest.param(".png", png(5000, 5000, zlib.compress(bytes(99))), id="PNG with too few pixels"),
        pytest.param(".tif", encoded(".tif", PICTURE[..., 0].astype(np.float32)), id="32-bit float"),
        pytest.param(".tif", pillow("TIFF", RGB.convert("I")), id="32-bit integer"),
        pytest.param(".tif", wide_tiff(1_100_000), id="a width that OpenCV refuses"),
    ],
)
@pytest.mark.parametrize("mode", ["train", "val"])
def test_an_image_that_only_looks_sound_is_named_when_it_is_loaded(
    tried: Counter[str], capfd: pytest.CaptureFixture[str], suffix: str, content: bytes, mode: str
) -> None:
    found = read_all({f"case{suffix}": content}, mode)
    tried[became(found, f"case{suffix}")] += 1
    assert (
        f"case{suffix} cannot be decoded: it is damaged, or OpenCV does not read its format"
        in found.errors[f"case{suffix}"]
    )
    assert "sound.png" in found.samples


def test_a_jpeg_without_its_last_bytes_is_mended_and_said(tried: Counter[str]) -> None:
    found = read_all({"case.jpg": SOURCES[".jpg"][:-2]})
    tried[became(found, "case.jpg")] += 1
    assert "case.jpg: corrupt JPEG restored and saved" in found.said


@pytest.mark.parametrize("shape", [(10, 10000), (10000, 12)])
def test_a_sliver_keeps_its_object_in_validation(tried: Counter[str], shape: tuple[int, int]) -> None:
    found = read_all({"case.png": encoded(".png", np.zeros((*shape, 3), np.uint8))})
    tried[became(found, "case.png")] += 1
    assert found.samples["case.png"]["ori_shape"] == shape and len(found.samples["case.png"]["cls"]) == 1


def test_an_image_that_is_gone_is_not_called_damaged(tried: Counter[str], tmp_path: Path) -> None:
    from ultralytics.cfg import get_cfg

    from mlc_yolo.data.datasets import build

    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "case.png").write_bytes(encoded(".png"))
    args = get_cfg(overrides={"imgsz": 64})
    data = {"names": {0: "a"}, "nc": 1, "channels": 3}
    made = build(str(tmp_path / "images"), args, warp=False, data=data, batch=1, mode="val")
    (tmp_path / "images" / "case.png").unlink()
    tried["refused"] += 1
    with pytest.raises(FileNotFoundError, match=r"case\.png"):
        made[0]
