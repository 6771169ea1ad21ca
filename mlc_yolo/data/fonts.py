"""Give Ultralytics' plots an installed font. Without it, Ultralytics downloads Arial for every data set."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from mlc_yolo import whole_files
from mlc_yolo.data.resolve import cache_dir

NAMES = ("Arial.ttf", "Arial.Unicode.ttf")


def provide_fonts() -> None:
    """Let Ultralytics find matplotlib's own DejaVu Sans where it looks for Arial, unless Arial is installed.

    It takes any font that matplotlib knows by a file of that name. So copies of those names lie in our cache, and
    matplotlib is told of them, in this process alone. Where the cache cannot be written nothing is changed.
    """
    from matplotlib import font_manager, get_data_path
    from ultralytics.utils import USER_CONFIG_DIR

    source = Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    for name in NAMES:
        known = any(name in font.fname and os.path.exists(font.fname) for font in font_manager.fontManager.ttflist)
        if known or (USER_CONFIG_DIR / name).exists():
            continue
        font = cache_dir() / "fonts" / name
        with suppress(OSError):
            if not font.exists():
                font.parent.mkdir(parents=True, exist_ok=True)
                whole_files.write(font, source.read_bytes(), shared=True)
            font_manager.fontManager.addfont(font)
