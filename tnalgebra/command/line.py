"""The command line of `tnalgebra`: which commands there are, and how their arguments are read."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Sequence
from typing import Protocol

from ..errors import DataError
from .network_commands import CompareRewrites, Compress, Explore, SearchTopologies, ShowSpectra, StudyNetwork
from .other_commands import Draw, Report, ShowPlan, ShowRules


class Command(Protocol):
    """A dataclass whose fields are the arguments of a command, and whose docstring is the beginning of its help."""

    def __call__(self) -> None:
        """Do it."""


COMMANDS: dict[str, type[Command]] = {
    "compress": Compress,
    "study": StudyNetwork,
    "report": Report,
    "explore": Explore,
    "spectra": ShowSpectra,
    "compare": CompareRewrites,
    "search": SearchTopologies,
    "draw": Draw,
    "rules": ShowRules,
    "plan": ShowPlan,
}


def run_line(arguments: Sequence[str]) -> None:
    """Run the command that the arguments name. Raises SystemExit for help and wrong arguments, else TnalgebraError."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        lines = [f"  {command:<10}{_paragraphs(kind)[0]}" for command, kind in COMMANDS.items()]
        print("usage: tnalgebra COMMAND ...\n\nTensor networks for convolutional networks.\n", *lines, sep="\n")
        print("\ntnalgebra COMMAND --help prints the arguments of a command, and an example.")
    elif name == "--version":
        from importlib.metadata import version

        print(version("tnalgebra"))
    elif name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        fix = f"did you mean {near[0]!r}?" if near else None
        raise DataError(f"tnalgebra has no command {name!r}", known=", ".join(COMMANDS), fix=fix)
    else:
        kind = COMMANDS[name]
        first, *others, example = _paragraphs(kind)
        indented = [textwrap.indent(textwrap.fill(text, 78), "  ") for text in others]
        description = "\n".join([first, *indented, "", example.replace("Example: ", "Example:\n    ")])
        from tyro import cli
        from tyro.conf import FlagCreatePairsOff

        cli(kind, prog=f"tnalgebra {name}", description=description, args=rest, config=(FlagCreatePairsOff,))()


def _paragraphs(kind: type[Command]) -> list[str]:
    """The docstring of a command, each paragraph in one line."""
    return [" ".join(paragraph.split()) for paragraph in (kind.__doc__ or "").split("\n\n")]
