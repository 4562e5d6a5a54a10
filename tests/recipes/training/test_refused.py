"""What cannot be trained is refused by name, before anything is written; what fails later is said with its place."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from recipes.training import train as trainer
from recipes.training.checkpoints import checkpoints
from recipes.training.classification import Classification
from recipes.training.regression import Regression
from recipes.training.settings import Training
from recipes.training.train import train
from tests.recipes.training.test_train import MEAN, QUIET, STD, network, same, some_images, some_task
from tnalgebra.errors import DataError, StudyError
from tnalgebra.model.images import Images

SETTINGS = Training(epochs=2, batch_size=8)


def classes(count: int) -> Images:
    images = some_images(20, 0)
    return Images(images.pixels, images.labels % count, tuple("abcdefgh"[:count]), f"{count} classes")


def ones(*shape: int) -> Tensor:
    return torch.ones(shape)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"epochs": 0}, "epochs=0\n  needed: at least 1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0\n  needed: a positive number"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"momentum": 1.0}, "momentum=1.0\n  needed: at least 0, below 1"),
        ({"label_smoothing": -0.1}, "label_smoothing=-0.1"),
        ({"distillation": 1.1}, "distillation=1.1\n  needed: 0 to 1"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"clip": 0.0}, "clip=0.0"),
        ({"warmup": 2.0}, "the warm-up of 2 epochs is all of the training's 2"),
        ({"checkpoint_every": 0}, "checkpoint_every=0"),
        ({"optimizer": "adam"}, "optimizer='adam'\n  known: sgd, adamw"),
        ({"precision": "fp8"}, "precision='fp8'"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, Any], fact: str) -> None:
    with pytest.raises(DataError, match=fact):
        replace(SETTINGS, **change)


@pytest.mark.parametrize(
    ("make", "fact"),
    [
        (lambda: Classification(classes(4), classes(3), MEAN, STD), "differ in classes\n.*\n  differ: d"),
        (
            lambda: Classification(
                classes(4), Images(ones(1, 3, 6, 6).byte(), torch.tensor([0]), ("a",), "b"), MEAN, STD
            ),
            r"differ in size\n.*\n  shapes: \(3, 7, 6\) and \(3, 6, 6\)",
        ),
        (lambda: Classification(classes(4), classes(4), (0.0,), STD), "mean and std do not fit the images"),
        (
            lambda: Classification(
                Images(ones(0, 3, 7, 6).byte(), torch.zeros(0, dtype=torch.int64), ("a",), "none"),
                classes(4),
                MEAN,
                STD,
            ),
            "there are no images\n  source: none",
        ),
        (lambda: Regression(ones(3, 2), ones(4, 2), ones(1, 2), ones(1, 2)), "3 training inputs have 4 targets"),
        (lambda: Regression(ones(3, 2), ones(3, 2), ones(1, 3), ones(1, 2)), "inputs for training and test differ"),
        (lambda: Regression(ones(3, 2), ones(3, 2), ones(1, 2), 0 * ones(1, 2)), "all test targets are 0"),
        (lambda: Regression(ones(3, 2), ones(3, 2) / 0, ones(1, 2), ones(1, 2)), "training_targets are not finite"),
        (lambda: Regression(ones(3, 2).long(), ones(3, 2), ones(1, 2), ones(1, 2)), "training_inputs cannot be learnt"),
        (lambda: Regression(ones(0, 2), ones(0, 2), ones(1, 2), ones(1, 2)), "training_inputs cannot be learnt"),
    ],
)
def test_tasks_that_cannot_be(make: Any, fact: str) -> None:
    with pytest.raises(DataError, match=fact):
        make()


def frozen() -> nn.Module:
    return network().requires_grad_(False)


REGRESSION = Regression(ones(8, 3), ones(8, 4), ones(2, 3), ones(2, 4))


@pytest.mark.parametrize(
    ("model", "task", "change", "error", "fact"),
    [
        (
            network,
            Classification(classes(3), classes(3), MEAN, STD),
            {},
            DataError,
            "4 outputs, the images have 3 classes",
        ),
        (
            network,
            Classification(classes(5), classes(5), MEAN, STD),
            {},
            DataError,
            "4 outputs, the images have 5 classes",
        ),
        (
            network,
            some_task(teacher=nn.Sequential(nn.Flatten(), nn.Linear(126, 5))),
            {"distillation": 0.5},
            DataError,
            "5 outputs, the images have 4 classes",
        ),
        (network, some_task(teacher=network()), {}, DataError, "there is a teacher and distillation=0"),
        (network, some_task(), {"distillation": 0.5}, DataError, "there is distillation and no teacher"),
        (lambda: nn.Flatten(), some_task(), {}, DataError, "126 outputs"),
        (lambda: nn.Conv2d(3, 4, 3), some_task(), {}, DataError, r"no logits\n  shape:  \(1, 4, 5, 4\)"),
        (lambda: nn.Conv2d(1, 4, 3), some_task(), {}, StudyError, r"does not take these inputs(.*\n)*  shape:.*7, 6"),
        (frozen, some_task(), {}, StudyError, "Sequential has no parameter that is trained"),
        (network, some_task(), {"precision": "fp16"}, StudyError, "precision='fp16' needs a GPU"),
        (lambda: nn.Linear(3, 5), REGRESSION, {}, DataError, r"outputs: \(1, 5\)\n  targets: \(1, 4\)"),
        (lambda: nn.Linear(3, 4), REGRESSION, {"label_smoothing": 0.1}, DataError, "label_smoothing is of classes"),
    ],
)
def test_networks_that_do_not_fit(
    model: Any, task: Any, change: dict[str, Any], error: type[Exception], fact: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=fact):
        train(model(), task, replace(SETTINGS, **change), tmp_path / "run", **QUIET)
    assert not list(tmp_path.glob("run/checkpoints"))
    assert not list(tmp_path.glob("run/history.csv"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="the device is 'cuda', and torch finds none\n  fix: device='cpu'"):
        train(network(), some_task(), SETTINGS, tmp_path, **{**QUIET, "device": "cuda"})


@pytest.mark.parametrize("package", ["accelerate", "tensorboard"])
def test_packages_that_are_not_installed(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = importlib.util.find_spec
    monkeypatch.setattr(trainer, "find_spec", lambda name: None if name == package else plain(name))
    with pytest.raises(StudyError, match=rf"training needs {package}.*\n  fix: pip install \"tnalgebra\[train\]\""):
        train(network(), some_task(), SETTINGS, tmp_path, **{**QUIET, "log_tensorboard": True})
    if package == "tensorboard":
        train(network(), some_task(), SETTINGS, tmp_path, **QUIET)


# what goes wrong later


class Spoilt(nn.Module):
    """A network that does nothing wrong until a number of training steps are done."""

    def __init__(self, steps: int, factor: float) -> None:
        super().__init__()
        self.inner, self.steps, self.factor = network(), steps, factor

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps -= 1
        outputs: Tensor = self.inner(x)
        return outputs * self.factor if self.training and self.steps < 0 else outputs


def test_a_loss_that_is_not_finite_stops_it_with_its_place(tmp_path: Path) -> None:
    model = Spoilt(4, float("nan"))
    with pytest.raises(StudyError, match="training failed: the loss is nan\n") as caught:
        train(model, some_task(), replace(SETTINGS, checkpoint_every=1), tmp_path, **QUIET)
    message = str(caught.value)
    for line in ("epoch:           2 of 2", "step:            5 of 6", "network:         Spoilt", "below 0.1"):
        assert line in message
    last = checkpoints(tmp_path)[-1]
    assert str(last) in message
    assert last.name == "step-00000004"
    assert all(value.isfinite().all() for value in load_file(last / "model.safetensors").values())
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 2


def test_a_loss_far_above_that_of_guessing_stops_it(tmp_path: Path) -> None:
    settings = replace(SETTINGS, learning_rate=1e-3, batch_size=1)
    with pytest.raises(
        StudyError, match=r"the loss is .*e\+\d\d, the mean of \d+ steps, above \d+.*\n  epoch: +2 of 2"
    ) as e:
        train(Spoilt(some_task().training_size, 1e4), some_task(), settings, tmp_path, **QUIET)
    (last,) = checkpoints(tmp_path)
    assert str(last) in str(e.value)


def test_few_steps_may_be_far_above_that_of_guessing(tmp_path: Path) -> None:
    """The first steps of a short epoch often are; what counts is a mean over more of them."""
    history = train(Spoilt(3, 1e4), some_task(), replace(SETTINGS, learning_rate=1e-9), tmp_path, **QUIET)
    assert history.rows[-1].training_loss > 100


def test_a_learning_rate_that_diverges(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(126, 30), nn.Linear(30, 4))
    settings = Training(epochs=30, batch_size=8, learning_rate=3e3)
    with pytest.raises(StudyError, match=r"training failed: (.*\n)*  epoch: +\d+ of 30\n  step: ") as caught:
        train(model, some_task(), settings, tmp_path, **QUIET)
    assert "a learning rate below 3000, a longer warm-up, or clip=1.0" in str(caught.value)
    for path in checkpoints(tmp_path):
        assert all(value.isfinite().all() for value in load_file(path / "model.safetensors").values())


def test_no_checkpoint_of_a_network_that_is_not_finite(tmp_path: Path) -> None:
    """The last step of an epoch spoils it, whose loss was finite still."""

    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()
            self.steps = 0

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.inner(x)
            self.steps += self.training
            if self.training and self.steps == 6 and outputs.requires_grad:
                outputs.register_hook(lambda gradient: gradient / 0)
            return outputs

    with pytest.raises(StudyError, match=r"training failed: inner.* are not finite\n  epoch: +2 of 2\n  step: +6 of 6"):
        train(Late(), some_task(), SETTINGS, tmp_path, **QUIET)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000003"]


def test_after_an_error_the_networks_modes_and_precision_are_its_own(tmp_path: Path) -> None:
    model = Spoilt(2, float("nan"))
    model.inner[2].eval()
    attributes, modes = {*vars(model)}, [module.training for module in model.modules()]
    with pytest.raises(StudyError):
        train(model, some_task(), replace(SETTINGS, precision="bf16"), tmp_path, **QUIET)
    assert {*vars(model)} == attributes
    assert [module.training for module in model.modules()] == modes
    plain = network()
    train(plain, some_task(), SETTINGS, tmp_path / "plain", **QUIET)
    again = network()
    train(again, some_task(), SETTINGS, tmp_path / "again", **QUIET)
    assert same(plain, again)
