"""Killed at any moment and started again, a training ends with the same numbers; its folder is never half written."""

from __future__ import annotations

import errno
import json
import os
import resource
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

from recipes.training import checkpoints as trainer_checkpoints
from recipes.training.checkpoints import checkpoints, locked
from recipes.training.classification import crop_and_flip
from recipes.training.history import History
from recipes.training.settings import Training
from recipes.training.train import train
from tests.recipes.training.test_train import QUIET, network, same, some_images, some_task
from tnalgebra.errors import CheckpointError, StudyError

ROOT = Path(__file__).parents[3]
SETTINGS = Training(epochs=3, batch_size=8, learning_rate=0.05, checkpoint_every=2)

KILLED = """
# trains in a fork of its own each time, so that torch is imported once
import os, random, signal, sys, time
import torch
import tnalgebra as tn
from tests.recipes.training.test_train import network, some_images, MEAN, STD
from tnalgebra.trainer import Classification, Training, crop_and_flip, train

kills = int(sys.argv[2])
import accelerate, torch.utils.tensorboard, tqdm  # which take longer than the training


def child(place, optimizer):
    torch.manual_seed(0)
    model, _ = tn.convert(network(), {"0": ("out kh | in kw", {"r": 3}), "*": None})
    task = Classification(some_images(40, 0), some_images(13, 1), MEAN, STD, crop_and_flip((7, 6), padding=1))
    settings = Training(epochs=8, batch_size=4, optimizer=optimizer, learning_rate=0.01,
                        checkpoint_every=3, warmup=0.5)
    train(model, task, settings, place, device="cpu", progress=False)


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
    delays = [seconds * chance.uniform(0.05, 1 / kills) for _ in range(kills)]
    print(sum(fork(f"{folder}/killed", optimizer, delay) for delay in delays))
    assert not fork(f"{folder}/killed", optimizer)
"""


def rows(history: History) -> list[tuple[Any, ...]]:
    """All but the seconds."""
    return [row[:-1] for row in history.rows]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, "-W", "error", "-c", KILLED, str(tmp_path), "5"]
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
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
    tables = [[line.split(",")[:-1] for line in (f / "history.csv").read_text().splitlines()] for f in (whole, killed)]
    assert tables[0] == tables[1]
    assert [row[0] for row in tables[0]] == ["epoch", *map(str, range(1, 9))]
    assert not list((killed / "checkpoints").glob(".*"))


class Stop(BaseException):
    """Which nothing catches."""


@pytest.mark.parametrize(
    "function",
    ["write_checkpoint", "write_history", "learning_rate", "score_sums", "make_optimizer", "read_checkpoint"],
)
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_stopped_in_each_part(function: str, late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each call of a function in turn, before it does anything or after, until the training gets through."""
    from recipes.training import train as trainer

    task = some_task()  # without augmentation, of which each batch would leave torch's generator seeded
    settings = replace(SETTINGS, epochs=2)
    expected = network()
    there = train(expected, task, settings, tmp_path / "whole", **QUIET)
    plain: Callable[..., Any] = getattr(trainer, function)
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

        monkeypatch.setattr(trainer, function, stopping)
        model = network()
        try:
            history = train(model, task, settings, tmp_path / "stopped", **QUIET)
        except Stop:
            continue
        finally:
            monkeypatch.undo()
        break
    assert 0 < stop < 99
    assert same(model, expected)
    assert rows(history) == rows(there)


def test_a_finished_training_is_shown_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    first = train(model, some_task(), SETTINGS, tmp_path, **QUIET)
    before = files(tmp_path)
    (tmp_path / "history.csv").unlink()
    monkeypatch.setattr("recipes.training.train.step_batches", None)
    again = network()
    assert train(again, some_task(), replace(SETTINGS, checkpoint_every=None), tmp_path, **QUIET) == first
    assert same(again, model)
    assert files(tmp_path) == before


def stopped(folder: Path, monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """A training of which so many checkpoints have been written."""
    from recipes.training import train as trainer

    calls = 0

    def stopping(*given: Any) -> None:
        nonlocal calls
        calls += 1
        trainer_checkpoints.write_checkpoint(*given)
        if calls == after:
            raise Stop

    monkeypatch.setattr(trainer, "write_checkpoint", stopping)
    with pytest.raises(Stop):
        train(network(), some_task(), SETTINGS, folder, **QUIET)
    monkeypatch.undo()


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "progress.json"])
@pytest.mark.parametrize("damage", [cut_short, one_bit, emptied, Path.unlink])
def test_a_damaged_checkpoint_is_passed_over(
    name: str, damage: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = network()
    there = train(expected, some_task(), SETTINGS, tmp_path / "whole", **QUIET)
    stopped(tmp_path / "damaged", monkeypatch, after=3)
    last, model = checkpoints(tmp_path / "damaged")[-1], network()
    if (name, damage) == ("progress.json", one_bit):
        damage = emptied  # a digit may have become another one: nothing can tell
    damage(last / name)
    with pytest.warns(UserWarning, match=f"the checkpoint is damaged, the one before is used: .*{last.name}"):
        history = train(model, some_task(), SETTINGS, tmp_path / "damaged", **QUIET)
    assert same(model, expected)
    assert rows(history) == rows(there)
    assert files(tmp_path / "damaged") == files(tmp_path / "whole")


def test_where_all_checkpoints_are_damaged_nothing_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(tmp_path, monkeypatch, after=3)
    for path in checkpoints(tmp_path):
        one_bit(path / "model.safetensors")
    model = network()
    with pytest.raises(CheckpointError, match=r"no checkpoint can be read\n  because: .*step-00000004.*check sum\n"):
        train(model, some_task(), SETTINGS, tmp_path, **QUIET)
    assert same(model, network())


def test_pickled_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "executed"),))

    stopped(tmp_path / "run", monkeypatch, after=3)
    last = checkpoints(tmp_path / "run")[-1]
    torch.save({"optimizer": Hostile()}, last / "optimizer.pt")
    content = json.loads((last / "progress.json").read_text())
    content["crc32"]["optimizer.pt"] = trainer_checkpoints._checksum(last / "optimizer.pt")
    (last / "progress.json").write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="the checkpoint is damaged"):
        train(network(), some_task(), SETTINGS, tmp_path / "run", **QUIET)
    assert not (tmp_path / "executed").exists()


# other trainings


def other_network() -> nn.Module:
    model = network()
    model[5] = nn.Linear(100, 4, bias=False)
    return model


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"settings": replace(SETTINGS, learning_rate=0.1)}, "settings.learning_rate: 0.05 there, 0.1 here"),
        (
            {"settings": replace(SETTINGS, epochs=4, seed=2)},
            "settings.epochs: 3 there, 4 here\n.*settings.seed: 0 there",
        ),
        ({"task": replace(some_task(), training=some_images(22, 0))}, 'task.training: "[0-9a-f]{64}" there, "'),
        ({"task": some_task(augmentation=crop_and_flip((7, 6)))}, 'task.augmentation: null there, "Compose\\('),
        ({"task": replace(some_task(), mean=(0.2, 0.4, 0.7))}, "task.mean: .*0.6.* there, .*0.7.* here"),
        ({"model": network(seed=1)}, "network.values_at_the_start: .*\n  fix: +the network with the values"),
        (
            {"model": other_network()},
            "network.tensors.5.bias: none there, |network.tensors.5.bias: .* there, none here",
        ),
    ],
    ids=["rate", "two", "images", "augmentation", "mean", "values", "network"],
)
def test_another_training_is_refused(change: dict[str, Any], difference: str, tmp_path: Path) -> None:
    train(network(), some_task(), SETTINGS, tmp_path, **QUIET)
    before = files(tmp_path)
    given = {"model": network(), "task": some_task(), "settings": SETTINGS, **change}
    with pytest.raises(StudyError, match=f"holds another training\n  differences: (.*\n)*.*{difference}"):
        train(given["model"], given["task"], given["settings"], tmp_path, **QUIET)
    assert files(tmp_path) == before


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_without_notes_is_refused(content: str | None, tmp_path: Path) -> None:
    train(network(), some_task(), SETTINGS, tmp_path, **QUIET)
    (tmp_path / "training.json").unlink()
    fact = r"has checkpoints and no training.json"
    if content is not None:
        (tmp_path / "training.json").write_text(content)
        fact = "training.json cannot be read"
    with pytest.raises(StudyError, match=fact):
        train(network(), some_task(), SETTINGS, tmp_path, **QUIET)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(StudyError, match="another process is training in"):
        train(network(), some_task(), SETTINGS, tmp_path, **QUIET)
    train(network(), some_task(), SETTINGS, tmp_path, **QUIET)


# no space


@contextmanager
def little_space(size: int) -> Iterator[None]:
    """Files of this process may have so many bytes: the system refuses the rest."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def sizes(folder: Path) -> dict[str, int]:
    train(network(), some_task(), SETTINGS, folder, **QUIET)
    return {path.name: path.stat().st_size for path in checkpoints(folder)[-1].iterdir()}


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "progress.json"])
def test_no_space_left_is_said_and_what_was_there_stays(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = network()
    there = train(expected, some_task(), SETTINGS, tmp_path / "whole", **QUIET)
    folder = tmp_path / "full"
    stopped(folder, monkeypatch, after=3)
    before = files(folder)
    plain = Path.write_bytes, Path.write_text, trainer_checkpoints.checkpoint.save

    def full(path: Path, content: Any, **named: Any) -> Any:
        with little_space(10 if path.name == name else 2**40):
            return (plain[1] if isinstance(content, str) else plain[0])(path, content, **named)

    def full_save(model: nn.Module, path: Path) -> None:
        with little_space(10 if name == path.name else 2**40):
            plain[2](model, path)

    monkeypatch.setattr(trainer_checkpoints.checkpoint, "save", full_save)
    if name != "model.safetensors":
        monkeypatch.setattr(Path, "write_bytes" if name == "optimizer.pt" else "write_text", full)
    because = os.strerror(errno.EFBIG)
    with pytest.raises(
        StudyError, match=rf"the checkpoint after step 6 cannot be written into (.*\n)*.*{because}"
    ) as e:
        train(network(), some_task(), SETTINGS, folder, **QUIET)
    assert "step-00000004" in str(e.value)
    assert "fix:     room there" in str(e.value)
    assert files(folder) == before
    monkeypatch.undo()
    model = network()
    assert rows(train(model, some_task(), SETTINGS, folder, **QUIET)) == rows(there)
    assert same(model, expected)
