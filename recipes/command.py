"""What every recipe's command line does: settings from arguments and presets, errors as one message, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

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
    try:
        # tyro makes two of an empty line before an indented one
        main(tyro.cli(config, description=description and description.replace("\n\n    ", "\n    ")))
    except tn.errors.TnalgebraError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"\n{interrupted}")


def run_presets(presets: Mapping[str, Config], main: Callable[[Config], object], *, description: str | None) -> None:
    """The command line of a recipe with presets: --preset NAME, and options that differ from it.

    Args:
        presets: name -> config; the first one is the default.
    """
    usual = next(iter(presets))
    wished = _wished_preset(sys.argv[1:], usual)
    default = presets.get(wished, presets[usual])

    def command(
        config: Annotated[Any, tyro.conf.OmitArgPrefixes],
        preset: str = usual,
    ) -> Config:
        """Settings.

        Args:
            preset: settings for a network and its data; every other option given counts more
        """
        if preset not in presets:
            raise tn.errors.DataError(tn.errors.explain(f"no preset is called {preset!r}", known=", ".join(presets)))
        chosen: Config = config
        return chosen

    command.__annotations__["config"] = tyro.conf.OmitArgPrefixes[type(default)]  # type: ignore[misc]
    command.__annotations__["preset"] = Annotated[str, tyro.conf.arg(metavar="|".join(presets))]
    command.__annotations__["return"] = Any
    command.__defaults__ = (default, wished)
    run_command(
        command,  # type: ignore[arg-type]
        main,
        description=description,
        interrupted="stopped: the same command goes on where it was",
    )


def smoke_folder(output: Path, usual: Iterable[Path]) -> Path:
    """Where a smoke run writes: beside the folder of the run in full, which would refuse other settings.

    Args:
        output: as the config has it.
        usual: folders that nobody has asked for.
    """
    return output.with_name(f"{output.name}-smoke") if output in usual else output


def _wished_preset(arguments: Sequence[str], usual: str) -> str:
    """The last --preset of a command line."""
    found = usual
    for number, argument in enumerate(arguments):
        if argument == "--preset" and number + 1 < len(arguments):
            found = arguments[number + 1]
        elif argument.startswith("--preset="):
            found = argument.partition("=")[2]
    return found
