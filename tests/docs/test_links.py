"""Links between files lead somewhere; `make docs` looks at the site's own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [*ROOT.glob("*.md"), *(ROOT / "examples").glob("*.md"), *(ROOT / "tests").glob("*.md")]
TEXTS += [*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.ipynb")]


def _text(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".ipynb":
        return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def _anchors(file: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", _text(file), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_every_link_to_a_file_or_a_heading_leads_there(file: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", _text(file)):
        name, _, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        target = (file.parent / name).resolve() if name else file
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in _anchors(target), link


def test_the_readme_is_a_door_and_no_manual() -> None:
    assert (ROOT / "README.md").stat().st_size < 9_000
