"""The report of a comparison: what it says, what it must never become, and how it looks and works in a browser."""

from __future__ import annotations

import base64
import csv
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import browser
import cv2
import numpy as np
import pytest
import yaml

from mlc_yolo.compare.cell import EPOCHS, RECORDS, SPECIFICATION
from mlc_yolo.compare.grid import Grid, plan
from mlc_yolo.compare.results import DIFFERENCES, Comparison, latency_file
from mlc_yolo.metrics.errors import Kind, count_kinds, judge
from mlc_yolo.metrics.oracles import Oracles, Repair
from mlc_yolo.metrics.records import Records
from mlc_yolo.metrics.reliability import best_ious, reliability
from mlc_yolo.report import charts, differing, sections, write_report
from mlc_yolo.report.gaps import gap_rows, gap_tables
from mlc_yolo.report.gather import gather, read_curves
from mlc_yolo.report.page import render
from mlc_yolo.report.photographs import photograph_of
from mlc_yolo.report.template import breakable

EPOCHS_TRAINED = 5
NAMES = {0: "cat", 1: "dog"}
#: What hostile names try; each would leave a trace in `window.hacked`.
SCRIPT = "<script>window.hacked=1</script>"
IMAGE = '"><img src=x onerror="window.hacked=2">.png'


def photographs(folder: Path, names: list[str]) -> list[str]:
    """Write an image of 120 x 90 px under each name."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in names:
        image = cv2.GaussianBlur(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8), (9, 9), 0)
        (folder / name).write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return [str(folder / name) for name in names]


def made_up(images: list[str], *, noise: float, seed: int, names: dict[int, str], digest: str = "") -> Records:
    """Records whose objects are always the same, and whose boxes are off by `noise` of their size."""
    rng = np.random.default_rng(7)
    counts = rng.integers(1, 5, len(images))
    counts[0] = 0
    corner, side = rng.random((counts.sum(), 2)) * [70, 40], 12 + rng.random((counts.sum(), 2)) * 35
    objects = np.hstack((corner, corner + side)).astype(np.float32)
    labels = rng.integers(0, len(names), len(objects))
    rng = np.random.default_rng(seed)
    boxes = objects.repeat(2, 0) + rng.normal(0, noise, (2 * len(objects), 4)) * np.tile(side.repeat(2, 0), 2)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    wrong = rng.random(len(boxes)) < 0.1
    return Records(
        images=images,
        sizes=np.tile([90, 120], (len(images), 1)),
        gt_image=np.repeat(np.arange(len(images)), counts),
        gt_boxes=objects,
        gt_labels=labels,
        image=np.repeat(np.arange(len(images)), counts).repeat(2),
        boxes=boxes.astype(np.float32),
        scores=rng.random(len(boxes)).astype(np.float32),
        labels=np.where(wrong, 1 - labels.repeat(2), labels.repeat(2)),
        names=names,
        spearman=rng.uniform(-1, 1, len(objects)).astype(np.float32),
        reach=np.full(len(objects), 0.97, dtype=np.float32),
        digest=digest,
    )


def comparison_of(
    folder: Path,
    data: Path | list[Path],
    *,
    images: list[str],
    finished: set[str] | None = None,
    names: dict[int, str] = NAMES,
    device: str = "a CPU",
    **options: Any,
) -> Comparison:
    """A comparison's folder as `compare` leaves it, filled with made-up results; `mlc` places its boxes better."""
    varied = {"assigner": ["tal", "mlc"], "seed": [0, 1], "epochs": EPOCHS_TRAINED, **options}
    grid = plan(
        {"model": "yolo11n.yaml", "data": list(map(str, data)) if isinstance(data, list) else str(data), **varied}
    )
    folder.mkdir(parents=True)
    for i, cell in enumerate(grid.cells):
        if finished is None or cell.name in finished:
            _write_run(folder / cell.name, grid, i, images, names, device)
    for name in {cell.data for cell in grid.cells}:
        description = {"milliseconds": {variant: 4.0 + i for i, variant in enumerate(grid.variants)}}
        latency_file(folder, name).write_text(yaml.safe_dump(description))
    return Comparison(folder, grid)


def _write_run(folder: Path, grid: Grid, index: int, images: list[str], names: dict[int, str], device: str) -> None:
    cell = grid.cells[index]
    folder.mkdir()
    noise = 0.05 if cell.options.get("assigner") == "mlc" else 0.15
    made_up(images, noise=noise, seed=index, names=names, digest=cell.digest).save(folder / RECORDS)
    description = {"options": cell.options, "digest": cell.digest, "version": "0.1.0"}
    (folder / SPECIFICATION).write_text(yaml.safe_dump(description))
    rows = [f"{epoch},60,500,{device}" for epoch in range(1, EPOCHS_TRAINED + 1)]
    (folder / EPOCHS).write_text("\n".join(["epoch,seconds,memory,device", *rows]) + "\n")
    header = "epoch, metrics/mAP50(B),metrics/mAP50-95(B),metrics/spearman(B),val/cls_loss"
    curve = [f"{e},{0.1 * e + 0.01 * index},{0.05 * e},nan,1.5" for e in range(1, EPOCHS_TRAINED + 1)]
    curve[1] = "2,0,0,0,0"  # an epoch without validation
    (folder / "results.csv").write_text("\n".join([header, *curve]) + "\n")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return photographs(tmp_path_factory.mktemp("images"), [f"photo-{i}.png" for i in range(12)])


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, images: list[str]) -> Comparison:
    return comparison_of(tmp_path_factory.mktemp("compare") / "cats", tiny_data, images=images)


@pytest.fixture(scope="module")
def report(comparison: Comparison) -> Path:
    return write_report(comparison, comparison.folder / "report.html")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """The report of a comparison in which everything a user may name is an attack."""
    root = tmp_path_factory.mktemp("hostile")
    files = photographs(root / "photos", [f"{i}{IMAGE}" for i in range(6)])
    names = {0: SCRIPT, 1: "</text></svg><b>dog</b>"}
    found = comparison_of(
        root / "a<b>&c", tiny_data, images=files, names=names, device=SCRIPT, name=None, pretrained=SCRIPT
    )
    return write_report(found, root / "report.html")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    if browser.find() is None:
        pytest.skip(f"no browser: none of {', '.join(browser.PROGRAMS)} is installed")
    with browser.browse(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


# ---- what the page says


def page_of(comparison: Comparison) -> str:
    sets = gather(comparison)
    return render(comparison, sets, [gap_rows(data) for data in sets])


def text_of(html: str) -> str:
    """The page's words, without its style and script."""
    body = re.sub(r"<(style|script)>.*?</\1>", "", html, flags=re.DOTALL)
    words = re.sub(r"<[^>]*>", "", body.replace("<wbr>", ""))
    return re.sub(r"\s+", " ", words.replace("&#39;", "'").replace("&amp;", "&"))


def test_the_verdict_comes_first_and_says_what_the_comparison_found(comparison: Comparison, report: Path) -> None:
    text = text_of(report.read_text(encoding="utf-8"))
    row = next(row for row in comparison.differences if row["metric"] == "AP")
    mean, low, high = (f"{row[key]:+.1f}".replace("-", "−") for key in ("difference", "low", "high"))
    assert f"assigner=mlc: AP {mean} ({low} to {high}): {row['verdict']}." in text
    assert text.index("Does it help?") < text.index("The numbers") < text.index("Where do they differ most?")


def test_a_verdict_without_a_difference_says_so(tmp_path: Path, tiny_data: Path, images: list[str]) -> None:
    found = comparison_of(tmp_path / "same", tiny_data, images=images, assigner=["tal", "atss"])
    text = text_of(page_of(found))
    assert re.search(r"assigner=atss: AP \S+ \(−\S+ to \+\S+\): no difference shown\. No other metric", text)


@pytest.mark.parametrize(
    ("variant", "verdict"),
    [("mlc", "these two weights differ; take more seeds"), ("atss", "no difference shown; take more seeds")],
)
def test_one_seed_is_no_verdict_on_the_options_in_the_csv_the_console_and_the_page(
    variant: str, verdict: str, tmp_path: Path, tiny_data: Path, images: list[str]
) -> None:
    compared = comparison_of(tmp_path / "one", tiny_data, images=images, assigner=["tal", variant], seed=0)
    compared.write()
    with open(compared.folder / DIFFERENCES, encoding="utf-8", newline="") as file:
        assert [row["verdict"] for row in csv.DictReader(file) if row["metric"] == "AP"] == [verdict]
    console = str(compared)
    assert re.search(rf"AP  .*\]  +{verdict}\n", console)
    assert "no verdict on the options. Add seeds to the command (seed=0,1,2)" in console
    assert max(map(len, console.splitlines()[:12])) <= 110
    html = page_of(compared)
    assert re.search(
        rf"assigner={variant}: AP \S+ \(\S+ to \S+\): {verdict}\. {re.escape(sections.ONE_SEED)}", text_of(html)
    )
    assert '<li class="open">' in html
    assert not re.search('class="(better|worse|number shown)"', html)


@pytest.mark.slow
def test_a_verdict_of_three_seeds_is_on_the_options(tmp_path: Path, tiny_data: Path, images: list[str]) -> None:
    compared = comparison_of(tmp_path / "three", tiny_data, images=images, seed=[0, 1, 2])
    html = page_of(compared)
    assert '<li class="better">' in html and 'class="number shown"' in html
    assert re.search(r"assigner=mlc: AP \S+ \(\S+ to \S+\): higher\. Also shown: ", text_of(html))
    assert "One seed" not in text_of(html)


def test_tables_hold_the_numbers_of_the_comparison(comparison: Comparison) -> None:
    (data,) = gather(comparison)
    reached, difference, cost, every_run = sections.tables(data)
    baseline = [run["AP"] for run in comparison.runs if run["variant"] == comparison.baseline]
    assert reached["rows"][0]["cells"][1]["value"] == pytest.approx(np.mean(baseline))
    assert [cell["value"] for cell in difference["rows"][0]["cells"]] == [
        row["difference"] for row in comparison.differences if row["metric"] in sections.METRICS and row["mean"]
    ]
    assert [cell["text"] for cell in cost["rows"][0]["cells"]] == ["5.0", "500", "4.0"]
    assert cost["rows"][1]["cells"][2]["small"] == " × 1.25"
    assert [row["cells"][0]["value"] for row in every_run["rows"]] == [
        run["AP"] for run in sorted(comparison.runs, key=lambda run: (run["variant"] != "assigner=tal", run["seed"]))
    ]


def test_the_page_names_what_the_numbers_come_from_and_repeats_each_run(comparison: Comparison, report: Path) -> None:
    html = report.read_text(encoding="utf-8")
    text = text_of(html)
    for fact in ("12 images", "yolo11n.yaml", "4 of 4 finished", "20 minutes in all", "a CPU", "0.1.0", "epochs=5"):
        assert fact in text
    for run in comparison.runs:
        assert run["command"] in text
    assert "drawn with replacement" in text[text.index("How the intervals are made") :]


def test_ap_by_iou_averages_to_the_ap_of_the_table(comparison: Comparison) -> None:
    (data,) = gather(comparison)
    for variant in data.variants:
        assert (100 * variant.ap_by_iou.mean(1)).tolist() == pytest.approx(variant.values("AP").tolist(), abs=1e-3)


def test_reliability_and_errors_are_those_of_the_records(comparison: Comparison, report: Path) -> None:
    text = text_of(report.read_text(encoding="utf-8"))
    records = [comparison.records(f"assigner=mlc,seed={seed}") for seed in (0, 1)]
    scores, ious = (np.concatenate(x) for x in zip(*((r.scores, best_ious(r)) for r in records), strict=True))
    kept = scores >= 0.05
    assert f"ECE {reliability(scores[kept], ious[kept]).error:.3f}" in text
    counts = [count_kinds(judge(r)) for r in records]
    (data,) = gather(comparison)
    rows = {row["name"]: row["cells"][1]["count"] for row in sections.error_rows(data)}
    assert float(rows["Localisation"]) == pytest.approx(np.mean([c[Kind.LOCALIZATION] for c in counts]), abs=0.05)
    total = np.mean([sum(n for kind, n in c.items() if kind != Kind.CORRECT) for c in counts])
    assert float(rows["All errors"]) == pytest.approx(total, abs=0.05)


@pytest.mark.slow
def test_several_data_sets_each_have_their_sections(tmp_path: Path, tiny_data: Path, images: list[str]) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(tiny_data.read_text())
    found = comparison_of(tmp_path / "two", [tiny_data, other], images=images)
    html = page_of(found)
    names = [data.name for data in gather(found)]
    assert len(set(names)) == 2
    for name in names:
        assert f"Training on {name}" in html
    assert len(set(ids := re.findall(r' id="([^"]+)"', html))) == len(ids)


@pytest.mark.parametrize("finished", [set(), {"assigner=tal,seed=0"}, {"assigner=mlc,seed=1"}])
def test_an_unfinished_comparison_is_reported_as_far_as_it_got(
    finished: set[str], tmp_path: Path, tiny_data: Path, images: list[str]
) -> None:
    found = comparison_of(tmp_path / "begun", tiny_data, images=images, finished=finished)
    text = text_of(page_of(found))
    baseline = "assigner=tal,seed=0" in finished
    assert ("Nothing to compare yet: only assigner=tal" if baseline else "Nothing to show yet") in text
    assert ("The numbers" in text) == baseline


def test_a_comparison_of_seeds_alone_is_reported(tmp_path: Path, tiny_data: Path, images: list[str]) -> None:
    found = comparison_of(tmp_path / "seeds", tiny_data, images=images, assigner="mlc")
    assert "Nothing to compare yet: only every run has finished" in text_of(page_of(found))


def _mean_of_bands(uri: str) -> list[float]:
    """The mean red, green and blue of a photograph on the page."""
    data = np.frombuffer(base64.b64decode(uri.partition(",")[2]), dtype=np.uint8)
    return [float(mean) for mean in cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].mean((0, 1))]


@pytest.mark.parametrize(
    ("levels", "seen"),
    [([60], [60, 60, 60]), ([60, 130], [60, 60, 60]), ([60, 130, 200, 20, 90], [60, 130, 200])],
)
def test_a_photograph_of_many_bands_shows_the_first_three_and_of_few_the_first_as_grey(
    levels: list[int], seen: list[int], tmp_path: Path
) -> None:
    path = str(tmp_path / "bands.tiff")
    assert cv2.imwritemulti(path, [np.full((40, 60), level, dtype=np.uint8) for level in levels])
    assert _mean_of_bands(photograph_of(path)) == pytest.approx(seen, abs=3)


@pytest.mark.parametrize("alpha", [[], [128]])
def test_a_photograph_of_colours_keeps_them_with_and_without_alpha(alpha: list[int], tmp_path: Path) -> None:
    for suffix in (".tiff", ".png"):
        path = str(tmp_path / f"colours{suffix}")
        assert cv2.imwrite(path, np.full((40, 60, 3 + len(alpha)), [200, 130, 60, *alpha], dtype=np.uint8))
        assert _mean_of_bands(photograph_of(path)) == pytest.approx([60, 130, 200], abs=3)


@pytest.mark.slow
def test_images_that_are_gone_are_passed_over(tmp_path: Path, tiny_data: Path, images: list[str]) -> None:
    gone = [*images[:6], *(f"/nowhere/{i}.png" for i in range(6))]
    html = page_of(comparison_of(tmp_path / "gone", tiny_data, images=gone))
    assert "photo-" in html
    assert "nowhere" not in html
    assert "No image that could be read" in page_of(
        comparison_of(tmp_path / "all", tiny_data, images=[f"/nowhere/{i}.png" for i in range(12)])
    )


def test_writing_replaces_the_page_in_one_step(comparison: Comparison, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    assert write_report(comparison, path) == path
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "gaps.csv", path]


# ---- what it must never become


def test_the_page_asks_for_nothing_from_outside(report: Path) -> None:
    html = report.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|url\(|@import", re.sub(r"base64,[\w+/=]+", "", html))
    assert {value[:5] for value in re.findall(r'(?:src|href)="([^"]*)"', html)} <= {"data:", "#verd"}
    assert len(html) < 2_000_000


def test_names_never_become_markup(hostile: Path) -> None:
    html = hostile.read_text(encoding="utf-8")
    assert "&lt;script&gt;window.hacked=1&lt;/script&gt;" in html
    assert len(re.findall("<script", html)) == 1
    assert "<b>" not in html
    assert 'onerror="' not in html


def test_a_name_may_break_after_its_commas_and_stays_text() -> None:
    assert breakable("a=<b>,c") == "a=<wbr>&lt;b&gt;,<wbr>c"
    assert breakable("") == ""


# ---- the parts


def test_the_quality_of_an_image_is_twice_its_ious_over_detections_and_objects() -> None:
    objects = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], dtype=np.float32)
    found = np.array([[0, 0, 10, 8], [50, 50, 60, 60]], dtype=np.float32)
    zero = np.zeros(2, dtype=np.int64)
    records = Records(
        ["a"], np.array([[90, 120]]), zero, objects, zero, zero, found, np.array([0.9, 0.8], np.float32), zero, NAMES
    )
    (image,) = judge(records)
    assert differing.quality(image) == pytest.approx(2 * 0.8 / (2 + 2))


def test_the_quality_of_nothing_found_where_nothing_is_is_one(images: list[str]) -> None:
    first, *_ = judge(made_up(images, noise=0.1, seed=0, names=NAMES))
    assert len(first.detections) == len(first.objects) == 0
    assert differing.quality(first) == 1


def test_images_come_in_the_order_of_their_difference_each_on_its_side(images: list[str]) -> None:
    runs = [
        [differing.Judged(r, judge(r)) for r in (made_up(images, noise=n, seed=s, names=NAMES) for s in seeds)]
        for n, seeds in ((0.12, (0, 1)), (0.1, (2, 3)))
    ]
    mean = differing.differences(*runs).mean(0)
    assert mean.shape == (12,)
    better, worse = differing.most_differing(*runs, ("tal", "mlc"), count=3)
    assert [each.difference for each in better] == sorted(mean, reverse=True)[:3]
    assert [each.difference for each in worse] == sorted(mean)[:3]
    for each in better + worse:
        first, second = each.panels
        pairs = differing.differences(*runs)[:, images.index(str(Path(images[0]).parent / each.file))]
        assert second.quality - first.quality in pairs
        assert "objects found" in first.alt
        assert first.alt.startswith(f"{each.file} with the boxes of tal:")


def test_a_line_lifts_its_pen_where_a_value_is_missing() -> None:
    line = charts.Line("a", 1, np.array([0.0, 1.0, np.nan, 2.0, 3.0]))
    drawn = charts.line_chart(np.arange(5.0), [line], x_label="x", y_label="y", description="<told>")
    (path,) = re.findall(r'd="([^"]*)" class="line', drawn)
    assert re.sub(r"[^ML]", "", path) == "MLML"
    assert 'aria-label="&lt;told&gt;"' in drawn


@pytest.mark.parametrize("values", [[], [np.nan], [0.5], [0.5, 0.5]])
def test_lines_of_few_or_equal_values_are_drawn(values: list[float]) -> None:
    line = charts.Line("a", 0, np.array(values))
    drawn = charts.line_chart(
        np.arange(float(len(values))), [line], x_label="x", y_label="y", description="", zero=True
    )
    assert drawn.startswith("<svg")
    assert "nan" not in drawn


def test_densities_without_boxes_are_drawn() -> None:
    none = np.empty(0)
    assert 'class="cell"' not in charts.density_chart(none, none, description="")
    assert "<circle" not in charts.reliability_chart(reliability(none, none), colour=0, description="")
    assert 'class="cell"' in charts.density_chart(np.array([0.5]), np.array([0.5]), description="")


def test_epochs_without_validation_have_no_metrics(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("epoch, metrics/mAP50(B),val/cls_loss\n1,0,0\n2,0,1.5\n3,0.5,1.2\n")
    curves = read_curves(path)
    assert curves["metrics/mAP50(B)"].tolist() == pytest.approx([np.nan, 0, 0.5], nan_ok=True)
    assert curves["epoch"].tolist() == [1, 2, 3]
    assert read_curves(tmp_path / "none.csv") == {}


@pytest.mark.slow
def test_a_change_that_places_boxes_better_narrows_that_gap_and_the_table_says_so(
    tmp_path: Path, tiny_data: Path, images: list[str]
) -> None:
    compared = comparison_of(tmp_path / "gaps", tiny_data, images=images, seed=[0, 1, 2])
    (data,) = gather(compared)
    (table,) = gap_tables(data, gap_rows(data))
    rows = {row["name"]: row["cells"] for row in table["rows"]}
    assert list(rows) == [repair.value for repair in Repair]
    for repair in (Repair.INSIDE, Repair.PLACE, Repair.DUPLICATES):
        means = []
        for variant in data.variants:
            judged = [Oracles(records, reach=records.reach) for records in variant.records]
            gains = [oracles((repair,))["AP"] - oracles()["AP"] for oracles in judged]
            means.append(100 * float(np.mean(gains)))
        baseline, variant, difference = (cell["value"] for cell in rows[repair.value])
        assert [baseline, variant] == pytest.approx(means)
        assert difference == pytest.approx(means[1] - means[0])
    placed = rows["place"][2]
    assert placed["shown"] and placed["value"] < -10
    assert rows[Repair.INSIDE.value][0]["value"] > 5
    write_report(compared, compared.folder / "report.html")
    lines = (compared.folder / "gaps.csv").read_text().splitlines()
    assert lines[0].startswith("data,variant,baseline,mistake,seeds,baseline_gap,gap,difference,low,high")
    inside = next(line for line in lines if ",rank inside objects," in line).split(",")
    assert [float(inside[5]), float(inside[6])] == pytest.approx([c["value"] for c in rows["rank inside objects"][:2]])
    text = text_of(page_of(compared))
    assert re.search(rf"What did the change do.*place .*{re.escape(placed['small'])}", text)
    assert "speak of these two sets of weights only" not in text


def test_gaps_of_one_seed_are_not_bold_and_say_so(tmp_path: Path, tiny_data: Path, images: list[str]) -> None:
    compared = comparison_of(tmp_path / "gap", tiny_data, images=images, seed=0)
    (data,) = gather(compared)
    (table,) = gap_tables(data, gap_rows(data))
    assert not any(row["cells"][2]["shown"] for row in table["rows"])
    assert "One seed: these differences speak of these two sets of weights only." in text_of(page_of(compared))


def test_a_gap_is_not_known_of_records_from_before_it_was_kept(
    tmp_path: Path, tiny_data: Path, images: list[str]
) -> None:
    compared = comparison_of(tmp_path / "older", tiny_data, images=images, seed=0)
    for cell in compared.finished:
        path = tmp_path / "older" / cell.name / RECORDS
        replace(Records.load(path), reach=None).save(path)
    (data,) = gather(compared)
    rows = {row["mistake"]: row for row in gap_rows(data)}
    assert rows[Repair.INSIDE.value]["gap"] is None and rows[Repair.PLACE.value]["gap"] > 0
    assert "rank inside objects every object keeps" in text_of(page_of(compared))


# ---- in a browser


@pytest.mark.parametrize(("width", "dark"), [(360, False), (360, True), (1280, False), (1280, True)])
def test_the_page_fits_its_window_and_every_text_can_be_read(
    width: int, dark: bool, page: browser.Page, report: Path
) -> None:
    page.messages.clear()
    page.requests.clear()
    page.show(width, dark=dark)
    page.open(report)
    assert page.messages == []
    assert {request for request in page.requests if not request.startswith("data:")} == {report.as_uri()}
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(20, 23, 27)") == dark
    assert json.loads(page.evaluate(FAINT_TEXTS)) == []
    assert page.evaluate("[...document.images].every(i => i.naturalWidth > 50)")
    assert page.screenshot().startswith(b"\x89PNG")


#: Texts whose contrast with what is behind them is below 4.5:1; on the photographs they have an outline of their own.
FAINT_TEXTS = """(() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => { v /= 255;
    return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const owner = node.parentElement;
    if (!node.textContent.trim() || owner.closest("script, .photo, .skip")) continue;
    const style = getComputedStyle(owner);
    const ink = light(parse(owner.closest("svg") ? style.fill : style.color));
    let behind = owner;
    while (parse(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
    const paper = light(parse(getComputedStyle(behind).backgroundColor));
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (ratio < 4.5) faint.push([node.textContent.trim().slice(0, 40), ratio]);
  }
  return JSON.stringify(faint);
})()"""


def test_tables_sort_by_mouse_and_by_keyboard_and_say_so(
    page: browser.Page, report: Path, comparison: Comparison
) -> None:
    page.show(1280)
    page.open(report)
    table = "[...document.querySelectorAll('table.sortable')].at(-1)"  # every run
    column = f"[...{table}.tBodies[0].rows].map(row => parseFloat(row.cells[1].dataset.value))"
    heading = f"{table}.tHead.rows[0].cells[1]"
    aps = [run["AP"] for run in comparison.runs]
    assert page.evaluate(f"{heading}.getAttribute('aria-sort')") is None
    page.evaluate(f"{heading}.firstChild.click()")
    assert page.evaluate(f"{heading}.getAttribute('aria-sort')") == "descending"
    assert page.evaluate(column) == sorted(aps, reverse=True)
    page.evaluate(f"{heading}.firstChild.focus()")
    page.press("Enter", 13)
    assert page.evaluate(f"{heading}.getAttribute('aria-sort')") == "ascending"
    assert page.evaluate(column) == sorted(aps)
    page.evaluate(f"{table}.tHead.rows[0].cells[0].firstChild.focus()")
    page.press(" ", 32)
    assert page.evaluate(f"{heading}.getAttribute('aria-sort')") is None
    names = page.evaluate(f"[...{table}.tBodies[0].rows].map(row => row.cells[0].textContent)")
    assert names == sorted(names)
    assert len(names) == 4


def test_the_page_is_built_for_those_who_do_not_see_it(page: browser.Page, report: Path) -> None:
    page.show(1280)
    page.open(report)
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.evaluate("[...document.images].length") >= 4
    assert page.evaluate("[...document.images].every(i => /objects found/.test(i.alt))")
    unnamed = "svg:not([aria-hidden]):not([role=img][aria-label])"
    assert page.evaluate(f"document.querySelectorAll('{unnamed}').length") == 0
    assert page.evaluate("[...document.querySelectorAll('section')].every(s => s.ariaLabelledByElements?.length !== 0)")
    assert page.evaluate("document.documentElement.lang") == "en"
    page.press("Tab", 9)
    assert page.evaluate("document.activeElement.className") == "skip"
    page.press("Enter", 13)
    assert page.evaluate("document.activeElement.id") == "verdict"


def test_hostile_names_do_nothing_but_show(page: browser.Page, hostile: Path) -> None:
    page.messages.clear()
    page.show(360)
    page.open(hostile)
    assert page.evaluate("typeof window.hacked") == "undefined"
    assert page.evaluate("document.scripts.length") == 1
    for shown in (SCRIPT, "a<b>&c", IMAGE):
        assert page.evaluate(f"document.body.textContent.includes({json.dumps(shown)})"), shown
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert page.messages == []


@pytest.mark.slow
def test_print_is_dark_on_light_even_for_readers_of_the_dark_page(page: browser.Page, report: Path) -> None:
    page.show(800, dark=True, media="print")
    page.open(report)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 31, 36)"
    page.show(800)
