"""What is refused, in tests: a test asserts the class of the error and its facts, and the wording lies in one file.

    with refused(RankError, "bond 'p'", "7"):
        rule.apply(kernel, {"p": 7})

Every message that `refused` meets is compared with `tests/wording.txt` when the tests have ended, all at once.
`python -m tests --wording` writes that file again; its difference is read as one reads a text.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import unified_diff
from pathlib import Path

import pytest

from tnalgebra.errors import TnalgebraError

ROOT = Path(__file__).resolve().parent.parent
WORDING = ROOT / "tests" / "wording.txt"
HEADING = "== "

VARYING = (
    (re.compile(re.escape(str(ROOT)) + r"/"), ""),
    (re.compile(re.escape(str(ROOT))), "CHECKOUT"),
    (re.compile(re.escape(tempfile.gettempdir()) + r"/pytest-[^\s'\"]*?/(?=[^\s/'\"]*(?:$|[\s'\":,;)]))"), "TMP/"),
    (re.compile(r"cpu-\S+\.json"), "DEVICE.json"),
    (re.compile(r"\b_[0-9a-f]{6}[A-Za-z]+"), "_INDEX"),
    (re.compile(r"(?<=\(code )[0-9a-f]{8}\b|(?<=\")[0-9a-f]{12,64}(?=\")"), "HASH"),
    (re.compile(r"0x[0-9a-f]+|(?<![\w.])\d[\d,]*(\.\d+)?(e[+-]?\d+)?(?!\w)"), "#"),
)
"""Parts of a message that differ between runs and machines, and numbers, which are facts that the tests assert."""

recorded: set[tuple[str, str]] = set()
"""(test function, message with its class in front) of every refusal of this process."""


@contextmanager
def refused(error: type[Exception], *facts: object) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """Expect an error whose message holds every fact (a name, a value, a place, the key of the fix) as text."""
    with pytest.raises(error) as info:
        yield info
    message = str(info.value)
    missing = [fact for fact in map(str, facts) if fact not in message]
    assert not missing, f"the message lacks {missing}:\n{message}"
    for foreign in _texts_of_libraries(info.value):
        message = message.replace(foreign, "#")
    message = re.sub(r"#(\n *#)+$", "#", message, flags=re.MULTILINE)  # of as many lines as the library writes
    for pattern, general in VARYING:
        message = pattern.sub(general, message)
    test = re.sub(r"[\[ ].*", "", os.environ["PYTEST_CURRENT_TEST"], flags=re.DOTALL)
    recorded.add((test, f"{type(info.value).__name__}: {message}"))


def _texts_of_libraries(error: BaseException) -> Iterator[str]:
    """Lines that an error quotes from the libraries' errors it was raised from, which differ between their versions."""
    cause = error.__cause__
    while cause is not None:
        if not isinstance(cause, TnalgebraError):
            # a line of one short word may stand in a text of ours too
            yield from (line.strip() for line in str(cause).split("\n") if len(line.split()) > 1)
        cause = cause.__cause__


def differences(found: Iterable[tuple[str, str]]) -> str:
    """What the messages of a run have that the file lacks, as a diff; empty if nothing."""
    known = _read()
    lines: list[str] = []
    for test, messages in _grouped(found).items():
        new = messages - known.get(test, set())
        if new:
            before, after = sorted(known.get(test, set()) - messages), sorted(new)
            lines += unified_diff("\n".join(before).split("\n"), "\n".join(after).split("\n"), test, test, lineterm="")
    return "\n".join(lines)


def write(found: Iterable[tuple[str, str]], *, whole: bool) -> None:
    """Write the messages of a run into the file; those of tests that did not run stay unless the run was the whole."""
    known = ({} if whole else _read()) | _grouped(found)
    parts = (f"{HEADING}{test}\n\n" + "\n\n".join(sorted(known[test])) + "\n" for test in sorted(known))
    WORDING.write_text("\n".join(parts), encoding="utf-8")


def _grouped(found: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    groups: dict[str, set[str]] = defaultdict(set)
    for test, message in found:
        groups[test].add("\n".join(line.rstrip() for line in message.split("\n") if line.strip()))
    return dict(groups)


def _read() -> dict[str, set[str]]:
    if not WORDING.exists():
        return {}
    parts = re.split(rf"^{HEADING}", WORDING.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {head: set(rest.strip("\n").split("\n\n")) for head, _, rest in (part.partition("\n") for part in parts)}
