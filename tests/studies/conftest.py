"""What the tests of studies share: a network, its images, and no figures."""

from __future__ import annotations

from importlib import import_module

import pytest
from torch import nn

from tests.study_cases import labelled, network, some_images
from tnalgebra.model.images import Images


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures have tests of their own, and take longer than all the rest."""
    monkeypatch.setattr(import_module("tnalgebra.studies.study"), "draw_kernels", lambda *_, **__: None)
    monkeypatch.setattr(import_module("tnalgebra.studies.runner"), "draw_results", lambda *_, **__: None)


@pytest.fixture(scope="session")
def model() -> nn.Module:
    return network()


@pytest.fixture(scope="session")
def images(model: nn.Module) -> Images:
    return labelled(some_images(), model)
