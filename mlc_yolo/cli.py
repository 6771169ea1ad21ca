"""The command line: `mlc-yolo MODE key=value ...`, parsed and reported as Ultralytics' own.

Nothing heavy is imported before a mode is chosen, so that help is instant.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from mlc_yolo import __version__
from mlc_yolo.faults import UsageError, expect_work, work_has_begun
from mlc_yolo.modes import MODES, RunsFailed, Session, nearest

SPECIAL = ("help", "version", "checks", "settings", "cfg")
#: Switches of Ultralytics that may stand alone though their default is empty, and what else it takes without listing.
SWITCHES = ("half", "int8", "end2end", "nms")
UNLISTED = ("half", "int8", "end2end", "save_dir")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; default `sys.argv[1:]`.

    Returns:
        Exit status: 0; 1 where runs of a comparison failed; 2 for what cannot be run as it was asked for; 130 for
        Ctrl-C. A fault of ours is raised, so that the interpreter prints its traceback and exits with 1.
    """
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")  # upstream would pip install what it misses
    arguments = list(sys.argv[1:] if argv is None else argv)
    word = arguments[0].lstrip("-").lower() if arguments else "help"
    if word in {"version", "v"}:
        print(__version__)
        return 0
    if word in {"checks", "settings", "cfg"}:
        return _special(word, arguments[1:])
    if word in {"help", "h"} or {"help", "--help", "-h"} & set(arguments):
        return _help([word for word in arguments if word not in {"help", "--help", "-h", "h"}])
    session = Session()
    expect_work()
    try:
        mode, settings = parse(arguments)
        MODES[mode].run(session, mode, settings)
    except KeyboardInterrupt:
        session.leave_no_empty_folder()
        print(f"\nmlc-yolo: stopped. {session.resume_hint()}".rstrip(" "), file=sys.stderr)
        return 130
    except RunsFailed as error:
        print(f"mlc-yolo: {error}", file=sys.stderr)
        return 1
    except (
        *(UsageError, ValueError, TypeError, SyntaxError, OSError, RuntimeError, ImportError),
        *(AssertionError, KeyError),  # of Ultralytics, such as for pretrained=missing
    ) as error:
        if os.environ.get("MLC_YOLO_TRACEBACK") or (work_has_begun() and not _is_usage(error)):
            raise
        session.leave_no_empty_folder()
        print(_answer(error), file=sys.stderr)
        return 2
    return 0


def _help(topics: Sequence[str]) -> int:
    """Print the help on the first word that is no pair; on everything, where there is none."""
    from mlc_yolo import guide

    words = [word for word in topics if "=" not in word.strip("=")]
    try:
        print(guide.help_on(words[0].lstrip("-")) if words else guide.overview(), end="")
    except UsageError as error:
        print(_answer(error), file=sys.stderr)
        return 2
    return 0


def _is_usage(error: Exception) -> bool:
    """Whether an error is about the request whenever it arises: exporters miss packages only once they work."""
    return isinstance(error, UsageError) or (_missing_package(error) is not None)


def _missing_package(error: Exception) -> str | None:
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    return name if name and name.partition(".")[0] != "mlc_yolo" else None


def _answer(error: Exception) -> str:
    """Return the message for a request that cannot be run."""
    hint = "" if isinstance(error, UsageError) else " MLC_YOLO_TRACEBACK=1 shows where this comes from."
    missing = _missing_package(error)
    advice = f". Install it, such as with: pip install {missing}" if missing else ""
    where = "'mlc-yolo help' lists the modes, 'mlc-yolo help options' the options."
    return f"mlc-yolo: {str(error).strip()}{advice}\n{where}{hint}"


def parse(arguments: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Turn words into a mode and its arguments. Names are checked here, values where they are used.

    Args:
        arguments: words of the command line.

    Returns:
        mode and arguments by name, values as Ultralytics reads them.

    Raises:
        UsageError: an unknown word or name, or one that the mode does not take; the nearest known ones are named.
    """
    from ultralytics.cfg import DEFAULT_CFG_DICT, TASKS, merge_equals_args, parse_key_value_pair

    from mlc_yolo.options.specification import defaults

    known = {**_own_arguments(), **dict.fromkeys(UNLISTED), **DEFAULT_CFG_DICT, **defaults()}
    settings: dict[str, Any] = {}
    mode = ""
    try:
        words = merge_equals_args(list(arguments))
    except SyntaxError as error:
        raise UsageError(str(error)) from error
    for word in words:
        word = word.removeprefix("--").removesuffix(",")
        if "=" in word:
            name, value = _pair(word, parse_key_value_pair)
            pairs = _read_cfg(value) if name == "cfg" and value else {name: value}
            for name in pairs:
                if name not in known:
                    raise UsageError(f"'{name}' is not an argument.{nearest(name, known)}")
            settings |= pairs
        elif word in MODES:
            mode = word
        elif word in TASKS:
            settings["task"] = word
        elif word in known and (isinstance(known[word], bool) or word in SWITCHES):
            settings[word] = True
        elif word in known:
            raise UsageError(f"'{word}' needs a value: {word}={known[word]}")
        elif mode and MODES[mode].bare not in {"", *settings}:
            settings[MODES[mode].bare] = word
        else:
            near = _as_file(word) or nearest(word, [*MODES, *SPECIAL, *TASKS, *known])
            raise UsageError(f"'{word}' is not a mode or argument.{near}")
    mode = settings.pop("mode", mode)
    if mode not in MODES:
        raise UsageError(f"expected a mode first, one of {', '.join(MODES)}" + (f"; got '{mode}'" if mode else ""))
    return mode, _accepted(mode, settings)


def _as_file(word: str) -> str:
    """Say which arguments a file may be meant for; nothing of a word that is none."""
    suffix = word.rpartition(".")[2].lower()
    if suffix in {"yaml", "yml"}:
        return f" Did you mean data={word} or model={word}?"
    return f" Did you mean model={word}?" if suffix in {"pt", "onnx", "safetensors", "torchscript"} else ""


def _own_arguments() -> dict[str, Any]:
    """Return the arguments that only some modes take, and their defaults."""
    own: dict[str, Any] = {}
    for mode in MODES.values():
        own |= {**mode.own, **({mode.bare: ""} if mode.bare else {})}
    return own


def _accepted(mode: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the known arguments that a mode takes.

    Raises:
        UsageError: one that is not of this mode, one that is missing, or the task of another kind of model.
    """
    from ultralytics.cfg import DEFAULT_CFG_DICT

    from mlc_yolo.options.specification import defaults

    line = MODES[mode]
    takes = {*line.own, line.bare}
    if line.stock:
        takes |= {*UNLISTED, *DEFAULT_CFG_DICT, *defaults()}
    if line.stock and not line.any_task and settings.pop("task", "detect") != "detect":
        raise UsageError(f"{mode} is for detection models: leave the task out, and give the model of a detector.")
    if foreign := [name for name in settings if name not in takes]:
        others = sorted({other for other, its in MODES.items() for name in foreign if name in {*its.own, its.bare}})
        listed = ", ".join(line.own) if not line.stock else "Ultralytics' arguments and the options of mlc-yolo"
        where = f" {' and '.join(foreign)} is for {' and '.join(others)}." if others else ""
        raise UsageError(f"{mode} takes {listed}, not {', '.join(foreign)}.{where}")
    if missing := [name for name in line.required if settings.get(name) is None]:
        raise UsageError(f"{mode} needs {' and '.join(f'{name}=...' for name in missing)}")
    if line.stock:
        return settings
    # Names and folders stay texts whatever they look like: output=2007.
    texts = {name for name, default in line.own.items() if default is None}
    return {name: str(value) if name in texts else value for name, value in settings.items() if value is not None}


def _special(word: str, rest: list[str]) -> int:
    from ultralytics.cfg import DEFAULT_CFG_PATH, handle_yolo_settings
    from ultralytics.utils import YAML

    from mlc_yolo import checks
    from mlc_yolo.options.specification import defaults

    actions: dict[str, Callable[[], Any]] = {
        "checks": lambda: print(checks.report(), end=""),
        "settings": lambda: handle_yolo_settings(rest),
        "cfg": lambda: (YAML.print(DEFAULT_CFG_PATH), YAML.print(defaults())),
    }
    actions[word]()
    return 0


def _pair(word: str, parser: Callable[[str], tuple[str, Any]]) -> tuple[str, Any]:
    from mlc_yolo.options.specification import specifications

    try:
        name, value = parser(word)
        if value is None and "none" in specifications().get(name, {}).get("choices", ()):
            value = "none"  # a choice of that name, not an empty option
        return name, value
    except (AssertionError, SyntaxError, ValueError, NameError) as error:
        raise UsageError(f"cannot read '{word}': {error}. Write key=value") from error


def _read_cfg(path: Any) -> dict[str, Any]:
    """Return the arguments of a YAML file, but for those that name the run it may come from, and trust."""
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            read = yaml.safe_load(file)
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"cfg={path} cannot be read: {error}") from error
    if not isinstance(read, dict):
        raise UsageError(f"cfg={path} must hold 'key: value' lines, got {type(read).__name__}")
    return {str(name): value for name, value in read.items() if name not in {"cfg", "mode", "save_dir", "trust"}}


if __name__ == "__main__":
    sys.exit(main())
