"""What is imported when: a folder when one of its names is first used, and torch only by what needs it."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import tnalgebra as tn
from tnalgebra.command.line import COMMANDS

ROOT = Path(__file__).resolve().parent.parent

HEAVY = (
    *("torch", "torchvision", "numpy", "scipy", "pandas", "sklearn", "matplotlib", "networkx", "quimb", "opt_einsum"),
    *("safetensors", "filelock", "PIL", "tqdm", "tyro", "timm", "accelerate"),
)
"""Packages that take time to import."""

BEGIN = "import tnalgebra as tn; network = tn.parse('U[out a] G[a b kh kw] V[b in] -> [out in kh kw]'); "


def run(code: str, *arguments: str) -> str:
    """What the code prints in a process of its own, whose arguments are `arguments`."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import tnalgebra as tn; dir(tn)", ()),
        ("import tnalgebra as tn; tn.errors.RankError, tn.__version__", ()),
        (f"{BEGIN}str(network), network >> tn.parse('X[o i h w] y[o] -> [i h w]')", ("numpy",)),
        (f"{BEGIN}assert tn.networks.isomorphic(network, network)", ("numpy",)),
        (f"{BEGIN}assert 'svg' in network._repr_svg_()", ("numpy", "networkx", "matplotlib", "PIL")),
        ("import tnalgebra.command; tnalgebra.command.StudySettings(model='resnet20')", ("numpy",)),
        (
            "import tnalgebra as tn; [getattr(tn, name) for name in tn.__all__], tn.studies, tn.command.run_study",
            ("torch", "numpy", "networkx", "opt_einsum", "tqdm", "safetensors", "filelock", "PIL"),
        ),
    ],
    ids=["package", "errors", "notation", "isomorphic", "drawing", "settings", "everything"],
)
def test_what_is_not_imported(code: str, allowed: tuple[str, ...]) -> None:
    printed = run(f"{code}\nimport sys\nprint(*[name for name in {HEAVY} if name in sys.modules])")
    assert not {*printed.split()} - {*allowed}


def without(*packages: str) -> str:
    """Code after which these packages cannot be imported, as where they are not installed."""
    return f"""
import sys
from importlib.abc import MetaPathFinder
class Without(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {packages}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Without())
"""


WITHOUT_TORCH = f"""
{without("torch", "torchvision", "quimb", "opt_einsum")}
folder = sys.argv[1]
{BEGIN}
assert tn.parse(str(network)) == network
network.draw(f"{{folder}}/network.svg")
print(network)
convolution = tn.networks.convolution((3, 3), padding=1, in_channels=4, out_channels=5)
pooling = tn.networks.average_pooling((2, 2)).network
print(tn.networks.with_sizes(convolution >> pooling, {{"x": 8}}))
try:
    tn.parse("A[i")
except tn.errors.NotationError as error:
    print(error.fact)
from tnalgebra.command import main
sys.argv = ["tnalgebra", "draw", "A[i j] B[j k]", f"{{folder}}/command.png"]
main()
"""


def test_notation_networks_and_drawings_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    printed = run(WITHOUT_TORCH, str(tmp_path))
    assert "U[out a] G[a b kh kw] V[b in] -> [out in kh kw]" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"network.svg", "command.png"}


def test_help_and_the_list_of_commands_need_no_torch() -> None:
    code = f"""
{without(*(name for name in HEAVY if name not in ("numpy", "tyro")))}
from tnalgebra.command.line import COMMANDS, run_line
for arguments in ([], ["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)):
    try:
        run_line(arguments)
    except SystemExit as end:
        assert end.code == 0
"""
    printed = run(code)
    assert all(f"usage: tnalgebra {name}" in printed for name in COMMANDS)
    assert tn.__version__ in printed


@pytest.mark.parametrize("package", ["tnalgebra", "tnalgebra.command"])
def test_the_names_are_those_that_type_checkers_read(package: str) -> None:
    module = importlib.import_module(package)
    tree = ast.parse(inspect.getsource(module))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
    sources = {alias.name: node.module for node in imports for alias in node.names if not alias.asname or node.module}
    assert {*module.__all__} <= {*sources}
    for name in module.__all__:
        source = importlib.import_module(".".join(filter(None, (package, sources[name] or name))))
        assert getattr(module, name) is (getattr(source, name) if sources[name] else source), name


@pytest.mark.parametrize("package", ["tnalgebra", "tnalgebra.command"])
def test_other_names_are_no_attributes(package: str) -> None:
    module = importlib.import_module(package)
    for name in ("unknown", "__wrapped__", "Tensor", "notation"):
        assert not hasattr(module, name)
