"""Spectra of models, weights and networks, their measures, tables and figures; the laws of the HOSVD."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.refusals import refused
from tnalgebra.errors import LayerError, NetworkError, NotationError, RuleError, ValuesError
from tnalgebra.model.hosvd import hosvd
from tnalgebra.model.spectra import cut_singular_values, spectra
from tnalgebra.model.spectrum import Spectra, Spectrum
from tnalgebra.networks.bipartition import Bipartition, bipartitions, parse_bipartition
from tnalgebra.networks.notation import parse
from tnalgebra.nn.layers import decomposed
from tnalgebra.rewriting import start_fit
from tnalgebra.tensors.contraction import contract
from tnalgebra.tensors.evaluation import evaluate
from tnalgebra.tensors.linalg import matricise, truncated_svd

WORDS = ("out", "in", "kh", "kw", "kd")
GRAM = 1e-8  # values above 1e-6 of the largest are right to this part of it
EXACT = 1e-12


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(values: list[float]) -> Spectrum:
    return Spectrum("layer", Bipartition(("out",), ("in",)), torch.tensor(values, dtype=torch.float64))


@st.composite
def tensors(draw: st.DrawFn, *, smallest: int = 1) -> tuple[Tensor, tuple[str, ...]]:
    """2 to 4 labels, every axis of another size, in any order; sometimes of low rank along the first axis."""
    axes = draw(st.integers(2, 4))
    shape = draw(st.permutations(range(smallest, smallest + 5)))[:axes]
    seed = draw(st.integers(0, 2**30))
    tensor = gaussian(*shape, seed=seed)
    if draw(st.booleans()):
        low = gaussian(shape[0], 1, seed=seed + 1) @ gaussian(1, shape[0], seed=seed + 2)
        tensor = torch.tensordot(low, tensor, 1)
    return tensor * 10.0 ** draw(st.sampled_from([0, 0, -150, 150])), WORDS[:axes]


@st.composite
def lists_of_values(draw: st.DrawFn) -> list[float]:
    values = draw(st.lists(st.floats(0, 1e3, width=32), min_size=1, max_size=9))
    return sorted(values, reverse=True)


# Singular values over cuts ------------------------------------------------------------------------------------


@given(tensors())
def test_every_cut_has_the_singular_values_of_its_matrix(drawn: tuple[Tensor, tuple[str, ...]]) -> None:
    tensor, labels = drawn
    cuts = bipartitions(labels)
    for cut, found in zip(cuts, cut_singular_values(tensor, labels, cuts), strict=True):
        expected = torch.linalg.svdvals(matricise(tensor, labels, cut))
        assert found.shape == expected.shape
        difference = (found - expected).abs() / expected[0]
        assert difference[expected > 1e-6 * expected[0]].max() <= GRAM
        assert difference.max() <= 1e-7


def test_cuts_that_differ_by_labels_of_size_1_share_one_computation() -> None:
    labels, cuts = WORDS[:4], bipartitions(WORDS[:4])
    found = dict(zip(map(str, cuts), cut_singular_values(gaussian(6, 4, 1, 1), labels, cuts), strict=True))
    kernel = found["out | in kh kw"]
    assert all(found[cut] is kernel for cut in ("in | out kh kw", "out kh | in kw", "out kw | in kh"))
    norm = found["kh | out in kw"]
    assert all(found[cut] is norm for cut in ("kw | out in kh", "out in | kh kw"))
    torch.testing.assert_close(norm, gaussian(6, 4, 1, 1).square().sum().sqrt()[None])


def test_a_cut_of_other_labels_is_refused() -> None:
    cuts = [parse_bipartition("out | in k"), parse_bipartition("out | in other")]
    with refused(RuleError, "'other'"):
        cut_singular_values(gaussian(3, 2, 1), ("out", "in", "k"), cuts)


def test_a_model_lists_every_layer_and_cut_in_order() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, (3, 2), groups=2), nn.ReLU(), nn.Linear(5, 7), nn.ConvTranspose1d(3, 4, 2))
    found = spectra(model)
    kernel_cuts = [str(cut) for cut in bipartitions(("out", "in", "kh", "kw"))]
    expected = [*(("0", cut) for cut in kernel_cuts), ("2", "out | in")]
    expected += [("3", cut) for cut in ("out | in k", "in | out k", "k | out in")]
    assert [(item.layer, str(item.cut)) for item in found] == expected
    weights = {"0": (WORDS[:4], model[0].weight), "2": (WORDS[:2], model[2].weight)}
    weights["3"] = (("in", "out", "k"), model[3].weight)  # a transposed convolution stores its inputs first
    for item in found:
        labels, weight = weights[item.layer]
        values = torch.linalg.svdvals(matricise(weight.detach().double(), labels, item.cut))
        torch.testing.assert_close(item.singular_values, values, rtol=0, atol=GRAM * float(values[0]))


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3), (5, 4, 3, 2), (6, 5, 4, 3, 2)])
def test_a_weight_is_read_as_torch_stores_it(shape: tuple[int, ...]) -> None:
    weight = gaussian(*shape)
    found = spectra(nn.Parameter(weight))
    labels = {2: "out in", 3: "out in k", 4: "out in kh kw", 5: "out in kd kh kw"}[len(shape)].split()
    assert [item.cut for item in found] == bipartitions(labels)
    assert {item.layer for item in found} == {"weight"}
    array = weight.numpy()[::-1]
    array.flags.writeable = False
    for item, other in zip(found, spectra(array), strict=True):
        torch.testing.assert_close(item.singular_values, other.singular_values)
    module = nn.Linear(4, 5)
    assert spectra(module)[0].layer == "weight"


def test_a_network_has_the_spectra_of_its_value() -> None:
    network = parse("A[out p] B[p in q] C[q k] -> [k out in]")
    values = {"A": gaussian(5, 2), "B": gaussian(2, 4, 3, seed=1), "C": gaussian(3, 6, seed=2)}
    found = spectra(network, values=values)
    assert str(spectra(start_fit(network, values))) == str(found)
    assert [str(item.cut) for item in found] == ["out | in k", "in | out k", "k | out in"]
    assert {item.layer for item in found} == {"network"}
    dense = evaluate(network, values)
    for item in found:
        expected = torch.linalg.svdvals(matricise(dense, network.output, item.cut))
        keep = expected > 1e-6 * expected[0]
        torch.testing.assert_close(item.singular_values[keep], expected[keep], rtol=0, atol=GRAM * float(expected[0]))
    assert len(found[0].singular_values) == 5
    assert (found[0].singular_values[2:] < 1e-7 * found[0].singular_values[0]).all()  # the bond p has size 2


def test_what_has_no_spectra() -> None:
    for target, values, error, facts in (
        (nn.Sequential(nn.ReLU()), None, LayerError, ["Sequential"]),
        (
            decomposed(nn.Linear(4, 4), "out | in", 1),
            None,
            LayerError,
            ["nn.Linear", "decomposed already", "to_dense()"],
        ),
        (nn.Sequential(nn.ReLU(), nn.LazyLinear(3)), None, LayerError, ["'1'", "run the model once"]),
        (torch.ones(3), None, ValuesError, ["2 to 5", "(3,)"]),
        (torch.ones(3, 0), None, ValuesError, ["'weight'", "empty"]),
        (torch.ones(3, 2), {}, ValuesError, ["values", "Tensor"]),
        (parse("A[i j]"), None, ValuesError, ["'A'"]),
        (parse("A[i]"), {"A": torch.ones(3)}, NetworkError, ["1 output labels", "2 to 12"]),
        (5, None, ValuesError, ["int"]),
        ("x", None, NotationError, ["'x'", "no brackets"]),
    ):
        with refused(error, *facts):
            spectra(target, values=values)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_names_its_layer(bad: float) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.ModuleDict({"head": nn.Linear(3, 2)}))
    with torch.no_grad():
        model.get_parameter("1.head.weight")[1, 2] = bad
    with refused(ValuesError, "'1.head'", "1 of 6 elements"):
        spectra(model)


# Measures of one spectrum ---------------------------------------------------------------------------------------


@given(lists_of_values())
def test_measures_lie_between_one_value_and_all(values: list[float]) -> None:
    spectrum, count = planted(values), len(values)
    assert 0 <= spectrum.entropy <= math.log(count) + 1e-12
    assert spectrum.effective_rank == math.exp(spectrum.entropy)
    # the Renyi entropy of order 2 is never above Shannon's
    assert 1 - 1e-12 <= spectrum.participation_ratio <= spectrum.effective_rank * (1 + 1e-12)
    total = math.fsum(value**2 for value in values)
    if total:
        shares = [value**2 / total for value in values]
        entropy = -math.fsum(share * math.log(share) for share in shares if share)
        assert spectrum.entropy == pytest.approx(entropy, abs=1e-12)
        assert spectrum.participation_ratio == pytest.approx(1 / math.fsum(share**2 for share in shares), rel=1e-12)


@given(tensors(), st.data())
def test_norm_kept_and_relative_error_are_those_of_the_truncated_kernel(
    drawn: tuple[Tensor, tuple[str, ...]], data: st.DataObject
) -> None:
    tensor, labels = drawn
    tensor = tensor / tensor.abs().max()
    cuts = bipartitions(labels)
    number = data.draw(st.integers(0, len(cuts) - 1))
    matrix = matricise(tensor, labels, cuts[number])
    spectrum = Spectrum("layer", cuts[number], cut_singular_values(tensor, labels, cuts)[number])
    norm = torch.linalg.matrix_norm(matrix)
    for rank in range(1, min(matrix.shape) + 1):
        left, values, right = truncated_svd(matrix, rank)
        kept = (left * values) @ right
        assert float(spectrum.norm_kept[rank - 1]) == pytest.approx(float(torch.linalg.matrix_norm(kept) / norm))
        error = float(torch.linalg.matrix_norm(matrix - kept) / norm)
        assert float(spectrum.relative_error[rank - 1]) == pytest.approx(error, abs=2e-7)  # small values are Gram's
    assert spectrum.relative_error[-1] == 0
    torch.testing.assert_close(
        spectrum.norm_kept.square() + spectrum.relative_error.square(),
        torch.ones(min(matrix.shape), dtype=torch.float64),
    )


def test_equal_values_and_a_single_one_are_the_two_ends() -> None:
    equal, single = planted([1e-170] * 5), planted([3e200, 0.0, 0.0])
    assert equal.entropy == pytest.approx(math.log(5))
    assert equal.participation_ratio == pytest.approx(5)
    assert (single.entropy, single.effective_rank, single.participation_ratio) == (0, 1, 1)
    torch.testing.assert_close(planted([4.0, 3.0]).norm_kept, torch.tensor([0.8, 1.0], dtype=torch.float64))
    torch.testing.assert_close(planted([4.0, 3.0]).relative_error, torch.tensor([0.6, 0.0], dtype=torch.float64))


def test_a_kernel_of_zeros_is_kept_in_full_by_any_rank() -> None:
    found = spectra(torch.zeros(5, 4, 3, 2))
    assert len(found) == 7
    for item in found:
        count = len(item.singular_values)
        assert torch.equal(item.singular_values, torch.zeros(count, dtype=torch.float64))
        assert (item.entropy, item.effective_rank, item.participation_ratio) == (0, 1, 1)
        assert item.norm_kept.tolist() == [1] * count
        assert item.relative_error.tolist() == [0] * count


# Tables and figures ---------------------------------------------------------------------------------------------


def small() -> Spectra:
    model = nn.Sequential(nn.Linear(2, 3), nn.Conv1d(3, 2, 4))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[4.0, 0.0], [0.0, 3.0], [0.0, 0.0]]))
        model[1].weight.zero_()
    return spectra(model)


def test_the_table() -> None:
    lines = str(small()).splitlines()
    assert [lines[0], *lines[2:]] == [
        "layer  cut         values  entropy  effective rank  participation ratio  half  norm kept",
        "0      out | in         2     0.65            1.92                 1.85     1     0.8000",
        "1      out | in k       2     0.00            1.00                 1.00     1     1.0000",
        "1      in | out k       3     0.00            1.00                 1.00     2     1.0000",
        "1      k | out in       4     0.00            1.00                 1.00     2     1.0000",
    ]
    assert repr(small()) == "<Spectra of 4 cuts in 2 layers>"
    assert [record["values"] for record in small().records()] == [2, 2, 3, 4]


def test_spectra_are_a_sequence() -> None:
    found = small()
    assert len(found) == len(list(found)) == 4
    assert found[-1].cut == parse_bipartition("k | out in")
    part = found[1:3]
    assert isinstance(part, Spectra)
    assert [item.layer for item in part] == ["1", "1"]
    assert "layer" in str(Spectra(()))


def test_to_pandas_has_one_row_a_singular_value() -> None:
    frame = small().to_pandas()
    columns = ["layer", "cut", "rank", "singular_value", "norm_kept", "relative_error"]
    assert list(frame.columns) == [*columns, "entropy", "effective_rank", "participation_ratio"]
    assert len(frame) == 2 + 2 + 3 + 4
    assert frame["rank"].tolist() == [1, 2, 1, 2, 1, 2, 3, 1, 2, 3, 4]
    first = frame[frame["layer"] == "0"]
    assert first["cut"].tolist() == ["out | in", "out | in"]
    for column, expected in (("singular_value", [4, 3]), ("norm_kept", [0.8, 1]), ("relative_error", [0.6, 0])):
        np.testing.assert_allclose(first[column], expected)
    assert list(Spectra(()).to_pandas().columns) == list(frame.columns)


def test_plot_has_a_panel_a_cut_and_a_line_a_layer() -> None:
    model = nn.Sequential(nn.Linear(7, 6), nn.Linear(5, 4), nn.Conv1d(3, 6, 2))
    found = spectra(model)
    panels = [axes for axes in found.plot().axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["out | in", "out | in k", "in | out k", "k | out in"]
    assert [len(axes.get_lines()) for axes in panels] == [2, 1, 1, 1]
    assert all(axes.get_yscale() == "log" for axes in panels)
    line = panels[0].get_lines()[0]
    np.testing.assert_allclose(line.get_ydata(), found[0].singular_values / found[0].singular_values[0])
    np.testing.assert_allclose(line.get_xdata(), np.arange(1, 7) / 6, rtol=1e-6)


def test_plot_writes_by_suffix(tmp_path: Path) -> None:
    small().plot(tmp_path / "deep" / "spectra.png")
    small().plot(tmp_path / "deep" / "spectra.SVG")
    assert (tmp_path / "deep" / "spectra.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "deep" / "spectra.SVG").read_bytes()
    assert len(list((tmp_path / "deep").iterdir())) == 2
    with refused(NetworkError, ".jpg", ".png or .pdf"):
        small().plot(tmp_path / "spectra.jpg")


# HOSVD ----------------------------------------------------------------------------------------------------------


@given(tensors())
def test_hosvd_is_the_tensor_in_orthonormal_modes(drawn: tuple[Tensor, tuple[str, ...]]) -> None:
    """The slices of the core are orthogonal, and their norms the singular values of the mode."""
    tensor, labels = drawn
    found = hosvd(tensor, labels)
    unit = tensor.abs().max()
    core = (found.core / unit, tuple(f"{label}_mode" for label in labels))
    factors = [(found.factors[label], (label, f"{label}_mode")) for label in labels]
    torch.testing.assert_close(contract([core, *factors], labels), tensor / unit, rtol=0, atol=EXACT)
    for axis, (label, size) in enumerate(zip(labels, tensor.shape, strict=True)):
        factor, values = found.factors[label], found.singular_values[label]
        rank = min(size, tensor.numel() // size)
        assert factor.shape == (size, rank)
        torch.testing.assert_close(factor.mT @ factor, torch.eye(rank, dtype=torch.float64), rtol=0, atol=EXACT)
        others = tuple(other for other in labels if other != label)
        expected = torch.linalg.svdvals(matricise(tensor, labels, Bipartition((label,), others)))
        torch.testing.assert_close(values / values[0], expected / expected[0], rtol=0, atol=EXACT)
        slices = found.core.movedim(axis, 0).flatten(1) / values[0]
        torch.testing.assert_close(slices @ slices.mT, (values / values[0]).square().diag(), rtol=0, atol=EXACT)


def test_hosvd_names_what_does_not_fit() -> None:
    for tensor, labels, error, fact in (
        (torch.full((2, 3), torch.nan), ["out", "in"], ValuesError, "NaN"),
        (torch.ones(2, 3), ["out", "in", "k"], ValuesError, "3 labels"),
        (torch.ones(2), ["out"], RuleError, "empty"),
        (torch.ones(2, 3, 2), ["a", "b", "a"], ValuesError, "'a'"),
    ):
        with refused(error, fact):
            hosvd(tensor, labels)


def test_mode_matrices_come_with_the_spectra() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, (2, 4)), nn.ConvTranspose2d(5, 2, (3, 2)))
    found = spectra(model)
    modes = found.hosvd("1")
    assert list(modes.factors) == ["in", "out", "kh", "kw"]
    for label, values in modes.singular_values.items():
        alone = next(item for item in found if item.layer == "1" and item.cut.left == (label,))
        assert torch.allclose(values, alone.singular_values, rtol=0, atol=1e-7 * float(values[0]))
    weight = model[0].weight
    for one in (hosvd(weight), hosvd(weight.detach().numpy(), "out in kh kw"), spectra(weight).hosvd()):
        assert torch.equal(one.core, found.hosvd("0").core)


def test_a_layer_without_modes() -> None:
    with refused(LayerError, "0, 1"):
        spectra(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))).hosvd()
    with refused(LayerError, "'conv'"):
        spectra(torch.ones(2, 3)).hosvd("conv")
