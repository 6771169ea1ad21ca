"""Every command and every Python block of a tutorial runs, in order, on the demo set with a tiny budget."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from torch.distributed.run import parse_args
from tutorial_desk import TINY, smaller

from mlc_yolo import cli
from mlc_yolo.options.arguments import Arguments

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
#: Its commands need several GPUs: they are parsed, not run.
PARSED = "several-machines.md"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _example(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def _own_assigner() -> None:
    pictures = _example("own_assigner").main("mine.yaml", "yolo11n.pt", **TINY, val=False)
    assert pictures and all(picture.is_file() for picture in pictures)


def _compare_variants() -> None:
    page, said = _example("compare_variants").main("mine.yaml", "yolo11n.pt", **TINY, seed=[0]).splitlines()
    assert Path(page.removeprefix("page: ")).is_file()
    assert said.startswith("assigner=mlc: AP ")


#: Page -> the file in examples/ that does the same. What the page has trained, its comparison does not train again.
EXAMPLES: dict[str, Callable[[], None]] = {"own-assigner": _own_assigner, "which-assigner": _compare_variants}


def _run(example: Example) -> None:
    for words in _commands(example.parsed):
        assert words[0] == "mlc-yolo", f"no test runs {words[0]}: indent it, if it is no command of ours"
        assert cli.main(words[1:]) == 0, shlex.join(words)


def _commands(text: str) -> list[list[str]]:
    """The command lines of a block, without comments; a line that ends in a backslash goes on in the next."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page.name != PARSED], ids=lambda page: page.stem)
def test_a_tutorial_and_its_example_run_from_the_first_block_to_the_last(page: Path, desk: Path) -> None:
    copy = desk / page.name
    copy.write_text(smaller(page.read_text(encoding="utf-8")), encoding="utf-8")
    blocks = Sybil(parsers=[PythonCodeBlockParser(), CodeBlockParser("bash", _run)], patterns=["*.md"])
    examples = list(blocks.parse(copy).examples())
    assert examples
    for example in examples:
        example.evaluate()
    if page.stem in EXAMPLES:
        EXAMPLES[page.stem]()


def test_commands_for_several_machines_are_ones_that_torchrun_and_the_command_line_take() -> None:
    text = (ROOT / "docs" / "tutorials" / PARSED).read_text(encoding="utf-8")
    commands = [words for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for words in _commands(block)]
    assert [words[0] for words in commands] == ["mlc-yolo", "torchrun", "torchrun"]
    for program, *words in commands:
        if program == "torchrun":
            launch = parse_args(words)
            assert launch.module and launch.training_script == "mlc_yolo.cli"
            words = launch.training_script_args
        mode, arguments = cli.parse(words)
        assert mode == "train" and Arguments.of(arguments)


def test_every_command_line_that_a_document_shows_is_one_the_program_takes() -> None:
    shown = 0
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8").replace("\\\n", " ")
        blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        for line in re.findall(r"^    mlc-yolo +(.+)$", text, re.MULTILINE) + re.findall(
            r"^mlc-yolo +(.+)$", "\n".join(blocks), re.MULTILINE
        ):
            words = shlex.split(line.partition(" #")[0])
            if words[0] in {"settings", "checks", "help", "version", "cfg", "MODE"}:
                continue
            shown += 1
            mode, arguments = cli.parse([word for word in words if "SEED" not in word])
            assert mode and Arguments.of({name: value for name, value in arguments.items() if "," not in str(value)})
    assert shown > 40
