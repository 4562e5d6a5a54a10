"""Text to network and back, and what every wrong text is told, down to the character."""

from __future__ import annotations

from fractions import Fraction
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import networks
from tests.stuck import not_stuck
from tnalgebra.errors import NetworkError, NotationError, SizeError, TnalgebraError
from tnalgebra.network.network import Network
from tnalgebra.network.nodes import Conv, Copy, Fill, Fuse, NamedTensor, Variable
from tnalgebra.network.notation import MAX_CHARACTERS, parse, parse_rule

# Laws -------------------------------------------------------------------------------------------------------


@given(networks())
def test_parsing_the_text_gives_the_network(network: Network) -> None:
    assert parse(str(network)) == network
    assert str(parse(str(network))) == str(network)


@given(networks(), st.randoms())
def test_parsing_the_text_gives_the_network_with_some_sizes(network: Network, random: Random) -> None:
    sizes = {label: size for label, size in network.sizes.items() if random.random() < 0.5}
    for known in (sizes, {}):
        try:
            partial = Network(network.nodes, network.output, known)
        except SizeError:  # the smallest input of a window is not the one another node needs
            continue
        assert parse(str(partial)) == partial


@given(st.fractions() | st.floats(-1e299, 1e299).map(Fraction) | st.decimals(-(10**9), 10**9).map(Fraction))
def test_every_number_that_a_fill_takes_is_read_back_exactly(value: Fraction) -> None:
    network = Network([Fill(("k",), value)])
    assert parse(str(network)) == network


@given(networks(), st.randoms())
def test_spaces_and_commas_have_no_meaning(network: Network, random: Random) -> None:
    spaced = "".join(
        random.choice([" ", ", ", "\n\t", " ,,  "]) if character == " " else character for character in str(network)
    )
    assert parse(f"\n {spaced} ") == network


@given(st.text(alphabet="Kab:12[]|=->. +/,\n\\é"))
def test_any_text_is_read_or_refused_by_an_error_of_ours(text: str) -> None:
    try:
        network = parse(text)
    except TnalgebraError:
        return
    assert parse(str(network)) == network


@given(networks(), st.data())
def test_any_damaged_text_is_read_or_refused_by_an_error_of_ours(network: Network, data: st.DataObject) -> None:
    text = str(network)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 3, len(text))))
    damaged = text[:start] + data.draw(st.sampled_from(["", "[", "]", "|", ":", "=", "->", " ", "1", "x"])) + text[end:]
    try:
        found = parse(damaged)
    except TnalgebraError:
        return
    assert parse(str(found)) == found


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
        ("Fill[k|value=mean]", "Fill[k | value=mean]"),
        ("mean[mean] Copy_2[stride zeros]", "mean[mean] Copy_2[stride zeros]"),
    ],
)
def test_how_a_network_is_written(text: str, written: str) -> None:
    assert str(parse(text)) == written


def test_a_small_number_is_written_so_that_it_can_be_read() -> None:
    network = parse("Fill[k | value=1e-300]")
    assert parse(str(network)) == network


def test_a_rule_has_variables_and_the_output_of_its_left_side() -> None:
    left, right = parse_rule("K[a b] Conv[x y k | stride=s padding=p:q] -> [b a x y k] => U[a r] V[r b] Conv[x y k]")
    assert left.nodes[1] == Conv("x", "y", "k", stride=Variable("s"), low=Variable("p"), high=Variable("q"))
    assert right.output == left.output == ("b", "a", "x", "y", "k")
    assert parse_rule("K[a b] => U[a r] V[r b] -> [b a]")[1].output == ("b", "a")


# What is refused --------------------------------------------------------------------------------------------


def check(text: str, error: type[TnalgebraError], fact: str, caret: int | None, rest: str) -> None:
    with pytest.raises(error) as raised:
        parse(text)
    message = str(raised.value)
    assert message.splitlines()[0] == fact
    if caret is not None:
        lines = message.splitlines()
        where = next(number for number, line in enumerate(lines) if line.lstrip().startswith("where:"))
        assert lines[where].endswith(text)
        assert lines[where + 1] == " " * (len(lines[where]) - len(text) + caret) + "^"
    assert rest in message


@pytest.mark.parametrize(
    ("text", "fact", "caret", "rest"),
    [
        (" ", "a node NAME[labels] should stand here", 0, "fix:   for example K[out in kh kw]"),
        ("-> [a]", "a node NAME[labels] should stand here", 0, ""),
        ("K", "'K' has no brackets", 1, "fix:   K[label label ...]"),
        ("K V[a]", "'K' has no brackets", 2, ""),
        ("K[a b", "unclosed bracket: this '[' has no ']'", 1, ""),
        ("K[a b -> [a]", "unclosed bracket: this '[' has no ']'", 1, ""),
        ("K[a] -> [a", "unclosed bracket: this '[' has no ']'", 8, ""),
        ("Conv[x y k | stride=2", "unclosed bracket: this '[' has no ']'", 4, ""),
        ("K[a[b]]", "a bracket inside a bracket", 3, "close the first"),
        ("K[a]]", "']' closes nothing", 4, ""),
        ("K[a] ]", "']' closes nothing", 5, ""),
        ("K[3]", "'3' is not a label", 2, "a word: letters, digits, '_'"),
        ("K[a=2]", "'=' is not a label", 3, ""),
        ("K[a:]", "label 'a' has no size after ':'", 4, ""),
        ("K[a:b]", "label 'a' has no size after ':'", 4, ""),
        ("K[a:0]", "the size of 'a' is 0", 4, "fix:   a size of at least 1"),
        ("K[a:-3]", "the size of 'a' is -3", 4, "fix:   a size of at least 1"),
        ("K[a:1/2]", "the size of 'a' is 1/2", 4, "an integer"),
        ("K[a:2.0]", "the size of 'a' is 2.0", 4, "an integer"),
        ("K[a:1234567890123456]", "the size of 'a' is 1234567890123456", 4, "an integer of at most 15 digits"),
        ("K[a] -> a", "'->' needs the output labels in brackets", 8, "fix:   -> [label label ...]"),
        ("K[a] -> [a | x=1]", "the output has no attributes", 11, ""),
        ("K[a] -> [a] V[a]", "'V' stands after the output", 12, "fix:   nodes first, then -> [label label ...]"),
        ("K[a] -> [a] -> [a]", "'->' stands after the output", 12, ""),
        ("K[a] 3", "'3' stands where a node NAME[labels] should", 5, ""),
        ("K[a] | V[b]", "'|' stands where a node NAME[labels] should", 5, ""),
        ("K[a] + V[a]", "'+' is reserved for sums of networks", 5, "fix:   one network at a time"),
        ("K[a] -> [a] + V[a]", "'+' is reserved for sums of networks", 12, ""),
        ("K[a+b]", "'+' is not a label", 3, ""),
        ("K[a] => V[a]", "a rule stands where a network should", 5, "fix:   tn.rule(...) reads rules"),
        ("K[a] %", "character '%' has no meaning here", 5, ""),
        ("K[é]", "character 'é' has no meaning here", 2, ""),
        ("K[a.b]", "character '.' has no meaning here", 3, ""),
        ("K[a:٣]", "character '٣' has no meaning here", 4, ""),
        (
            "X[x] MaxPool[x y k | stride=2]",
            "'MaxPool' is no node: a maximum is not a sum of products, so max-pooling is no tensor network",
            5,
            "fix:   average pooling, or keep max-pooling outside the network",
        ),
        (
            "Relu[x y | slope=1]",
            "unknown node 'Relu': of all nodes only Copy, Conv, Fuse, Fill are more than their labels",
            0,
            "fix:   one of these, or a tensor without '|'",
        ),
        (
            "K[a | value=1]",
            "unknown node 'K': of all nodes only Copy, Conv, Fuse, Fill are more than their labels",
            0,
            "",
        ),
        ("Conv[x y]", "Conv has 2 labels, it needs 3: Conv[input output window]", 0, ""),
        ("A[x] Conv[x y k z]", "Conv has 4 labels, it needs 3: Conv[input output window]", 5, ""),
        ("Fuse[x]", "Fuse needs a whole and at least one part: Fuse[whole part part ...]", 0, ""),
        ("Fuse[]", "Fuse needs a whole and at least one part: Fuse[whole part part ...]", 0, ""),
        ("Fill[k]", "Fill has no value: Fill[k | value=1/3] or Fill[k | value=mean]", 0, ""),
        ("Conv[x y k | strid=2]", "'Conv' has no attribute 'strid'", 13, "Conv takes stride, padding, dilation, mode"),
        ("Fuse[x y | stride=2]", "'Fuse' has no attribute 'stride'", 11, "fix:   Fuse takes no attributes"),
        ("Conv[x y k | stride=2 stride=2]", "the attribute 'stride' stands twice", 22, ""),
        ("Conv[x y k | stride]", "the attribute 'stride' has no value", 19, "fix:   stride=..."),
        ("Conv[x y k | stride=]", "stride is ']'", 20, "fix:   stride=a number"),
        ("Conv[x y k | stride=two]", "stride is 'two'", 20, "fix:   stride=a number"),
        ("Conv[x y k | stride=1/2]", "stride is 1/2", 20, "an integer"),
        ("Conv[x y k | padding=1:]", "padding is ']'", 23, ""),
        ("Conv[x y k | padding=1:2:3]", "':' stands where ']' should", 24, ""),
        ("Conv[x y k | mode=wrap]", "mode is 'wrap'", 18, "fix:   mode=zeros, reflect, replicate, circular"),
        ("Conv[x y k | mode=1]", "mode is '1'", 18, ""),
        ("Conv[x y k | 3]", "'3' stands where ']' should", 13, ""),
        ("Conv[x y k | stride=2 | padding=1]", "'|' stands where ']' should", 22, ""),
        ("Fill[k | value=1/0]", "value divides by zero", 15, ""),
        ("Fill[k | value=1e999]", "value is 1e999", 15, "1e300"),
        ("Fill[k | value=median]", "value is 'median'", 15, "fix:   value=a number, mean"),
        ("Fill[k | value=nan]", "value is 'nan'", 15, ""),
    ],
)
def test_errors_point_at_the_character(text: str, fact: str, caret: int, rest: str) -> None:
    check(text, NotationError, fact, caret, rest)


@pytest.mark.parametrize(
    ("text", "error", "fact", "rest"),
    [
        ("K[a] -> [b]", NetworkError, "the output label 'b' stands on no node", "labels: a"),
        ("K[a b] -> [a a]", NetworkError, "the output names 'a' twice", "where: -> [a a]"),
        ("K[a] K[a b]", NetworkError, "the tensor 'K' stands with two numbers of axes", "second: K[a b]"),
        ("Conv[x y k | stride=0]", NetworkError, "stride is 0", "fix:   a stride of at least 1"),
        ("Conv[x y k | dilation=-1]", NetworkError, "dilation is -1", "fix:   a dilation of at least 1"),
        ("Conv[x y k | padding=999999999999999]", NetworkError, "low is 999999999999999", "an integer of at most"),
        ("Fill[k | value=99e299]", NetworkError, "Fill has a value of 301 digits", "at most 1e300"),
        (
            "K[a:999999999999999]",
            SizeError,
            "label 'a' would have size 999999999999999",
            "sizes are 1 to 1099511627776",
        ),
        (
            "K[a:2] K[b:3]",
            SizeError,
            "label 'b' has two sizes",
            "first:  3, from b=3, as given\n  second: 2, from K[a]",
        ),
    ],
)
def test_networks_that_mean_nothing(text: str, error: type[TnalgebraError], fact: str, rest: str) -> None:
    check(text, error, fact, None, rest)


def test_contradicting_sizes_name_both_places() -> None:
    with pytest.raises(NotationError) as raised:
        parse("K[a:2 b] V[a:3]")
    assert str(raised.value) == (
        "label 'a' has two sizes, 2 and 3\n"
        "  where: K[a:2 b] V[a:3]\n"
        "                      ^\n"
        "  first: K[a:2 b] V[a:3]\n"
        "             ^"
    )


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
    with pytest.raises(NetworkError, match=r"node 'K' has 65 axes\n  fix: at most 64, torch's own limit: fuse some"):
        parse(f"K[{labels}]")
    assert len(parse(f"K[{labels.removesuffix(' x64')}]").output) == 64
    with pytest.raises(NetworkError, match=r"the output has 65 axes\n  fix: at most 64"):
        parse(f"K[{labels.removesuffix(' x64')}] V[x64]")


def test_only_text_is_read() -> None:
    with pytest.raises(NotationError, match="a network is read from text, not from bytes"):
        parse(b"K[a]")  # type: ignore[arg-type]


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
    with pytest.raises(
        NotationError, match=r"a rule needs '=>' between its two sides\n  where: K\[a\]\n             \^"
    ):
        parse_rule("K[a]")
    with pytest.raises(NotationError, match=r"'=>' stands where a node NAME\[labels\] should"):
        parse_rule("K[a] => K[a] => K[a]")
    with pytest.raises(NetworkError, match="the output label 'b' stands on no node"):
        parse_rule("K[a b] => V[a]")


@pytest.mark.parametrize(
    ("text", "error", "ending"),
    [
        ("K[a] -> [b]", NetworkError, "  here: K[a] -> [b]\n                 ^"),
        ("K[a] -> [a a]", NetworkError, "  here: K[a] -> [a a]\n                   ^"),
        ("K[a b] Conv[a c d | stride=0]", NetworkError, "  here: K[a b] Conv[a c d | stride=0]\n               ^"),
        ("K[a] K[a b]", NetworkError, "  here: K[a] K[a b]\n             ^"),
        ("K[i] Fuse[w:7 a:2 b]", SizeError, "  here: K[i] Fuse[w:7 a:2 b]\n             ^"),
        (
            "K[a:3] Copy[a b] L[b:5]",
            SizeError,
            "  here:    K[a:3] Copy[a b] L[b:5]\n                  ^\n"
            "  written: K[a:3] Copy[a b] L[b:5]\n                                ^",
        ),
    ],
)
def test_what_a_network_cannot_mean_is_pointed_at(text: str, error: type[Exception], ending: str) -> None:
    with pytest.raises(error) as raised:
        parse(text)
    assert str(raised.value).endswith(ending)
