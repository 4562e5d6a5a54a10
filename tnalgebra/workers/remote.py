"""What happens on a worker."""

from __future__ import annotations

import faulthandler
import pickle
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from threading import Lock
from typing import Any

import cloudpickle
from distributed import Worker, get_worker
from distributed.diagnostics.plugin import WorkerPlugin

from ..errors import WorkersError
from .versions import differences

_END = object()


def dask_setup(_: Worker) -> None:
    """Dask calls this when a worker of this machine starts. Ctrl-C is for the process that will then end it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Shared(WorkerPlugin):
    """What all tasks of a run share. Dask sends it to each worker once, also to those that come later.

    Args:
        payload: a pickle.
        versions: those of the process that has made it.
    """

    def __init__(self, payload: bytes, versions: Mapping[str, str]) -> None:
        self.payload, self.versions = payload, versions

    def setup(self, worker: Worker) -> None:
        """Dask calls this on the worker."""
        self.lock = Lock()  # one task at a time, on workers with several threads too: tasks may change what they share

    @cached_property
    def value(self) -> Any:
        """What is shared, made once in each process."""
        worker = differences(self.versions)
        if worker:
            fact = f"the worker {get_worker().address} has other versions than the process that sent the tasks"
            raise WorkersError(fact, sent_by=worker, fix="the same environment for all of them")
        return unpickle(self.payload)


def work(payload: bytes, *, name: str, group: int, time_limit: float) -> list[bytes]:
    """Do tasks of a group, one after another. The results but the last are sent to the client as they are finished.

    Args:
        payload: a pickle of the function and the tasks, see `run_tasks`.
        name: of the `Shared`, and of the topic of messages to the client. The work ends when it is removed.
        group: the number of the group.

    Returns:
        A pickle of each result, also of those that were sent.
    """
    worker = get_worker()
    results: list[bytes] = []
    shared: Shared | None = worker.plugins.get(name)  # type: ignore[assignment]
    if shared is None:  # the run ended while this was on its way; nobody waits for it
        return results
    with shared.lock:
        value = shared.value
        function, tasks = unpickle(payload)
        iterator = iter(function(value, tasks))
        while name in worker.plugins:
            with _limited(time_limit if worker.nanny else 0):
                result = next(iterator, _END)
            if result is _END:
                break
            results.append(cloudpickle.dumps(result))
            if len(results) < len(tasks):
                worker.log_event(name, (group, len(results) - 1, results[-1]))
    return results


def unpickle(payload: bytes) -> Any:
    """What was sent. Raises WorkersError where something that it needs does not exist here."""
    try:
        return pickle.loads(payload)
    except (ImportError, AttributeError) as error:
        fact = f"the worker {get_worker().address} lacks code that its tasks need"
        fix = "the same packages and modules on all workers, such as in their PYTHONPATH"
        raise WorkersError(fact, because=error, fix=fix) from error


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """End this process if the block takes longer, whatever it does. Its nanny starts another one."""
    if seconds:
        faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
