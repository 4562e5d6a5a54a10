"""Tasks on real worker processes: each has one result, whatever happens to the workers."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import tnalgebra as tn
from tests.refusals import refused
from tests.workers_cases import Bench, cluster, squares, thread_counts
from tnalgebra.errors import RankError, WorkersError
from tnalgebra.workers import connected, run_tasks

if TYPE_CHECKING:
    from distributed import Client

TASKS = range(40)
GROUPS = [TASKS[i : i + 5] for i in range(0, 40, 5)]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with connected("local:2", time_limit=2) as client:
        yield client


def test_in_the_process_tasks_are_done_in_their_order(tmp_path: Path) -> None:
    results = list(run_tasks(squares, GROUPS, shared=Bench(tmp_path)))
    assert [(task, square) for task, (square, *_) in results] == [(task, task * task) for task in TASKS]


def test_on_workers_each_task_has_its_result_once(client: Client, tmp_path: Path) -> None:
    results = list(run_tasks(squares, GROUPS, shared=Bench(tmp_path), scheduler=client))
    assert sorted(task for task, _ in results) == list(TASKS)
    assert all(square == task * task for task, (square, *_) in results)
    processes = {task: process for task, (_, process) in results}
    assert len({*processes.values()}) == 2
    assert os.getpid() not in processes.values()
    assert all(len({processes[task] for task in group}) == 1 for group in GROUPS)
    assert len([*tmp_path.glob("unpickled-*")]) == 2


def test_workers_compute_in_one_thread(client: Client, tmp_path: Path) -> None:
    results = run_tasks(thread_counts, [[1], [2], [3], [4]], shared=Bench(tmp_path), scheduler=client)
    assert {threads for _, threads in results} == {1}


def test_workers_that_die_and_hang_are_replaced(client: Client, tmp_path: Path) -> None:
    bench = Bench(tmp_path, die=(12, 13, 33), hang=(8,))
    results = list(run_tasks(squares, GROUPS, shared=bench, scheduler=client, time_limit=1))
    assert sorted((task, square) for task, (square, *_) in results) == [(task, task * task) for task in TASKS]
    sent_to = [path.name.split("-")[1] for path in tmp_path.glob("unpickled-*")]
    assert len(sent_to) == len({*sent_to}) > 2


def test_a_worker_may_die_while_it_gets_what_is_shared(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask then closes the connection of the call, as in the first call here."""
    from distributed.comm.core import CommClosedError

    register, calls = client.register_plugin, list[str]()

    def dying(*plugin: Any, name: str) -> Any:
        calls.append(name)
        if len(calls) == 1:
            raise CommClosedError("a worker has died")
        return register(*plugin, name=name)

    monkeypatch.setattr(client, "register_plugin", dying)
    results = [result for _, (result, _) in run_tasks(squares, [[2], [3]], shared=Bench(tmp_path), scheduler=client)]
    assert sorted(results) == [4, 9]
    assert len(calls) == 2


def test_groups_may_depend_on_results(client: Client, tmp_path: Path) -> None:
    known: list[int] = []

    def groups() -> Iterator[list[int]]:
        yield [2]
        while len(known) < 6:
            yield [known[-1] + 1 if known else 2]

    for _, (square, *_) in run_tasks(squares, groups(), shared=Bench(tmp_path), scheduler=client):
        known.append(square % 50)
    assert len({*known}) > 2


def test_an_error_of_a_task_is_raised_here(client: Client, tmp_path: Path) -> None:
    with refused(RankError, "out of range", "rank: 7"):
        list(run_tasks(squares, GROUPS, shared=Bench(tmp_path, fail=(7,)), scheduler=client))


def test_a_group_that_arrives_after_its_run_has_ended_is_not_done(client: Client) -> None:
    from tnalgebra.workers.remote import work

    assert client.submit(work, b"", name="a run that has ended", group=1, time_limit=1).result() == []


def test_a_task_that_always_kills_its_worker_is_named(client: Client, tmp_path: Path) -> None:
    client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 0))
    bench = Bench(tmp_path, die=(-1,))
    with refused(WorkersError, "-1", "fix"):
        list(run_tasks(squares, [[1, -1]], shared=bench, scheduler=client))


def test_what_is_stopped_leaves_the_workers_free(client: Client, tmp_path: Path) -> None:
    with closing(run_tasks(squares, [range(1000)], shared=Bench(tmp_path), scheduler=client)) as results:
        next(results)
    for _ in range(100):
        if not any(client.run(lambda dask_worker: dask_worker.state.executing_count).values()):
            break
        time.sleep(0.05)
    plugins = client.run(lambda dask_worker: [*dask_worker.plugins])
    assert not any(name.startswith("tnalgebra") for names in plugins.values() for name in names)
    assert not any(client.run(lambda dask_worker: dask_worker.state.executing_count).values())


@pytest.mark.parametrize("text", ["here", "local:0", "local:", "127.0.0.1"])
def test_a_text_that_is_not_a_scheduler_is_refused(text: str) -> None:
    with refused(WorkersError, text, "local:4"):
        list(run_tasks(squares, [[1]], shared=None, scheduler=text))


def test_a_scheduler_that_does_not_answer_is_refused_in_time() -> None:
    with refused(WorkersError, "tcp://127.0.0.1:9", "fix"):
        list(run_tasks(squares, [[1]], shared=None, scheduler="tcp://127.0.0.1:9"))


def test_workers_with_another_version_are_refused_by_name(tmp_path: Path) -> None:
    shutil.copytree(Path(tn.__file__).parent, tmp_path / "other" / "tnalgebra")
    (tmp_path / "other" / "tnalgebra" / "more.py").write_text("")
    with cluster(tmp_path) as dask:
        dask.start_worker(package=tmp_path / "other")
        for found_by in ("sent by", "workers:"):  # the worker that comes later, and the one that is there
            with refused(WorkersError, found_by, "tnalgebra", "code", "other versions"):
                list(run_tasks(squares, [[1]], shared=Bench(tmp_path), scheduler=dask.address))


def test_a_scheduler_that_is_killed_is_an_error(tmp_path: Path) -> None:
    with cluster(tmp_path) as dask:
        scheduler = dask.processes[0]
        dask.start_worker()
        with closing(run_tasks(squares, [TASKS], shared=Bench(tmp_path), scheduler=dask.address)) as results:
            next(results)
            scheduler.kill()
            with refused(WorkersError, dask.address, "lost"):
                list(results)
