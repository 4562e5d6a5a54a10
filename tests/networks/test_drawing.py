"""Drawings: everything is in them, nothing lies on anything else, files are whole, the same network gives the same."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.image import imread
from numpy.typing import NDArray

from tests.refusals import refused
from tests.strategies import networks
from tnalgebra.errors import NetworkError
from tnalgebra.networks import Conv, NamedTensor, Network, parse
from tnalgebra.networks.drawing.labels import bezier
from tnalgebra.networks.drawing.layout import LARGEST_DRAWING, Layout, layout

CONVOLUTION = (
    "X[n:16 in:3 x:32 y:30] Conv[x u kh | stride=2 padding=1] Conv[y v kw | stride=2 padding=1]"
    " K[out:64 in kh:3 kw:5] -> [n out u v]"
)
POOLING = (
    "X[n c x y] Conv[x u kh | stride=2] Conv[y v kw | stride=2]"
    " Fill[kh:2 | value=1/2] Fill[kw:2 | value=1/2] -> [n c u v]"
)


def many(stem: str, count: int) -> str:
    """Labels that differ in their last two characters."""
    return " ".join(f"{stem}{k:02}" for k in range(count))


GALLERY = {
    "kernel": "K[out:64 in:32 kh:3 kw:3]",
    "tucker2": "U[out a] G[a b kh kw] V[b in] -> [out in kh kw]",
    "tucker": "G[a b c d] U[out a] V[in b] P[kh c] Q[kw d] -> [out in kh kw]",
    "cp": "A[out r] B[in r] C[kh r] D[kw r] -> [out in kh kw]",
    "train": "A[out p] B[p in q] C[q kh s] D[s kw]",
    "ring": "A[z out p] B[p in q] C[q kh s] D[s kw z]",
    "block term": "U[out a t] G[a b kh kw t] V[b in t] -> [out in kh kw]",
    "reshaped train": "Fuse[out o1 o2] Fuse[in i1 i2] A[o1 i1 p] B[p o2 i2 q] C[q kh kw] -> [out in kh kw]",
    "separable": "A[out in kh] B[out in kw] -> [out in kh kw]",
    "depthwise separable": "D[in kh kw] P[out in] -> [out in kh kw]",
    "Monarch": "Fuse[in a i] R[a j i] L[j b a] Fuse[out b j] -> [out in]",
    "convolution": CONVOLUTION,
    "grouped convolution": (
        "X[n c x y] Fuse[c g in] Conv[x u kh] Conv[y v kw] K[out in kh kw] Fuse[out g m] -> [n out u v]"
    ),
    "average pooling": POOLING,
    "a convolution, then pooling": str(parse(CONVOLUTION) >> parse(POOLING)),
    "scalar and loop": "s[] T[a a b]",
    "closed labels": "A[i j k] Copy[j l m] B[l] -> [i m]",
    "closed hyperedge": "A[i r] B[j r] C[r]",
    "parallel bonds": "A[i j k l] B[j k l m]",
    "a label three times on a node": "T[a a a b b] U[b c c] -> [a]",
    "every attribute": "M[x u kh] Conv[x u kh | stride=2 padding=1:0 dilation=3 mode=circular] -> []",
    "long names": (
        "encoder_weight_1[input_channels hidden_bond] decoder_weight_1[hidden_bond output_channels height width]"
    ),
    "long parallel bonds": "A[i batch_of_images output_channel k] B[batch_of_images output_channel k m]",
    "complete graph": "A[a b c d] B[a e f g] C[b e h i] D[c f h j] E[d g i j]",
    "train of 30": " ".join(f"A{k}[b{k} o{k} b{k + 1}]" for k in range(30)),
    "ring of 30": " ".join(f"A{k}[b{k} o{k} b{(k + 1) % 30}]" for k in range(30)),
    "a tree": " ".join(f"N{k}[e{k} e{2 * k} e{2 * k + 1}]" for k in range(1, 12)),
    "many parts": " ".join(f"v{k}[i{k}]" for k in range(14)),
    "20 legs": f"T[{many('a', 20)}]",
    "16 legs of known size": "T[" + " ".join(f"a{k}:128" for k in range(16)) + "]",
    "24 legs of long labels": f"T[{many('long_label', 24)}]",
    "12 legs on either side": f"A[{many('a', 12)} z] B[z {many('b', 12)}]",
}

every_network = pytest.mark.parametrize("text", GALLERY.values(), ids=GALLERY.keys())
some_networks = pytest.mark.parametrize("name", ["kernel", "Monarch", "every attribute", "many parts", "20 legs"])


def written(document: str) -> list[str]:
    """The texts of an SVG document. Raises ParseError if it is not well-formed."""
    root = ElementTree.fromstring(document)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return ["".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")]


@cache
def plan_of(text: str) -> Layout:
    network = parse(text)
    return layout(network.nodes, network.output, network.sizes)


@cache
def drawing_of(text: str) -> str:
    return parse(text)._repr_svg_()


def symbols_of(plan: Layout) -> NDArray[np.float64]:
    """x, y, half width and half height of every symbol."""
    return np.concatenate([plan.xy, [symbol.half for symbol in plan.symbols]], axis=1)


def texts_of(plan: Layout) -> NDArray[np.float64]:
    return plan.boxes[~np.isnan(plan.boxes[:, 0])]


def overlapping(boxes: NDArray[np.float64]) -> NDArray[np.int_]:
    apart = np.abs(boxes[:, None, :2] - boxes[:, :2]) - boxes[:, None, 2:] - boxes[:, 2:]
    return np.argwhere(np.triu((apart < 0).all(axis=-1), 1))


def inside(curve: NDArray[np.float64], box: NDArray[np.float64]) -> bool:
    points = bezier(curve[None], np.linspace(0, 1, 101)[None])[0]
    return bool((np.abs(points - box[:2]) < box[2:]).all(axis=1).any())


# What is in a drawing ----------------------------------------------------------------------------------------


@pytest.mark.slow
@every_network
def test_drawing_holds_every_label_name_and_attribute(text: str) -> None:
    network = parse(text)
    expected = Counter(
        f"{label}:{network.sizes[label]}" if label in network.sizes else label
        for label in {label for node in network.nodes for label in node.labels}
    )
    for node in network.nodes:
        if isinstance(node, NamedTensor):
            expected[node.name] += 1
        elif isinstance(node, Conv):
            expected["\N{ASTERISK OPERATOR}"] += 1
            expected.update(f"{key} {value}" for key, value in node.attributes.items())
        else:
            expected.update(node.attributes.values())
    assert Counter(written(drawing_of(text))) == expected


@pytest.mark.slow
def test_drawing_is_the_same_in_another_process_and_style() -> None:
    text = GALLERY["grouped convolution"]
    program = f"import tnalgebra as tn; print(tn.parse({text!r})._repr_svg_(), end='')"
    other = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        encoding="utf-8",
    )
    with rc_context({"font.size": 30, "lines.linewidth": 9, "figure.facecolor": "red", "svg.fonttype": "path"}):
        assert parse(text)._repr_svg_() == other.stdout


def test_tied_tensors_share_a_colour_and_others_do_not() -> None:
    document = drawing_of(" ".join(f"T{k % 12}[i{k}]" for k in range(24)))
    fills = re.findall(r"fill: (#\w{6}); stroke: #\w{6}; stroke-width: 1.3", document)
    assert fills[:12] == fills[12:]
    assert len(set(fills)) == 12


def test_kinds_of_lines() -> None:
    kinds = {item.label: item.kind for item in plan_of("T[a a b c d] U[b e] V[d] W[d] -> [c d]").items}
    assert kinds == {"a": "loop", "b": "bond", "c": "open", "e": "closed", "d": "open"}


def test_hyperedge_has_a_dot_joined_to_every_carrier() -> None:
    plan = plan_of("A[i r] B[j r] C[k r r]")
    assert [symbol.place for symbol in plan.symbols] == [0, 1, 2, "r"]
    bonds = [(item, curve) for item, curve in zip(plan.items, plan.curves, strict=True) if item.kind == "bond"]
    assert sorted(item.ends for item, _ in bonds) == [(0, 3), (1, 3), (2, 3), (2, 3)]
    for item, curve in bonds:
        assert np.allclose(curve[[0, 3]], plan.xy[list(item.ends)], atol=0.01)


def test_very_long_words_are_shortened() -> None:
    texts = written(drawing_of(f"{'W' * 300}[{'k' * 300}] Fill[j | value={'7' * 40}]"))
    assert all(len(text) <= 40 for text in texts)
    assert f"{'W' * 20}…{'W' * 19}" in texts


def test_network_too_large_to_draw() -> None:
    network = parse(" ".join(f"v{k}[i]" for k in range(LARGEST_DRAWING + 1)))
    assert written(network._repr_svg_()) == ["a network of 121 nodes: too large to draw"]
    with refused(NetworkError, "121 nodes", "at most 120"):
        network.draw()


# Where things are --------------------------------------------------------------------------------------------


@pytest.mark.slow
@every_network
def test_no_text_lies_on_a_symbol_a_text_or_a_line(text: str) -> None:
    plan = plan_of(text)
    assert len(overlapping(np.concatenate([symbols_of(plan), texts_of(plan)]))) == 0
    for item, curve in zip(plan.items, plan.curves, strict=True):
        for words, box in zip(plan.items, plan.boxes, strict=True):
            if item.kind != "note" and words.text and words.label != item.label:
                assert not inside(curve, box), f"the line {item.label} runs through {words.text!r}"


@every_network
def test_no_line_runs_through_a_symbol_that_it_does_not_join(text: str) -> None:
    plan = plan_of(text)
    for item, curve in zip(plan.items, plan.curves, strict=True):
        for number, box in enumerate(symbols_of(plan)):
            if item.kind != "note" and number not in item.ends:
                assert not inside(curve, box), f"the line {item.label} runs through {plan.symbols[number].place}"


@settings(max_examples=40)
@given(networks())
@example(parse("T[a b c d e f g h i j k l m n o p q r s t u v w x y z aa bb cc dd]"))
def test_symbols_of_random_networks_do_not_overlap(network: Network) -> None:
    plan = layout(network.nodes, network.output, network.sizes)
    assert [symbol.place for symbol in plan.symbols[: len(network.nodes)]] == list(range(len(network.nodes)))
    assert len(overlapping(symbols_of(plan))) == 0
    boxes = np.concatenate([symbols_of(plan), texts_of(plan)])
    left, bottom, right, top = plan.box
    assert (boxes[:, :2] - boxes[:, 2:] >= (left - 0.01, bottom - 0.01)).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= (right + 0.01, top + 0.01)).all()


@every_network
def test_legs_of_a_node_leave_it_apart(text: str) -> None:
    plan = plan_of(text)
    for number, at in enumerate(plan.xy):
        legs = [item.ends == (number,) and item.kind in ("open", "closed") for item in plan.items]
        if sum(legs) > 1:
            angles = np.sort(np.arctan2(*(plan.curves[legs, 1] - at).T[::-1]))
            assert np.rad2deg(np.diff(angles, append=angles[0] + 2 * np.pi).min()) > 6


def test_train_is_level_and_its_legs_hang() -> None:
    plan = plan_of(GALLERY["train"])
    assert len(set(plan.xy[:, 1])) == 1
    assert list(plan.xy[:, 0]) == sorted(plan.xy[:, 0])
    for item, curve in zip(plan.items, plan.curves, strict=True):
        if item.kind == "open":
            assert curve[3, 0] == pytest.approx(curve[0, 0], abs=0.01)
            assert curve[3, 1] < curve[0, 1]


def test_long_train_turns_back() -> None:
    plan = plan_of(GALLERY["train of 30"])
    assert len(set(plan.xy[:, 1])) > 1
    left, _, right, _ = plan.box
    assert (right - left) / 72 < 10  # inches: legible on a page


def test_ring_is_a_circle() -> None:
    at = plan_of(GALLERY["ring of 30"]).xy
    radii = np.hypot(*(at - at.mean(axis=0)).T)
    # coordinates that differ by less than 5 points are aligned
    assert np.ptp(radii) < 5


def test_nodes_stand_where_they_are_placed() -> None:
    network = parse("X[n in x] Conv[x u kh] A[out r] B[in r] C[kh r] -> [n out u]")
    places: dict[int | str, tuple[float, float]] = {
        "X": (0, 2),
        1: (1, 1),
        "A": (0, -1),
        "B": (0, 1),
        "C": (1, 0),
        "r": (0, 0),
    }
    plan = layout(network.nodes, network.output, network.sizes, places)
    apart = plan.xy - plan.xy[5]
    assert [symbol.place for symbol in plan.symbols] == [0, 1, 2, 3, 4, "r"]
    assert np.allclose(apart / apart[4, 0], [(0, 2), (1, 1), (0, -1), (0, 1), (1, 0), (0, 0)], atol=0.05)
    assert len(overlapping(np.concatenate([symbols_of(plan), texts_of(plan)]))) == 0


def test_a_hyperedge_without_a_place_stands_amid_its_carriers() -> None:
    network = parse("A[i r] B[j r] C[k r]")
    plan = layout(network.nodes, network.output, network.sizes, {"A": (0, 0), "B": (2, 0), "C": (1, 3)})
    assert np.allclose(plan.xy[3], plan.xy[:3].mean(axis=0), atol=5)


@pytest.mark.parametrize(
    ("places", "facts"),
    [
        ({"A": (0, 0)}, ["missing: 1: B, 2: B"]),
        ({"A": (0, 0), "B": (1, 0)}, ["missing: 1: B, 2: B", "unknown: 'B'"]),
        ({0: (0, 0), 1: (1, 0), 2: (2, 0), "j": (1, 1)}, ["unknown: 'j'"]),
    ],
)
def test_places_that_are_not_those_of_the_nodes(places: dict[int | str, tuple[float, float]], facts: list[str]) -> None:
    with refused(NetworkError, *facts):
        parse("A[i j] B[j k] B[k l]").draw(places=places)


def test_two_legs_of_a_node_are_symmetric() -> None:
    network = parse("D[in kh kw] P[out in] -> [out in kh kw]")
    plan = layout(network.nodes, network.output, network.sizes, {"D": (-1, 0), "P": (1, 0)})
    ways = {item.label: curve[3] - curve[0] for item, curve in zip(plan.items, plan.curves, strict=True)}
    assert ways["kh"] == pytest.approx(ways["kw"] * (1, -1))
    assert ways["kh"][0] < 0 < ways["kh"][1]  # away from P, the first above


# Files and figures -------------------------------------------------------------------------------------------


@some_networks
def test_png_is_written(name: str, tmp_path: Path) -> None:
    path = tmp_path / "network.PNG"
    figure = parse(GALLERY[name]).draw(path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = imread(path, format="png")[..., :3]
    assert pixels.shape[1] == pytest.approx(figure.get_size_inches()[0] * 150, abs=2)
    assert (pixels < 0.5).any()
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 1).all()  # nothing is cut off


def test_svg_is_written(tmp_path: Path) -> None:
    parse(GALLERY["Monarch"]).draw(str(tmp_path / "network.svg"))
    assert (tmp_path / "network.svg").read_text(encoding="utf-8") == drawing_of(GALLERY["Monarch"])


def test_title_stands_above_and_is_not_cut_off(tmp_path: Path) -> None:
    title = "a title of 5 $ that is much wider than the one small network below it"
    network = parse("A[i j]")
    network.draw(tmp_path / "network.svg", title=title)
    assert title in written((tmp_path / "network.svg").read_text(encoding="utf-8"))
    network.draw(tmp_path / "network.png", title=title)
    pixels = imread(tmp_path / "network.png")[..., :3]
    assert (pixels[:, :4] == 1).all()
    assert (pixels[:, -4:] == 1).all()


@pytest.mark.slow
def test_pdf_is_written_the_same_each_time_with_its_text_as_text(tmp_path: Path) -> None:
    files = [tmp_path / "one.pdf", tmp_path / "other.PDF"]
    for path in files:
        parse(GALLERY["Monarch"]).draw(path)
    content = files[0].read_bytes()
    assert content.startswith(b"%PDF")
    assert b"/Type /Font" in content
    assert content == files[1].read_bytes()


@pytest.mark.parametrize("name", ["ring.jpg", "ring"])
def test_other_suffixes_are_refused(name: str, tmp_path: Path) -> None:
    with refused(NetworkError, tmp_path / name, ".svg, .png or .pdf"):
        parse("A[i j]").draw(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf"])
def test_failure_leaves_the_old_file_and_nothing_else(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = parse("A[i j]")
    path = tmp_path / f"network{suffix}"
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="no space left"):
            network.draw(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    network.draw(path)
    assert path.read_bytes() != b"old"


def test_several_networks_side_by_side(tmp_path: Path) -> None:
    figure = Figure(figsize=(9, 3))
    for position, name in enumerate(("tucker2", "ring", "convolution")):
        axes = figure.add_subplot(1, 3, position + 1)
        network = parse(GALLERY[name])
        path = tmp_path / "all.svg"
        assert network.draw(path, title=name, axes=axes) is figure
        room = axes.get_window_extent()
        for text in axes.texts:
            box = text.get_window_extent()
            assert room.x0 <= box.x0
            assert box.x1 <= room.x1
            assert room.y0 <= box.y0
            assert box.y1 <= room.y1
    assert {"tucker2", "ring", "convolution", "U", "z", "n:16"} <= set(written(path.read_text(encoding="utf-8")))


def test_axes_of_a_subfigure() -> None:
    figure = Figure()
    left = figure.add_subfigure(figure.add_gridspec(1, 2)[0])
    assert parse("A[i j]").draw(axes=left.add_subplot()) is figure


@pytest.mark.slow
def test_import_is_light_and_pyplot_is_left_alone() -> None:
    program = (
        "import sys, tnalgebra\n"
        "before = set(sys.modules)\n"
        "assert 'matplotlib' not in before\n"
        "tnalgebra.parse('A[i]')._repr_svg_()\n"
        "assert 'matplotlib.pyplot' not in set(sys.modules) - before\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
