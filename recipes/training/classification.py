"""The task of classifying images, with augmentation, smoothed labels, and a teacher."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

import tnalgebra as tn
from recipes.training.settings import Training
from recipes.training.task import Task, try_network


@dataclass(frozen=True, eq=False)
class Classification(Task):
    """Classify images: the loss is the cross-entropy, the score is top-1 accuracy.

    With a teacher the loss is (1 - w) * cross-entropy + w * t^2 * KL(teacher || network), where the answers of both
    networks are softened by the temperature t, and w is `distillation` of the settings. The teacher sees the same
    augmented images.

    Args:
        training: the images that are learnt.
        test: images of the same classes, size and normalisation, for the score.
        augmentation: a function of each training image by itself, uint8 of shape (channels, height, width), before it
            is normalised; see `crop_and_flip`. Its random numbers must come from torch's generator, as those of
            torchvision's transforms do.
        teacher: a network that gives logits of the same classes for the same inputs.

    Source:
        G. Hinton, O. Vinyals, J. Dean, "Distilling the knowledge in a neural network" (arXiv 1503.02531), section 2;
        C. Szegedy et al. (arXiv 1512.00567), section 7, for label smoothing.

    Raises:
        DataError: the two sets differ in classes, size or normalisation, or one of them is empty.
    """

    training: tn.model.Images
    test: tn.model.Images
    augmentation: Callable[[Tensor], Tensor] | None = None
    teacher: nn.Module | None = None

    score_name: ClassVar[str] = "accuracy"

    def __post_init__(self) -> None:
        training, test = self.training, self.test
        for images in (training, test):
            if not len(images):
                raise tn.errors.DataError("a set of images is empty", source=images.source)
        for name, ours, theirs in (
            ("size", tuple(training.pixels.shape[1:]), tuple(test.pixels.shape[1:])),
            ("classes", training.classes, test.classes),
            ("normalisation", (training.mean, training.std), (test.mean, test.std)),
        ):
            if ours != theirs:
                fact = f"images for training and test differ in {name}"
                shown = ", ".join(sorted({*ours} ^ {*theirs})[:5]) if name == "classes" else f"{ours} and {theirs}"
                source = f"{training.source} and {test.source}"
                raise tn.errors.DataError(fact, images=source, differ=shown or "their order")

    @property
    def training_size(self) -> int:
        return len(self.training)

    @property
    def test_size(self) -> int:
        return len(self.test)

    @property
    def plain_loss(self) -> float:
        """The loss of equal probabilities for all classes, in nats."""
        return math.log(max(2, len(self.training.classes)))

    @property
    def networks(self) -> Sequence[nn.Module]:
        return () if self.teacher is None else (self.teacher,)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "classification",
            "training": self.training.fingerprint,
            "test": self.test.fingerprint,
            "mean": list(self.training.mean),
            "std": list(self.training.std),
            "augmentation": _name(self.augmentation),
            "teacher": None if self.teacher is None else tn.studies.digest_state(self.teacher),
        }

    def check(self, model: nn.Module, settings: Training) -> None:
        """Check that network and teacher accept the images and have a logit for each class.

        Raises:
            DataError: the numbers of classes and logits differ; or a teacher has no weight, or a weight no teacher.
            StudyError: a network does not run on the images.
        """
        if (self.teacher is None) == (settings.distillation > 0):
            fact = "a teacher is given, but distillation=0" if self.teacher else "distillation needs a teacher"
            raise tn.errors.DataError(
                fact, fix="Classification(teacher=...) and Training(distillation=0.5), or neither"
            )
        for network in (model, *self.networks):
            outputs = try_network(network, self.inputs(self.test.pixels[:1]))
            if outputs.ndim != 2:
                fact = f"outputs of {type(network).__name__} are not logits"
                raise tn.errors.DataError(fact, shape=tuple(outputs.shape), needed="(n, classes)")
            tn.model.check_classes(self.training, outputs.shape[1])

    def training_batch(self, rows: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        pixels = self.training.pixels[rows]
        if self.augmentation is not None:
            # torch.manual_seed would also seed every GPU, which a worker process must not touch
            generator = torch.default_generator
            images = []
            for image, seed in zip(pixels, seeds, strict=True):
                generator.manual_seed(seed)
                images.append(self.augmentation(image))
            pixels = torch.stack(images)
        return pixels, self.training.labels[rows]

    def inputs(self, examples: Tensor) -> Tensor:
        return self.training.normalise(examples, device=examples.device)

    def loss(self, outputs: Tensor, inputs: Tensor, targets: Tensor, settings: Training) -> Tensor:
        """The cross-entropy, in nats, with the part of the teacher."""
        hard = functional.cross_entropy(outputs, targets, label_smoothing=settings.label_smoothing)
        if self.teacher is None:
            return hard
        with torch.no_grad():
            answers = self.teacher(inputs)
        heat, weight = settings.temperature, settings.distillation
        soft = functional.kl_div(
            functional.log_softmax(outputs.float() / heat, dim=1),
            functional.log_softmax(answers.float() / heat, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - weight) * hard + weight * heat**2 * soft

    def measure(self, model: nn.Module, rows: Tensor, *, batch_size: int, device: torch.device | str) -> Tensor:
        """Shape (2,): the numbers of right answers and of images. Logits that are not finite are a wrong answer."""
        images = tn.model.Images(
            self.test.pixels[rows],
            self.test.labels[rows],
            self.test.classes,
            self.test.source,
            self.test.mean,
            self.test.std,
        )
        share = tn.studies.accuracy(model, images, batch_size=batch_size, not_finite="wrong", device=device)
        return torch.tensor([round(share * len(rows)), len(rows)], dtype=torch.float64, device=device)

    def score(self, sums: Tensor) -> float:
        """Top-1 accuracy, 0 to 1."""
        right, count = sums.tolist()
        return float(right / count)


def crop_and_flip(image_size: int | tuple[int, int], *, padding: int = 4, flip: bool = True) -> nn.Module | None:
    """The usual augmentation of CIFAR: a random crop of the image with a black border, mirrored half of the time.

    Args:
        image_size: in pixels, (height, width) or one number for both.
        padding: the width of the border in pixels; with 0 images are not moved.
        flip: whether left and right are exchanged with probability 1/2, which is wrong for digits.

    Returns:
        A transform of one image; None if images are neither moved nor mirrored.

    Source:
        K. He et al., "Deep residual learning" (arXiv 1512.03385), section 4.2.

    Raises:
        DataError: the width of the border is negative.
    """
    from torchvision.transforms import v2

    if padding < 0:
        raise tn.errors.DataError(f"the border has a width of {padding} pixels", needed="at least 0")
    transforms: Any = v2  # torchvision has no types for it
    crop = [transforms.RandomCrop(image_size, padding=padding)] if padding else []
    mirror = [transforms.RandomHorizontalFlip()] if flip else []
    augmentation: nn.Module | None = transforms.Compose([*crop, *mirror]) if crop or mirror else None
    return augmentation


def _name(function: Callable[[Tensor], Tensor] | None) -> str | None:
    """A text for a transform that is the same in every process: its `repr` without addresses in memory."""
    if function is None:
        return None
    text = repr(function) if isinstance(function, nn.Module) else getattr(function, "__qualname__", repr(function))
    return re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(text.split()))
