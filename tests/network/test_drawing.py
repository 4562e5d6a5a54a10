"""Drawings: everything is in them, nothing lies on anything else, files are whole, the same network gives the same."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from itertools import combinations
from math import hypot
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.image import imread
from numpy.typing import NDArray

import tnalgebra as tn
from tests.strategies import networks
from tnalgebra.errors import NetworkError
from tnalgebra.network.drawing.draw import draw, svg
from tnalgebra.network.drawing.layout import LARGEST_DRAWING, Layout, Line, Symbol, Text, layout
from tnalgebra.network.network import Network
from tnalgebra.network.nodes import Conv, NamedTensor
from tnalgebra.network.notation import parse

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


CROWDED = {
    "11 legs": f"T[{many('a', 11)}]",
    "20 legs": "T[" + " ".join(f"a{k}" for k in range(20)) + "]",
    "40 legs": f"T[{many('a', 40)}]",
    "20 closed legs": f"T[{many('a', 20)}] -> []",
    "16 legs of known size": "T[" + " ".join(f"a{k}:128" for k in range(16)) + "]",
    "16 legs of a long name": f"encoder_weight_1[{many('a', 16)}]",
    "12 legs of long labels": f"T[{many('long_label', 12)}]",
    "24 legs of long labels": f"T[{many('long_label', 24)}]",
    "legs of short and long labels": f"T[{many('a', 10)} {many('long_label', 5)}]",
    "12 legs on either side": f"A[{many('a', 12)} z] B[z {many('b', 12)}]",
    "12 legs of long labels on either side": f"A[{many('long_label', 12)} z] B[z {many('wide_label', 12)}]",
    "legs and parallel bonds": f"A[{many('a', 6)} {many('i', 12)}] B[{many('a', 6)} {many('j', 12)}]",
    "legs and loops": f"T[{many('a', 12)} x x y y]",
    "crowded train": " ".join(f"T{k}[b{k} {many(f'x{k}', 10)} b{k + 1}]" for k in range(4)),
    "crowded ring": " ".join(f"T{k}[b{k} {many(f'x{k}', 10)} b{(k + 1) % 4}]" for k in range(4)),
    "crowded complete graph": " ".join(
        f"{name.upper()}[{bonds} {many(name, 10)}]"
        for name, bonds in {"a": "p q r s", "b": "p t u v", "c": "q t w x", "d": "r u w y", "e": "s v x y"}.items()
    ),
    "20 legs of a Copy": f"Copy[{many('a', 20)}]",
    "20 parts of a Fuse": f"Fuse[w {many('a', 20)}]",
    "star of 20": f"T[{many('a', 20)}] " + " ".join(f"V{k}[a{k:02}]" for k in range(20)),
    "hyperedge of 16": " ".join(f"V{k}[r o{k}]" for k in range(16)),
    "closed hyperedge of 16": " ".join(f"V{k}[r]" for k in range(16)) + " -> []",
}
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
    "patch tensor": "X[n in x y] Conv[x u kh | padding=1] Conv[y v kw | padding=1] -> [n in kh kw u v]",
    "convolution": CONVOLUTION,
    "transposed convolution": (
        "X[n in u v] Conv[x u kh | stride=2] Conv[y v kw | stride=2] K[in out kh kw] -> [n out x y]"
    ),
    "grouped convolution": (
        "X[n c x y] Fuse[c g in] Conv[x u kh] Conv[y v kw] K[out in kh kw] Fuse[out g m] -> [n out u v]"
    ),
    "average pooling": POOLING,
    "global average pooling": "X[n c x y] Fill[x | value=mean] Fill[y | value=mean] -> [n c]",
    "a convolution, then pooling": str(parse(CONVOLUTION) >> parse(POOLING)),
    "scalar": "s[]",
    "scalar and loop": "s[] T[a a b]",
    "disconnected": "A[i] B[j]",
    "tied": "A[i j] A[j k]",
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
    **CROWDED,
}

every_network = pytest.mark.parametrize("text", GALLERY.values(), ids=GALLERY.keys())


def written(document: str) -> list[str]:
    """The texts of an SVG document. Raises ParseError if it is not well-formed."""
    root = ElementTree.fromstring(document)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return ["".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")]


def layout_of(network: Network) -> Layout:
    return layout(network.nodes, network.output, network.sizes)


def drawing_of(network: Network) -> str:
    return svg(network.nodes, network.output, network.sizes)


def overlapping(boxes: list[Symbol | Text]) -> list[tuple[Symbol | Text, Symbol | Text]]:
    return [
        (a, b)
        for a, b in combinations(boxes, 2)
        if abs(a.x - b.x) < a.half_width + b.half_width and abs(a.y - b.y) < a.half_height + b.half_height
    ]


def starts(line: Line, at: NDArray[np.float64]) -> bool:
    return hypot(*(np.array(line.curve[0]) - at)) < 0.01


def curve_points(curve: tuple[tuple[float, float], ...]) -> NDArray[np.float64]:
    t = np.linspace(0, 1, 101)[:, None]
    p0, p1, p2, p3 = np.array(curve)
    return np.asarray((1 - t) ** 3 * p0 + 3 * (1 - t) ** 2 * t * p1 + 3 * (1 - t) * t**2 * p2 + t**3 * p3)


# What is in a drawing ----------------------------------------------------------------------------------------


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
    assert Counter(written(drawing_of(network))) == expected


@every_network
def test_drawing_is_the_same_every_time(text: str) -> None:
    assert drawing_of(parse(text)) == drawing_of(parse(text))


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


def test_drawing_holds_no_date() -> None:
    assert "date" not in drawing_of(parse("A[i]")).lower()


def test_tied_tensors_share_a_colour_and_others_do_not() -> None:
    network = parse(" ".join(f"T{k % 20}[i{k}]" for k in range(40)))
    fills = re.findall(r"fill: (#\w{6}); stroke: #\w{6}; stroke-width: 1.3", drawing_of(network))
    assert fills[:20] == fills[20:]
    assert len(set(fills)) == 20


def test_kinds_of_lines() -> None:
    found = {line.label: line.kind for line in layout_of(parse("T[a a b c d] U[b e] V[d] W[d] -> [c d]")).lines}
    assert found == {"a": "loop", "b": "bond", "c": "open", "e": "closed", "d": "open"}


def test_hyperedge_has_a_dot_joined_to_every_carrier() -> None:
    plan = layout_of(parse("A[i r] B[j r] C[k r r]"))
    assert [symbol.place for symbol in plan.symbols] == [0, 1, 2, "r"]
    dot = plan.symbols[3]
    ends = sorted(
        next(s.place for s in plan.symbols[:3] if hypot(s.x - x, s.y - y) < 0.01)
        for line in plan.lines
        if line.label == "r"
        for x, y in (line.curve[0], line.curve[3])
        if hypot(dot.x - x, dot.y - y) > 0.01
    )
    assert ends == [0, 1, 2, 2]


def test_very_long_words_are_shortened() -> None:
    network = parse(f"{'W' * 300}[{'k' * 300}] Fill[j | value={'7' * 40}]")
    texts = written(drawing_of(network))
    assert all(len(text) <= 40 for text in texts)
    assert f"{'W' * 20}…{'W' * 19}" in texts


def test_network_too_large_to_draw() -> None:
    network = parse(" ".join(f"v{k}[i]" for k in range(LARGEST_DRAWING + 1)))
    assert written(drawing_of(network)) == ["a network of 121 nodes: too large to draw"]
    with pytest.raises(NetworkError, match=r"a network of 121 nodes is too large to draw\n  fix: at most 120 nodes"):
        draw(network.nodes, network.output, network.sizes)


# Where things are --------------------------------------------------------------------------------------------


@every_network
def test_no_text_lies_on_a_symbol_a_text_or_a_line(text: str) -> None:
    plan = layout_of(parse(text))
    assert overlapping([*plan.symbols, *plan.texts]) == []
    for line in plan.lines:
        points = curve_points(line.curve)
        for words in plan.texts:
            apart = np.abs(points - (words.x, words.y)) < (words.half_width, words.half_height)
            own = words.text.split(":")[0] == line.label
            assert own or not apart.all(axis=1).any(), f"the line {line.label} runs through {words.text!r}"


@every_network
def test_no_line_runs_through_a_symbol_that_it_does_not_join(text: str) -> None:
    plan = layout_of(parse(text))
    for line in plan.lines:
        points = curve_points(line.curve)
        ends = np.array([line.curve[0], line.curve[3]])
        for symbol in plan.symbols:
            joined = np.hypot(*(ends - (symbol.x, symbol.y)).T).min() < 0.01
            inside = np.abs(points - (symbol.x, symbol.y)) < (symbol.half_width, symbol.half_height)
            assert joined or not inside.all(axis=1).any(), f"the line {line.label} runs through {symbol.place}"


@given(networks())
@example(parse("K[out in kh kw]"))
@example(parse("T[a b c d e f g h i j k l m n o p q r s t u v w x y z aa bb cc dd]"))
def test_symbols_of_random_networks_do_not_overlap(network: Network) -> None:
    plan = layout_of(network)
    assert [symbol.place for symbol in plan.symbols[: len(network.nodes)]] == list(range(len(network.nodes)))
    assert overlapping(list(plan.symbols)) == []
    left, bottom, right, top = plan.box
    boxes: list[Symbol | Text] = [*plan.symbols, *plan.texts]
    for box in boxes:
        assert left <= box.x - box.half_width + 0.01
        assert box.x + box.half_width <= right + 0.01
        assert bottom <= box.y - box.half_height + 0.01
        assert box.y + box.half_height <= top + 0.01


@every_network
def test_legs_of_a_node_leave_it_apart(text: str) -> None:
    network = parse(text)
    plan = layout_of(network)
    for symbol in plan.symbols:
        at = np.array([symbol.x, symbol.y])
        ways = np.array([line.curve[1] for line in plan.lines if line.kind in ("open", "closed") if starts(line, at)])
        if len(ways) > 1:
            angles = np.sort(np.arctan2(*(ways - at).T[::-1]))
            # points on the edge of a circle of the symbol's height; the dot of a Copy stays small
            least = 1.3 if symbol.half_height < 10 else 2.5
            assert np.diff(angles, append=angles[0] + 2 * np.pi).min() * symbol.half_height > least


def test_train_is_level_and_its_legs_hang() -> None:
    plan = layout_of(parse(GALLERY["train"]))
    assert len({symbol.y for symbol in plan.symbols}) == 1
    assert [symbol.x for symbol in plan.symbols] == sorted(symbol.x for symbol in plan.symbols)
    for line in plan.lines:
        if line.kind == "open":
            (x, y), (x1, y1) = line.curve[0], line.curve[3]
            assert x1 == pytest.approx(x, abs=0.01)
            assert y1 < y


def test_long_train_turns_back() -> None:
    plan = layout_of(parse(GALLERY["train of 30"]))
    assert len({symbol.y for symbol in plan.symbols}) > 1
    left, _, right, _ = plan.box
    assert (right - left) / 72 < 10  # inches: legible on a page


def test_ring_is_a_circle() -> None:
    at = np.array([(symbol.x, symbol.y) for symbol in layout_of(parse(GALLERY["ring of 30"])).symbols])
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
    at = np.array([(symbol.x, symbol.y) for symbol in plan.symbols])
    apart = at - at[5]
    assert [symbol.place for symbol in plan.symbols] == [0, 1, 2, 3, 4, "r"]
    assert np.allclose(apart / apart[4, 0], [(0, 2), (1, 1), (0, -1), (0, 1), (1, 0), (0, 0)], atol=0.05)
    assert overlapping([*plan.symbols, *plan.texts]) == []


def test_a_hyperedge_without_a_place_stands_amid_its_carriers() -> None:
    network = parse("A[i r] B[j r] C[k r]")
    plan = layout(network.nodes, network.output, network.sizes, {"A": (0, 0), "B": (2, 0), "C": (1, 3)})
    at = np.array([(symbol.x, symbol.y) for symbol in plan.symbols])
    assert np.allclose(at[3], at[:3].mean(axis=0), atol=5)


@pytest.mark.parametrize(
    ("places", "fact"),
    [
        ({"A": (0, 0)}, r"missing: 1: B, 2: B\n"),
        ({"A": (0, 0), "B": (1, 0)}, r"missing: 1: B, 2: B\n  unknown: 'B'\n"),
        ({0: (0, 0), 1: (1, 0), 2: (2, 0), "j": (1, 1)}, r"unknown: 'j'\n  fix:     one for each node"),
    ],
)
def test_places_that_are_not_those_of_the_nodes(places: dict[int | str, tuple[float, float]], fact: str) -> None:
    with pytest.raises(NetworkError, match=fact):
        tn.draw(parse("A[i j] B[j k] B[k l]"), places=places)


def test_two_legs_of_a_node_are_symmetric() -> None:
    network = parse("D[in kh kw] P[out in] -> [out in kh kw]")
    plan = layout(network.nodes, network.output, network.sizes, {"D": (-1, 0), "P": (1, 0)})
    kh, kw = (np.subtract(line.curve[3], line.curve[0]) for line in plan.lines if line.label in ("kh", "kw"))
    assert kh[0] == pytest.approx(kw[0])
    assert kh[1] == pytest.approx(-kw[1])
    assert kh[0] < 0 < kh[1]  # away from P, the first above


# Files and figures -------------------------------------------------------------------------------------------


@every_network
def test_png_is_written(text: str, tmp_path: Path) -> None:
    network = parse(text)
    path = tmp_path / "network.PNG"
    figure = draw(network.nodes, network.output, network.sizes, path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = imread(path, format="png")[..., :3]
    assert pixels.shape[1] == pytest.approx(figure.get_size_inches()[0] * 150, abs=2)
    assert (pixels < 0.5).any()
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 1).all()  # nothing is cut off


def test_svg_is_written(tmp_path: Path) -> None:
    network = parse(GALLERY["Monarch"])
    path = tmp_path / "network.svg"
    draw(network.nodes, network.output, network.sizes, str(path))
    assert path.read_text(encoding="utf-8") == drawing_of(network)


def test_title_stands_above_and_is_not_cut_off(tmp_path: Path) -> None:
    title = "a title of 5 $ that is much wider than the one small network below it"
    network = parse("A[i j]")
    tn.draw(network, tmp_path / "network.svg", title=title)
    assert title in written((tmp_path / "network.svg").read_text(encoding="utf-8"))
    tn.draw(network, tmp_path / "network.png", title=title)
    pixels = imread(tmp_path / "network.png")[..., :3]
    assert (pixels[:, :4] == 1).all()
    assert (pixels[:, -4:] == 1).all()


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("ring.pdf", r"a drawing cannot be stored as '\.pdf'\n  path: .*ring\.pdf\n  fix:  a path .* \.svg or \.png"),
        ("ring", r"the path of a drawing has no suffix\n  path: .*ring\n  fix:  a path that ends in \.svg or \.png"),
    ],
)
def test_other_suffixes_are_refused(name: str, fact: str, tmp_path: Path) -> None:
    network = parse("A[i j]")
    with pytest.raises(NetworkError, match=fact):
        draw(network.nodes, network.output, network.sizes, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".svg", ".png"])
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
            draw(network.nodes, network.output, network.sizes, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    draw(network.nodes, network.output, network.sizes, path)
    assert path.read_bytes() != b"old"


def test_several_networks_side_by_side(tmp_path: Path) -> None:
    figure = Figure(figsize=(9, 3))
    for position, name in enumerate(("tucker2", "ring", "convolution")):
        axes = figure.add_subplot(1, 3, position + 1)
        network = parse(GALLERY[name])
        path = tmp_path / "all.svg"
        assert draw(network.nodes, network.output, network.sizes, path, title=name, axes=axes) is figure
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
    network = parse("A[i j]")
    assert draw(network.nodes, network.output, network.sizes, axes=left.add_subplot()) is figure


def test_import_is_light_and_pyplot_is_left_alone() -> None:
    program = (
        "import sys, tnalgebra\n"
        "before = set(sys.modules)\n"
        "assert not {'tnalgebra.drawing_layout', 'tnalgebra.drawing_paint'} & before\n"
        "tnalgebra.parse('A[i]')._repr_svg_()\n"
        "assert 'matplotlib.pyplot' not in set(sys.modules) - before\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
