"""The documentation shows options and recorded runs as they are; each run can be repeated from what it shows."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise

import pytest

from mlc_yolo.paper.readme import (
    PAGES,
    Table,
    options_table,
    read_lines,
    results_section,
    updated,
)
from mlc_yolo.paper.reproduce import COLUMNS
from mlc_yolo.paper.summary import SUMMARY, Line, summary_rows
from mlc_yolo.resources import resource_dir

RECORDED = read_lines(resource_dir("cfg") / "paper" / "results.csv")
ROW = "mlc_table3_retinanet"
PM = "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"


def line(command: str = f"mlc-yolo reproduce {ROW} data=a.yaml", **given: str) -> Line:
    """A line of results.csv."""
    told = {"row": ROW, "model": "m", "data": "a.yaml", "images": "9", "epochs": "2", "imgsz": "64", "batch": "4"}
    told |= {"scale": "1.0", "seed": "0", "AP": "10.0", "version": "0.1.0", "device": "CPU", "hours": "0.5"}
    return {**dict.fromkeys(COLUMNS, ""), **told, "command": command, **given}


def cells(section: str, start: str) -> list[str]:
    """The cells of a section's row that starts so."""
    (found,) = (row for row in section.splitlines() if row.startswith(f"| {start}"))
    return [cell.strip() for cell in found.strip("|").split(" | ")]


@pytest.mark.parametrize("part", PAGES)
def test_the_pages_are_what_their_sources_say(part: str) -> None:
    text = PAGES[part].read_text(encoding="utf-8")
    assert text == updated(text, part), "results.csv or mlc.yaml changed: run make readme and look at the difference"


def test_a_page_without_its_comments_is_refused() -> None:
    with pytest.raises(ValueError, match=r"made by make readme -->' and after it '<!-- end of options -->'"):
        updated("Options:\n", "options")
    text = PAGES["results"].read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="end of results -->', once each"):
        updated(text + "<!-- end of results -->", "results")


def test_every_recorded_run_is_shown_and_its_command_can_be_put_together() -> None:
    shown: list[tuple[set[str], str]] = []
    blocks = results_section(RECORDED).split("\n\n")
    for table, command in ((block, after) for block, after in pairwise(blocks) if block.startswith("| row |")):
        common = {*shlex.split(command.replace("\\\n", ""))} - {"seed=SEED"}
        for row in table.splitlines()[2:]:
            *_, seeds, _, own = row.strip("| ").split(" | ")
            shown += [(common | {*shlex.split(own.strip("`-"))}, seed) for seed in seeds.split(", ")]
    assert len(shown) == len(RECORDED) > 0
    for each in RECORDED:
        words = {word for word in shlex.split(each["command"]) if not word.startswith("seed=")}
        assert (words, each["seed"]) in shown, each["command"]


def test_seeds_are_averaged_and_a_single_one_has_no_spread() -> None:
    lines = [line(AP="10.0", spearman="0.5"), line(AP="12.0", spearman="0.6", seed="1")]
    lines.append(line(f"mlc-yolo reproduce {ROW} data=a.yaml lr0=0.1", AP="20.0", seed="1"))
    table = Table.of(lines).markdown().splitlines()
    head = "| row | AP | Spearman | seeds | the paper's | added to the command |"
    assert table[table.index(head) :] == [
        head,
        "|---|---|---|---|---|---|",
        f"| [RetinaNet](../cfg/paper/{ROW}.yaml) | 11.0{PM}1.4 | 0.55{PM}0.07 | 0, 1 | AP 36.3 | - |",
        f"| [RetinaNet](../cfg/paper/{ROW}.yaml) | 20.0 | - | 1 | AP 36.3 | `lr0=0.1` |",
        "",
        f"    mlc-yolo reproduce {ROW} data=a.yaml seed=SEED",
    ]


def test_a_difference_from_the_paper_is_shown_only_where_runs_compare_with_it() -> None:
    section = results_section([line(paper="36.3", difference="-0.3"), line(paper="36.3", difference="0.1", seed="1")])
    assert f"AP 36.3, difference -0.1{PM}0.3" in section
    assert section.startswith("1 of the 60 rows of `cfg/paper` has been run as its paper did")
    assert cells(section, "MLC, table 3")[1:] == ["5", "1", "0", "4"]
    assert "difference" not in results_section([line()])


def test_rows_that_were_not_run_are_counted_as_that() -> None:
    section = results_section([line()])
    assert section.startswith("None of the 60 rows")
    assert cells(section, "MLC, table 3")[1:] == ["5", "0", "1", "4"]
    counts = [cells(section, title)[1:] for title in ("MLC", "Mutual", "SED") for title in _titles(section, title)]
    assert [sum(map(int, column)) for column in zip(*counts, strict=True)] == [60, 0, 1, 59]


def _titles(section: str, start: str) -> list[str]:
    return re.findall(rf"^\| ({start}[^|]*?) \|", section, flags=re.M)


def test_a_run_of_a_row_that_is_no_file_of_ours_has_its_name_alone() -> None:
    section = results_section([line("mlc-yolo reproduce mine data=a.yaml", row="mine")])
    assert cells(section, "`mine`") == ["`mine`", "10.0", "0", "-", "-"]


def test_runs_of_other_data_models_or_lengths_stand_in_tables_of_their_own() -> None:
    other = {"data": "b.yaml", "model": "n", "epochs": "3", "scale": "0.5"}
    section = results_section([line(), *(line(**{name: value}) for name, value in other.items())])
    assert section.count("| row |") == 5 and "9 training images (scale 0.5)" in section


def test_a_long_command_is_broken_between_words() -> None:
    words = [f"mlc-yolo reproduce {ROW} data=a.yaml", *(f"option{i}=[{i}, {i}]" for i in range(20))]
    command = shlex.join(shlex.split(words[0]) + words[1:])
    block = Table.of([line(command)]).markdown().split("\n\n")[-1]
    assert max(map(len, block.splitlines())) <= 120 and block.count("\\\n") >= 3
    assert shlex.split(block.replace("\\\n", "")) == [*shlex.split(command), "seed=SEED"]


def test_a_bar_in_an_options_help_does_not_end_its_cell() -> None:
    rows = options_table().splitlines()
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}
    assert any("\\|value - threshold\\|" in row for row in rows)


def leasts() -> dict[tuple[str, str, str, str], float]:
    """The least AP of every row of the README's table: a method's is a point above that of the row without it."""
    rows: dict[tuple[str, str, str, str], float] = {}
    for pair in SUMMARY:
        common = (pair.model, pair.data, str(pair.epochs))
        rows[(*common, pair.method)] = rows.setdefault((*common, pair.without), 10.0) + 1
    return rows


def pairs(**of_methods: str) -> list[Line]:
    """Lines for every pair of the README's table: two seeds each, the method's a point better."""
    return [
        line(
            model=model,
            data=data,
            epochs=epochs,
            row=row,
            seed=str(seed),
            **{**_aps(least, seed), **(of_methods if least > 10 else {})},
        )
        for (model, data, epochs, row), least in leasts().items()
        for seed in (1, 0)
    ]


def _aps(least: float, seed: int) -> dict[str, str]:
    """AP rises by 2 from seed to seed; what a method gains in AP75 rises by 0.2, and is 0.9 and 1.1."""
    return {"AP": str(least + 2 * seed), "AP75": str(least + 2 * seed + (0.2 * seed - 0.1) * (least - 10))}


def test_the_readme_sets_each_method_against_the_same_training_without_it() -> None:
    for row, pair in zip(summary_rows(pairs()), SUMMARY, strict=True):
        plain = leasts()[pair.model, pair.data, str(pair.epochs), pair.without] + 1  # the mean over seeds
        # Two differences of 0.9 and 1.1: Student's t is 12.7, and their standard error 0.1.
        gained = ["+1.0 [1.0, 1.0]", "+1.0 [-0.3, 2.3]"]
        assert row == [pair.trained, pair.called, f"{plain}", f"{plain + 1}", *gained, "2"]


def without(row: str, seed: str) -> list[Line]:
    """Lines for every pair of the README's table, but for one."""
    return [one for one in pairs() if (one["row"], one["seed"]) != (row, seed)]


def test_a_row_that_was_trained_more_often_is_compared_on_the_seeds_of_its_method() -> None:
    (row,) = (row for row in summary_rows(without("mlc_table3_fcos_mlc", "1")) if "FCOS" in row[0])
    plain = leasts()["fcos-r18w128", "bccd-416/data.yaml", "7", "mlc_table1_fcos_minus"]
    assert row[2:] == [f"{plain}", f"{plain + 1}", "+1.0", "+0.9", "1"]


def test_the_readme_compares_no_runs_of_other_seeds_or_lengths() -> None:
    with pytest.raises(ValueError, match=r"it has seeds \['0', '1'\] and \['0'\]\. Run what is missing"):
        summary_rows(without("mlc_table1_fcos_minus", "1"))
    with pytest.raises(ValueError, match=r"it has seeds \[\] and \[\]"):
        summary_rows([])
    with pytest.raises(ValueError, match="trained alike"):
        summary_rows(pairs(batch="99"))
