"""The command line of every recipe: settings from arguments and presets, errors as one message without a traceback."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import tyro

import tnalgebra as tn

Config = TypeVar("Config")


def run_command(
    config: type[Config], main: Callable[[Config], object], *, description: str | None, interrupted: str = "stopped"
) -> None:
    """Read a config from the command line and run a recipe with it.

    Args:
        config: a frozen dataclass; its fields become options, their docstrings the help.
        main: the recipe.
        description: printed above the options; the recipe's own docstring. tyro does not wrap it, and joins lines that
            begin with a letter, so that prose of several lines has to be a list with hanging indents.
        interrupted: the message after Ctrl-C.

    Raises:
        SystemExit: where the recipe fails or is interrupted, see `tn.command.run`.
    """
    tn.command.run(
        lambda: main(tyro.cli(config, prog=tn.studies.this_program(), description=_description(description))),
        interrupted=interrupted,
    )


def run_presets(presets: Mapping[str, Config], main: Callable[[Config], object], *, description: str | None) -> None:
    """Read a preset, by --preset NAME, and options that differ from it, and run a recipe with them.

    Args:
        presets: name -> config; the first one is the default.
        main, description: as for `run_command`.

    Raises:
        SystemExit: see `run_command`.
    """
    text = f"{description or ''}\nPresets, by --preset NAME: {', '.join(presets)}. Defaults below are those of "

    def command() -> object:
        parser = ArgumentParser(prog=tn.studies.this_program(), add_help=False, allow_abbrev=False)
        parser.add_argument("--preset", choices=presets, default=next(iter(presets)))
        chosen, others = parser.parse_known_args()
        config, described = presets[chosen.preset], _description(f"{text}{chosen.preset}.")
        return main(tyro.cli(type(config), prog=parser.prog, description=described, args=others, default=config))

    tn.command.run(command, interrupted="stopped: the same command continues where it was")


def _description(text: str | None) -> str:
    return (text or "").replace("\n\n    ", "\n    ")  # tyro makes two of an empty line before an indented one


def smoke_sizes(config: object, most: Mapping[str, int]) -> dict[str, Any]:
    """Setting -> its value in a smoke run: a number, or the length of a tuple, that is at most the one given for it.

    A default of None becomes that number. A wrong 0 stays 0, so that it is refused as in a run in full.
    """
    smaller: dict[str, Any] = {}
    for name, bound in most.items():
        value = getattr(config, name)
        smaller[name] = value[:bound] if isinstance(value, tuple) else bound if value is None else min(value, bound)
    return smaller


def smoke_folder(output: Path, usual: Iterable[Path]) -> Path:
    """The folder of a smoke run: beside that of the run in full, which would refuse its settings.

    Args:
        output: the folder in the config.
        usual: folders that a config has by default; any other was requested and is used as it is.
    """
    return output.with_name(f"{output.name}-smoke") if output in usual else output
