"""The wheel stands on its own: built through the sdist, installed away from the checkout, it trains."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from nets import SMALL

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


def _run(*command: str | Path, cwd: Path) -> str:
    """Run a command as a user would, without pytest's traces in the environment; return its output."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "PYTHON"))}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """checkout -> sdist -> wheel, in a copy so that no build folder is left in the checkout or found there."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    for name in ("mlc_yolo", "cfg", "datasets"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    _run(sys.executable, "-c", f"import setuptools.build_meta as b; b.build_sdist({str(folder)!r})", cwd=source)
    (sdist,) = folder.glob("*.tar.gz")
    options = "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder
    _run(sys.executable, "-m", "pip", "wheel", *options, sdist, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts folder of an environment that holds our wheel and borrows every dependency from the running one."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(folder, with_pip=False)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    _run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    site = Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # A folder named in a .pth file is searched, but .pth files inside it are not read: the checkout's editable
    # installation stays out of reach.
    borrowed = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "borrowed.pth").write_text("\n".join(borrowed))
    return scripts


def test_the_wheel_carries_the_yaml_folders_inside_the_package_and_nothing_beside_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.name.startswith("mlc_yolo-")
    assert {name.split("/")[0].split("-")[0] for name in names} == {"mlc_yolo"}
    for folder in ("cfg", "datasets"):
        expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.yaml")}
        assert {f"mlc_yolo/{name}" for name in expected | {f"{folder}/.mlc_yolo"}} <= set(names)
    assert "mlc_yolo/py.typed" in names
    pages = ("diagnosis.html", "head.html", "page.html", "page.css", "page.js")
    assert {f"mlc_yolo/report/{page}" for page in pages} <= set(names)


def test_the_installed_package_finds_its_folders_inside_itself(installed: Path, tmp_path: Path) -> None:
    code = (
        "import mlc_yolo; from mlc_yolo.resources import resource_dir as r; "
        "print(mlc_yolo.__file__, r('cfg'), r('datasets'), sep='\\n')"
    )
    init, cfg, datasets = (Path(line) for line in _run(installed / "python", "-c", code, cwd=tmp_path).splitlines())
    assert installed.parent in init.parents
    assert (cfg, datasets) == (init.parent / "cfg", init.parent / "datasets")
    assert (cfg / "mlc.yaml").is_file()


def test_a_user_s_program_is_checked_against_the_installed_types(installed: Path, tmp_path: Path) -> None:
    program = (
        "from mlc_yolo.assigners import ATSS, Assignment, Predictions, Targets\n"
        "from mlc_yolo.priors import Priors\n"
        "from mlc_yolo import MLCYOLO\n"
        "def own(predictions: Predictions, priors: Priors, targets: Targets) -> Assignment:\n"
        "    return ATSS(topk={topk})(predictions, priors, targets)\n"
        "MLCYOLO({model}).val(data='mine.yaml')\n"
    )
    (tmp_path / "good.py").write_text(program.format(topk=9, model="'yolo11n.yaml'"))
    (tmp_path / "wrong.py").write_text(program.format(topk="'9'", model="9"))
    mypy = [sys.executable, "-m", "mypy", "--python-executable", installed / "python", "--follow-imports=silent"]
    mypy += ["--cache-dir", tmp_path / "cache"]
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "PYTHON", "MYPY"))}
    both = [*map(str, mypy), "good.py", "wrong.py"]
    said = subprocess.run(both, cwd=tmp_path, env=env, capture_output=True, text=True).stdout
    errors = [line for line in said.splitlines() if ": error: " in line]
    assert len(errors) == 2 and "checked 2 source files" in said
    assert errors[0].startswith("wrong.py:5: error: Argument") and errors[1].startswith("wrong.py:6: error: Argument 1")


def test_the_installed_command_trains_with_mlc_outside_the_checkout(
    installed: Path, tiny_data: Path, tmp_path: Path, run_dir: Path
) -> None:
    settings = (
        "epochs=1",
        "imgsz=64",
        "batch=4",
        "workers=0",
        "device=cpu",
        "plots=False",
        f"project={run_dir}",
        "name=wheel",
    )
    command = installed / "mlc-yolo", "train", f"model={SMALL}", f"data={tiny_data}", "assigner=mlc", *settings
    _run(*command, cwd=tmp_path)
    assert (run_dir / "wheel" / "results.csv").is_file()
    assert (run_dir / "wheel" / "weights" / "best.pt").is_file()
