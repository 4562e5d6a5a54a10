"""Compress a trained network to a size; what does that do to accuracy and speed?

    python -m recipes.compress                # embedded digits, a small CNN: minutes
    python -m recipes.compress --smoke        # the same in seconds, badly trained
    python -m recipes.compress --model resnet20 --weights W.pth --data DIR \\
        --rewrite tucker2 "out kh | in kw" --size "parameters 0.5" --sequential
    python -m recipes.compress --model mylib.nets:build --weights w.pth --data DIR \\
        --size "time 0.7" --output runs/mine

This is the command `tnalgebra compress`, and beside it:
- The small network cnn4 is trained first where it has no weights.
- The speed before and after is measured in turns, in an order that is drawn again in
  each round. The dense network is timed in both memory formats, so that no speed-up is
  over the slower of them unseen.

What is left in OUTPUT:
- model.safetensors: tnalgebra.load("model.safetensors", into=model) puts it into a
  network as it was built, and in the memory format that report.txt names.
- report.txt, what is printed at the end; report.json, the same for programs; and
  report.html, a page with plots and the drawings of the layers.
- model.onnx with --onnx.
- Where these exist already they are shown again; other settings are refused.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import tnalgebra as tn
from recipes.benchmarks.timing import ratio_of_medians, time_in_turns
from recipes.command import run_command, smoke_sizes
from recipes.networks import trained_cnn4, trains_first
from recipes.reporting import aligned, print_settings

SMOKE = {"epochs": 1, "limit": 60, "calibrate": 64, "rounds": 3}
"""The most of each."""
SMOKE_FRACTIONS = (0.5, 0.25)
"""Parts of a kernel's parameters at which its error curve is measured in a smoke run."""


@dataclass(frozen=True, kw_only=True)
class Config(tn.command.CompressSettings):
    """Settings of the compression; what is printed first is what is used."""

    model: str = "cnn4"
    """cnn4 (trained first unless it has weights), resnet20, torchvision:NAME, timm:NAME, package.module:function"""
    rounds: int = 21
    """turns of each network in the timing; odd, so that the median is one of them"""
    threads: int | None = None
    """the number of torch's threads; by default as many as torch takes by itself"""
    epochs: int = 15
    """passes over the training images, where cnn4 is trained"""
    smoke: bool = False
    """at most 1 epoch, 60 test and 64 calibration images, coarse curves, 3 rounds: whether all of it runs"""
    output: Path = Path("runs/compress")
    """the folder for the compressed network, the reports and the trained network"""


def main(config: Config) -> tn.command.CompressResult:
    """Compress and time; returns what report.json holds. Raises TnalgebraError, see `tn.command.compress_model`."""
    if config.smoke:
        config = dataclasses.replace(config, **smoke_sizes(config, SMOKE))
    config = dataclasses.replace(config, device=config.chosen_device())
    print_settings(config)
    config.check(rounds=1, epochs=1, threads=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads or threads)
    try:
        return tn.command.compress_model(
            config,
            prepare=partial(trained_cnn4, config=config) if trains_first(config) else None,
            measure=partial(measure_speed, config=config),
            fractions=SMOKE_FRACTIONS if config.smoke else tn.model.FRACTIONS,
            without_influence=("threads", "rounds"),
        )
    finally:
        torch.set_num_threads(threads)


def measure_speed(
    dense: nn.Module, model: nn.Module, x: Tensor, used: str, *, config: Config
) -> tuple[Mapping[str, Any], str]:
    """Median seconds of a forward pass in evaluation mode, speed-ups over dense with 95 % intervals; and a table."""
    frozen = copy.deepcopy(model)
    for layer in frozen.modules():
        if isinstance(layer, tn.nn.KernelLayer):
            layer.freeze()
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    (other,) = formats.keys() - {used}

    @torch.no_grad()
    def forward(network: nn.Module, inputs: Tensor, turn: int) -> Tensor:
        outputs: Tensor = network(inputs)
        return outputs

    networks = {
        "dense": (dense.eval(), x),
        f"dense, {other}": (
            copy.deepcopy(dense).to(memory_format=formats[other]),
            x.to(memory_format=formats[other]),
        ),
        "compressed": (model.eval(), x),
        "compressed, frozen": (frozen.eval(), x),
    }
    times = time_in_turns(
        {name: partial(forward, *called) for name, called in networks.items()},
        rounds=config.rounds,
        seed=config.seed,
        device=config.device,
    )
    ratios = {name: ratio_of_medians(times["dense"], times[name]) for name in networks if name != "dense"}
    latency = {
        "batch": len(x),
        "device": tn.compiler.device_name(config.device),
        "threads": torch.get_num_threads() if config.device == "cpu" else None,
        "rounds": config.rounds,
        "memory_format": used,
        "seconds": {name: median(seconds) for name, seconds in times.items()},
        "speed_up": {name: ratio._asdict() for name, ratio in ratios.items()},
    }
    return {"latency": latency}, speed_table(latency)


def speed_table(latency: Mapping[str, Any]) -> str:
    """A line for each network that was timed."""
    threads = {None: "", 1: ", 1 thread"}.get(latency["threads"], f", {latency['threads']} threads")
    lines = [
        f"forward pass, batch {latency['batch']}, {latency['memory_format']}, {latency['device']}{threads}",
        f"(medians of {latency['rounds']} turns; speed-ups over dense, with 95 % intervals):",
    ]
    rows = []
    for name, value in latency["seconds"].items():
        ratio = latency["speed_up"].get(name)
        over = f"{ratio['value']:.2f} x  [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio else ""
        rows.append([f"  {name}", f"{1e3 * value:.2f} ms", over])
    lines.append(aligned(rows, ruled=False))
    return "\n".join(lines)


def run() -> None:
    """The command line."""
    run_command(Config, main, description=__doc__, interrupted="stopped: the same command begins again")


if __name__ == "__main__":
    run()
