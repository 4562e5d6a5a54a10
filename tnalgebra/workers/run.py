"""Run tasks in the process or on workers. Their results come as they are finished."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from queue import SimpleQueue
from typing import TYPE_CHECKING, Generic, TypeVar
from uuid import uuid4

from ..errors import WorkersError
from .cluster import Scheduler, connected
from .versions import versions

if TYPE_CHECKING:
    from distributed import Client, Future

    from .remote import Shared

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

TIME_LIMIT = 3600.0
"""Seconds that a task may take on a worker, by default."""

AHEAD = 2
"""Groups for each worker that are sent at a time, so that a worker has the next one when it has finished one."""

DEATHS = 2
"""How often Dask may give a task up, each time after as many deaths of workers as it allows."""


def run_tasks(
    function: Callable[[S, Sequence[T]], Iterable[R]],
    groups: Iterable[Sequence[T]],
    *,
    shared: S,
    scheduler: Scheduler | None = None,
    time_limit: float = TIME_LIMIT,
    progress: bool = False,
) -> Generator[tuple[T, R], None, None]:
    """Run tasks in this process, or on the workers of a Dask cluster.

    Every task has one result, whatever happens to workers: those of a worker that dies are done by others. A task that
    takes longer than the time limit ends its worker, which Dask's nanny starts again. Results must not depend on where
    a task is done, or on what else is done there.

    Args:
        function: what is done, a function of `shared` and the tasks of a group; it gives the result of each of them in
            their order, and can be a generator. On workers, each result is sent as soon as it is there. A module must
            have it under its name.
        groups: tasks, of any type that can be pickled. Those of a group are done one after another on one worker, so
            that they can share what is expensive. On workers, groups are read a little ahead of the results: they may
            be chosen by results that have come.
        shared: what all tasks use, such as weights and images. It is sent to each worker once. The function may keep
            more in it for later tasks of the same worker.
        scheduler: "local" or "local:4", worker processes of this machine; "tcp://host:8786", a Dask scheduler; or a
            client of `distributed`. None: the tasks are done in this process, one after another.
        time_limit: seconds that a task may take on a worker that has a nanny, as Dask's workers have by default.
        progress: print where Dask's dashboard is to stderr.

    Yields:
        Each task and its result, as they are finished. If this is stopped early, `close()` the generator (or use
        `contextlib.closing`): tasks that have not begun are cancelled, and processes that were started here end.

    Raises:
        WorkersError: the scheduler cannot be reached, or is lost; a worker has other versions of Python, torch or this
            package; a task has ended its worker again and again.
        Exception: what the function raises.

    Example:
        >>> def powers(base, exponents):
        ...     for exponent in exponents:
        ...         yield base**exponent
        >>> sorted(tn.workers.run_tasks(powers, [[1, 2], [3]], shared=10))
        [(1, 10), (2, 100), (3, 1000)]
    """
    if scheduler is None:
        for group in groups:
            yield from zip(group, function(shared, group), strict=True)
        return
    with connected(scheduler, time_limit=time_limit) as client:
        if progress:
            print(f"Dask's dashboard: {client.dashboard_link}", file=sys.stderr)
        yield from _Run(client, function, time_limit).results(groups, shared)


@dataclass(eq=False)
class _Group(Generic[T]):
    """Tasks that were sent to the cluster.

    deaths: how often they were given up before, because their workers had died.
    done: how many of them have results.
    """

    tasks: Sequence[T]
    deaths: int = 0
    done: int = 0
    future: Future[list[bytes]] = field(init=False)


class _Run(Generic[S, T, R]):
    """A run on a cluster.

    Whatever happens comes through one queue: results of tasks whose group is under way, as messages of workers, and
    groups that have ended, as Dask's futures.
    """

    def __init__(self, client: Client, function: Callable[[S, Sequence[T]], Iterable[R]], time_limit: float) -> None:
        self.client, self.function, self.time_limit = client, function, time_limit
        self.address = client.scheduler.address if client.scheduler else ""
        self.name = f"tnalgebra-{uuid4().hex}"
        self.queue: SimpleQueue[tuple[int, int | None, bytes]] = SimpleQueue()
        self.groups: dict[int, _Group[T]] = {}
        self.count = 0

    def results(self, groups: Iterable[Sequence[T]], shared: S) -> Iterator[tuple[T, R]]:
        """See `run_tasks`."""
        from cloudpickle import dumps

        from .remote import Shared

        try:
            with self._reaching():
                self.client.subscribe_topic(self.name, lambda event: self.queue.put(event[1]))
                self._share(Shared(dumps(shared), versions()))
            remaining = iter(groups)
            while True:
                for tasks in islice(remaining, max(0, self._free())):
                    self._send(_Group(tasks))
                if not self.groups:
                    return
                yield from self._next()
        finally:
            self._end()

    def _share(self, shared: Shared) -> None:
        """Send what is shared to all workers, again where one of them dies meanwhile."""
        from distributed.comm.core import CommClosedError

        for left in reversed(range(DEATHS)):
            try:
                self.client.register_plugin(shared, name=self.name)
                return
            except CommClosedError:
                if not left:
                    raise
                self.client.nthreads()  # raises if it is the scheduler that is lost

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Talk to the scheduler."""
        try:
            yield
        except (OSError, CancelledError) as error:
            fix = "start it again; what is finished need not be done again where it was kept"
            raise WorkersError(f"the scheduler {self.address} is lost", because=error, fix=fix) from error

    def _free(self) -> int:
        """The number of groups that can be sent now."""
        with self._reaching():
            return AHEAD * max(1, len(self.client.nthreads())) - len(self.groups)

    def _send(self, group: _Group[T]) -> None:
        """Send a group to the cluster."""
        import dask
        from cloudpickle import dumps

        from .remote import work

        self.count += 1
        number = self.count
        payload = dumps((self.function, group.tasks))
        with self._reaching(), dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"}):
            group.future = self.client.submit(
                work,
                payload,
                name=self.name,
                group=number,
                time_limit=self.time_limit,
                key=f"{self.name}-{number}",
                pure=False,
            )
        group.future.add_done_callback(lambda _: self.queue.put((number, None, b"")))
        self.groups[number] = group

    def _next(self) -> Iterator[tuple[T, R]]:
        """Wait for the next thing that happens. Yields the results that it brings, if they are new."""
        number, place, result = self.queue.get()
        group = self.groups.get(number)
        if group is None:
            return
        if place is None:
            for left in self._ended(number, group)[group.done :]:
                yield self._result(group, left)
        elif place == group.done:
            yield self._result(group, result)

    def _result(self, group: _Group[T], result: bytes) -> tuple[T, R]:
        group.done += 1
        return group.tasks[group.done - 1], pickle.loads(result)

    def _ended(self, number: int, group: _Group[T]) -> list[bytes]:
        """The results of a group that has ended; if its workers have died, what is left of it is sent again."""
        from distributed import KilledWorker

        del self.groups[number]
        if group.future.status != "error":
            with self._reaching():
                results: list[bytes] = group.future.result()
            assert len(results) == len(group.tasks), "the function gives one result for each task"
            return results
        error = group.future.exception()
        if not isinstance(error, KilledWorker):
            raise error
        rest = group.tasks[group.done :]
        if group.done:
            self._send(_Group(rest))
            return []
        if group.deaths == DEATHS - 1:
            fact = f"workers die of the task {rest[0]!r}, or it takes longer than {self.time_limit:g} s"
            raise WorkersError(fact, last_worker=error.last_worker.address, fix="a higher time limit, or more memory")
        for task in rest:  # one by one, so that it is known which of them it is
            self._send(_Group([task], deaths=group.deaths + 1))
        return []

    def _end(self) -> None:
        """Leave the cluster as it was; what runs on workers ends with the task that is under way."""
        if self.client.status == "running":
            with suppress(OSError, CancelledError):
                self.client.unsubscribe_topic(self.name)
                self.client.cancel([group.future for group in self.groups.values()])
                self.client.unregister_worker_plugin(self.name)
