"""The small network that recipes train where no weights are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from models import load_weights
from tnalgebra.errors import StudyError, explain
from tnalgebra.files import write_whole
from tnalgebra.images import Images
from tnalgebra.study_store import config_hash
from tnalgebra.training import train_classifier


class Settings(Protocol):
    """What a recipe's config says about the training."""

    @property
    def epochs(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def mean(self) -> tuple[float, ...] | None: ...
    @property
    def std(self) -> tuple[float, ...] | None: ...
    @property
    def data(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def output(self) -> Path: ...


def trained_cnn4(model: nn.Module, *, training: Images, config: Settings) -> None:
    """Train cnn4 and keep it in the output folder; take it from there if it is there.

    Raises:
        StudyError: the folder cannot be written.
    """
    settings: dict[str, Any] = {
        "epochs": config.epochs,
        "batch_size": 64,
        "learning_rate": 5e-3,
        "weight_decay": 1e-2,
        "max_shift": 1,
        "seed": config.seed,
        "mean": config.mean,
        "std": config.std,
    }
    path = config.output / f"cnn4-{config_hash({**settings, 'images': training.fingerprint})}.pth"
    if not path.exists():
        print(f"training cnn4 on {len(training)} images of {config.data}", flush=True)
        train_classifier(model, training, **settings, device=config.device)
        state = model.cpu().state_dict()
        try:
            write_whole(path, lambda temporary: torch.save({"state_dict": state}, temporary))
        except OSError as error:
            raise StudyError(explain(f"{path} cannot be written", because=error, fix="another --output")) from error
    load_weights(model, path)
