"""How a command starts and ends as a process: errors become one message, without a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from ..errors import TnalgebraError
from .build import require_packages


def run(command: Callable[[], object], *, interrupted: str = "stopped") -> None:
    """Run a command and end the process where it fails.

    Args:
        command: what is done.
        interrupted: the message after Ctrl-C.

    Raises:
        SystemExit: with status 2 after an error of the package, whose message goes to the standard error; with status
            130 after an interruption; with status 141 where nobody reads the standard output any more, as after
            `| head`.
    """
    try:
        command()
    except TnalgebraError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is written when Python ends
        sys.exit(141)


def main() -> None:
    """The command `tnalgebra`. Raises SystemExit with status 2 where it is used wrongly."""

    def command() -> None:
        require_packages({"tyro": "study"}, "the command tnalgebra")
        from .line import run_line

        run_line(sys.argv[1:])

    run(command)
