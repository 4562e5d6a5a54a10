"""The search for topologies over images: which images are looked at, what orders the results, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

import tnalgebra as tn
from tests.refusals import refused
from tnalgebra.command.line import run_line
from tnalgebra.command.search import search_over_images
from tnalgebra.errors import DataError, LayerError
from tnalgebra.model import Images, input_metrics, load_images
from tnalgebra.studies import accuracy

SPACE = tn.Space(cores=(2, 2), bonds="tree", catalogue=False)
CALIBRATE, TESTED, SEED = 30, 50, 3


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)]
    return nn.Sequential(*layers).eval()


def parts(images: Images) -> tuple[list[torch.Tensor], Images]:
    """The batches for errors and the images for accuracies, by the order that the seed gives."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED))
    some = [order[:CALIBRATE], order[CALIBRATE : CALIBRATE + TESTED]]
    first, other = (dataclasses.replace(images, pixels=images.pixels[one], labels=images.labels[one]) for one in some)
    return [x for x, _ in first.batches(128)], other


def test_a_network_is_searched_by_errors_and_then_by_accuracy() -> None:
    images, model = load_images("digits", "train").subset(CALIBRATE + TESTED, seed=0), network()
    counts = {"calibrate": CALIBRATE, "tested": None, "seed": SEED, "finalists": 2}
    found = search_over_images(model, images, "parameters 0.95", layer=None, space=SPACE, **counts)
    calibration, others = parts(images)
    same = tn.search(
        model,
        "parameters 0.95",
        space=SPACE,
        example=(1, 1, 8, 8),
        calibration=calibration,
        test=lambda small: accuracy(small, others, batch_size=128),
        finalists=2,
        seed=SEED,
    )
    assert str(found) == str(same)
    assert 0 <= found.best["accuracy"] <= 1
    by_kernels = search_over_images(model, images, "parameters 0.95", layer=None, space=SPACE, **counts | {"tested": 0})
    assert by_kernels.best["accuracy"] is None


@pytest.mark.parametrize("calibrate", [0, CALIBRATE])
def test_a_layer_is_searched_by_the_error_of_its_output(calibrate: int) -> None:
    images, model = load_images("digits", "train").subset(200, seed=0), network()
    counts = {"calibrate": calibrate, "tested": None, "seed": SEED, "finalists": 2}
    found = search_over_images(model, images, "parameters 0.5", layer="2", space=SPACE, **counts)
    metric = input_metrics(model, parts(images)[0], layers=["2"])["2"] if calibrate else None
    same = tn.search(model[2], "parameters 0.5", space=SPACE, metric=metric, finalists=2, seed=SEED)
    assert str(found) == str(same)
    assert found.best["parameters"] <= 0.5 * model[2].weight.numel()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    source = "from tests.command.test_search import network\ndef build(classes=10, channels=1): return network()\n"
    (tmp_path / "searched_nets.py").write_text(source)
    few = ["--cores", "2", "2", "--bonds", "tree", "--finalists", "1"]
    over = ["--data", "digits", "--calibrate", "20", "--tested", "40"]
    run_line(["search", "searched_nets:build", *over, *few, "--size", "parameters 0.95", "--output", "run"])
    printed = capsys.readouterr().out
    assert "accuracy" in printed
    assert printed.splitlines()[-1].startswith('tn.rule("K[out in kh kw] => ')
    run_line(["search", "searched_nets:build", *over, *few, "--size", "parameters 0.95", "--output", "run"])
    assert capsys.readouterr().out == printed
    run_line(["search", "searched_nets:build", "2", *over, *few])
    assert "accuracy" not in capsys.readouterr().out
    run_line(["search", "searched_nets:build", *few, "--size", "parameters 0.95"])
    assert "parameters 0.95" in capsys.readouterr().out
    with refused(LayerError, "'7'", "0, 2, 5"):
        run_line(["search", "searched_nets:build", "7", *over, *few])
    with refused(LayerError, "8x8x3x3", "--data"):
        run_line(["search", "8x8x3x3", *over, *few])


@pytest.mark.parametrize(("calibrate", "tested", "fact"), [(150, 100, "200"), (-1, 10, "-1"), (10, -2, "-2")])
def test_too_few_images_are_refused(calibrate: int, tested: int, fact: str) -> None:
    images = load_images("digits", "train").subset(200, seed=0)
    with refused(DataError, fact):
        search_over_images(network(), images, "parameters 0.5", layer=None, calibrate=calibrate, tested=tested, seed=0)
