"""Training does what plain loops do, on dense and decomposed networks, and leaves everything else as it was."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tnalgebra as tn
from models.cnn4 import cnn4
from recipes.training import Classification, Regression, Training, crop_and_flip, evaluate, train
from recipes.training.batches import step_batches
from recipes.training.settings import make_optimizer, seed_of
from tests.training_cases import QUIET, network, same, some_task, state, table
from tnalgebra.model import Images, load_images


def smooth_network(seed: int = 0) -> nn.Sequential:
    """Without batch normalisation and dropout, so that it has nothing but its parameters."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.GroupNorm(1, 5), nn.Tanh(), nn.Flatten(), nn.Linear(100, 4))


# against plain loops


def slow_rate(settings: Training, step: int, steps: int) -> float:
    warm = round(settings.warmup * steps)
    if step < warm:
        return settings.learning_rate * (step + 1) / (warm + 1)
    angle = math.pi * (step - warm) / (settings.epochs * steps - warm)
    return settings.learning_rate * math.cos(angle / 2) ** 2


def slow_loss(logits: Tensor, labels: Tensor, taught: Tensor | None, settings: Training) -> Tensor:
    """Cross-entropy with smoothed labels and Hinton's distillation, as their papers write them."""
    smoothing, weight, t = settings.label_smoothing, settings.distillation, settings.temperature
    target = (1 - smoothing) * torch.eye(logits.shape[1])[labels] + smoothing / logits.shape[1]
    hard = -(target * logits.softmax(dim=1).log()).sum(dim=1).mean()
    if taught is None:
        return hard
    p, q = (taught / t).softmax(dim=1), (logits / t).softmax(dim=1)
    return (1 - weight) * hard + weight * t**2 * (p * (p / q).log()).sum(dim=1).mean()


def plain_optimizer(model: nn.Module, settings: Training) -> torch.optim.Optimizer:
    """torch's, with weight decay on what is not a bias or a normalisation."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if (p.ndim > 1) == decayed], "weight_decay": decay}
        for decayed, decay in ((True, settings.weight_decay), (False, 0.0))
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups)
    return torch.optim.SGD(groups, momentum=settings.momentum, nesterov=settings.momentum > 0)


def order(size: int, settings: Training, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed_of(settings.seed, "order", epoch))
    return torch.randperm(size, generator=generator)


@pytest.mark.parametrize(
    "settings",
    [
        Training(epochs=2, batch_size=8, learning_rate=0.05, weight_decay=0.1),
        Training(epochs=2, batch_size=8, learning_rate=0.05, momentum=0.0, warmup=0.7, clip=0.5),
        Training(epochs=2, batch_size=8, learning_rate=0.05, label_smoothing=0.2, warmup=1, seed=3),
        Training(epochs=2, batch_size=8, learning_rate=0.05, distillation=0.7, temperature=2.5, label_smoothing=0.1),
        Training(epochs=2, batch_size=8, learning_rate=0.05, distillation=1.0, channels_last=False),
        Training(epochs=2, batch_size=8, learning_rate=0.02, optimizer="adamw", weight_decay=0.5, warmup=0.5),
    ],
    ids=["momentum", "warm-up, clipped", "smoothed", "distilled", "taught only", "adamw"],
)
def test_a_training_is_a_plain_loop(settings: Training, tmp_path: Path) -> None:
    teacher = smooth_network(seed=1) if settings.distillation else None
    task = some_task(teacher=teacher)
    model = smooth_network()
    plain = copy.deepcopy(model)
    history = train(model, task, settings, tmp_path, **QUIET)

    optimizer = plain_optimizer(plain, settings)
    losses: list[float] = []
    for epoch in range(settings.epochs):
        total = 0.0
        for position, rows in enumerate(order(21, settings, epoch).split(7)):  # the fewest batches, of equal size
            x = task.training.normalise(task.training.pixels[rows])
            optimizer.zero_grad()
            taught = None if teacher is None else teacher(x).detach()
            loss = slow_loss(plain(x), task.training.labels[rows], taught, settings)
            torch.autograd.backward(loss)
            if settings.clip is not None:
                nn.utils.clip_grad_norm_(plain.parameters(), settings.clip)
            for group in optimizer.param_groups:
                group["lr"] = slow_rate(settings, 3 * epoch + position, 3)
            optimizer.step()
            total += float(loss.detach()) * len(rows) / 21
        losses.append(total)
    # float32, sums in another order; adamw divides by roots of small numbers
    loose = 1e-3 if settings.optimizer == "adamw" else 1e-5
    for name, value in state(plain).items():
        torch.testing.assert_close(state(model)[name], value, rtol=1e-4, atol=loose)
    assert [row.training_loss for row in history.rows] == pytest.approx(losses, rel=1e-4)
    assert [row.learning_rate for row in history.rows] == pytest.approx([slow_rate(settings, s, 3) for s in (2, 5)])
    assert [(row.epoch, row.step) for row in history.rows] == [(1, 3), (2, 6)]
    assert history.rows[-1].test_score == evaluate(model, task)


@pytest.mark.parametrize("shape", [(3,), (2, 5, 4), (2, 3, 2, 2, 3)])
def test_a_regression_is_a_plain_loop(shape: tuple[int, ...], tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(count: int) -> Tensor:
        return torch.randn((count, *shape), generator=generator, dtype=torch.float64)

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(shape, dtype=torch.float64))
            self.bias = nn.Parameter(torch.zeros(shape[-1], dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * x + self.bias

    task = Regression(drawn(10), drawn(10), drawn(6), drawn(6))
    settings = Training(epochs=3, batch_size=5, learning_rate=0.1, weight_decay=0.01)
    model = Scaled()
    history = train(model, task, settings, tmp_path, **QUIET)

    weight, bias = torch.ones(shape, dtype=torch.float64), torch.zeros(shape[-1], dtype=torch.float64)
    speed = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for step in range(6):
        rows = order(10, settings, step // 2)[5 * (step % 2) : 5 * (step % 2) + 5]
        x, y = task.training_inputs[rows], task.training_targets[rows]
        slope = 2 * (weight * x + bias - y) / y.numel()
        gradients = [(slope * x).sum(0) + 0.01 * weight, slope.sum(tuple(range(slope.ndim - 1)))]
        for value, v, g in zip((weight, bias), speed, gradients, strict=True):
            v.mul_(0.9).add_(g)
            value -= slow_rate(settings, step, 2) * (g + 0.9 * v)
    # float64, a few dozen operations
    torch.testing.assert_close(model.weight.detach(), weight, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.bias.detach(), bias, rtol=1e-12, atol=1e-12)
    error = (weight * task.test_inputs + bias - task.test_targets).norm() / task.test_targets.norm()
    assert history.rows[-1].test_score == pytest.approx(float(error), rel=1e-12)
    assert history.score_name == "relative_error"


# settings


def test_weight_decay_is_on_weights_and_cores_alone() -> None:
    model, _ = tn.convert(network(), {"0": ("out kh | in kw", {"r": 2}), "*": None})
    model[5].weight.requires_grad_(False)
    optimizer = make_optimizer(model, Training(epochs=1, weight_decay=0.3))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [({names[id(p)] for p in g["params"]}, g["weight_decay"]) for g in optimizer.param_groups]
    cores = {f"0.{name}" for name, _ in model[0].named_parameters()}
    assert len(cores) == 2
    assert groups == [(cores, 0.3), ({"1.weight", "1.bias", "5.bias"}, 0.0)]


# chance


def batches(task: Classification, settings: Training, first: int = 0, **more: Any) -> list[tuple[Tensor, Tensor]]:
    return list(step_batches(task, settings, first=first, **{"share": (0, 1), "workers": 0, "pinned": False, **more}))


def equal(a: Sequence[tuple[Tensor, Tensor]], b: Sequence[tuple[Tensor, Tensor]]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True)
    )


def test_batches_are_a_function_of_the_seed_and_the_step() -> None:
    task = some_task(augmentation=crop_and_flip((7, 6), padding=2))
    settings = Training(epochs=3, batch_size=8)
    all_of_them = batches(task, settings)
    torch.manual_seed(77)
    assert equal(batches(task, settings, first=4), all_of_them[4:])
    assert equal(batches(task, settings, workers=2), all_of_them)
    assert not equal(batches(task, replace(settings, seed=1)), all_of_them)
    halves = [batches(task, settings, share=(part, 2)) for part in (0, 1)]
    joined = [
        (torch.cat([x, u]), torch.cat([y, v])) for (x, y), (u, v) in zip(*halves, strict=True)
    ]  # in which each image is augmented as in the whole batch
    assert equal(joined, all_of_them)
    plain = batches(some_task(), settings)
    for epoch in range(3):
        seen = torch.cat([labels for _, labels in plain[3 * epoch : 3 * epoch + 3]])
        assert torch.equal(seen.sort().values, task.training.labels.sort().values)
    assert not torch.equal(plain[0][0], plain[3][0])
    assert not torch.equal(plain[0][0], all_of_them[0][0])


def test_crops_and_flips_are_those_of_a_black_border() -> None:
    images = Images(torch.arange(1, 13, dtype=torch.uint8).reshape(1, 1, 3, 4), torch.tensor([0]), ("a",), "one")
    task = Classification(images, images, crop_and_flip((3, 4), padding=1))
    bordered = nn.functional.pad(images.pixels, (1, 1, 1, 1))
    crops = [bordered[0, :, y : y + 3, x : x + 4] for y in range(3) for x in range(3)]
    possible = {tuple(one.flatten().tolist()) for crop in crops for one in (crop, crop.flip(-1))}
    found = {tuple(task.training_batch(torch.tensor([0]), [s])[0].flatten().tolist()) for s in range(400)}
    assert found == possible
    assert crop_and_flip((3, 4), padding=0, flip=False) is None


def test_training_depends_on_the_seed_alone_and_leaves_the_rest_as_it_was(tmp_path: Path) -> None:
    settings = Training(epochs=2, batch_size=8, precision="bf16")
    models = {}
    for run, seed in (("first", 3), ("again", 3), ("other", 4)):
        model = network()
        model[2].eval()
        attributes, modes = {*vars(model)}, [module.training for module in model.modules()]
        torch.manual_seed(len(models))
        random.seed(len(models))
        np.random.seed(len(models))
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        train(model, some_task(), replace(settings, seed=seed), tmp_path / run, **QUIET)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
        assert {*vars(model)} == attributes
        assert [module.training for module in model.modules()] == modes
        assert model(torch.zeros(1, 3, 7, 6)).dtype == torch.float32
        models[run] = model
    assert same(models["first"], models["again"])
    assert not same(models["first"], models["other"])


def test_steps_are_in_mixed_precision_and_tests_are_not(tmp_path: Path) -> None:
    trained, seen = {}, set()
    task = some_task()
    for precision in ("no", "bf16"):  # one after the other in one process
        model = trained[precision] = network()
        if precision == "bf16":
            model[0].register_forward_hook(lambda module, _, made: seen.add((module.training, made.dtype)))
        settings = Training(epochs=1, batch_size=8, precision=precision)  # type: ignore[arg-type]
        history = train(model, task, settings, tmp_path / precision, **QUIET)
        assert history.rows[-1].test_score == evaluate(model, task)
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}
    assert not same(trained["no"], trained["bf16"])
    for name, value in state(trained["no"]).items():
        # bfloat16 has eight bits
        torch.testing.assert_close(state(trained["bf16"])[name], value, rtol=0.1, atol=0.05)


# what comes of it


@pytest.mark.slow
def test_digits_are_learnt_dense_and_decomposed(tmp_path: Path) -> None:
    training, test = load_images("digits", "train").subset(400, seed=0), load_images("digits", "test")
    task = Classification(training, test)
    settings = Training(epochs=8, batch_size=10, optimizer="adamw", learning_rate=1e-2, warmup=0.3)
    torch.manual_seed(0)
    dense = cnn4(widths=(8, 8, 16, 16))
    rewrite = {"conv2": ("out kh | in kw", {"r": 6}), "conv4": ("tucker2", {"a": 8, "b": 8}), "*": None}
    decomposed, _ = tn.convert(copy.deepcopy(dense), rewrite)
    scores = {}
    for name, model in (("dense", dense), ("decomposed", decomposed)):
        parameters = [id(parameter) for parameter in model.parameters()]
        before = evaluate(model, task)
        history = train(model, task, settings, tmp_path / name, **QUIET)
        scores[name] = history.rows[-1].test_score
        assert scores[name] == evaluate(model, task) == tn.studies.accuracy(model, test, batch_size=100)
        assert before < 0.4
        assert [id(parameter) for parameter in model.parameters()] == parameters
    assert min(scores.values()) > 0.75, scores
    assert isinstance(decomposed.conv2, tn.nn.Conv2d)


def test_the_history_is_a_table_a_figure_and_a_file(tmp_path: Path) -> None:
    noted: list[Any] = []
    history = train(network(), some_task(), Training(epochs=2, batch_size=8), tmp_path, **QUIET, note=noted.append)
    assert tuple(noted) == history.rows
    frame = history.to_pandas()
    assert list(frame) == ["epoch", "step", "learning_rate", "training_loss", "test_score", "seconds"]
    assert frame["epoch"].tolist() == [1, 2]
    assert all(frame["seconds"] > 0)
    assert table(tmp_path) == [list(frame)[:-1], *([str(value) for value in row[:-1]] for row in history.rows)]
    axes = history.plot().axes
    assert [one.get_ylabel() for one in axes] == ["training loss", "test accuracy"]
    assert axes[0].lines[0].get_ydata().tolist() == frame["training_loss"].tolist()


def test_tensorboard_has_every_epoch_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = Training(epochs=3, batch_size=8)
    for _ in range(2):
        history = train(network(), some_task(), settings, tmp_path, **{**QUIET, "log_tensorboard": True})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {*events.Tags()["scalars"]} == {"loss/training", "accuracy/test", "learning_rate", "seconds"}
    found = [(event.step, event.value) for event in events.Scalars("loss/training")]
    assert [step for step, _ in found] == [1, 2, 3]
    assert [value for _, value in found] == pytest.approx([row.training_loss for row in history.rows])
