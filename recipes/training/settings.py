"""Settings of a training, and what follows from them: the learning rate of each step, the optimizer, the seeds."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

import tnalgebra as tn

NORMALISATIONS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Training:
    """How a network is trained.

    The learning rate rises linearly during `warmup`, then falls to 0 by half a cosine, step by step. Weight decay is
    applied to weights and to the cores of decomposed layers, but not to biases and normalisations, which only shift
    and scale (He et al., arXiv 1812.01187, section 3.1). On cores it penalises the norm of each core, not that of the
    kernel that they make.

    Raises:
        DataError: a setting is out of range; its name is in the message.
    """

    epochs: int
    """passes over the training data"""
    batch_size: int = 128
    """the most examples in a step, of all processes together; the steps of an epoch differ by one example at most"""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd has Nesterov's momentum"""
    learning_rate: float = 0.1
    """the highest learning rate of all steps"""
    momentum: float = 0.9
    """of sgd; 0 turns it off"""
    weight_decay: float = 1e-4
    """of sgd: added to the gradient; of adamw: decoupled, times the learning rate"""
    warmup: float = 0.0
    """epochs, also parts of one, in which the learning rate rises"""
    label_smoothing: float = 0.0
    """of classification: the part of each target that is spread evenly over all classes"""
    distillation: float = 0.0
    """of classification: the weight of the teacher's answers, 0 to 1; the labels have the rest"""
    temperature: float = 4.0
    """of the distillation: the logits of both networks are divided by it"""
    clip: float | None = None
    """the largest norm of all gradients together; None: they are not clipped"""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """bf16, or fp16 with scaled losses (not on CPUs): mixed with float32"""
    channels_last: bool = True
    """the memory format of images and kernels; on CPUs about a sixth faster, more on GPUs with half precision"""
    seed: int = 0
    """the seed of all random numbers: order of the data, augmentation, dropout"""
    checkpoint_every: int | None = None
    """steps between checkpoints, beside those after each epoch; the result does not depend on it"""

    def __post_init__(self) -> None:
        for names, holds, needed in (
            (("epochs", "batch_size", "checkpoint_every"), lambda value: 1 <= value < math.inf, "at least 1"),
            (("weight_decay", "warmup"), lambda value: 0 <= value < math.inf, "at least 0"),
            (("learning_rate", "temperature", "clip"), lambda value: 0 < value < math.inf, "a positive number"),
            (("momentum", "label_smoothing"), lambda value: 0 <= value < 1, "at least 0, below 1"),
            (("distillation",), lambda value: 0 <= value <= 1, "0 to 1"),
            (("optimizer",), lambda value: value in ("sgd", "adamw"), "sgd or adamw"),
            (("precision",), lambda value: value in ("no", "bf16", "fp16"), "no, bf16 or fp16"),
        ):
            for name in names:
                value = getattr(self, name)
                if value is not None and not holds(value):
                    raise tn.errors.DataError(f"{name}={value!r}", needed=needed)
        if self.warmup >= self.epochs:
            fact = f"the warm-up of {self.warmup:g} epochs takes all {self.epochs} epochs of the training"
            raise tn.errors.DataError(fact, needed="warmup < epochs")


def learning_rate(settings: Training, step: int, *, epoch_steps: int) -> float:
    """The learning rate of a step, 0 <= step < epochs * epoch_steps.

    With w = round(warmup * epoch_steps) and s steps in all, it is peak * (step + 1) / (w + 1) where step < w, and
    peak * (1 + cos(pi * (step - w) / (s - w))) / 2 from there on: the cosine of I. Loshchilov and F. Hutter, "SGDR"
    (arXiv 1608.03983), eq. 5, without restarts.
    """
    warm = min(round(settings.warmup * epoch_steps), settings.epochs * epoch_steps - 1)
    if step < warm:
        return settings.learning_rate * (step + 1) / (warm + 1)
    part = (step - warm) / (settings.epochs * epoch_steps - warm)
    return settings.learning_rate * (1 + math.cos(math.pi * part)) / 2


def make_optimizer(model: nn.Module, settings: Training) -> torch.optim.Optimizer:
    """The optimizer of the parameters that require gradients, in two groups: with weight decay and without.

    Raises:
        StudyError: no parameter requires a gradient.
    """
    decayed: dict[nn.Parameter, None] = {}
    plain: dict[nn.Parameter, None] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                exempt = name == "bias" or isinstance(module, NORMALISATIONS)
                (plain if exempt else decayed)[parameter] = None
    for parameter in decayed:  # a tied parameter that is in both groups is a weight
        plain.pop(parameter, None)
    groups = [
        {"params": list(group), "weight_decay": decay}
        for group, decay in ((decayed, settings.weight_decay), (plain, 0.0))
        if group
    ]
    if not groups:
        raise tn.errors.StudyError(
            f"{type(model).__name__} has no parameter that requires a gradient", fix="requires_grad_()"
        )
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate)
    momentum = settings.momentum
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=momentum, nesterov=momentum > 0)


def seed_of(seed: int, purpose: str, *place: int) -> int:
    """A seed for one purpose at one place, 0 to 2^32 - 1, so that random numbers there depend on nothing else."""
    text = " ".join(map(str, (seed, purpose, *place)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")
