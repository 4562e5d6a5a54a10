"""Connect to the scheduler of a Dask cluster, or start worker processes on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias, Union

from ..errors import MissingPackageError, WorkersError
from .versions import differences, versions

if TYPE_CHECKING:
    from distributed import Client

Scheduler: TypeAlias = Union[str, "Client"]
"""Where tasks are done: "local" or "local:4", processes of this machine, by default one for each core; the address of
a Dask scheduler, "tcp://host:8786"; or a client of `distributed`."""

CONNECT_SECONDS = 5
"""Seconds after which a scheduler that does not answer counts as unreachable."""

FROZEN_SECONDS = 300
"""Seconds after which a process of this machine that gives no sign of life is started again, as in Dask's defaults."""

_LOCAL = re.compile(r"local(?::(\d+))?")
_ADDRESS = re.compile(r"\w+://\S+")


def check_scheduler(scheduler: Scheduler | None) -> None:
    """Check what can be known before anything is started.

    Raises:
        WorkersError: the text is neither "local", "local:4" nor an address.
        MissingPackageError: `distributed` is not installed.
    """
    if scheduler is None:
        return
    if isinstance(scheduler, str):
        local = _LOCAL.fullmatch(scheduler)
        if (local is None or local[1] == "0") and not _ADDRESS.fullmatch(scheduler):
            raise WorkersError(f"{scheduler!r} is not a scheduler", fix="local, local:4, or tcp://HOST:PORT")
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        fix = "pip install 'tnalgebra[dask]'"
        raise MissingPackageError("tasks on workers need the package distributed", fix=fix) from error


@contextmanager
def connected(scheduler: Scheduler, *, time_limit: float) -> Iterator[Client]:
    """A client of the scheduler for a `with` block, at whose end processes that were started for it end too.

    Args:
        scheduler: see `Scheduler`. A client stays open.
        time_limit: seconds, see `run_tasks`.

    Raises:
        WorkersError: the scheduler cannot be reached, or a worker has other versions of Python, torch or this package.
    """
    check_scheduler(scheduler)
    import dask
    from dask.system import CPU_COUNT
    from distributed import Client, LocalCluster

    if isinstance(scheduler, Client):
        _check_versions(scheduler)
        yield scheduler
    elif local := _LOCAL.fullmatch(scheduler):
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        settings = {
            # with Dask's value, large tensors get new pages of memory at every allocation
            "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
            # a worker that takes long to start again, or dies meanwhile, is not given up
            "distributed.deploy.lost-worker-timeout": "1000 days",
        }
        with (
            dask.config.set(settings),
            LocalCluster(
                n_workers=int(local[1] or CPU_COUNT),
                threads_per_worker=1,
                memory_limit=0,
                dashboard_address="127.0.0.1:0",
                scheduler_kwargs={"worker_ttl": min(FROZEN_SECONDS, time_limit)},
                env=threads,
                preload="tnalgebra.workers.remote",
            ) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            yield client
    else:
        try:
            client = Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:
            fact = f"the scheduler {scheduler} cannot be reached"
            raise WorkersError(fact, because=error, fix="the address that dask scheduler prints") from error
        with client:
            _check_versions(client)
            yield client


def _check_versions(client: Client) -> None:
    """Refuse workers with other versions. Workers that come later are checked when they get their first task."""
    answers = client.run(versions, on_error="return")
    wrong = {
        worker: f"{type(answer).__name__}: {answer}" if isinstance(answer, Exception) else differences(answer)
        for worker, answer in answers.items()
        if not isinstance(answer, OSError)  # it died just now
    }
    listed = "\n".join(f"{worker}: {why}" for worker, why in wrong.items() if why)
    if listed:
        fix = "the same environment for this process and all workers"
        raise WorkersError("workers have other versions than this process", workers=listed, fix=fix)
