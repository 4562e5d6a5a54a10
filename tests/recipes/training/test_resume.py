"""Killed at any moment and started again, a training ends with the same numbers; its folder is never half written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import tnalgebra as tn
from recipes.training import Classification, History, Training, crop_and_flip, loop, train
from recipes.training.checkpoints import checkpoints
from tests.refusals import refused
from tests.training_cases import QUIET, network, rows, same, some_images, some_task, table
from tnalgebra.errors import CheckpointError, StudyError

ROOT = Path(__file__).parents[3]
SETTINGS = Training(epochs=3, batch_size=8, learning_rate=0.05, checkpoint_every=2)

KILLED = """
# trains in a fork of its own each time, so that torch is imported once
import os, random, signal, sys, time
import torch
import tnalgebra as tn
from recipes.training import Classification, Training, crop_and_flip, train
from tests.training_cases import QUIET, network, some_images

import accelerate, tqdm  # which take longer than the training


def child(place, optimizer):
    torch.manual_seed(0)
    model, _ = tn.convert(network(), {"0": ("out kh | in kw", {"r": 3}), "*": None})
    task = Classification(some_images(24, 0), some_images(13, 1), crop_and_flip((7, 6), padding=1))
    settings = Training(epochs=8, batch_size=4, optimizer=optimizer, learning_rate=0.01,
                        checkpoint_every=2, warmup=0.5)
    train(model, task, settings, place, **QUIET)


def fork(place, optimizer, delay=None):
    pid = os.fork()
    if not pid:
        status = 1
        try:
            child(place, optimizer)
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    if delay is not None:
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


chance = random.Random(0)
for optimizer in ("sgd", "adamw"):
    folder = f"{sys.argv[1]}/{optimizer}"
    started = time.perf_counter()
    assert not fork(f"{folder}/whole", optimizer)
    seconds = time.perf_counter() - started
    # in all less than it takes, so that most kills come before the end
    print(sum(fork(f"{folder}/killed", optimizer, seconds * chance.uniform(0.1, 1 / 3)) for _ in range(3)))
    assert not fork(f"{folder}/killed", optimizer)
"""


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", KILLED, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    hits = [int(line) for line in done.stdout.split()]
    assert len(hits) == 2
    assert min(hits) >= 2, "killed while it trained"
    for optimizer in ("sgd", "adamw"):
        check_same(tmp_path / optimizer / "whole", tmp_path / optimizer / "killed")


def check_same(whole: Path, killed: Path) -> None:
    """Networks, moments and rows, of both checkpoints that are kept."""
    assert [path.name for path in checkpoints(whole)] == [path.name for path in checkpoints(killed)]
    assert len(checkpoints(whole)) == 2
    for ours, theirs in zip(checkpoints(whole), checkpoints(killed), strict=True):
        a, b = load_file(ours / "model.safetensors"), load_file(theirs / "model.safetensors")
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
        moments = [torch.load(path / "optimizer.pt", weights_only=True)["optimizer"] for path in (ours, theirs)]
        assert moments[0]["param_groups"] == moments[1]["param_groups"]
        assert moments[0]["state"].keys() == moments[1]["state"].keys()
        for key, entries in moments[0]["state"].items():
            assert all(torch.equal(value, moments[1]["state"][key][name]) for name, value in entries.items())
    assert table(whole) == table(killed)
    assert [row[0] for row in table(whole)] == ["epoch", *map(str, range(1, 9))]
    assert not list((killed / "checkpoints").glob(".*"))


class Stop(BaseException):
    """Which nothing catches."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, History]:
    """A training that was never stopped."""
    folder, model = tmp_path_factory.mktemp("whole"), network()
    return folder, model, train(model, some_task(), SETTINGS, folder, **QUIET)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same one, of which three checkpoints have been written, the last after step 4."""
    folder, calls, plain = tmp_path_factory.mktemp("interrupted"), 0, loop.write_checkpoint

    def stopping(*given: Any, **named: Any) -> None:
        nonlocal calls
        calls += 1
        plain(*given, **named)
        if calls == 3:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "write_checkpoint", stopping)
        with pytest.raises(Stop):
            train(network(), some_task(), SETTINGS, folder, **QUIET)
    return folder


@pytest.fixture
def stopped(interrupted: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(interrupted, tmp_path / "stopped"))


@pytest.mark.parametrize(
    ("place", "function"),
    [
        *((loop, name) for name in ("write_checkpoint", "write_history", "learning_rate", "read_checkpoint")),
        (Classification, "measure"),
    ],
)
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_stopped_in_each_part(
    place: Any,
    function: str,
    late: bool,
    whole: tuple[Path, nn.Module, History],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At each call of a function in turn, before it does anything or after, until the training gets through."""
    plain: Callable[..., Any] = getattr(place, function)
    for stop in range(100):
        calls = 0

        def stopping(*given: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls <= stop:  # noqa: B023 - called within this turn
                return plain(*given, **named)
            if late:
                plain(*given, **named)
            raise Stop

        monkeypatch.setattr(place, function, stopping)
        model = network()
        try:  # without augmentation, of which each batch would leave torch's generator seeded
            history = train(model, some_task(), SETTINGS, tmp_path, **QUIET)
        except Stop:
            continue
        finally:
            monkeypatch.undo()
        break
    assert 0 < stop < 99
    assert same(model, whole[1])
    assert rows(history) == rows(whole[2])


def test_a_finished_training_is_returned_again(
    whole: tuple[Path, nn.Module, History], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model, first = whole
    before = files(folder)
    (folder / "history.csv").unlink()
    monkeypatch.setattr(loop, "step_batches", None)
    again, noted = network(), []
    settings = replace(SETTINGS, checkpoint_every=None)
    assert train(again, some_task(), settings, folder, **QUIET, note=noted.append) == first
    assert tuple(noted) == first.rows
    assert same(again, model)
    assert files(folder) == before


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(("model.safetensors", one_bit), ("model.safetensors", Path.unlink), ("optimizer.pt", cut_short)),
        *(("progress.json", cut_short), ("progress.json", emptied), ("progress.json", Path.unlink)),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(
    name: str, damage: Callable[[Path], None], whole: tuple[Path, nn.Module, History], stopped: Path
) -> None:
    last, model = checkpoints(stopped)[-1], network()
    damage(last / name)
    with pytest.warns(UserWarning, match=f"damaged.*{last.name}"):
        history = train(model, some_task(), SETTINGS, stopped, **QUIET)
    assert same(model, whole[1])
    assert rows(history) == rows(whole[2])
    assert files(stopped) == files(whole[0])


def test_where_all_checkpoints_are_damaged_nothing_is_trained(stopped: Path) -> None:
    for path in checkpoints(stopped):
        one_bit(path / "model.safetensors")
    model = network()
    with refused(CheckpointError, "step-00000003", "step-00000004", "model.safetensors", "fix"):
        train(model, some_task(), SETTINGS, stopped, **QUIET)
    assert same(model, network())


def test_pickled_code_in_a_checkpoint_is_not_run(stopped: Path, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "executed"),))

    last = checkpoints(stopped)[-1]
    torch.save({"optimizer": Hostile()}, last / "optimizer.pt")
    content = json.loads((last / "progress.json").read_text())
    content["sha256"]["optimizer.pt"] = hashlib.sha256((last / "optimizer.pt").read_bytes()).hexdigest()
    (last / "progress.json").write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="the checkpoint is damaged"):
        train(network(), some_task(), SETTINGS, stopped, **QUIET)
    assert not (tmp_path / "executed").exists()


# other trainings


def other_network() -> nn.Module:
    model = network()
    model[5] = nn.Linear(100, 4, bias=False)
    return model


def other_mean() -> Classification:
    images = some_task().training, some_task().test
    return Classification(*(replace(one, mean=(0.2, 0.4, 0.7)) for one in images))


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"settings": replace(SETTINGS, epochs=4, learning_rate=0.1)}, ["settings.epochs: 3", "4", "0.05", "0.1"]),
        ({"task": replace(some_task(), training=some_images(22, 0))}, ["task.training"]),
        ({"task": some_task(augmentation=crop_and_flip((7, 6)))}, ["task.augmentation: none", "Compose"]),
        ({"task": other_mean()}, ["task.mean", "0.6", "0.7"]),
        ({"model": network(seed=1)}, ["network.values_at_the_start"]),
        ({"model": other_network()}, ["network.tensors.5.bias"]),
    ],
    ids=["settings", "images", "augmentation", "mean", "values", "network"],
)
def test_another_training_is_refused(
    change: dict[str, Any], facts: list[str], whole: tuple[Path, nn.Module, History]
) -> None:
    before = files(whole[0])
    given = {"model": network(), "task": some_task(), "settings": SETTINGS, **change}
    with refused(StudyError, *facts):
        train(given["model"], given["task"], given["settings"], whole[0], **QUIET)
    assert files(whole[0]) == before


def test_a_folder_without_notes_is_refused(stopped: Path) -> None:
    (stopped / "training.json").unlink()
    with refused(StudyError, "checkpoints", "training.json"):
        train(network(), some_task(), SETTINGS, stopped, **QUIET)
    (stopped / "training.json").write_text("[]")
    with refused(StudyError, "training.json"):
        train(network(), some_task(), SETTINGS, stopped, **QUIET)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with tn.studies.locked(tmp_path), refused(StudyError, "another process", tmp_path):
        train(network(), some_task(), SETTINGS, tmp_path, **QUIET)


# no space


@contextmanager
def little_space(size: int) -> Iterator[None]:
    """Files of this process may have this number of bytes: the system refuses the rest."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "progress.json"])
def test_no_space_left_is_said_and_what_was_there_stays(
    name: str, whole: tuple[Path, nn.Module, History], stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(stopped)
    plain = Path.write_bytes, Path.write_text, tn.checkpoint.save

    def full(path: Path, content: Any, **named: Any) -> Any:
        with little_space(10 if path.name == name else 2**40):
            return (plain[1] if isinstance(content, str) else plain[0])(path, content, **named)

    def full_save(model: nn.Module, path: Path) -> None:
        with little_space(10 if name == path.name else 2**40):
            plain[2](model, path)

    monkeypatch.setattr(tn.checkpoint, "save", full_save)
    if name != "model.safetensors":
        monkeypatch.setattr(Path, "write_bytes" if name == "optimizer.pt" else "write_text", full)
    with refused(StudyError, "step 6", stopped, os.strerror(errno.EFBIG), "step-00000004", "fix"):
        train(network(), some_task(), SETTINGS, stopped, **QUIET)
    assert files(stopped) == before
    monkeypatch.undo()
    model = network()
    assert rows(train(model, some_task(), SETTINGS, stopped, **QUIET)) == rows(whole[2])
    assert same(model, whole[1])
