"""Under `accelerate launch` several processes train one network, and it comes out as from one."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import tnalgebra as tn
from recipes.training import Classification, History, Training, crop_and_flip, train
from recipes.training.checkpoints import checkpoints
from tests.training_cases import QUIET, table
from tnalgebra.errors import DataError
from tnalgebra.model import load_images

ROOT = Path(__file__).parents[3]

SCRIPT = """
import sys
import torch
from tests.recipes.training.test_processes import trained
print("score", trained(sys.argv[1]).rows[-1].test_score)
torch.distributed.destroy_process_group()
"""


def trained(folder: str | Path) -> History:
    """On digits, with a decomposed layer; batches that two processes cannot share out among them are refused first."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(128, 10)),
    )
    model, _ = tn.convert(model, {"3": ("out kh | in kw", {"r": 6}), "*": None})
    images = [load_images("digits", "train").subset(301, seed=0), load_images("digits", "test")]
    task = Classification(*images, crop_and_flip(8, padding=1, flip=False))
    # sgd: adamw would make much of small differences
    settings = Training(epochs=3, batch_size=43, learning_rate=0.1, clip=1.0, checkpoint_every=3)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        with pytest.raises(DataError):
            train(model, task, replace(settings, batch_size=1), f"{folder}-refused", **QUIET)
    return train(model, task, settings, folder, **QUIET)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed package here")
def test_two_processes_end_like_one(tmp_path: Path) -> None:
    """Started by torch's launcher, as `accelerate launch` starts those of several GPUs; on CPUs it needs MPI for it."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, str(script), str(tmp_path / "two")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("score") == 2
    one, two = trained(tmp_path / "one"), table(tmp_path / "two")
    assert f"score {two[-1][4]}" in done.stdout
    for ours, theirs in zip(one.rows, two[1:], strict=True):
        assert [str(value) for value in ours[:3]] == theirs[:3]
        # float32 sums in another order, 21 steps
        assert float(theirs[3]) == pytest.approx(ours.training_loss, rel=1e-4)
        assert abs(float(theirs[4]) - ours.test_score) <= 2 / 360
    assert one.rows[-1].test_score > 0.4
    a, b = (load_file(checkpoints(tmp_path / name)[-1] / "model.safetensors") for name in ("one", "two"))
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=1e-2, atol=1e-4)
    assert [path.name for path in checkpoints(tmp_path / "two")] == ["step-00000018", "step-00000021"]
    assert not (tmp_path / "two-refused" / "history.csv").exists()
