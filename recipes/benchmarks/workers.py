"""Time a study on workers of this machine, with and without workers that are killed, and compare its rows.

    python -m recipes.benchmarks.workers
    python -m recipes.benchmarks.workers --smoke
    python -m recipes.benchmarks.workers --images 60 --every 1 --kills 10

The convolutions of a ResNet-20 are cut, one in each row: in this process in one thread, on one worker, on two, and on
two of which one is killed again and again. The workers are started before the clock, and do a few rows.
- own time: the seconds that the rows themselves report;
- overhead: what a row takes beside that, of a worker's time: (seconds x workers - own time) / rows.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any

import torch

import tnalgebra as tn
from recipes.command import run_command
from recipes.reporting import aligned, print_settings

CUTS = ("out | in kh kw", "out kh | in kw", "out in | kh kw", "in | out kh kw")
SIZES = ("keep 0.75", "keep 0.5", "keep 0.25")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Time studies on workers."""

    images: int = 300
    """random test images; they determine how long a row takes"""
    every: int = 6
    """each sixth convolution is cut, in 12 ways; 1: all 18 that a study cuts, of which 212 rows are timed"""
    kills: int = 3
    """how often a worker is killed in the last study"""
    pause: float = 1.5
    """seconds between two kills"""
    seed: int = 0
    """of the weights, the images and the choice of the worker that is killed"""
    smoke: bool = False
    """few images and rows: whether all of it runs"""
    output: Path = Path("runs/benchmark-workers")
    """folder for the table and the measurements"""


def main(config: Config) -> list[dict[str, Any]]:
    """Run all contenders; returns a row for each."""
    if config.smoke:
        config = dataclasses.replace(config, images=20, every=18, kills=1, pause=0.2)
    print_settings(config)
    torch.set_num_threads(1)
    contenders = ("process", 0, 0), ("1 worker", 1, 0), ("2 workers", 2, 0), ("2 workers, killed", 2, config.kills)
    rows, serial = [], None
    for name, workers, kills in contenders[::3] if config.smoke else contenders:
        with TemporaryDirectory() as folder:
            measured, made = run_study(config, Path(folder), workers, kills=kills)
        serial = serial or made
        measured = {"contender": name, **measured, "same rows": made == serial}
        rows.append(measured)
        print(json.dumps(measured), flush=True)
    table = [[str(value) for value in row.values()] for row in rows]
    text = aligned([[*rows[0]], *table])
    print(f"\n{text}")
    config.output.mkdir(parents=True, exist_ok=True)
    tn.studies.write_text(config.output / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    tn.studies.write_text(config.output / "table.txt", f"{text}\n")
    return rows


def run_study(config: Config, folder: Path, workers: int, *, kills: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Seconds of a study and of its rows, and the rows without theirs.

    A first call makes a few rows and draws the kernels. What a study does beside rows is measured by a third one.
    """
    model = tn.command.build_model("resnet20", seed=config.seed, classes=10, channels=3)
    generator = torch.Generator().manual_seed(config.seed)
    pixels = torch.randint(256, (config.images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (config.images,), generator=generator)
    images = tn.model.Images(pixels, labels, tuple("0123456789"), "random", (0.5,) * 3, (0.25,) * 3)
    layers = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)][1 :: config.every]
    connection = tn.workers.connected(f"local:{workers}", time_limit=60) if workers else nullcontext()

    with connection as client:

        def study(scope: list[str], sizes: tuple[str, ...]) -> tuple[float, list[dict[str, Any]]]:
            options = tn.StudyOptions(scope=tuple(scope), untrained=True, scheduler=client, progress=False)
            started = time.perf_counter()
            rows = tn.study(model, images, folder, rewrites=CUTS, sizes=sizes, options=options).rows
            return time.perf_counter() - started, rows

        first = study(layers[:1], SIZES[:1])[1]
        ended = Event()
        killed: list[int] = []
        killer = Thread(target=kill_workers, args=(client, config, ended, killed), kwargs={"kills": kills})
        killer.start()
        seconds, rows = study(layers, SIZES)
        ended.set()
        killer.join()
        beside, _ = study(layers, SIZES)
    count = len(rows) - len(first)
    taken, alone = seconds - beside, sum(row["seconds"] for row in rows) - sum(row["seconds"] for row in first)
    measured = {"killed": len(killed), "rows": count, "seconds": round(taken, 2), "own time": round(alone, 2)}
    measured["overhead ms"] = round(1000 * (taken * max(1, workers) - alone) / count, 1)
    return measured, [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def kill_workers(client: Any, config: Config, ended: Event, killed: list[int], *, kills: int) -> None:
    """Kill a random worker several times, while the study runs, and list their processes in `killed`."""
    chance = random.Random(config.seed)
    for _ in range(kills):
        if ended.wait(config.pause):
            return
        killed.append(chance.choice([*client.cluster.workers.values()]).pid)
        os.kill(killed[-1], signal.SIGKILL)


if __name__ == "__main__":
    run_command(Config, main, description=__doc__)
