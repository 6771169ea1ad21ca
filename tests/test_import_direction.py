"""A module imports its own layer and those before it, and the pure core runs without Ultralytics."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mlc_yolo

PACKAGE = Path(mlc_yolo.__file__).parent
# Read downwards: a part may import itself and the parts of the lines above. Those of one line do not know each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("resources", "suggestions", "whole_files", "faults", "locks"),
    ("boxes", "coding", "oriented"),
    ("priors", "nms", "voting", "box_kinds"),
    ("assigners",),
    ("losses", "metrics"),
    ("heads", "plots"),
    ("detectors",),
    ("upstream", "options", "data"),
    ("checkpoints", "conversion"),
    ("evaluation",),
    ("training",),
    ("opening",),
    ("model",),
    ("figures", "paper"),
    ("compare",),
    ("report",),
    ("demo",),
    ("modes",),
    ("guide", "checks"),
    ("cli", "__main__"),
)
PURE = frozenset(part for layer in LAYERS[1:5] for part in layer) | {"resources"}
LAYER_OF = {part: i for i, layer in enumerate(LAYERS) for part in layer}

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
PURE_MODULES = [path for path in MODULES if path.relative_to(PACKAGE).with_suffix("").parts[0] in PURE]


def _name(path: Path) -> str:
    """Dotted module name of a file of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(source: str, module: str, is_package: bool = False) -> set[str]:
    """Every dotted name that the source imports, also inside functions; `from a import b` gives `a.b`."""
    imported: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, *([base] if base else [])])
            imported.update(f"{base}.{alias.name}" for alias in node.names)
    return imported


def _of(path: Path) -> set[str]:
    return _imports(path.read_text(encoding="utf-8"), _name(path), path.name == "__init__.py")


def _ids(paths: list[Path]) -> list[str]:
    return [path.relative_to(PACKAGE).as_posix() for path in paths]


def _run(code: str, *args: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_reader_of_imports_sees_every_form() -> None:
    source = "import a.b\nfrom mlc_yolo import cli\ndef f():\n    from ..engine import model\n    from . import x\n"
    expected = {"a.b", "mlc_yolo.cli", "mlc_yolo.engine.model", "mlc_yolo.losses.x"}
    assert _imports(source, "mlc_yolo.losses.focal") == expected
    assert _imports("from . import x", "mlc_yolo.losses", is_package=True) == {"mlc_yolo.losses.x"}


def test_the_pure_core_is_there_to_be_checked() -> None:
    assert {"assigners", "losses", "metrics"} <= {path.parent.name for path in PURE_MODULES}


@pytest.mark.parametrize("path", MODULES, ids=_ids(MODULES))
def test_a_module_imports_only_its_own_layer_and_those_before_it(path: Path) -> None:
    own = _name(path).split(".")[1]
    assert own in LAYER_OF, f"give '{own}' a layer in LAYERS"
    for imported in sorted(_of(path)):
        root, _, rest = imported.partition(".")
        if root == "mlc_yolo" and rest != "__version__":
            part = rest.split(".")[0]
            assert part in LAYER_OF, f"import from the module that defines '{part}', not from the package"
            below = part == own or LAYER_OF[part] < LAYER_OF[own]
            assert below, f"{_name(path)} must not import {imported}"


@pytest.mark.parametrize("path", PURE_MODULES, ids=_ids(PURE_MODULES))
def test_the_pure_core_does_not_import_ultralytics(path: Path) -> None:
    assert {name for name in _of(path) if name.split(".")[0] == "ultralytics"} == set()


@pytest.mark.slow
def test_running_the_pure_core_does_not_load_ultralytics() -> None:
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    if 'ultralytics' in sys.modules:\n"
        "        print(name)\n"
        "        break\n"
    )
    assert _run(code, *map(_name, PURE_MODULES)) == ""


def test_importing_the_package_loads_neither_torch_nor_ultralytics() -> None:
    code = "import sys, mlc_yolo; print(*sorted({'torch', 'ultralytics'} & set(sys.modules)))"
    assert _run(code) == ""
