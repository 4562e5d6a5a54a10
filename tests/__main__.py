"""Every check that the project has, in one command.

python -m tests             format, lint, types, all tests
python -m tests --quick     an answer within two minutes: without the tests marked slow, 10 examples of each law
python -m tests --wording   write tests/wording.txt, the wording of all errors, from what the tests meet

Further arguments go to pytest.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

QUICK = "--quick"

PROCESSES = ["-n", "auto", "--maxprocesses", "8", "--dist", "loadfile", "--no-loadscope-reorder"]
"""A file stays in one process, for what its tests share; files run in their usual order."""


def main() -> int:
    """Run all checks, even if one fails; 0 if every one passed."""
    arguments = [argument for argument in sys.argv[1:] if argument != QUICK]
    environment = {"OMP_NUM_THREADS": "1"} | dict(os.environ)  # on small tensors, threads only hinder each other
    if QUICK in sys.argv:
        arguments += ["-m", "not slow"]
        environment["HYPOTHESIS_PROFILE"] = "quick"
    checks = {
        "format": ["ruff", "format", "--check", "--diff", "."],
        "lint": ["ruff", "check", "."],
        "types": ["mypy"],
        "tests": ["pytest", *PROCESSES, *arguments],
    }
    failed = []
    for name, command in checks.items():
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environment).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
