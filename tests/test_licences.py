"""docs/licences.md names every package that pyproject.toml asks for."""

from __future__ import annotations

from licences import DOCUMENT, brought, direct, licence

TEXT = DOCUMENT.read_text(encoding="utf-8")


def test_every_direct_dependency_is_listed_with_its_extra() -> None:
    asked = direct()
    assert "ultralytics" in asked[""] and "onnx" in asked["export"] and "mlc-yolo" not in asked["dev"]
    for extra, names in asked.items():
        for name in names:
            assert f"\n| {name} | {extra or 'always'} | " in TEXT, "run python tests/licences.py"


def test_a_licence_is_read_from_either_field_of_the_metadata() -> None:
    assert licence("pytest") == "MIT" and "BSD" in licence("jinja2")
    assert licence("no-such-package") == "not installed"


def test_what_a_dependency_brings_is_followed() -> None:
    found = brought(["ultralytics"])
    assert "ultralytics-thop" in found and "sympy" in found and "ultralytics" not in found
