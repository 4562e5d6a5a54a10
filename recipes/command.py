"""The command line of every recipe: settings from arguments and presets, errors as one message, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

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
        description: above the help; the recipe's own docstring. tyro shows it unwrapped and joins lines that begin
            with a letter: prose that needs several is a list with hanging indents.
        interrupted: what to say on Ctrl-C.

    Raises:
        SystemExit: with the message, where the recipe raises an error of the package; on an interruption.
    """
    _run(lambda: main(tyro.cli(config, description=_description(description))), interrupted)


def run_presets(presets: Mapping[str, Config], main: Callable[[Config], object], *, description: str | None) -> None:
    """The command line of a recipe with presets: --preset NAME, and options that differ from it.

    Args:
        presets: name -> config; the first one is the default.
    """
    text = f"{_description(description)}\nPresets, by --preset NAME: {', '.join(presets)}. Defaults below are those of "
    configs = {name: (f"{text}{name}.", config) for name, config in presets.items()}
    arguments = _preset_first(sys.argv[1:], next(iter(presets)))
    _run(
        lambda: main(tyro.extras.overridable_config_cli(configs, args=arguments)),
        "stopped: the same command continues where it was",
    )


def smoke_folder(output: Path, usual: Iterable[Path]) -> Path:
    """Where a smoke run writes: beside the folder of the run in full, which would refuse other settings.

    Args:
        output: as the config has it.
        usual: folders that nobody has asked for.
    """
    return output.with_name(f"{output.name}-smoke") if output in usual else output


def _run(command: Callable[[], object], interrupted: str) -> None:
    try:
        command()
    except tn.errors.TnalgebraError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"\n{interrupted}")


def _description(text: str | None) -> str:
    return (text or "").replace("\n\n    ", "\n    ")  # tyro makes two of an empty line before an indented one


def _preset_first(arguments: list[str], usual: str) -> list[str]:
    """The arguments with the preset's name in front, where tyro expects it."""
    for number, argument in enumerate(arguments):
        option, equals, name = argument.partition("=")
        if option == "--preset":
            after = number + (1 if equals else 2)
            return [*([name] if equals else arguments[number + 1 : after]), *arguments[:number], *arguments[after:]]
    return [usual, *arguments]
