"""Data YAMLs: each gives a data set, or an error that says what is wrong with it."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ultralytics.cfg import get_cfg
from ultralytics.data.utils import check_det_dataset

from mlc_yolo.data.datasets import build
from mlc_yolo.data.listing import image_files
from mlc_yolo.data.resolve import resolve_data

from .reading import encoded, patience

SOUND: dict[str, Any] = {"train": "images/train", "val": "images/val", "names": ["a", "b"]}
#: What a command line reports without a traceback.
CLEAR = (ValueError, TypeError, SyntaxError, OSError, RuntimeError)


def make_set(root: Path) -> Path:
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        (root / "images" / split / "0.png").write_bytes(encoded(".png"))
        (root / "labels" / split / "0.txt").write_text("0 .5 .5 .4 .4\n1 .3 .3 .2 .2\n")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_set(tmp_path / "set")


def objects_of(file: Path | str, split: str = "val") -> dict[str, int]:
    """Read both data sets of a YAML as a training does, and count their objects."""
    with patience():
        data = check_det_dataset(resolve_data(file, split=split))
        args = get_cfg(overrides={"imgsz": 64, "mosaic": 0.0})
        counts = {}
        for mode, key in (("train", "train"), ("val", split)):
            dataset = build(data[key], args, warp=False, data=data, batch=1, mode=mode)
            counts[mode] = sum(len(dataset[i]["cls"]) for i in range(len(dataset)))
        return counts


def write(root: Path, content: bytes | str | dict[str, Any]) -> Path:
    file = root / "data.yaml"
    text = yaml.safe_dump(content) if isinstance(content, dict) else content
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


@pytest.mark.parametrize(
    "content",
    [
        SOUND,
        {**SOUND, "names": {0: "a", 1: "b"}},
        {**SOUND, "names": {"0": "a", "1": "b"}},
        {**SOUND, "names": [1, 2]},
        {**SOUND, "names": ["a", "a"]},
        {**SOUND, "nc": "2"},
        {"train": ["images/train"], "val": ["images/val"], "nc": 2},
        {**SOUND, "unknown": {"a": [1]}},
        {**SOUND, "download": "rm -rf here"},  # nothing is missing, so it is not asked for
        b"\xef\xbb\xbf" + yaml.safe_dump(SOUND).encode(),
        yaml.safe_dump(SOUND).replace("\n", "\r\n"),
        yaml.safe_dump(SOUND) + "\x00",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n" + yaml.safe_dump(SOUND),
    ],
)
def test_a_sound_yaml_is_read_however_it_is_written(tried: Counter[str], root: Path, content: Any) -> None:
    assert objects_of(write(root, content)) == {"train": 2, "val": 2}
    tried["read"] += 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "'train:' key missing"),
        ("- a\n", "not a valid YAML mapping"),
        ("train: [\n", "YAML syntax error"),
        ("names: !!python/object/apply:os.system ['touch here']\n", "YAML syntax error"),
        (b"\xff\xfe\x00\x01" * 20, "'train:' key missing"),
        ({"val": "images/val", "names": ["a"]}, "'train:' key missing"),
        ({"train": "images/train", "names": ["a"]}, "'val:' key missing"),
        ({"train": "images/train", "val": "images/val"}, "either 'names' or 'nc'"),
        ({**SOUND, "nc": 3}, "'names' length 2 and 'nc: 3' must match"),
        ({**SOUND, "names": ["a"]}, "Label class 1 exceeds dataset class count 1"),
        ({**SOUND, "names": "ab"}, "'names' must be list or dict"),
        ({**SOUND, "names": []}, "'names' is empty"),
        ({**SOUND, "names": {0: "a", 2: "b"}}, r"'names' must be numbered 0 to 1; got \[0, 2\]"),
        ({**SOUND, "names": {-1: "a", 0: "b"}}, "'names' must be numbered 0 to 1"),
        ({**SOUND, "names": {"x": "a", "y": "b"}}, "'names' must be numbered 0 to 1"),
        ({**SOUND, "names": [None, "b"]}, "each entry of 'names' must be a word; got None"),
        ({**SOUND, "names": [["a"], "b"]}, r"each entry of 'names' must be a word; got \['a'\]"),
        ("train: images/train\nval: images/val\nnames: &x [*x, a]\n", "each entry of 'names' must be a word"),
        *(
            ({**SOUND, "names": None, "nc": nc}, "'nc' must be a whole number from 1 to")
            for nc in (0, -1, "two", 1.5, None, [2], True, 10**8, float("inf"), float("nan"))
        ),
        *(
            ({**SOUND, "channels": channels}, "'channels' must be a whole number, 1 or more")
            for channels in (0, "three", None, [3], float("nan"))
        ),
        *(
            ({**SOUND, "train": train}, "'train' must be a path, or a list of paths")
            for train in (5, [5], {"a": "b"}, [None], "a\0b")
        ),
        ("train: &x [*x]\nval: images/val\nnames: [a]\n", "'train' must be a path, or a list of paths"),
        ({**SOUND, "train": "nothing"}, "Error loading data from .*nothing"),
        ({**SOUND, "train": []}, "Error loading data from"),
        ({**SOUND, "train": None}, "Error loading data from"),
        ({**SOUND, "val": "nothing"}, "images not found, missing path .*nothing"),
        ({**SOUND, "train": "a" * 5000}, "too long"),
        ({**SOUND, "train": "/dev/zero"}, "Error loading data from .*zero"),
        ({**SOUND, "train": "/"}, "'train': / is the root of a file system"),
        ({**SOUND, "train": "../../../../../../../../../../../.."}, "'train': .* is the root of a file system"),
        ({**SOUND, "train": "data.yaml"}, "Error loading data from .*data.yaml"),
        ({**SOUND, "path": 5}, "'path' must be str"),
        ({**SOUND, "path": "/nothing/there"}, "images not found, missing path '/nothing/there"),
        ({**SOUND, "download": 5}, "'download' must be an address"),
    ],
)
def test_what_is_wrong_with_a_yaml_is_said(tried: Counter[str], root: Path, content: Any, message: str) -> None:
    with pytest.raises(CLEAR, match=f"(?is){message}"):
        objects_of(write(root, content))
    tried["refused"] += 1


@pytest.mark.parametrize(
    "download",
    [
        "open('{0}', 'w').write('')",
        "bash -c touch\t{0}",
        "https://example.org/x.zip\nopen('{0}', 'w').write('')",
        "http = open('{0}', 'w')",
        "https://example.org/script.py",
    ],
)
def test_a_program_in_a_yaml_is_not_run(tried: Counter[str], root: Path, tmp_path: Path, download: str) -> None:
    trap = tmp_path / "trap"
    program = download.format(trap)
    for split, missing in (("val", {"val": "nothing"}), ("test", {"test": "nothing"})):
        with pytest.raises(ValueError, match=r"nothing does not exist\. 'download' holds a program .* does not run it"):
            objects_of(write(root, {**SOUND, **missing, "download": program}), split)
        with pytest.raises(ValueError, match="'download' holds a program"):  # a folder stands for the YAML in it
            objects_of(root, split)
        with pytest.raises(ValueError, match="'download' holds a program"):  # Ultralytics strips what YAML forbids
            text = yaml.safe_dump({**SOUND, **missing, "download": program}, width=10**6)
            objects_of(write(root, f"\x01{text}"), split)
    tried["refused"] += 6
    assert not trap.exists()


def link_to_itself(root: Path) -> None:
    (root / "images" / "train" / "again").symlink_to(root / "images" / "train")


def two_links(root: Path) -> None:
    link_to_itself(root)
    (root / "images" / "train" / "up").symlink_to(root)


def links_to_each_other(root: Path) -> None:
    for here, there in (("one", "two"), ("two", "one")):
        (root / "images" / "train" / here).mkdir()
        (root / "images" / "train" / here / "link").symlink_to(root / "images" / "train" / there)


def link_to_the_root(root: Path) -> None:
    (root / "images" / "train" / "all").symlink_to("/")


@pytest.mark.parametrize("link", [link_to_itself, two_links, links_to_each_other, link_to_the_root])
def test_links_in_a_circle_are_named(tried: Counter[str], root: Path, link: Callable[[Path], None]) -> None:
    link(root)
    with pytest.raises(ValueError, match=r"data\.yaml: 'train': the link .* leads back to .*Remove the link"):
        objects_of(write(root, SOUND))
    with patience(), pytest.raises(ValueError, match="leads back to"):  # as images without labels are listed
        image_files(root / "images")
    tried["refused"] += 2


def test_a_link_that_is_its_own_target_is_said(tried: Counter[str], root: Path) -> None:
    (root / "images" / "self").symlink_to(root / "images" / "self")
    with pytest.raises(CLEAR, match=r"self"):
        objects_of(write(root, {**SOUND, "train": "images/self"}))
    tried["refused"] += 1


def test_links_that_lead_elsewhere_are_followed(tried: Counter[str], root: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    shutil.copy(root / "images" / "train" / "0.png", tmp_path / "more" / "1.png")
    for name in ("here", "there"):
        (root / "images" / "train" / name).symlink_to(tmp_path / "more")
        (root / "labels" / "train" / name).mkdir()
        (root / "labels" / "train" / name / "1.txt").write_text("0 .5 .5 .4 .4\n")
    assert objects_of(write(root, SOUND))["train"] == 4
    tried["read"] += 1


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 4),
    st.sampled_from(
        [float("nan"), float("inf"), 1.5, 10**30, "", "nothing", "\U0001f600", "a\0b", "~", "1", "images/val"]
    ),
    st.lists(st.sampled_from(["a", "images/val", 1, None, "", ["a"]]), max_size=3),
    st.dictionaries(st.sampled_from([0, 1, 2, "0", "x", -1]), st.sampled_from(["a", "b", None, 1]), max_size=3),
)
KEYS = ["path", "train", "val", "test", "minival", "names", "nc", "channels", "download", "validation"]


@pytest.mark.slow
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    changes=st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3),
    left_out=st.sets(st.sampled_from(list(SOUND)), max_size=1),
)
def test_any_value_of_any_key_is_read_or_refused(
    tried: Counter[str], changes: dict[str, Any], left_out: set[str]
) -> None:
    root = make_set(Path(tempfile.mkdtemp()) / "set")
    content = {key: value for key, value in {**SOUND, **changes}.items() if key not in left_out}
    try:
        counts = objects_of(write(root, content))
    except CLEAR as error:
        tried["refused"] += 1
        assert len(str(error)) > 20, f"{error!r} for {content}"
        assert any(word in str(error) for word in ("data.yaml", "loading data from", str(root))), (
            f"{error} for {content}"
        )
    else:
        tried["read"] += 1
        assert counts["train"] > 0
    finally:
        shutil.rmtree(root.parent)


@pytest.mark.parametrize("data", [5, ["a"], {"a": 1}, 1.5, True, "a\0b", b"a"])
def test_data_that_is_no_path_is_named(tried: Counter[str], data: Any) -> None:
    with pytest.raises(TypeError, match=r"data=.* must be the path of a data YAML"):
        resolve_data(data)
    tried["refused"] += 1
