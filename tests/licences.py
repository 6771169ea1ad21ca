"""The tables of docs/licences.md, from what is installed: python tests/licences.py writes them again."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "licences.md"
START, END = "<!-- made by tests/licences.py -->", "<!-- end -->"


def direct() -> dict[str, list[str]]:
    """What pyproject.toml asks for: extra, empty for none -> names, without ourselves."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {"": project["dependencies"], **project["optional-dependencies"]}
    named = {extra: [_name(Requirement(each).name) for each in lines] for extra, lines in asked.items()}
    return {extra: [name for name in names if name != "mlc-yolo"] for extra, names in named.items()}


def brought(names: Iterable[str]) -> list[str]:
    """What these packages bring along as installed here, and what that brings, without themselves; sorted."""
    found, waiting = set(names), list(names)
    while waiting:
        try:
            lines = metadata.requires(waiting.pop()) or []
        except metadata.PackageNotFoundError:
            continue
        needed = [each for each in map(Requirement, lines) if not each.marker or each.marker.evaluate({"extra": ""})]
        fresh = {_name(each.name) for each in needed} - found
        found |= fresh
        waiting += fresh
    return sorted(found - set(names))


def licence(name: str) -> str:
    """What a package's metadata says, in one line; "not installed" where it is not."""
    try:
        said = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return "not installed"
    classified = [each.split(" :: ")[-1] for each in said.get_all("Classifier", []) if each.startswith("License ::")]
    text = (said.get("License") or "").strip()
    short = text if text and "\n" not in text and len(text) < 40 else ""
    return said.get("License-Expression") or ", ".join(classified) or short or "see its files"


def tables() -> str:
    """What stands between the comments: direct dependencies by extra, and what those of `pip install .` bring."""
    asked = direct()
    rows = [(name, extra or "always", licence(name)) for extra, names in asked.items() for name in names]
    further = [(name, licence(name)) for name in brought(asked[""])]
    return "\n".join(
        [
            *("| package | installed | licence |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)),
            *("", "They bring along, as installed where this was made:", ""),
            *("| package | licence |", "|---|---|", *(f"| {' | '.join(row)} |" for row in further)),
        ]
    )


def _name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(f"{before}{START}\n\n{tables()}\n\n{END}{after}", encoding="utf-8")
