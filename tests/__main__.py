"""Every check there is, in one command: `python -m tests`. Arguments go to pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

PROCESSES = ["-n", "auto", "--maxprocesses", "8", "--dist", "loadfile", "--no-loadscope-reorder"]
"""A file stays in one process, for what its tests share; in the usual order, or the longest would come last."""

CHECKS = {
    "format": [sys.executable, "-m", "ruff", "format", "--check", "--diff", "."],
    "lint": [sys.executable, "-m", "ruff", "check", "."],
    "types": [sys.executable, "-m", "mypy"],
    "tests": [sys.executable, "-m", "pytest", *PROCESSES, *sys.argv[1:]],
}


def main() -> int:
    """Run all checks, even if one fails; 0 if every one passed."""
    # small tensors: threads only get in each other's way
    environment = {"OMP_NUM_THREADS": "1"} | dict(os.environ)
    failed = []
    for name, command in CHECKS.items():
        print(f"== {name}", flush=True)
        if subprocess.run(command, cwd=ROOT, env=environment).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
