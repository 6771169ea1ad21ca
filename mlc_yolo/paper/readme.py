"""Generate parts of the documentation from files: the options of cfg/mlc.yaml, the runs of cfg/paper/results.csv.

    python -m mlc_yolo.paper.readme

writes them again, each between two comments that name it. Runs of one detector on one data set, equally long, make one
table: what all their commands share stands under it once, and a row shows only the words of its own. The README's short
table is made by `summary`.
"""

from __future__ import annotations

import csv
import shlex
import statistics
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from mlc_yolo.paper.reproduce import PAPER_IMAGES
from mlc_yolo.paper.rows import read_row
from mlc_yolo.paper.summary import ALIKE, HEAD, Line, summary_rows
from mlc_yolo.resources import resource_dir

_ROOT = Path(__file__).resolve().parents[2]
#: Part -> the page that has it between two comments.
PAGES = {
    "options": _ROOT / "docs" / "reference" / "options.md",
    "results": _ROOT / "docs" / "results.md",
    "summary": _ROOT / "README.md",
}
#: Column of results.csv -> (what its cells are headed, decimals). A table shows those that any of its runs has.
SHOWN = {
    **{name: (name, 1) for name in ("AP", "AP50", "AP75", "AR100", "AR300", "AR1000")},
    **{f"VOC_{name}": (f"VOC {name}", 1) for name in ("AP", "AP50", "AP75")},
    "spearman": ("Spearman", 2),
}
#: Start of a row's name -> where it stands.
PAPERS = {
    **{f"mlc_table{number}": f"MLC, table {number}" for number in range(1, 6)},
    **{f"mg_table{number}": f"Mutual Guidance, table {number}" for number in (1, 2)},
    **{f"sed_{share}pct": f"SED, {share} % of the labels" for share in (5, 10)},
}


@dataclass(frozen=True)
class Table:
    """Runs that were trained alike but for what their rows are about.

    Attributes:
        lines: of results.csv, one per run.
        common: words that all their commands have, but for the seed.
    """

    lines: tuple[Line, ...]
    common: tuple[str, ...]

    @classmethod
    def of(cls, lines: Sequence[Line]) -> Table:
        """Find what the lines' commands have in common."""
        commands = [_words(line) for line in lines]
        return cls(tuple(lines), tuple(word for word in commands[0] if all(word in command for command in commands)))

    def own(self, line: Line) -> tuple[str, ...]:
        """Return the words of a run's command that not all the table's runs have."""
        return tuple(word for word in _words(line) if word not in self.common)

    def rows(self) -> dict[tuple[str, tuple[str, ...]], list[Line]]:
        """Return the runs that differ in nothing but the seed: (row, own words) -> lines, in the order of the file."""
        by_row: dict[tuple[str, tuple[str, ...]], list[Line]] = {}
        for line in self.lines:
            by_row.setdefault((line["row"], self.own(line)), []).append(line)
        return by_row

    def markdown(self) -> str:
        """Return a sentence on what the runs share, the table, and the command."""
        first, rows = self.lines[0], self.rows()
        share = f" (scale {first['scale']})" if float(first["scale"]) != 1 else ""
        hours = sorted(float(line["hours"]) for line in self.lines)
        said = [
            f"{first['images']} training images{share}, {first['epochs']} epochs, {first['imgsz']} px, "
            f"batch {first['batch']}",
            f"{_listed(line['device'] for line in self.lines)}, {hours[0]:.2g} to {hours[-1]:.2g} hours a run",
            f"version {_listed(line['version'] for line in self.lines)}, "
            f"commit {_listed(line['commit'] or 'unknown' for line in self.lines)}",
        ]
        columns = [name for name in SHOWN if any(line[name] for line in self.lines)]
        head = ["row", *(SHOWN[name][0] for name in columns), "seeds", "the paper's", "added to the command"]
        body = []
        for (row, own), lines in rows.items():
            cells = [_spread([line[name] for line in lines], SHOWN[name][1]) for name in columns]
            cells += [", ".join(line["seed"] for line in lines), _paper(row, lines)]
            body.append([_title(row), *cells, f"`{shlex.join(own)}`" if own else ""])
        title = _wrapped(f"**{first['model']} on {first['data']}**: {'; '.join(said)}.")
        return "\n\n".join([title, _grid(head, body), _command([*self.common, "seed=SEED"])])


def results_section(lines: Sequence[Line]) -> str:
    """Return the tables of results.

    Args:
        lines: of results.csv: column -> text, empty where there is nothing.
    """
    tables: dict[tuple[str, ...], list[Line]] = {}
    for line in lines:
        tables.setdefault(tuple(line[name] for name in ALIKE), []).append(line)
    note = (
        "What the runs of a table share is said above it. Below it stands their command; a row adds words of its own, "
        "and each run its seed. ± is the standard deviation over seeds; one seed has none. The paper's number is that "
        "of its own data and full schedule: compare the order of rows, not the values."
    )
    return "\n\n".join([_coverage(lines), _wrapped(note), *(Table.of(group).markdown() for group in tables.values())])


def options_table() -> str:
    """Return the table of the options in cfg/mlc.yaml."""
    options = yaml.safe_load((resource_dir("cfg") / "mlc.yaml").read_text(encoding="utf-8"))
    body = []
    for name, spec in options.items():
        if "choices" in spec:
            values = ", ".join(
                [*spec["choices"], *(f"{short} = {full}" for short, full in spec.get("aliases", {}).items())]
            )
        else:
            values = spec["type"]
            values += f" >= {spec['minimum']}" if "minimum" in spec else ""
            values += f" > {spec['above']}" if "above" in spec else ""
            values += f", <= {spec['maximum']}" if "maximum" in spec else ""
        default = "empty" if spec["default"] is None else str(spec["default"])
        body.append([f"`{name}`", default, values, spec["help"].replace("|", "\\|")])  # a bare | would end the cell
    return _grid(["option", "default", "values", "what it does"], body)


def read_lines(file: Path) -> list[Line]:
    """Read a results CSV."""
    with open(file, newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def updated(text: str, part: str) -> str:
    """Return a page's text with its generated part as the files are now.

    Args:
        text: what the page says.
        part: a key of `PAGES`.

    Raises:
        ValueError: the part's two comments are not there, once each and in order.
    """
    if part == "options":
        made = options_table()
    else:
        lines = read_lines(resource_dir("cfg") / "paper" / "results.csv")
        made = results_section(lines) if part == "results" else _grid(HEAD, summary_rows(lines))
    start, end = f"<!-- {part}: made by make readme -->", f"<!-- end of {part} -->"
    before, opened, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not opened or not closed or start in rest or end in after:
        raise ValueError(f"{PAGES[part].name} must have '{start}' and after it '{end}', once each.")
    return f"{before}{start}\n\n{made}\n\n{end}{after}"


def _words(line: Line) -> list[str]:
    return [word for word in shlex.split(line["command"]) if not word.startswith("seed=")]


def _coverage(lines: Sequence[Line]) -> str:
    """Return a sentence and a table of how many rows of each of the papers' tables were run."""
    paper = {line["row"] for line in lines if line["paper"]}
    other = {line["row"] for line in lines} - paper
    known = [file.stem for file in sorted((resource_dir("cfg") / "paper").glob("*.yaml"))]
    body, total = [], Counter[str]()
    for start, title in PAPERS.items():
        rows = {name for name in known if name.startswith(f"{start}_")}
        count = Counter(rows=len(rows), paper=len(rows & paper), other=len(rows & other))
        count["none"] = count["rows"] - count["paper"] - count["other"]
        total += count
        body.append([title, *(str(count[name]) for name in ("rows", "paper", "other", "none"))])
    said = (
        f"{total['paper'] or 'None'} of the {total['rows']} rows of `cfg/paper` "
        f"{'has' if total['paper'] < 2 else 'have'} been run as its paper did, on its images; {total['other']} on "
        f"other images or a smaller schedule; {total['none']} not at all."
    )
    head = ["table", "rows", "as in the paper", "otherwise", "not run"]
    return f"{_wrapped(said)}\n\n{_grid(head, body)}"


def _title(row: str) -> str:
    """Return what a row's file says it is, with a link to it; the row's name if it has no file of ours."""
    file = resource_dir("cfg") / "paper" / f"{row}.yaml"
    if not file.is_file():
        return f"`{row}`"
    head = file.read_text(encoding="utf-8").partition("\n# paper:")[0].partition("\n# command:")[0]
    said = " ".join(line.removeprefix("#").strip() for line in head.splitlines())
    return f"[{said.partition(': ')[2].rstrip('.')}](../cfg/paper/{file.name})"


def _paper(row: str, lines: Sequence[Line]) -> str:
    """Return the paper's number, and our difference where the runs can be compared with it."""
    file = resource_dir("cfg") / "paper" / f"{row}.yaml"
    stated = read_row(file).paper if file.is_file() else {}
    column = next((name for name in PAPER_IMAGES if name in stated), None)
    if column is None:
        return ""
    differences = [line["difference"] for line in lines if line["difference"]]
    ours = f", difference {_spread(differences, 1)}" if differences else ""
    return f"{SHOWN[column][0]} {stated[column]}{ours}"


def _spread(texts: Sequence[str], decimals: int) -> str:
    r"""Return the mean and, of several, the standard deviation of what is there.

    Example:
        >>> _spread(["1", "2", ""], 1), _spread(["1"], 1), _spread([""], 1)
        ('1.5\xa0±\xa00.7', '1.0', '')
    """
    values = [float(text) for text in texts if text]
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{decimals}f}"
    if len(values) == 1:
        return mean
    # A narrow cell is not to break here.
    return f"{mean}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{statistics.stdev(values):.{decimals}f}"


def _listed(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def _command(words: Sequence[str]) -> str:
    """Return a command as an indented block, its words unbroken."""
    lines = [""]
    for word in map(shlex.quote, words):
        if lines[-1] and len(f"{lines[-1]} {word}") > 110:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".lstrip()
    return "    " + " \\\n        ".join(lines)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _grid(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    rows = [f"| {' | '.join(cell or '-' for cell in row)} |" for row in body]
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows])


if __name__ == "__main__":
    for name, page in PAGES.items():
        page.write_text(updated(page.read_text(encoding="utf-8"), name), encoding="utf-8")
