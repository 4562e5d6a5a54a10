"""Training is deterministic and works; accuracy and batch normalisation are what their definitions say."""

from __future__ import annotations

import copy
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import build_model, load_weights
from models.cnn4 import cnn4
from tnalgebra.errors import DataError, StudyError
from tnalgebra.model.images import Images, default_normalisation, load_images, normalised
from tnalgebra.studies.accuracy import accuracy, recalibrate_batch_norm, train_classifier

training = import_module("tnalgebra.studies.accuracy")

GREY: dict[str, Any] = {"mean": (0.25,), "std": (0.5,)}
TRAINING: dict[str, Any] = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-2, "weight_decay": 1e-2, **GREY}


def some_images(count: int = 21) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 1, 6, 5), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.arange(count) % 3, ("a", "b", "c"), "some")


NOTHING = Images(torch.zeros(0, 1, 6, 5, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), ("a",), "nothing")


def network(*, seed: int = 0) -> nn.Sequential:
    """A network with all that depends on the mode."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 3)
    )


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


# training


@pytest.mark.parametrize("max_shift", [0, 2])
def test_training_depends_on_the_seed_alone(max_shift: int) -> None:
    results = {}
    for elsewhere, (run, seed) in enumerate((("first", 3), ("again", 3), ("other", 4))):
        model = network()
        torch.manual_seed(elsewhere)
        losses = train_classifier(model, some_images(), seed=seed, max_shift=max_shift, **TRAINING)
        assert len(losses) == 2
        results[run] = (losses, weights(model))
    assert results["first"][0] == results["again"][0]
    assert torch.equal(results["first"][1], results["again"][1])
    assert not torch.equal(results["first"][1], results["other"][1])


def test_training_leaves_torchs_generator_and_the_modes_alone() -> None:
    model = network()
    model[1].eval()
    before, state = modes(model), torch.get_rng_state()
    train_classifier(model, some_images(), seed=3, **TRAINING)
    assert torch.equal(torch.get_rng_state(), state)
    assert modes(model) == before


def test_training_is_in_training_mode_even_if_the_network_was_not() -> None:
    model = network().eval()
    train_classifier(model, some_images(), seed=3, **TRAINING)
    assert int(model.get_buffer("1.num_batches_tracked")) == 6
    assert not any(modes(model))


def test_the_loss_is_the_mean_over_the_images() -> None:
    """With a learning rate of almost nothing the network does not change, and its loss can be computed at once."""
    images = some_images()
    model = nn.Sequential(nn.Flatten(), nn.Linear(30, 3))
    losses = train_classifier(model, images, seed=0, **(TRAINING | {"learning_rate": 1e-12}))
    expected = nn.functional.cross_entropy(model(normalised(images.pixels, **GREY)), images.labels).item()
    assert losses == pytest.approx([expected, expected], rel=1e-6)  # float32


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(30, 3))
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    with pytest.raises(StudyError) as caught:
        train_classifier(model, some_images(), seed=0, **TRAINING)
    assert str(caught.value) == (
        "training failed: the loss is nan in epoch 1 of 2\n"
        "  network: Sequential\n"
        "  images:  some\n"
        "  fix:     a learning rate below 0.01"
    )


def test_training_that_is_none() -> None:
    with pytest.raises(DataError, match="there are no images\n  source: nothing"):
        train_classifier(network(), NOTHING, seed=0, **TRAINING)
    with pytest.raises(DataError, match="0 epochs are no training"):
        train_classifier(network(), some_images(), seed=0, **(TRAINING | {"epochs": 0}))
    with pytest.raises(DataError, match="a batch of 0 images"):
        train_classifier(network(), some_images(), seed=0, **(TRAINING | {"batch_size": 0}))


def test_a_progress_bar_only_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    train_classifier(network(), some_images(), seed=0, **TRAINING)
    assert capsys.readouterr() == ("", "")


def test_each_image_is_moved_by_its_own_shift() -> None:
    pixels = torch.arange(1, 1 + 40 * 2 * 3 * 4).reshape(40, 2, 3, 4)  # no two alike, none black
    torch.manual_seed(0)
    moved = training._shifted(pixels, 1)
    seen = set()
    for image, result in zip(pixels, moved, strict=True):
        framed = torch.zeros(2, 5, 6, dtype=torch.int64)
        framed[:, 1:4, 1:5] = image
        places = [
            (top, left)
            for top in range(3)
            for left in range(3)
            if torch.equal(framed[:, top : top + 3, left : left + 4], result)
        ]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) == 9


def test_cnn4_learns_the_digits() -> None:
    torch.manual_seed(0)
    model = cnn4()
    settings = {"batch_size": 64, "learning_rate": 5e-3, "weight_decay": 1e-2, "max_shift": 1}
    train_classifier(model, load_images("digits", "train"), epochs=15, seed=0, mean=(0.0,), std=(1.0,), **settings)
    top1 = accuracy(model, load_images("digits", "test"), batch_size=360, mean=(0.0,), std=(1.0,))
    assert top1 > 0.97


# accuracy


class Fixed(nn.Module):
    """Says of each image in turn what it was told to say."""

    def __init__(self, answers: Tensor, *, scale: float = 1.0) -> None:
        super().__init__()
        self.logits = nn.functional.one_hot(answers, 3) * scale
        self.seen = 0
        self.calls: list[tuple[int, torch.dtype, bool, bool]] = []

    def forward(self, pixels: Tensor) -> Tensor:
        self.calls.append((len(pixels), pixels.dtype, self.training, torch.is_inference_mode_enabled()))
        self.seen += len(pixels)
        return self.logits[self.seen - len(pixels) : self.seen]


@pytest.mark.parametrize("batch_size", [1, 5, 21, 100])
def test_accuracy_is_the_share_of_right_answers(batch_size: int) -> None:
    images = some_images()
    answers = images.labels.clone()
    answers[[0, 7, 13, 20]] = (answers[[0, 7, 13, 20]] + 1) % 3
    model = Fixed(answers)
    assert accuracy(model, images, batch_size=batch_size, dtype=torch.float64, **GREY) == 17 / 21
    assert max(size for size, *_ in model.calls) == min(batch_size, 21)
    assert {call[1:] for call in model.calls} == {(torch.float64, False, True)}


def test_accuracy_leaves_the_network_alone() -> None:
    model = network()
    model[3].eval()
    before, state = modes(model), copy.deepcopy(model.state_dict())
    first = accuracy(model, some_images(), batch_size=4, **GREY)
    assert accuracy(model, some_images(), batch_size=21, **GREY) == first
    assert modes(model) == before
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert model(normalised(some_images().pixels, **GREY)).requires_grad


def test_modes_are_given_back_after_an_error() -> None:
    model = network()
    model[3].eval()
    before = modes(model)
    with pytest.raises(DataError):
        accuracy(model, some_images(), batch_size=4, mean=(0.0, 0.0), std=(1.0, 1.0))
    with pytest.raises(DataError):
        recalibrate_batch_norm(model, some_images(), batch_size=4, mean=(0.0, 0.0), std=(1.0, 1.0))
    assert modes(model) == before


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_have_no_accuracy(scale: float) -> None:
    images = some_images()
    with pytest.raises(StudyError, match=r"outputs are not finite\n  network: Fixed in float32\n  images:  some"):
        accuracy(Fixed(images.labels, scale=scale), images, batch_size=5, **GREY)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_outputs_that_are_not_finite_may_count_as_wrong_answers(value: float) -> None:
    images = some_images()
    model = Fixed(images.labels, scale=2.0)
    model.logits[[3, 8, 15]] = value  # the whole row; and one logit that is not the largest
    model.logits[20, (images.labels[20] + 1) % 3] = -float("inf")
    assert accuracy(model, images, batch_size=5, not_finite="wrong", **GREY) == 17 / 21


def test_accuracy_of_nothing() -> None:
    with pytest.raises(DataError, match="there are no images\n  source: nothing"):
        accuracy(network(), NOTHING, batch_size=5, **GREY)


# batch normalisation


def test_recalibrated_statistics_are_those_of_the_images() -> None:
    """In one batch the statistics are the mean and the unbiased variance of what the layer is given."""
    images = some_images()
    model = network()
    recalibrate_batch_norm(model, images, batch_size=21, **GREY)
    given = model[0](normalised(images.pixels, **GREY)).detach().transpose(0, 1).flatten(1)
    norm = model[1]
    torch.testing.assert_close(norm.running_mean, given.mean(dim=1))
    torch.testing.assert_close(norm.running_var, given.var(dim=1))


def test_recalibrated_statistics_average_all_batches() -> None:
    images = some_images()
    model = nn.Sequential(nn.BatchNorm2d(1, momentum=0.3))
    with torch.no_grad():
        model[0].running_mean.fill_(50)
    recalibrate_batch_norm(model, images, batch_size=7, **GREY)
    expected = normalised(images.pixels, **GREY).mean()  # three batches of seven: the mean of means
    torch.testing.assert_close(model[0].running_mean, expected[None])
    assert int(model[0].num_batches_tracked) == 3
    assert model[0].momentum == 0.3


def test_recalibration_changes_nothing_but_statistics() -> None:
    model = network()
    model.append(nn.BatchNorm1d(3, momentum=None))
    model.append(nn.BatchNorm1d(3, track_running_stats=False))
    model[1].eval()
    before, values = modes(model), weights(model)
    state = torch.get_rng_state()
    recalibrate_batch_norm(model, some_images(), batch_size=5, **GREY)
    assert modes(model) == before
    assert torch.equal(weights(model), values)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.momentum for module in (model[1], model[6], model[7])] == [0.1, None, 0.1]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_dropout_is_off_while_recalibrating() -> None:
    with_dropout, without = network(), network()
    without[3] = nn.Identity()
    for model in (with_dropout, without):
        model.append(nn.BatchNorm1d(3))
        recalibrate_batch_norm(model, some_images(), batch_size=5, **GREY)
    assert torch.equal(with_dropout.get_buffer("6.running_mean"), without.get_buffer("6.running_mean"))


def test_batches_of_a_sorted_folder_are_mixed() -> None:
    """Half of the images black, half white: batches of one colour would have no variance at all."""
    pixels = torch.zeros(64, 1, 2, 2, dtype=torch.uint8)
    pixels[32:] = 255
    images = Images(pixels, torch.arange(64) // 32, ("black", "white"), "sorted")
    model = nn.Sequential(nn.BatchNorm2d(1))
    recalibrate_batch_norm(model, images, batch_size=16, mean=(0.0,), std=(1.0,))
    assert 0.2 < float(model[0].running_var) < 0.27  # of the whole: 0.25


def test_recalibration_without_images_or_without_batch_norm() -> None:
    with pytest.raises(DataError, match="there are no images"):
        recalibrate_batch_norm(network(), NOTHING, batch_size=5, **GREY)
    model = Fixed(some_images().labels)
    recalibrate_batch_norm(model, some_images(), batch_size=5, **GREY)
    assert model.calls == []


def test_resnet20_recalibrated_on_few_images_is_as_good(cifar10_folder: Path, resnet20_weights: Path) -> None:
    """It was trained on images moved by up to 4 pixels; 2,000 such restore statistics that were lost."""
    model = build_model("resnet20", classes=10, channels=3)
    load_weights(model, resnet20_weights)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    train = load_images(cifar10_folder, "train")
    test = load_images(cifar10_folder, "test").subset(1000, seed=0)
    mean, std = default_normalisation(test)
    settings: dict[str, Any] = {"batch_size": 100, "mean": mean, "std": std}
    assert accuracy(model, test, **settings) < 0.5
    recalibrate_batch_norm(model, train, max_shift=4, **settings)
    assert accuracy(model, test, **settings) > 0.89
