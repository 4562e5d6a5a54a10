"""Studies and conversions on workers: the same rows and layers as in the process, each row once, whatever dies."""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
import torch

import tnalgebra as tn
from tests.refusals import refused
from tests.study_cases import labelled, network, some_images
from tests.workers_cases import ROOT, cluster
from tnalgebra.errors import WorkersError
from tnalgebra.studies import Row, read_rows
from tnalgebra.workers import connected

if TYPE_CHECKING:
    from distributed import Client

REWRITES = ("out | in kh kw", "tucker2")
SIZES = ("keep 0.5", "a=2 b=2", "parameters 0.7", "parameters 0.5")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with connected("local:2", time_limit=60) as client:
        yield client


@pytest.fixture(autouse=True, scope="module")
def _undrawn_in_one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("tnalgebra.studies.study"), "draw_kernels", lambda *_, **__: None)
        patch.setattr(import_module("tnalgebra.studies.runner"), "draw_results", lambda *_, **__: None)
        yield
    torch.set_num_threads(threads)


def study(folder: Path, **options: Any) -> list[Row]:
    """A grid of two networks and two seeds."""
    models = {"one": network(), "other": network(seed=2)}
    images = labelled(some_images(), models["one"])
    shared: dict[str, Any] = {"scope": ("all", "each"), "skip": (), "calibration": some_images(50, seed=2)}
    shared |= {"seed": (0, 1)}
    result = tn.study(
        models, images, folder, rewrites=REWRITES, sizes=SIZES, options=tn.StudyOptions(**shared, **options)
    )
    written = read_rows(folder)
    assert len(written) == len(result.rows)  # each row once
    return without_times(result.rows)


def without_times(rows: list[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@contextmanager
def meanwhile(work: Callable[[], object]) -> Iterator[None]:
    thread = Thread(target=work)
    thread.start()
    yield
    thread.join()


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return study(tmp_path_factory.mktemp("serial"), metric="input")


def test_rows_are_those_of_a_serial_run_though_workers_are_killed(
    client: Client, serial: list[Row], tmp_path: Path
) -> None:
    chance = random.Random(0)

    def kill() -> None:
        for _ in range(3):
            time.sleep(1)
            os.kill(chance.choice([*client.cluster.workers.values()]).pid, signal.SIGKILL)

    with meanwhile(kill):
        assert study(tmp_path, metric="input", scheduler=client) == serial


def test_a_study_whose_scheduler_is_killed_is_continued(serial: list[Row], tmp_path: Path) -> None:
    with cluster(tmp_path) as dask:
        dask.start_worker()

        def kill() -> None:
            rows = tmp_path / "study" / "results.jsonl"
            while not rows.exists() or rows.read_text().count("\n") < 5:
                time.sleep(0.02)
            dask.processes[0].kill()

        with meanwhile(kill), refused(WorkersError, dask.address, "lost"):
            study(tmp_path / "study", metric="input", scheduler=dask.address)
    assert 5 <= len(read_rows(tmp_path / "study")) < len(serial)
    assert study(tmp_path / "study", metric="input") == serial


def test_ctrl_c_keeps_rows_and_ends_workers(tmp_path: Path) -> None:
    sizes = [f"keep {number / 50}" for number in range(1, 50)]  # many rows, and one rewrite to draw before them
    command = [sys.executable, "-m", "tnalgebra", "study", "cnn4", "--untrained", "--limit", "100", "--scope", "each"]
    command += ["--rewrite", "out | in kh kw", "--size", *sizes, "--scheduler", "local:2", "--output", str(tmp_path)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    rows = tmp_path / "results.jsonl"
    while not rows.exists() or rows.read_text().count("\n") < 3:
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert all(json.loads(line) for line in rows.read_text().splitlines())
    for _ in range(100):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("workers are left")


@pytest.mark.parametrize("size", ["parameters 0.6", 3])
def test_a_conversion_is_that_of_the_process(client: Client, size: object) -> None:
    model, batch = network(), some_images(20).pixels.float()
    converted, reports = [], []
    for scheduler in (None, client):
        copied = copy.deepcopy(model)
        offered = {"stem": None, "*": ["cp", "tucker2"]}
        _, report = tn.convert(copied, offered, size=size, calibration=batch, tune=False, scheduler=scheduler)
        converted.append(copied.state_dict())
        reports.append(str(report))
    assert reports[0] == reports[1]
    assert converted[0].keys() == converted[1].keys()
    assert all(torch.equal(converted[0][name], value) for name, value in converted[1].items())
