"""Hooks of the documentation site: what it shows of the repository outside this folder.

Pages link to files of the repository by relative paths, which hold where the repository is read. The site takes such
files along: `PAGES` become pages of their own, any other file lies below `files/`.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from mlc_yolo.guide import EXAMPLES_OF, OWN_HELP
from mlc_yolo.modes import MODES

ROOT = Path(__file__).resolve().parents[1]
#: File of the repository -> page of the site.
PAGES = {
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "README.md": "index.md",
    "examples/README.md": "examples.md",
    "tests/README.md": "tests.md",
}
MODES_HERE = re.compile(r"<!-- modes: .*? -->")
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#:]+)(#[^)]*)?(\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside this folder, and every file of the repository that a page links to."""
    for source, page in PAGES.items():
        if page != "index.md":
            files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for page in files.documentation_pages():
        for match in LINK.finditer(Path(str(page.abs_src_path)).read_text(encoding="utf-8")):
            name = _outside(page.src_uri, match[2])
            if name and (ROOT / name).is_file() and files.get_file_from_path(f"files/{name}") is None:
                files.append(File.generated(config, f"files/{name}", abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Write the modes where they belong, and turn links to files of the repository into links to the site's."""
    markdown = MODES_HERE.sub(lambda _: _modes(), markdown)
    return LINK.sub(lambda match: _moved(page.file.src_uri, match), markdown)


def _modes() -> str:
    """Return a section per mode: what it does, command lines to copy, and the arguments of that mode alone."""
    sections = []
    for name, mode in MODES.items():
        lines = [f"### {name}", "", f"{mode.purpose[0].upper()}{mode.purpose[1:]}.", ""]
        lines += [f"    {example}" for example in EXAMPLES_OF[name]]
        if name in OWN_HELP:
            lines += ["", "| argument | default | what it does |", "|---|---|---|"]
            lines += [f"| `{own}` | {_shown(mode.own.get(own))} | {text} |" for own, text in OWN_HELP[name].items()]
        sections.append("\n".join(lines))
    return "\n\n".join(sections)


def _shown(default: object) -> str:
    if default is None:
        return "empty"
    return ", ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _moved(page: str, match: re.Match[str]) -> str:
    origin = _origin(page)
    target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), match[2]))
    if target.startswith("docs/"):
        there = target.removeprefix("docs/")
    elif target in PAGES:
        there = PAGES[target]
    elif (ROOT / target).is_file():
        there = f"files/{target}"
    else:
        return match[0]  # a folder, or a mistake, which --strict names
    return f"{match[1]}{posixpath.relpath(there, posixpath.dirname(page) or '.')}{match[3] or ''}{match[4]}"


def _outside(page: str, link: str) -> str | None:
    """Return the repository's path of a linked file that is neither in this folder nor a page."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(_origin(page)), link))
    return None if target.startswith(("docs/", "..")) or target in PAGES else target


def _origin(page: str) -> str:
    """Return where in the repository a page comes from."""
    return next((source for source, name in PAGES.items() if name == page and name != "index.md"), f"docs/{page}")
