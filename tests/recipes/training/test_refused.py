"""What cannot be trained is refused by name, before anything is written; what fails later is said with its place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from recipes.training import Classification, Regression, Training, crop_and_flip, loop, train
from recipes.training.checkpoints import checkpoints
from tests.refusals import refused
from tests.training_cases import MEAN, QUIET, STD, network, some_images, some_task
from tnalgebra.errors import DataError, DivergedError, StudyError
from tnalgebra.model import Images

SETTINGS = Training(epochs=2, batch_size=8)


def classes(count: int, **changes: Any) -> Images:
    images = some_images(20, 0)
    return replace(images, labels=images.labels % count, classes=tuple("abcdefgh"[:count]), **changes)


def ones(*shape: int) -> Tensor:
    return torch.ones(shape)


@pytest.mark.parametrize(
    "change",
    [
        *({"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}),
        *({"weight_decay": -1.0}, {"momentum": 1.0}, {"label_smoothing": -0.1}, {"distillation": 1.1}),
        *({"clip": 0.0}, {"checkpoint_every": 0}, {"optimizer": "adam"}, {"precision": "fp8"}),
    ],
)
def test_settings_out_of_range(change: dict[str, Any]) -> None:
    ((name, value),) = change.items()
    with refused(DataError, name, value):
        replace(SETTINGS, **change)


def test_a_warm_up_that_never_ends() -> None:
    with refused(DataError, "warm-up", 2):
        replace(SETTINGS, warmup=2.0)


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda: Classification(classes(4), classes(3)), ["classes", "differ: d"]),
        (lambda: Classification(classes(4), classes(4, pixels=ones(20, 3, 6, 6).byte())), ["size", "(3, 6, 6)"]),
        (lambda: Classification(classes(4), classes(4, mean=(0.0, 0.0, 0.0))), ["normalisation", MEAN]),
        (
            lambda: Classification(
                Images(ones(0, 3, 7, 6).byte(), torch.zeros(0, dtype=torch.int64), ("a",), "none", MEAN, STD),
                classes(4),
            ),
            ["empty", "none"],
        ),
        (lambda: crop_and_flip(8, padding=-1), [-1]),
        (lambda: Regression(ones(3, 2), ones(4, 2), ones(1, 2), ones(1, 2)), ["training inputs and targets", 3, 4]),
        (lambda: Regression(ones(3, 2), ones(3, 2), ones(1, 3), ones(1, 2)), ["test inputs", 2, 3]),
        (lambda: Regression(ones(3, 2), ones(3, 2), ones(1, 2), 0 * ones(1, 2)), ["test targets are 0"]),
        (lambda: Regression(ones(3, 2), ones(3, 2) / 0, ones(1, 2), ones(1, 2)), ["training_targets", "finite"]),
        (lambda: Regression(ones(3, 2).long(), ones(3, 2), ones(1, 2), ones(1, 2)), ["training_inputs", "int64"]),
        (lambda: Regression(ones(0, 2), ones(0, 2), ones(1, 2), ones(1, 2)), ["training_inputs", "(0, 2)"]),
    ],
)
def test_tasks_that_do_not_fit(make: Any, facts: list[Any]) -> None:
    with refused(DataError, *facts):
        make()


REGRESSION = Regression(ones(8, 3), ones(8, 4), ones(2, 3), ones(2, 4))


@pytest.mark.parametrize(
    ("model", "task", "change", "error", "facts"),
    [
        (network, Classification(classes(3), classes(3)), {}, DataError, ["4 outputs", "3 classes"]),
        (network, Classification(classes(5), classes(5)), {}, DataError, ["4 outputs", "5 classes"]),
        (
            network,
            some_task(teacher=nn.Sequential(nn.Flatten(), nn.Linear(126, 5))),
            {"distillation": 0.5},
            DataError,
            ["5 outputs", "4 classes"],
        ),
        (network, some_task(teacher=network()), {}, DataError, ["a teacher", "distillation=0"]),
        (network, some_task(), {"distillation": 0.5}, DataError, ["distillation needs a teacher"]),
        (lambda: nn.Conv2d(3, 4, 3), some_task(), {}, DataError, ["logits", "(1, 4, 5, 4)"]),
        (lambda: nn.Conv2d(1, 4, 3), some_task(), {}, StudyError, ["Conv2d", "7, 6"]),
        (lambda: network().requires_grad_(False), some_task(), {}, StudyError, ["Sequential", "requires_grad_"]),
        (network, some_task(), {"precision": "fp16"}, StudyError, ["precision='fp16'", "GPU"]),
        (lambda: nn.Linear(3, 5), REGRESSION, {}, DataError, ["(1, 5)", "(1, 4)"]),
        (lambda: nn.Linear(3, 4), REGRESSION, {"label_smoothing": 0.1}, DataError, ["label_smoothing"]),
    ],
)
def test_networks_that_do_not_fit(
    model: Any, task: Any, change: dict[str, Any], error: type[Exception], facts: list[str], tmp_path: Path
) -> None:
    with refused(error, *facts):
        train(model(), task, replace(SETTINGS, **change), tmp_path / "run", **QUIET)
    assert not list(tmp_path.glob("run/checkpoints"))
    assert not list(tmp_path.glob("run/history.csv"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch finds a GPU")
def test_a_gpu_that_torch_does_not_find(tmp_path: Path) -> None:
    with refused(StudyError, "cuda", "device='cpu'"):
        train(network(), some_task(), SETTINGS, tmp_path, **{**QUIET, "device": "cuda"})


def test_tensorboard_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "find_spec", lambda name: None)
    with refused(StudyError, "tensorboard", "tnalgebra[train]"):
        train(network(), some_task(), SETTINGS, tmp_path, **{**QUIET, "log_tensorboard": True})


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
    model.inner[2].eval()
    attributes, modes = {*vars(model)}, [module.training for module in model.modules()]
    settings = replace(SETTINGS, checkpoint_every=1, precision="bf16")
    with refused(DivergedError, "nan", "2 of 2", "5 of 6", "Spoilt", "below 0.1", "step-00000004"):
        train(model, some_task(), settings, tmp_path, **QUIET)
    last = checkpoints(tmp_path)[-1]
    assert last.name == "step-00000004"
    assert all(value.isfinite().all() for value in load_file(last / "model.safetensors").values())
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 2
    assert {*vars(model)} == attributes
    assert [module.training for module in model.modules()] == modes


def test_a_loss_far_above_that_of_guessing_stops_it(tmp_path: Path) -> None:
    settings = replace(SETTINGS, learning_rate=1e-3, batch_size=1)
    with refused(DivergedError, "e+", "mean of 21 steps", "2 of 2", "step-00000021"):
        train(Spoilt(some_task().training_size, 1e4), some_task(), settings, tmp_path, **QUIET)
    assert len(checkpoints(tmp_path)) == 1


def test_few_steps_may_be_far_above_that_of_guessing(tmp_path: Path) -> None:
    """The first steps of a short epoch often are; what counts is a mean over more of them."""
    history = train(Spoilt(3, 1e4), some_task(), replace(SETTINGS, learning_rate=1e-9), tmp_path, **QUIET)
    assert history.rows[-1].training_loss > 100


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

    with refused(DivergedError, "not finite", "inner", "2 of 2", "6 of 6"):
        train(Late(), some_task(), SETTINGS, tmp_path, **QUIET)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000003"]
