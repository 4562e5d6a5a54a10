"""How small can the kernels of a network be, and what does that do to its accuracy?

    python -m recipes.compressibility --smoke    # embedded digits, a small CNN: seconds
    python -m recipes.compressibility            # the same in full: half a minute
    python -m recipes.compressibility --model resnet20 --weights W.pth --data DIR \\
        --rewrite "out | in kh kw" "out kh | in kw" --size "keep 0.75" "keep 0.5"
    python -m recipes.compressibility --rewrite cp tucker2 --size r=8 r=16 "a=4 b=4" "a=8 b=8"
    python -m recipes.compressibility --rewrite tucker2 --size "parameters 0.7" --metric output
    python -m recipes.compressibility --model cnn4 --weights shipped --data cifar10 \\
        --also resnet20=shipped --rewrite "out kh | in kw" cp --size "keep 0.5" r=16 --seeds 0 1
    python -m recipes.compressibility --preset claims --model resnet20 --weights W.pth
    python -m recipes.compressibility --model mylib.nets:build --weights w.pth --data DIR

The study of Singh, Jahromi and Orus (arXiv 2403.14379), and more in its place:
- This is the command tnalgebra study with presets. The small network cnn4 is trained
  first where it has no weights.
- A kernel of a 2-d convolution has the labels out, in (channels), kh, kw (window).
  Each cut of these labels in two makes it a matrix; that matrix is truncated to a
  fraction of its singular values, put back, and the network tested, not retrained.
- A rewrite is any decomposition, by name or as one line of notation, such as
  "K[o i h w] => A[o p q] B[i q r] C[h r s] D[w s p]": the cores on its right side
  are fitted to the kernel. Labels that are new there are bonds; --size gives their
  ranks, or a part of the network's parameters, which is then shared out among the
  layers.
- Presets are experiments, on any network: cuts, the seven cuts of a kernel;
  several-cuts, one after the other on one kernel; cp, sums of rank-one tensors;
  claims, whose rows recipes.claims reads.
- Stopped and started again with the same settings the study continues where it was;
  more rewrites, sizes, metrics, scopes, networks and seeds can be added to a folder.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tnalgebra as tn
from recipes.command import run_presets, smoke_folder
from recipes.networks import trained_cnn4, trains_first
from recipes.reporting import print_settings


@dataclass(frozen=True, kw_only=True)
class Config(tn.command.StudySettings):
    """Settings of the study; what is printed first is what is used."""

    model: str = "cnn4"
    """cnn4 (trained first unless it has weights), resnet20, torchvision:NAME, timm:NAME, package.module:function"""
    scope: tuple[str, ...] = ("all", "each")
    """what one test compresses: all (the layers together), each (one layer at a time), or globs of layers' names"""
    epochs: int = 15
    """passes over the training images, where cnn4 is trained"""
    smoke: bool = False
    """few images, rows and epochs: whether all of it runs; its numbers mean nothing"""
    output: Path = Path("runs/compressibility")
    """the folder for the rows (results.jsonl), the figures (PNG and SVG) and the trained network"""


SEVERAL_CUTS = (
    "out | in kh kw then in | out kh kw",
    "out | in kh kw then in | out kh kw then kh | out in kw then kw | out in kh",
    "out kh | in kw then out kw | in kh",
    "out kh | in kw then in | out kh kw",
)
PRESETS = {
    "cuts": Config(),
    "several-cuts": Config(
        rewrite=SEVERAL_CUTS, size=("keep 0.75", "keep 0.5", "keep 0.25"), output=Path("runs/several-cuts")
    ),
    "cp": Config(
        rewrite=("cp",), size=("r=64", "r=32", "r=16", "r=8"), skip=("first", "linear"), output=Path("runs/cp")
    ),
    "claims": Config(
        size=("keep 0.75", "keep 0.5", "keep 0.25", "keep 0.1"),
        report_metric=True,
        output=Path("runs/claims"),
    ),
}
"""Experiments by name; the network and its data are settings of their own."""


def main(config: Config) -> tn.studies.Study:
    """Run the study; returns its rows. Raises TnalgebraError, see `tn.command.run_study`."""
    if config.smoke:
        config = dataclasses.replace(
            config,
            rewrite=config.rewrite[:2],
            size=config.size[-2:],
            limit=min(config.limit or 60, 60),
            calibrate=min(config.calibrate, 60),
            epochs=min(config.epochs, 2),
            output=smoke_folder(config.output, (preset.output for preset in PRESETS.values())),
        )
    config = dataclasses.replace(config, device=config.chosen_device())
    print_settings(config)
    print()
    config.check(epochs=1)
    if not trains_first(config):
        return tn.command.run_study(config)
    return tn.command.run_study(config, prepare=partial(trained_cnn4, config=config), facts={"epochs": config.epochs})


def run() -> None:
    """The command line."""
    run_presets(PRESETS, main, description=__doc__)


if __name__ == "__main__":
    run()
