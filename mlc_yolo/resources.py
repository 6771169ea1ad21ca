"""Where the package's YAML files are: in a checkout beside the package, in an installed wheel inside it."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def resource_dir(name: str) -> Path:
    """Return the folder `cfg` or `datasets` of this installation.

    In a checkout the folders stand beside the package; the wheel carries them inside it, so that no other
    distribution's top-level `cfg` can shadow ours.

    Args:
        name: "cfg" or "datasets".

    Returns:
        The existing folder.

    Raises:
        FileNotFoundError: neither place has it: the installation is incomplete.
    """
    for folder in (_PACKAGE / name, _PACKAGE.parent / name):
        if (folder / ".mlc_yolo").is_file():
            return folder
    raise FileNotFoundError(
        f"mlc_yolo's '{name}' folder was expected in {_PACKAGE} or beside it and is in neither: "
        "the installation is incomplete. Reinstall mlc-yolo."
    )
