"""Training a network to tell classes of images, with augmentation, smoothed labels, a teacher."""

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
from recipes.training.task import state_digest, tried

Augmentation = Callable[[Tensor], Tensor]
"""An image, uint8 of shape (channels, height, width), to one of the same kind: a transform of torchvision's v2."""


@dataclass(frozen=True, eq=False)
class Classification:
    """Images to classes: cross-entropy, scored by top-1 accuracy.

    With a teacher the loss is (1 - w) * cross-entropy + w * t^2 * KL(teacher || network), both softened by the
    temperature t; w is the settings' `distillation`. The teacher sees the same augmented images.

    Args:
        training: images that are learnt.
        test: images of the same classes and size, for the score.
        mean: per channel, see `normalised`.
        std: per channel, see `normalised`.
        augmentation: applied to each training image by itself, before it is normalised; see `crop_and_flip`. Its
            chance must come from torch's generator, as that of torchvision's transforms does.
        teacher: logits of the same classes from the same inputs.

    Source:
        G. Hinton, O. Vinyals, J. Dean, "Distilling the knowledge in a neural network" (arXiv 1503.02531), section 2;
        C. Szegedy et al. (arXiv 1512.00567), section 7, for label smoothing.

    Raises:
        DataError: the two sets do not fit each other, or one is empty.
    """

    training: tn.Images
    test: tn.Images
    mean: Sequence[float]
    std: Sequence[float]
    augmentation: Augmentation | None = None
    teacher: nn.Module | None = None

    score_name: ClassVar[str] = "accuracy"

    def __post_init__(self) -> None:
        for images in (self.training, self.test):
            if not len(images):
                raise tn.errors.DataError(tn.errors.explain("there are no images", source=images.source))
        sources = f"{self.training.source} and {self.test.source}"
        sizes = [tuple(images.pixels.shape[1:]) for images in (self.training, self.test)]
        if sizes[0] != sizes[1]:
            fact = "images for training and test differ in size"
            raise tn.errors.DataError(tn.errors.explain(fact, images=sources, shapes=f"{sizes[0]} and {sizes[1]}"))
        classes = [images.classes for images in (self.training, self.test)]
        if classes[0] != classes[1]:
            odd = sorted({*classes[0]} ^ {*classes[1]})
            shown = ", ".join(odd[:5]) + (", ..." if len(odd) > 5 else "") or "their order"
            raise tn.errors.DataError(
                tn.errors.explain("images for training and test differ in classes", images=sources, differ=shown)
            )
        tn.model.normalised(self.test.pixels[:1], mean=self.mean, std=self.std)

    @property
    def training_size(self) -> int:
        """Number of training images."""
        return len(self.training)

    @property
    def test_size(self) -> int:
        """Number of test images."""
        return len(self.test)

    @property
    def plain_loss(self) -> float:
        """That of equal probabilities, in nats."""
        return math.log(max(2, len(self.training.classes)))

    @property
    def networks(self) -> Sequence[nn.Module]:
        """The teacher, if there is one."""
        return () if self.teacher is None else (self.teacher,)

    def description(self) -> dict[str, Any]:
        """Digests of the images and the teacher, and how images are prepared."""
        return {
            "kind": "classification",
            "training": self.training.fingerprint,
            "test": self.test.fingerprint,
            "mean": list(self.mean),
            "std": list(self.std),
            "augmentation": _named(self.augmentation),
            "teacher": None if self.teacher is None else state_digest(self.teacher),
        }

    def check(self, model: nn.Module, settings: Training) -> None:
        """Whether network and teacher take the images and have a logit for each class.

        Raises:
            DataError: there are more classes than logits, or fewer; a teacher without a weight, or the reverse.
            StudyError: a network does not run on the images.
        """
        if (self.teacher is None) == (settings.distillation > 0):
            given = "a teacher and distillation=0" if self.teacher is not None else "distillation and no teacher"
            raise tn.errors.DataError(
                tn.errors.explain(f"there is {given}", fix="Classification(teacher=...), Training(distillation=0.5)")
            )
        for network in (model, *self.networks):
            outputs = tried(network, self.inputs(self.test.pixels[:1]))
            if outputs.ndim != 2:
                fact = f"outputs of {type(network).__name__} are no logits"
                raise tn.errors.DataError(tn.errors.explain(fact, shape=tuple(outputs.shape), needed="(n, classes)"))
            tn.model.check_classes(self.training, outputs.shape[1])

    def training_batch(self, rows: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Augmented images, uint8, and labels."""
        pixels = self.training.pixels[rows]
        if self.augmentation is not None:
            # torch's own function also seeds every GPU, which a worker process must not touch
            generator = torch.default_generator
            images = []
            for image, seed in zip(pixels, seeds, strict=True):
                generator.manual_seed(seed)
                images.append(self.augmentation(image))
            pixels = torch.stack(images)
        return pixels, self.training.labels[rows]

    def test_batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images, uint8, and labels."""
        return self.test.pixels[rows], self.test.labels[rows]

    def inputs(self, examples: Tensor) -> Tensor:
        """Normalised images, float32."""
        return tn.model.normalised(examples, mean=self.mean, std=self.std, device=examples.device)

    def loss(self, outputs: Tensor, inputs: Tensor, targets: Tensor, settings: Training) -> Tensor:
        """Cross-entropy, in nats, with the teacher's part."""
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

    def measured(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Shape (2,): right answers and images. Logits that are not finite are a wrong answer."""
        right = (outputs.argmax(dim=1) == targets) & outputs.isfinite().all(dim=1)
        return torch.stack([right.sum(), torch.full_like(right.sum(), len(targets))]).double()

    def score(self, sums: Tensor) -> float:
        """Top-1, 0 to 1."""
        right, count = sums.tolist()
        return float(right / count)


def crop_and_flip(image_size: int | tuple[int, int], *, padding: int = 4, flip: bool = True) -> nn.Module:
    """The usual augmentation of CIFAR: cut out at random of the image with a black border, mirrored half of the time.

    Args:
        image_size: pixels: (height, width), or one number for both.
        padding: pixels of the border; 0 leaves the position.
        flip: whether left and right are exchanged with probability 1/2; not for digits.

    Source:
        K. He et al., "Deep residual learning" (arXiv 1512.03385), section 4.2.
    """
    from torchvision.transforms import v2

    transforms: Any = v2  # of which it exports nothing by its types
    crop = [transforms.RandomCrop(image_size, padding=padding)] if padding else []
    mirror = [transforms.RandomHorizontalFlip()] if flip else []
    augmentation: nn.Module = transforms.Compose([*crop, *mirror] or [transforms.Identity()])
    return augmentation


def _named(function: Augmentation | None) -> str | None:
    """A text that is the same in every process: what a transform says of itself, without places in memory."""
    if function is None:
        return None
    text = repr(function) if isinstance(function, nn.Module) else getattr(function, "__qualname__", repr(function))
    return re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(text.split()))
