"""The command from a wheel, in an environment of its own outside the checkout; its help; and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import tnalgebra as tn
from tnalgebra.command import build_model, main
from tnalgebra.command.line import COMMANDS, run_line

ROOT = Path(__file__).parents[2]
CLASSES = ("cat", "dog", "eel")

NET = '''
import torch
from torch import nn


def trained(classes, channels):
    """Knows which of three colours is the brightest; the same weights at every call, as if read from a file."""
    torch.manual_seed(5)
    model = untrained(classes, channels)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(40):
        labels = torch.randint(classes, (32,))
        images = torch.randn(32, channels, 16, 16) + 2 * nn.functional.one_hot(labels, channels)[:, :, None, None]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval()


def untrained(classes, channels):
    return nn.Sequential(nn.Conv2d(channels, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3),
                         nn.ReLU(), nn.Flatten(), nn.Linear(8 * 12 * 12, classes))
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a module of networks, and with images of 16x16 pixels, one colour brighter in each class."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "wheel_nets.py").write_text(NET)
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for label, name in enumerate(CLASSES):
            (folder / "data" / split / name).mkdir(parents=True)
            for number in range(4):
                pixels = generator.integers(128, size=(16, 16, 3), dtype=np.uint8)
                pixels[..., label] += 127
                Image.fromarray(pixels).save(folder / "data" / split / name / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment that has the wheel, and all other packages from this one."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "tnalgebra", source / "tnalgebra", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    python = folder / "env" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    (packages,) = (folder / "env").glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"])
    with zipfile.ZipFile(wheel) as archive:
        assert {name.partition("/")[0] for name in archive.namelist()} == {"tnalgebra", f"{wheel.stem[:15]}.dist-info"}
    return folder / "env" / "bin"


@pytest.fixture
def installed(environment: Path, folder: Path) -> Callable[..., str]:
    """Run the installed command; what it has printed."""

    def run(line: str, *, status: int = 0, command: str = "tnalgebra") -> str:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        variables = {"OMP_NUM_THREADS": "1"} | kept  # on small tensors, threads only hinder each other
        words = [environment / (command.split()[0]), *command.split()[1:], *shlex.split(line)]
        done = subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True, timeout=200)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr if status else done.stdout

    return run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_compress(installed: Callable[..., str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "compress wheel_nets:trained --data data --skip --size 'multiply-adds 0.6' --onnx --output small"
    printed = installed(line)
    names = {"model.safetensors", "model.onnx", "report.txt", "report.json", "report.html", "drawings", "commands.txt"}
    assert {path.name for path in (folder / "small").iterdir()} == names
    assert (folder / "small" / "report.txt").read_text() in printed
    result = json.loads((folder / "small" / "report.json").read_text())
    assert result["multiply_adds"]["after"] <= 0.6 * result["multiply_adds"]["before"]
    assert result["accuracy"]["before"] == 1
    assert [row["name"] for row in result["layers"]] == ["0", "3", "6"]
    page = (folder / "small" / "report.html").read_text()
    assert "--size &#39;multiply-adds 0.6&#39;" in page
    assert page.count("<img") == len(list((folder / "small" / "drawings").iterdir())) >= 2

    monkeypatch.chdir(folder)
    model = build_model("wheel_nets:trained", classes=3, channels=3)
    tn.load(folder / "small" / "model.safetensors", into=model)
    assert sum(parameter.numel() for parameter in model.parameters()) == result["parameters"]["after"]
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(folder / "small" / "model.onnx"), providers=["CPUExecutionProvider"])
    x = torch.randn(5, 3, 16, 16)
    (outputs,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    # float32: some hundred terms, summed in another order
    torch.testing.assert_close(torch.from_numpy(outputs), model.eval()(x).detach(), rtol=1e-4, atol=1e-4)
    assert "done before: small/" in installed(line)
    assert "parameters 0.5" in installed(line.replace("multiply-adds 0.6", "parameters 0.5"), status=2)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["timm:test_resnet", "torchvision:mobilenet_v3_small"])
def test_compress_a_network_of_a_library(model: str, installed: Callable[..., str], folder: Path) -> None:
    line = f"compress {model} --data data --calibrate 0 --rewrite tucker2 --output library"
    assert "not trained" in installed(line, status=2)
    shutil.rmtree(folder / "library", ignore_errors=True)
    assert "12 test images" in installed(f"{line} --untrained")
    result = json.loads((folder / "library" / "report.json").read_text())
    assert result["parameters"]["after"] <= 0.5 * result["parameters"]["before"]


@pytest.mark.slow
def test_study(installed: Callable[..., str], folder: Path) -> None:
    line = (
        "study wheel_nets:trained --data data --skip --rewrite 'out kh | in kw' cp --size 'keep 0.5' r=2 --output rows"
    )
    table = installed(line)
    rows = tn.studies.read_rows(folder / "rows")
    assert rows[0]["rewrite"] == "none"
    assert {row["rewrite"] for row in rows[1:]} == {"out kh | in kw", "cp"}
    assert all(row["rewrite"] in table for row in rows)
    before = (folder / "rows" / "results.jsonl").read_bytes()
    installed(line)
    assert (folder / "rows" / "results.jsonl").read_bytes() == before, "nothing is done again"
    refused = installed(line.replace("cp", "cq").replace("rows", "others"), status=2)
    assert "'cq'" in refused
    assert not (folder / "others").exists()


@pytest.mark.slow
def test_spectra(installed: Callable[..., str], folder: Path) -> None:
    torch.save(build_model("timm:test_resnet", classes=4, channels=3, seed=1).state_dict(), folder / "w.pth")
    printed = installed("spectra timm:test_resnet --classes 4 --weights w.pth --output spectra")
    assert "out kh | in kw" in printed
    assert {path.name for path in (folder / "spectra").iterdir()} == {"spectra.csv", "spectra.png", "spectra.svg"}
    table = pd.read_csv(folder / "spectra" / "spectra.csv")
    layer = table["layer"][0]
    weight = torch.load(folder / "w.pth")[f"{layer}.weight"]
    values = table[(table["layer"] == layer) & (table["cut"] == "out | in kh kw")]["singular_value"]
    assert values.tolist() == pytest.approx(torch.linalg.svdvals(weight.double().flatten(1)).tolist(), rel=1e-6)


@pytest.mark.slow
def test_compare(installed: Callable[..., str]) -> None:
    printed = installed(
        "compare wheel_nets:untrained 3 --classes 3 --channels 3 --rewrite cp 'out kh | in kw' --size 2"
    )
    assert [line.split("  ")[0] for line in printed.splitlines()[2:4]] == ["out kh | in kw", "cp"]
    assert "tensor_train" in installed("compare 8x6x3x3 --size 'parameters 0.3'")


@pytest.mark.slow
def test_draw_rules_and_plan(installed: Callable[..., str], folder: Path) -> None:
    installed("draw 'U[out a] G[a b kh kw] V[b in] -> [out in kh kw]' tucker2.svg")
    assert "</svg>" in (folder / "tucker2.svg").read_text()
    assert "K[out in k] => A[out r] B[in r] C[k r]" in installed("rules 'out in k'")
    network = "X[n i x] Conv[x u k | padding=1] A[o:64 r:8] B[r i k:3] -> [n o u]"
    plan = installed(f"plan '{network}' --input X=2,16,32 --code")
    compiled = tn.compile(
        network, inputs={"X": (2, 16, 32)}, values={"A": torch.ones(64, 8), "B": torch.ones(8, 16, 3)}
    )
    assert f"{compiled.plan.multiply_adds:,}" in plan
    assert "def forward(self, X" in plan


@pytest.mark.slow
def test_a_plain_name_outside_the_checkout(installed: Callable[..., str]) -> None:
    assert "torchvision:NAME" in installed("spectra resnet20", status=2)
    assert installed("--version", command="python -m tnalgebra").strip() == tn.__version__


# Help, and what is refused: in this process, which is quicker ----------------------------------------------------


@pytest.fixture
def called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> Callable[[str], tuple[int, str]]:
    """Call the command; its exit status, and what it has printed."""

    def call(line: str) -> tuple[int, str]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr("sys.argv", ["tnalgebra", *shlex.split(line)])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, printed.err if caught.value.code else printed.out

    return call


@pytest.mark.parametrize(("network", "random"), [("untrained", True), ("trained", False)])
def test_random_weights_are_noted(
    network: str, *, random: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    sizes = ["--classes", "3", "--channels", "3"]
    for line in (
        ["compare", f"wheel_nets:{network}", "3", "--rewrite", "cp", "--size", "2"],
        ["spectra", f"wheel_nets:{network}"],
    ):
        run_line([*line, *sizes])
        assert ("weights are random" in capsys.readouterr().err) == random


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command(name: str, called: Callable[[str], tuple[int, str]]) -> None:
    status, text = called(f"{name} --help")
    assert status == 0
    example = text.partition("Example:\n")[2].split("\n\n")[0].strip()
    assert example.startswith(f"tnalgebra {name} ")
    assert max(map(len, text.splitlines())) <= 120
    assert "(default: " in text or name == "draw"


def test_the_help_names_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for line in ([], ["--help"]):
        monkeypatch.setattr("sys.argv", ["tnalgebra", *line])
        main()
        text = capsys.readouterr().out
        assert all(f"  {name} " in text for name in COMMANDS)


REFUSED = {
    "comprss": "'compress'",
    "compress": "MODEL",
    "compress wheel_nets:trained --colour red": "--colour",
    "compress wheel_nets:trained --limit few": "--limit",
    "compress wheel_nets:trained --data nowhere": "'nowhere'",
    "compress wheel_nets:untrained --data data": "0.weight",
    "compress wheel_nets:trained --data data --rewrite tuker2": "tucker2",
    "compress wheel_nets:trained --data data --size 0.5": "'keep 0.5'",
    "compress wheel_nets:trained --data data --size 'parameters 2'": "ParameterBudget(2.0)",
    "compress wheel_nets:trained --data data --sequential --calibrate 0": "--calibrate 1024",
    "compress wheel_nets:trained --data data --batch-size 0": "batch-size is 0",
    "compress wheel_nets:absent --data data": "'absent'",
    "compress wheel_nets:trained --pretrained --data data": "--weights FILE",
    "study wheel_nets:untrained --data data": "--untrained",
    "study wheel_nets:trained --data data --size half": "'half'",
    "study wheel_nets:trained --data data --rewrite 'out | in kh kw' tuker2": "'tuker2'",
    "spectra timm:resnet27": "resnet26",
    "compare wheel_nets:trained 9 --classes 3 --channels 3": "'9'",
    "compare wheel_nets:trained --classes 3 --channels 3": "0, 3, 6",
    "compare 8x8x3x3 conv1": "'conv1'",
    "compare 8,8,3": "64x64x3x3",
    "draw 'U[a b' out.svg": "U[a b",
    "draw 'K[a b] => A[a r] B[r b]' out.svg": "one of its sides, 'A[a r] B[r b]'",
    "draw 'U[a b]' out.gif": ".svg",
    "rules 'out'": "out",
    "plan 'X[n i] A[o i] -> [n o]' --input X=4,8": "'o'",
    "plan 'X[n i] A[o:2 i] -> [n o]' --input Y=4,8": "'Y'",
    "plan 'X[n i] A[o:2 i] -> [n o]' --input X=4x8": "'X=4x8'",
}


@pytest.mark.parametrize("line", REFUSED)
def test_wrong_use_is_one_message_and_status_2(line: str, called: Callable[[str], tuple[int, str]]) -> None:
    status, message = called(line)
    assert status == 2
    assert REFUSED[line] in message
    assert "Traceback" not in message
    assert not Path("runs").exists(), "nothing is written"


@pytest.mark.parametrize(
    ("line", "package", "extra"),
    [
        ("rules", "tyro", "study"),
        ("study wheel_nets:trained --data data", "tqdm", "study"),
        ("compress wheel_nets:trained --data data --onnx", "onnxscript", "onnx"),
        ("compress timm:resnet26 --data data", "timm", "study"),
        ("spectra wheel_nets:trained --output out", "pandas", "study"),
    ],
)
def test_a_missing_package_is_named_before_the_work(
    line: str, package: str, extra: str, called: Callable[[str], tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("tnalgebra.command.build.find_spec", lambda name: None if name == package else find_spec(name))
    monkeypatch.setattr("tnalgebra.model.load_images", None)
    status, message = called(line)
    assert status == 2
    assert f"{package}, not installed here" in message
    assert f'pip install "tnalgebra[{extra}]"' in message


def test_a_reader_that_has_gone_ends_the_command_without_a_traceback() -> None:
    code = "import tnalgebra as tn; tn.command.run(lambda: [print('line', flush=True) for _ in range(9)])"
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
