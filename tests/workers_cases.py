"""What the tests of workers do on real worker processes, and a scheduler and workers that can be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import tnalgebra as tn

ROOT = Path(__file__).resolve().parent.parent


class Bench:
    """What tasks share: when they misbehave, and a folder in which they note what has happened."""

    def __init__(self, folder: Path, **tasks: Sequence[int]) -> None:
        self.folder, self.tasks = folder, tasks

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        (self.folder / f"unpickled-{os.getpid()}-{time.monotonic_ns()}").touch()

    def misbehaves(self, task: int, how: str) -> bool:
        """Whether the task does this now: once, or always where its number is negative."""
        if task not in self.tasks.get(how, ()):
            return False
        note = self.folder / f"{how}-{task}"
        first = not note.exists()
        note.touch()
        return first or task < 0


def squares(bench: Bench, tasks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The square of each task, and the process that has computed it; without torch, whose import takes seconds."""
    for task in tasks:
        if bench.misbehaves(task, "die"):
            os.kill(os.getpid(), signal.SIGKILL)
        if bench.misbehaves(task, "freeze"):
            os.kill(os.getpid(), signal.SIGSTOP)
        if bench.misbehaves(task, "hang"):
            time.sleep(1000)
        if bench.misbehaves(task, "fail"):
            raise tn.errors.RankError("the rank is out of range", rank=task)
        time.sleep(0.01)
        yield task * task, os.getpid()


def thread_counts(_: Bench, tasks: Sequence[int]) -> Iterator[int]:
    """For each task, the threads in which torch computes it."""
    import torch

    for _task in tasks:
        yield torch.get_num_threads()


class Cluster:
    """A Dask scheduler and workers, each a process of its own, as on another machine."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.stack, self.address = folder, ExitStack(), ""
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str, package: Path = ROOT) -> subprocess.Popen[bytes]:
        """Start a process of Dask, which imports the package from a folder; it ends with the test."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, dict.fromkeys([package, ROOT])))}
        command = [sys.executable, "-m", "distributed.cli.dask_" + arguments[0], *arguments[1:]]
        log = self.stack.enter_context((self.folder / f"{arguments[0]}.log").open("ab"))
        process = subprocess.Popen(command, env=environment, cwd=self.folder, stdout=log, stderr=log)
        self.processes.append(process)
        self.stack.callback(process.wait)
        self.stack.callback(process.terminate)
        return process

    def start_scheduler(self) -> subprocess.Popen[bytes]:
        """Start a scheduler, and learn its address."""
        file = self.folder / "scheduler.json"
        file.unlink(missing_ok=True)
        process = self.start(
            "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)
        )
        while not file.exists() or not file.read_text().strip():
            assert process.poll() is None, (self.folder / "scheduler.log").read_text()
            time.sleep(0.02)
        self.address = json.loads(file.read_text())["address"]
        return process

    def start_worker(self, package: Path = ROOT) -> subprocess.Popen[bytes]:
        """Start a worker with its nanny."""
        return self.start("worker", self.address, "--nthreads", "1", "--no-dashboard", package=package)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A scheduler; workers are started by the test. All processes have ended at the end."""
    one = Cluster(folder)
    with one.stack:
        one.start_scheduler()
        yield one
