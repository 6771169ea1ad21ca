"""A page: its template, the style and the script that all pages share, joined into one file.

What users named (classes, paths, options) is escaped by the template engine. The page's own policy forbids it to load
or send anything, and to run any script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mlc_yolo import __version__

_FOLDER = Path(__file__).parent


def fill(template: str, **context: Any) -> str:
    """Return a page as HTML.

    Args:
        template: its file in this folder.
        **context: what it asks for beside the style, the script, the policy, the date and the software.
    """
    style, script = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {_source(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["breakable"] = breakable
    return environment.get_template(template).render(
        policy=Markup(policy),
        style=Markup(style),
        script=Markup(script),
        date=date.today().isoformat(),
        software=f"mlc-yolo {__version__}, ultralytics {version('ultralytics')}, torch {version('torch')}",
        **context,
    )


def breakable(name: str) -> Markup:
    """Return a name as markup in which a line may end after "," and "=".

    Example:
        >>> breakable("a=<b>,c")
        Markup('a=<wbr>&lt;b&gt;,<wbr>c')
    """
    return Markup("<wbr>").join(re.split(r"(?<=[,=])", name))


def _source(text: str) -> str:
    """Return the only text that the page's policy lets in, as its hash."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
