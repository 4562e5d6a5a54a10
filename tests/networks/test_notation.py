"""From text to networks and back, and the error for every wrong text, which points at the character."""

from __future__ import annotations

from fractions import Fraction
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.refusals import refused
from tests.strategies import networks, sums
from tests.stuck import not_stuck
from tnalgebra.errors import NetworkError, NotationError, SizeError, TnalgebraError
from tnalgebra.networks import Conv, Copy, Fill, Fuse, NamedTensor, Network, Variable, parse, parse_rule, resized
from tnalgebra.networks.notation import MAX_CHARACTERS

# Laws -------------------------------------------------------------------------------------------------------


@given(networks() | sums(), st.randoms())
def test_parsing_the_text_gives_the_network(network: Network, random: Random) -> None:
    sizes = {label: size for label, size in network.sizes.items() if random.random() < 0.5}
    for known in (network.sizes, sizes, {}):
        try:
            partial = resized(network, known)
        except SizeError:  # the smallest input of a window is not the one another node needs
            assert known != network.sizes
            continue
        assert parse(str(partial)) == partial
        assert str(parse(str(partial))) == str(partial)


@example(Fraction(1, 10**300))
@given(st.fractions() | st.floats(-1e299, 1e299).map(Fraction) | st.decimals(-(10**9), 10**9).map(Fraction))
def test_every_number_that_a_fill_takes_is_read_back_exactly(value: Fraction) -> None:
    network = Network([Fill(("k",), value)])
    assert parse(str(network)) == network


@given(networks() | sums(), st.randoms())
def test_spaces_and_commas_have_no_meaning(network: Network, random: Random) -> None:
    spaced = "".join(
        random.choice([" ", ", ", "\n\t", " ,,  "]) if character == " " else character for character in str(network)
    )
    assert parse(f"\n {spaced} ") == network


@st.composite
def damaged_texts(draw: st.DrawFn) -> str:
    text = str(draw(networks() | sums()))
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, min(start + 3, len(text))))
    return text[:start] + draw(st.sampled_from(["", "[", "]", "|", ":", "=", "->", " ", "1", "x", "+"])) + text[end:]


@given(st.text(alphabet="Kab:12[]|=->. +/,\n\\é") | damaged_texts())
def test_any_text_is_read_or_refused_by_an_error_of_ours(text: str) -> None:
    try:
        network = parse(text)
    except TnalgebraError:
        return
    assert parse(str(network)) == network


# What is read -----------------------------------------------------------------------------------------------


def test_nodes() -> None:
    network = parse(
        "K[out:6, in kh] Copy[a b c] Conv[x y kh | stride=2 padding=-1:3 dilation=4 mode=reflect] Fuse[w p q] "
        "Fill[a | value=-0.25]"
    )
    assert network.nodes == (
        NamedTensor("K", ("out", "in", "kh")),
        Copy(("a", "b", "c")),
        Conv("x", "y", "kh", stride=2, low=-1, high=3, dilation=4, mode="reflect"),
        Fuse("w", ("p", "q")),
        Fill(("a",), Fraction(-1, 4)),
    )
    assert network.output == ("out", "in", "b", "c", "x", "y", "w", "p", "q")
    assert network.sizes == {"out": 6}


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("K[a]->[a]", "K[a]"),
        ("K[a b] -> [b a]", "K[a b] -> [b a]"),
        ("K[a b] V[b] -> [a]", "K[a b] V[b]"),
        ("K[a] -> []", "K[a] -> []"),
        ("s[]", "s[]"),
        ("K[a a]", "K[a a]"),
        ("K[a:3 a:3]", "K[a:3 a]"),
        ("K[a] -> [a:4]", "K[a:4]"),
        ("K[a:2] K[b]", "K[a:2] K[b:2]"),
        ("Conv[x y k | padding=1:1 stride=1 mode=zeros]", "Conv[x y k | padding=1]"),
        ("Conv[x y k | mode=circular stride=2]", "Conv[x y k | stride=2 mode=circular]"),
        ("Fill[k|value=1e-3]", "Fill[k | value=1/1000]"),
        ("Fill[|value=3/6]", "Fill[| value=1/2]"),
        ("Fill[k|value=1.5e2/3]", "Fill[k | value=50]"),
        ("Fill[k|value=-.5]", "Fill[k | value=-1/2]"),
        ("Fill[k|value=.5e1]", "Fill[k | value=5]"),
        ("Fill[k|value=mean]", "Fill[k | value=mean]"),
        ("mean[mean] Copy_2[stride zeros]", "mean[mean] Copy_2[stride zeros]"),
    ],
)
def test_how_a_network_is_written(text: str, written: str) -> None:
    assert str(parse(text)) == written


def test_a_rule_has_variables_and_the_output_of_its_left_side() -> None:
    left, right = parse_rule("K[a b] Conv[x y k | stride=s padding=p:q] -> [b a x y k] => U[a r] V[r b] Conv[x y k]")
    assert left.nodes[1] == Conv("x", "y", "k", stride=Variable("s"), low=Variable("p"), high=Variable("q"))
    assert right.output == left.output == ("b", "a", "x", "y", "k")
    assert parse_rule("K[a b] => U[a r] V[r b] -> [b a]")[1].output == ("b", "a")


# What is refused --------------------------------------------------------------------------------------------


def assert_points(message: str, text: str, key: str, caret: int) -> None:
    """The message shows the text at `key`, with a caret below this character of it."""
    lines = message.splitlines()
    where = next(number for number, line in enumerate(lines) if line.lstrip().startswith(key))
    assert lines[where].endswith(text)
    assert lines[where + 1] == " " * (len(lines[where]) - len(text) + caret) + "^"


@pytest.mark.parametrize(
    ("text", "fact", "caret"),
    [
        (" ", "a node", 0),
        ("-> [a]", "a node", 0),
        ("K", "'K'", 1),
        ("K[a b", "unclosed", 1),
        ("K[a] -> [a", "unclosed", 8),
        ("Conv[x y k | stride=2", "unclosed", 4),
        ("K[a[b]]", "inside", 3),
        ("K[a]]", "']'", 4),
        ("K[3]", "'3'", 2),
        ("K[a:]", "'a' has no size", 4),
        ("K[a:0]", "the size of 'a' is 0", 4),
        ("K[a:-3]", "the size of 'a' is -3", 4),
        ("K[a:1/2]", "the size of 'a' is 1/2", 4),
        ("K[a:2.0]", "the size of 'a' is 2.0", 4),
        ("K[a:1234567890123456]", "the size of 'a' is 1234567890123456", 4),
        ("K[a] -> a", "'->'", 8),
        ("K[a] -> [a | x=1]", "output", 11),
        ("K[a] -> [a] V[a]", "'V'", 12),
        ("K[a] 3", "'3'", 5),
        ("K[a] | V[b]", "'|'", 5),
        ("K[a] + ", "a node is missing", 6),
        ("+ K[a]", "a node is missing", 0),
        ("K[a] + + V[a]", "a node is missing", 7),
        ("K[a] -> [a] + V[a]", "a term comes after the output", 12),
        ("K[a b] + V[a]", "'b' is open in term 1", 9),
        ("K[a] + V[a b] -> [a] Z[a]", "comes after the output", 21),
        ("K[a+b]", "'+'", 3),
        ("K[a] => V[a]", "a rule", 5),
        ("K[a] %", "'%'", 5),
        ("K[a.b]", "'.'", 3),
        ("K[a:٣]", "'٣'", 4),
        ("X[x] MaxPool[x y k | stride=2]", "'MaxPool'", 5),
        ("Relu[x y | slope=1]", "'Relu'", 0),
        ("Conv[x y]", "Conv has 2", 0),
        ("A[x] Conv[x y k z]", "Conv has 4", 5),
        ("Fuse[x]", "Fuse", 0),
        ("Fill[k]", "Fill has no value", 0),
        ("Conv[x y k | strid=2]", "'strid'", 13),
        ("Fuse[x y | stride=2]", "'stride'", 11),
        ("Conv[x y k | stride=2 stride=2]", "'stride' occurs twice", 22),
        ("Conv[x y k | stride]", "'stride' has no value", 19),
        ("Conv[x y k | stride=]", "stride is ']'", 20),
        ("Conv[x y k | stride=two]", "stride is 'two'", 20),
        ("Conv[x y k | stride=1/2]", "stride is 1/2", 20),
        ("Conv[x y k | padding=1:]", "padding is ']'", 23),
        ("Conv[x y k | padding=1:2:3]", "more than two numbers", 24),
        ("Conv[x y k | mode=wrap]", "mode is 'wrap'", 18),
        ("Conv[x y k | 3]", "'3'", 13),
        ("Conv[x y k | stride=2 | padding=1]", "'|'", 22),
        ("Fill[k | value=1/0]", "value divides by zero", 15),
        ("Fill[k | value=1e999]", "value is 1e999", 15),
        ("Fill[k | value=median]", "value is 'median'", 15),
        ("Fill[k | value=nan]", "value is 'nan'", 15),
    ],
)
def test_errors_point_at_the_character(text: str, fact: str, caret: int) -> None:
    with refused(NotationError, fact) as error:
        parse(text)
    assert_points(str(error.value), text, "where:", caret)


@pytest.mark.parametrize(
    ("text", "error", "facts", "carets"),
    [
        ("K[a] -> [b]", NetworkError, ["'b'", "labels: a"], {"here:": 9}),
        ("K[a b] -> [a a]", NetworkError, ["'a' twice"], {"here:": 13}),
        ("K[a] K[a b]", NetworkError, ["'K'", "K[a b]"], {"here:": 5}),
        ("K[a b] Conv[a c d | stride=0]", NetworkError, ["stride is 0"], {"here:": 7}),
        ("Conv[x y k | dilation=-1]", NetworkError, ["dilation is -1"], {"here:": 0}),
        ("Conv[x y k | padding=999999999999999]", NetworkError, ["low is 999999999999999"], {"here:": 0}),
        ("Fill[k | value=99e299]", NetworkError, ["301 digits", "1e300"], {"here:": 0}),
        ("K[a:999999999999999]", SizeError, ["'a'", "size 999999999999999"], {"written:": 4}),
        ("K[i] Fuse[w:7 a:2 b]", SizeError, ["'w'", "parts of 2"], {"here:": 5}),
        ("K[a:3] Copy[a b] L[b:5]", SizeError, ["5, from b=5", "3, from Copy[a b]"], {"here:": 7, "written:": 21}),
        ("K[a:2 b] V[a:3]", NotationError, ["'a'", "2 and 3"], {"where:": 13, "first:": 4}),
    ],
)
def test_what_a_network_cannot_mean_is_pointed_at(
    text: str, error: type[TnalgebraError], facts: list[str], carets: dict[str, int]
) -> None:
    with refused(error, *facts) as raised:
        parse(text)
    for key, caret in carets.items():
        assert_points(str(raised.value), text, key, caret)


def test_a_long_text_is_shown_around_the_character() -> None:
    text = " ".join(f"K{i}[x{i}]" for i in range(100)) + " ? " + " ".join(f"K{i}[x{i}]" for i in range(100))
    with pytest.raises(NotationError) as raised:
        parse(text)
    shown, pointer = str(raised.value).splitlines()[1:3]
    assert len(shown) < 130
    assert shown.startswith("  where: ...")
    assert shown.endswith("...")
    assert shown[pointer.index("^")] == "?"


def test_the_line_that_holds_the_character_is_shown() -> None:
    with pytest.raises(NotationError) as raised:
        parse("K[a b]\n  V[b c d:0]\n  W[c]")
    assert str(raised.value).splitlines()[1:3] == ["  where:   V[b c d:0]", "                   ^"]


def test_more_than_64_axes() -> None:
    labels = " ".join(f"x{i}" for i in range(65))
    with refused(NetworkError, "'K' has 65 axes", "at most 64"):
        parse(f"K[{labels}]")
    assert len(parse(f"K[{labels.removesuffix(' x64')}]").output) == 64
    long = parse(f"K[{labels.removesuffix(' x64')}] V[x64]")
    assert len(long.output) == 65
    with refused(NetworkError, "output has 4097 axes"):
        parse(" ".join(f"K{i}[x{i}]" for i in range(4097)))


def test_only_text_is_read() -> None:
    with refused(NotationError, "bytes"):
        parse(b"K[a]")


@pytest.mark.parametrize(
    "text",
    [
        "[" * MAX_CHARACTERS,
        "K[" * (MAX_CHARACTERS // 2),
        "K[a]" * MAX_CHARACTERS,
        "K[" + "a " * (MAX_CHARACTERS // 2 - 2) + "]",
        "K[a:" + "9" * (MAX_CHARACTERS - 5) + "]",
        "Fill[a|value=" + "9" * (MAX_CHARACTERS - 14) + "]",
        "Fill[a|value=1e" + "9" * 1000 + "]",
        "Fill[a|value=1e-999999999]",
        "Fill[a|value=1/" + "9" * 5000 + "]",
        "K[a] -> [" + "a " * (MAX_CHARACTERS // 2 - 6) + "]",
        "->" * (MAX_CHARACTERS // 2),
        "\\" * MAX_CHARACTERS,
        " ".join(f"K{i}[x{i}]" for i in range(7000)),
    ],
    ids=lambda text: text[:12],
)
def test_bombs_are_refused_fast(text: str) -> None:
    with not_stuck(), pytest.raises(TnalgebraError):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        " ".join(f"Copy[x{i} x{i + 1}]" for i in reversed(range(4000))) + " K[x0:3] -> []",
        " ".join(f"T[x{i} y{i}]" for i in range(5000)) + " T[a:2 b:3] -> []",
        " ".join(f"Conv[x{i + 1} x{i} k]" for i in reversed(range(3000))) + " K[x0:3 k:2] -> []",
        " ".join(f"K[{' '.join(f'x{i}_{j}' for j in range(64))}]" for i in range(150)) + " -> [x0_0:2 x0_63:3]",
        " ".join(f"Copy[{' '.join(f'x{i}_{j}' for j in range(64))}]" for i in range(150)) + " -> [x0_0:2 x0_63]",
    ],
    ids=["copies", "ties", "windows", "wide ties", "wide copies"],
)
def test_long_networks_are_read_in_time_that_grows_with_their_length(text: str) -> None:
    """Sizes spread from one end to the other; a square of the length would take minutes."""
    with not_stuck():
        parse(text)


def test_text_of_a_rule_is_checked_too() -> None:
    with refused(NotationError, "'=>'") as error:
        parse_rule("K[a]")
    assert_points(str(error.value), "K[a]", "where:", 4)
    with refused(NotationError, "'=>' is not a node"):
        parse_rule("K[a] => K[a] => K[a]")
    with refused(NetworkError, "'b'"):
        parse_rule("K[a b] => V[a]")
