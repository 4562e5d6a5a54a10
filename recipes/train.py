"""Train a network: dense, in decomposed form from the start, or one that was compressed before.

    python -m recipes.train                                # embedded digits, a small CNN: a minute
    python -m recipes.train --model resnet20 --data DIR    # CIFAR's usual settings: 200 epochs
    python -m recipes.train --model resnet20 --data DIR --rewrite tucker2 --size "parameters 0.5"
    python -m recipes.train --model resnet20 --data DIR --load runs/compress/model.safetensors \\
        --teacher W.pth --epochs 5 --learning-rate 0.01
    accelerate launch -m recipes.train --model resnet50 --data DIR --precision bf16

What is trained:
- The network as it is built, or with --weights.
- With --rewrite in decomposed form: fitted to --weights, all layers sharing one
  size; without weights from random cores, each layer of the same part of its
  parameters.
- With --load a network that recipes.compress has left.
- With --teacher it also learns the answers of a trained network (distillation).
- By default with the preset digits where these are the data, and else with cifar.

What is left in OUTPUT:
- model.safetensors: tnalgebra.load("model.safetensors", into=model) puts it into a
  network as it was built.
- history.csv, a row an epoch, and the same for TensorBoard in tensorboard/;
  history.png and .svg, loss and accuracy; report.json, the settings and the rows.
- checkpoints/: the same command continues after the last one, and ends with the
  numbers of a training that was never stopped. Other settings are refused.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tnalgebra as tn
from recipes.command import run_presets
from recipes.experiment import CIFAR, Settings, begin, classification, load_both
from recipes.networks import even_patterns, fresh_model, from_random_cores, with_weights, write_network
from recipes.reporting import check_least, plain, write, write_figure
from recipes.training import train

MODEL, REPORT, FIGURE = "model.safetensors", "report.json", "history"
SMOKE = {"epochs": 1, "batch_size": 16, "limit": 64}


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Settings of the training; what is printed first is what is used."""

    weights: str | None = None
    """a file of weights to start from; by default random ones"""
    load: Path | None = None
    """a network to start from that recipes.compress, or tnalgebra.save, has written"""
    rewrite: tuple[str, ...] = ()
    """train in decomposed form: names, cuts, rules, each in quotes; of several, with --weights, layers take the best"""
    size: str | None = None
    """of --rewrite: how small; parameters 0.5 by default: of the network with --weights, else of each layer"""
    teacher: str | None = None
    """a file with the weights of a trained network, whose answers are learnt besides the labels"""
    teacher_model: str | None = None
    """the network of the teacher; by default that of --model"""
    distillation: float | None = None
    """the weight of the teacher's answers, 0 to 1; 0.5 where a teacher is named"""
    temperature: float = 4.0
    """the number by which logits are divided before they are compared with the teacher's"""
    momentum: float = 0.9
    """the momentum of sgd"""
    validation: int = 0
    """training images that are kept out of the training and tested in place of the test images: to choose settings"""
    threads: int | None = None
    """the number of torch's threads; by default as many as torch takes by itself"""
    output: Path = Path("runs/train")
    """the folder for the network, its history and checkpoints"""


PRESETS = {
    "digits": Config(),
    # He et al. (arXiv 1512.03385), section 4.2, with the cosine in place of steps
    "cifar": Config(**CIFAR, epochs=200, optimizer="sgd", learning_rate=0.1, weight_decay=1e-4, warmup=0.0),
}


def main(config: Config) -> dict[str, Any]:
    """Train, or continue; returns what report.json holds.

    Raises:
        TnalgebraError: a setting, the data or the weights are not what they should be; the training diverges; the
            output folder holds another training.
    """
    config = _complete(config)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads or threads)
    try:
        config, training, test = load_both(config, validation=config.validation)
        model = _start(config, training)
        teacher = None
        if config.teacher is not None:
            teacher = with_weights(fresh_model(config.teacher_model or config.model, training, seed=0), config.teacher)
        task = classification(config, training, test, teacher=teacher)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        print(f"\ntraining {config.model}, {parameters:,} parameters, on {len(training)} images", flush=True)
        settings = config.training()
        history = train(model, task, settings, config.output, device=config.device, workers=config.workers)
    finally:
        torch.set_num_threads(threads)
    report = {
        "model": config.model,
        "parameters": parameters,
        "accuracy": history.rows[-1].test_score,
        "images": len(test),
        "validation": bool(config.validation),
        "rows": [row._asdict() for row in history.rows],
        "config": plain(config),
        **tn.studies.made_with(config.device),
        "seconds": sum(row.seconds for row in history.rows),
    }
    if is_first_process():
        tn.studies.note_command(config.output)
        write_network(model, config.output / MODEL)
        write_figure(history.plot(), config.output / FIGURE)
        write(config.output / REPORT, json.dumps(report, indent=2))  # last: it says that all the others exist
        print(f"\n{summary(report)}\n\nnetwork, history and figure: {config.output}/")
    return report


def is_first_process() -> bool:
    """Whether this process is the first that accelerate launch has started: the one that prints and writes."""
    return os.environ.get("RANK", "0") == "0"


def _complete(config: Config) -> Config:
    """The config with all defaults filled in, and checked before anything is loaded."""
    size = "parameters 0.5" if config.size is None and config.rewrite else config.size
    distillation = config.distillation if config.distillation is not None else 0.5 if config.teacher else 0.0
    config = dataclasses.replace(config, size=size, distillation=distillation)
    config = begin(config, SMOKE, PRESETS.values())
    config.training()
    check_least(config, {"limit": 1, "workers": 0, "threads": 1, "validation": 0}, tn.errors.DataError)
    if config.load is not None and (config.weights is not None or config.rewrite):
        other = "--weights" if config.weights is not None else "--rewrite"
        fact = f"--load is a whole network, and {other} another start"
        raise tn.errors.DataError(fact, fix="one of the two")
    if size is not None and not config.rewrite:
        raise tn.errors.RankError(f"the size {size!r} has no --rewrite that it is for", fix="--rewrite tucker2")
    if size is not None and not config.weights and not isinstance(tn.fitting.read_size(size), tn.ParameterBudget):
        fact = f"random cores have a part of the parameters of their kernels, not {size!r}"
        raise tn.errors.RankError(fact, fix='--size "parameters 0.5", or --weights')
    if config.teacher is None and (distillation or config.teacher_model):
        fact = f"distillation={distillation:g}, teacher_model={config.teacher_model} and no teacher"
        raise tn.errors.DataError(fact, fix="--teacher FILE, or leave them out")
    if not config.weights and len(config.rewrite) > 1:
        fact = "without --weights the errors of rewrites say nothing, and one of them cannot be chosen"
        raise tn.errors.LayerError(fact, rewrites=", ".join(config.rewrite), fix="one --rewrite, or --weights")
    return config


def _start(config: Config, images: tn.model.Images) -> nn.Module:
    """The network before the training.

    A decomposed one is kept in the output folder, so that a training continues from the very same numbers; a fit with
    another number of threads would not give them.

    Raises:
        TnalgebraError: the network, its weights or the decomposition are not what they should be.
    """
    model = fresh_model(config.model, images, seed=config.seed)
    if config.load is not None:
        return tn.load(config.load, into=model)
    if config.weights is not None:
        model = with_weights(model, config.weights)
    if not config.rewrite:
        return model
    size = tn.fitting.read_size(config.size)
    facts = {name: getattr(config, name) for name in ("rewrite", "size", "skip", "seed")}
    facts |= {
        "fitted": config.weights is not None,
        "network": tn.studies.digest_state(model),
        "images": images.pixels.shape[1:],
    }
    key = tn.studies.config_hash(facts)
    path = config.output / f"start-{key}.safetensors"
    if path.exists():
        return tn.load(path, into=model)
    example = (1, *images.pixels.shape[1:])
    if config.weights is not None:
        dense: dict[str | type[nn.Module], Any] = dict.fromkeys(
            tn.studies.globs_of(tn.nn.kernel_layers(model), config.skip)
        )
        patterns = {**dense, "*": list(config.rewrite)}
        model, report = tn.convert(model, patterns, size=size, example=example, backward=True, seed=config.seed)
        text = str(report)
    else:
        assert isinstance(size, tn.ParameterBudget)
        even = even_patterns(model, config.rewrite[0], parameters=size.fraction, skip=config.skip)
        model, report = from_random_cores(model, even, example=example, seed=config.seed)
        text = f"{report}\nrandom cores: the errors are those of random kernels"
    print(f"\n{text}", flush=True)
    write_network(model, path)
    return model


def summary(report: dict[str, Any]) -> str:
    """The last epochs, and the final accuracy."""
    rows = report["rows"]
    lines = ["epoch  learning rate  training loss  accuracy %  seconds"]
    lines += [
        f"{row['epoch']:>5}{row['learning_rate']:>15.3g}{row['training_loss']:>15.4f}"
        f"{100 * row['test_score']:>12.2f}{row['seconds']:>9.1f}"
        for row in rows[-10:]
    ]
    lines += ["", f"{report['model']}, {report['parameters']:,} parameters: {100 * report['accuracy']:.2f} % "]
    tested = "training images kept out" if report["validation"] else "test images"
    lines[-1] += f"of {report['images']} {tested} right after {len(rows)} epoch(s)"
    return "\n".join(lines)


def run() -> None:
    """The command line."""
    words = [word for argument in sys.argv[1:] for word in argument.split("=", 1)]
    digits = "--data" not in words or words[-1] == "--data" or words[words.index("--data") + 1] == "digits"
    presets = PRESETS if digits else dict(reversed(PRESETS.items()))
    try:
        with nullcontext() if is_first_process() else redirect_stdout(None):
            run_presets(presets, main, description=__doc__)
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # or a process may abort as it ends


if __name__ == "__main__":
    run()
