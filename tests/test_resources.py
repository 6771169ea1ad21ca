"""The YAML folders are found, the package list is complete, and every option says what it is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlc_yolo.resources import resource_dir

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]


def options() -> dict[str, dict[str, Any]]:
    """cfg/mlc.yaml: option name -> {default, choices or type, help}."""
    return yaml.safe_load((resource_dir("cfg") / "mlc.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["cfg", "datasets"])
def test_each_yaml_folder_is_found_and_holds_readable_yaml(name: str) -> None:
    files = sorted(resource_dir(name).rglob("*.yaml"))
    assert files
    for file in files:
        assert isinstance(yaml.safe_load(file.read_text(encoding="utf-8")), dict), file


def test_an_unknown_folder_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(FileNotFoundError, match=r"'models' folder .* Reinstall"):
        resource_dir("models")


def test_every_folder_of_the_package_goes_into_the_wheel() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "mlc_yolo").rglob("*.py")}
    expected = {".".join(folder.parts) for folder in folders} | {"mlc_yolo.cfg", "mlc_yolo.datasets"}
    assert set(listed) == expected, "bring [tool.setuptools] packages in pyproject.toml up to date"


def test_every_option_has_a_default_a_domain_and_help() -> None:
    for name, spec in options().items():
        assert "default" in spec, name
        assert ("choices" in spec) != ("type" in spec), name
        assert str(spec["help"]).endswith("."), name
