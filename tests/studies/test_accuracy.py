"""Accuracy is what its definition says; batches for batch-norm statistics are mixed and moved as in training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tnalgebra as tn
from tests.refusals import refused
from tnalgebra.command import build_model, load_weights
from tnalgebra.errors import DataError, StudyError
from tnalgebra.model import Images, load_images
from tnalgebra.studies.accuracy import accuracy, shuffled_batches


def some_images(count: int = 21) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 1, 6, 5), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.arange(count) % 3, ("a", "b", "c"), "some", (0.25,), (0.5,))


def network() -> nn.Sequential:
    """A network with all that depends on the mode."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 3)
    )


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
    assert accuracy(model, images, batch_size=batch_size, dtype=torch.float64) == 17 / 21
    assert max(size for size, *_ in model.calls) == min(batch_size, 21)
    assert {call[1:] for call in model.calls} == {(torch.float64, False, True)}


def test_accuracy_leaves_the_network_alone() -> None:
    model = network()
    model[3].eval()
    before, state = [module.training for module in model.modules()], copy.deepcopy(model.state_dict())
    first = accuracy(model, some_images(), batch_size=4)
    assert accuracy(model, some_images(), batch_size=21) == first
    with refused(DataError, "0"):
        accuracy(model, some_images(), batch_size=0)
    assert [module.training for module in model.modules()] == before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model(some_images().normalise(some_images().pixels)).requires_grad


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_outputs_that_are_not_finite_are_refused_or_wrong_answers(value: float) -> None:
    images = some_images()
    model = Fixed(images.labels, scale=2.0)
    model.logits[[3, 8, 15]] = value  # the whole row; and one logit that is not the largest
    model.logits[20, (images.labels[20] + 1) % 3] = -float("inf")
    assert accuracy(model, images, batch_size=5, not_finite="wrong") == 17 / 21
    model.seen = 0
    with refused(StudyError, "not finite", "Fixed in float32", "some"):
        accuracy(model, images, batch_size=5)


def test_accuracy_of_nothing() -> None:
    nothing = Images(torch.zeros(0, 1, 6, 5, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), ("a",), "nothing")
    with refused(DataError, "empty", "nothing"):
        accuracy(network(), nothing, batch_size=5)


# batches for batch normalisation


def test_batches_are_the_images_in_one_random_order() -> None:
    images, state = some_images(), torch.get_rng_state()
    one, again = (list(shuffled_batches(images, batch_size=8, dtype=torch.float64)) for _ in range(2))
    assert [len(batch) for batch in one] == [7, 7, 7]
    assert torch.equal(torch.cat(one), torch.cat(again))
    whole = images.normalise(images.pixels, dtype=torch.float64)
    assert not torch.equal(torch.cat(one), whole)
    assert torch.equal(torch.cat(one).flatten(1).sum(1).sort().values, whole.flatten(1).sum(1).sort().values)
    assert torch.equal(torch.get_rng_state(), state)


def test_each_image_is_moved_by_its_own_shift() -> None:
    pixels = torch.arange(1, 1 + 10 * 2 * 3 * 4, dtype=torch.uint8).reshape(10, 2, 3, 4)  # no two alike, none black
    images = Images(
        pixels.repeat(4, 1, 1, 1), torch.zeros(40, dtype=torch.int64), ("a",), "some", (0.0,) * 2, (1.0,) * 2
    )
    (moved,) = (255 * batch for batch in shuffled_batches(images, batch_size=40, max_shift=1, dtype=torch.float64))
    framed = torch.zeros(10, 2, 5, 6, dtype=torch.float64)
    framed[:, :, 1:4, 1:5] = pixels
    seen = []
    for result in moved:
        places = [
            (image, top, left)
            for image in range(10)
            for top in range(3)
            for left in range(3)
            if torch.allclose(framed[image, :, top : top + 3, left : left + 4], result, atol=1e-6)
        ]
        assert len(places) == 1
        seen += places
    assert sorted(image for image, _, _ in seen) == sorted([*range(10)] * 4)
    assert len({place[1:] for place in seen}) == 9


@pytest.mark.slow
def test_resnet20_recalibrated_on_few_images_is_as_good(cifar10_folder: Path, resnet20_weights: Path) -> None:
    """It was trained on images moved by up to 4 pixels; 2,000 such restore statistics that were lost."""
    model = build_model("resnet20", classes=10, channels=3)
    load_weights(model, resnet20_weights)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    train = load_images(cifar10_folder, "train")
    test = load_images(cifar10_folder, "test").subset(1000, seed=0)
    settings: dict[str, Any] = {"batch_size": 100}
    assert accuracy(model, test, **settings) < 0.5
    tn.recalibrate_batch_norm(model, shuffled_batches(train, max_shift=4, **settings))
    assert accuracy(model, test, **settings) > 0.89
