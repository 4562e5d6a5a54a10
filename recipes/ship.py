"""Write trained weights as small as they can be for models/weights, where `--weights shipped` finds them.

    python -m recipes.ship --smoke
    python -m recipes.ship --model cnn4 --weights runs/train/model.safetensors --data DIR --name cnn4-cifar10 \\
        --origin "python -m recipes.train --preset cifar --model cnn4 --data DIR"

What is written: OUTPUT/NAME.safetensors, all numbers in float16, and in its metadata the
network, the accuracy of these rounded weights on the test images, where the weights are
from, and their licence.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

import tnalgebra as tn
from recipes.command import run_command
from recipes.reporting import print_settings

MOST_BYTES = 4_000_000
"""The largest file that a repository should have."""


@dataclass(frozen=True, kw_only=True)
class Config(tn.command.TestSettings):
    """Settings; what is printed first is what is used."""

    model: str = "cnn4"
    """the network, as its weights find it again"""
    name: str = "network"
    """the name of the file"""
    origin: str = ""
    """where the weights are from: the command that trained them, or an address"""
    licence: str = "Apache-2.0"
    """the licence of the weights"""
    smoke: bool = False
    """random weights and digits, to see that everything works"""
    output: Path = Path("runs/ship")
    """the folder for the file; models/weights, where it is to be shipped"""


def main(config: Config) -> Path:
    """Round, test and write the weights; returns the path.

    Raises:
        DataError: the weights are not finite in float16, or the file would be larger than 4 MB.
        TnalgebraError: a setting, the data or the weights are not what they should be.
    """
    if config.smoke:
        config = dataclasses.replace(config, untrained=True, limit=60)
    print_settings(config)
    images = config.images("test")
    model = config.network(images).eval()
    device = config.chosen_device()
    before = tn.studies.accuracy(model.to(device), images, batch_size=config.batch_size, device=device)
    state = {name: value for name, value in model.cpu().state_dict().items() if value.is_floating_point()}
    rounded = {name: value.half().contiguous() for name, value in state.items()}
    if not all(bool(value.isfinite().all()) for value in rounded.values()):
        raise tn.errors.DataError("some weights are beyond float16", fix="weights of a smaller norm")
    size = sum(2 * value.numel() for value in rounded.values())
    if size > MOST_BYTES:
        raise tn.errors.DataError(f"the file would have {size:,} bytes", most=f"{MOST_BYTES:,}")
    with torch.no_grad():
        for name, value in rounded.items():
            state[name].copy_(value)
    after = tn.studies.accuracy(model.to(device), images, batch_size=config.batch_size, device=device)
    print(f"\ntop-1: {100 * before:.2f} %, in float16 {100 * after:.2f} %")
    about = f"{config.model}, {100 * after:.2f} % of {len(images):,} test images"
    facts = {"about": about, "origin": config.origin, "licence": config.licence, "classes": " ".join(images.classes)}
    path = config.output / f"{config.name}.safetensors"
    with tn.studies.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(rounded, path, metadata=facts)
    path.chmod(0o644)
    print(f"{path}: {path.stat().st_size:,} bytes")
    return path


def run() -> None:
    """The command line."""
    run_command(Config, main, description=__doc__)


if __name__ == "__main__":
    run()
