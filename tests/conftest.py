"""Fixtures: a cache of the tests' own, and real data from the folder $TNALGEBRA_DATA (skipped if it is not set).

Hypothesis draws the same 200 examples every time; HYPOTHESIS_PROFILE=thorough draws 10,000 new ones, quick draws 10.
"""

from __future__ import annotations

import os
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests import refusals
from tnalgebra.decompositions import catalogue

settings.register_profile("default", derandomize=True, max_examples=200, deadline=None)
settings.register_profile(
    "thorough",
    derandomize=False,
    max_examples=10_000,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.register_profile("quick", derandomize=True, max_examples=10, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

WORDING_CHANGED = pytest.StashKey[str]()

TRAIN_PER_CLASS = 200  # training images of each class that the tests unpack


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what the tests decode and download out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TNALGEBRA_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("TNALGEBRA_TUNE", "0")  # plans by their predictions, so that every run has the same ones
        yield


@pytest.fixture(autouse=True)
def _own_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers, those of the docs among them, is gone after it."""
    monkeypatch.setattr(catalogue, "_REGISTERED", dict(catalogue._REGISTERED))


@pytest.fixture(scope="session")
def cifar10_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of CIFAR-10: all 10,000 test images, and the first 200 of each class for training."""
    folder = tmp_path_factory.mktemp("cifar10")
    for split, per_class in (("test", None), ("train", TRAIN_PER_CLASS)):
        with zipfile.ZipFile(_data_file(f"cifar10-{split}.zip")) as archive:
            by_class = defaultdict(list)
            for name in archive.namelist():
                by_class[name.rpartition("/")[0]].append(name)
            archive.extractall(folder, [name for names in by_class.values() for name in names[:per_class]])
    return folder


@pytest.fixture(scope="session")
def resnet20_weights() -> Path:
    """The checkpoint of a ResNet-20 trained on CIFAR-10: top-1 91.73 % on the test images."""
    return _data_file("resnet20-cifar10.pth")


def _data_file(name: str) -> Path:
    folder = os.environ.get("TNALGEBRA_DATA")
    if not folder:
        pytest.skip("TNALGEBRA_DATA is not set")
    file = Path(folder) / name
    if not file.is_file():
        pytest.fail(f"TNALGEBRA_DATA is set, but there is no {file}")
    return file


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--wording", action="store_true", help="write tests/wording.txt from the messages of this run")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over the messages that a process of pytest-xdist has met."""
    refusals.recorded.update(map(tuple, getattr(node, "workeroutput", {}).get("refusals", ())))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Compare the wording of all refusals with the reviewed file, or write that file again."""
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput["refusals"] = sorted(refusals.recorded)
    elif config.getoption("wording"):
        refusals.write(refusals.recorded, whole=session.testsfailed == 0 and config.args == ["tests"])
    elif changed := refusals.differences(refusals.recorded):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        config.stash[WORDING_CHANGED] = changed


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if changed := terminalreporter.config.stash.get(WORDING_CHANGED, ""):
        terminalreporter.section("wording of errors differs from tests/wording.txt (python -m tests --wording)")
        terminalreporter.write_line(changed)
