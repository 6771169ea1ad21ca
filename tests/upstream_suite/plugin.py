"""A pytest plugin: Ultralytics' own tests, with `MLCYOLO` in the place of `YOLO` and `mlc-yolo` in that of `yolo`.

It is loaded by name (`python -m pytest -p upstream_suite.plugin`) where the tests were unpacked; see `run.py`.

1. `ultralytics.YOLO` is `MLCYOLO` before a test module is imported; `detect.DetectionTrainer`, its validator and its
   predictor are ours, and so are those of segmentation, pose and oriented boxes.
2. `run` of the command line's tests starts `mlc-yolo`.
3. Tests of other tasks and families are left out; `elsewhere` says why.
4. A test that fails because it wanted a file from the network, or a package that is not installed, is reported as
   skipped, with the reason.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

#: Files whose tests have no part in boxes with one image source on one processor.
OTHER_FILES = {
    "test_cuda.py": "needs a GPU",
    "test_rocm.py": "needs a GPU",
    "test_solutions.py": "solutions are built on plain YOLO",
    "test_ndjson_converter.py": "depth",
}
#: Other tasks and families, in a test's name, its parameters or its source.
OTHER_NAMES = re.compile(r"-cls|-sem\b|semantic|classif|depth|rtdetr|sam\b|world|yoloe|_26_")
OTHER_CODE = re.compile(
    r"yoloe|yolo\w*-(sem|cls|depth)|task=\"(classify|semantic|depth)|\b(RTDETR|SAM|FastSAM|YOLOE|YOLOWorld|NAS|Classif\w+|"
    r"Depth\w*|Semantic\w*)\b"
)
#: What upstream says where a download fails, and where it would install a package.
NETWORK = re.compile(
    r"environment (may be|is) offline|Download failure|Name or service not known|getaddrinfo|ConnectionError"
)
PACKAGE = re.compile(r"(?:No module named|ModuleNotFoundError:[^\n]*|requirements? )\s*'?\[?'([\w.\-]+)")


def pytest_configure() -> None:
    """Put our classes in the place of theirs."""
    import ultralytics
    from ultralytics.models.yolo import detect, obb, pose, segment

    from mlc_yolo import MLCYOLO
    from mlc_yolo.evaluation.predictor import MLCPredictor
    from mlc_yolo.evaluation.task_predictors import PREDICTORS
    from mlc_yolo.evaluation.task_validators import MLCOrientedValidator, MLCPoseValidator, MLCSegmentationValidator
    from mlc_yolo.evaluation.validator import MLCValidator
    from mlc_yolo.training.semi_trainer import SemiTrainer
    from mlc_yolo.training.task_trainers import MLCOrientedTrainer, MLCPoseTrainer, MLCSegmentationTrainer

    ultralytics.YOLO = MLCYOLO
    detect.DetectionTrainer, detect.DetectionValidator, detect.DetectionPredictor = (
        SemiTrainer,
        MLCValidator,
        MLCPredictor,
    )
    segment.SegmentationTrainer, segment.SegmentationValidator = MLCSegmentationTrainer, MLCSegmentationValidator
    pose.PoseTrainer, pose.PoseValidator = MLCPoseTrainer, MLCPoseValidator
    obb.OBBTrainer, obb.OBBValidator = MLCOrientedTrainer, MLCOrientedValidator
    segment.SegmentationPredictor, pose.PosePredictor = PREDICTORS["segment"], PREDICTORS["pose"]
    obb.OBBPredictor = PREDICTORS["obb"]


def run_ours(command: str) -> None:
    """Start `mlc-yolo` with a `yolo` command's words."""
    program, *words = command.split()
    assert program == "yolo", command
    subprocess.run([str(Path(sys.executable).with_name("mlc-yolo")), *words], check=True)


def elsewhere(item: pytest.Item) -> str | None:
    """Return why a test has no part in detection and its sister tasks; None where it has."""
    if reason := OTHER_FILES.get(item.path.name):
        return reason
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    for text in (item.name.split("[")[0].removeprefix("test_"), *map(str, parameters.values())):
        if OTHER_NAMES.search(text.lower()):
            return "another task or family"
    named = any(
        re.search(r"yolo|detect|segment|pose|obb|coco8\.", str(value)) for value in parameters.values()
    )  # then the source is for all
    source = "" if named else inspect.getsource(item.function)  # type: ignore[attr-defined]
    return "another task or family" if OTHER_CODE.search(source) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is not detection, and hand the command line's tests our command."""
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        (left if elsewhere(item) else kept).append(item)
        module: Any = getattr(item, "module", None)
        if item.path.name == "test_cli.py":
            module.run = run_ours
    config.stash[LEFT_OUT] = Counter(f"{item.path.name}: {elsewhere(item)}" for item in left)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


LEFT_OUT = pytest.StashKey[Counter[str]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Turn the failure of a test that wants a network or a package into a skip that says so."""
    report: pytest.TestReport = yield
    if report.failed:
        text = "\n".join((report.longreprtext, *(content for _, content in report.sections)))
        wanted = PACKAGE.search(text)
        reason = "needs a network" if NETWORK.search(text) else f"needs the package {wanted[1]}" if wanted else None
        if reason:
            report.outcome = "skipped"
            report.longrepr = (str(item.path), item.location[1] or 0, f"Skipped: {reason}")
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Name what was skipped and why, count what was left out, and close with one line."""
    stats = terminalreporter.stats
    terminalreporter.section("Ultralytics' tests with MLCYOLO and mlc-yolo")
    for report in stats.get("skipped", []):
        terminalreporter.line(f"skipped  {report.nodeid}: {report.longrepr[2].removeprefix('Skipped: ')}")
    left_out = config.stash.get(LEFT_OUT, Counter())  # without one, a test that was named does not exist
    for reason, count in sorted(left_out.items()):
        terminalreporter.line(f"left out {count:4} of {reason}")
    counts = {name: len(stats.get(name, [])) for name in ("passed", "failed", "error", "skipped")}
    network = sum("network" in report.longrepr[2] for report in stats.get("skipped", []))
    terminalreporter.line(
        f"{counts['passed']} passed, {counts['failed'] + counts['error']} failed, {counts['skipped']} skipped "
        f"({network} for want of a network), {left_out.total()} of other tasks left out"
    )
