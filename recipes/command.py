"""What every recipe's command line does: settings from arguments, errors as one message, no traceback on Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

from tnalgebra.errors import TnalgebraError

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
    except TnalgebraError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"\n{interrupted}")
