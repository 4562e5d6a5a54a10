"""The examples of docs/notation.md: each network's text, its drawing, and the lines of torch that its value equals."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

import tnalgebra as tn

IMAGES = Path(__file__).parent / "images"


class Example(NamedTuple):
    """A network with sizes, and an expression of torch over its tensors that has the same value."""

    title: str
    text: str
    torch: str

    @property
    def picture(self) -> str:
        """The name of the drawing in `images/`."""
        return f"notation-{self.title.lower().replace(' ', '-')}.svg"


NODES = (
    Example(
        "a copy",
        "d[a:4] Copy[a b c] -> [b c]",
        "torch.diag(d)",
    ),
    Example(
        "a window",
        "S[x:9] Conv[x y k:3 | stride=2 padding=1] w[k] -> [y]",
        "torch.conv1d(S[None, None], w[None, None], stride=2, padding=1)[0, 0]",
    ),
    Example(
        "a reshape",
        "M[i:2 j:3] Fuse[k i j] -> [k]",
        "M.flatten()",
    ),
    Example(
        "a flat vector",
        "M[i:2 j:3] Fill[j | value=mean] -> [i]",
        "M.mean(1)",
    ),
    Example(
        "a tied tensor",
        "M[i a:3] M[j:2 a] -> [i j]",
        "M @ M.T",
    ),
)

NETWORKS = (
    Example(
        "Tucker-2",
        "U[out:6 a:3] G[a b:2 kh:3 kw:3] V[b in:5] -> [out in kh kw]",
        'torch.einsum("oa,abhw,bi->oihw", U, G, V)',
    ),
    Example(
        "Tucker",
        "G[a:3 b:2 c:2 d:2] U[out:6 a] V[in:5 b] P[kh:3 c] Q[kw:3 d] -> [out in kh kw]",
        'torch.einsum("abcd,oa,ib,hc,wd->oihw", G, U, V, P, Q)',
    ),
    Example(
        "CP",
        "A[out:6 r:4] B[in:5 r] C[kh:3 r] D[kw:3 r] -> [out in kh kw]",
        'torch.einsum("or,ir,hr,wr->oihw", A, B, C, D)',
    ),
    Example(
        "tensor train",
        "A[out:6 p:3] B[p in:5 q:4] C[q kh:3 s:2] D[s kw:3]",
        'torch.einsum("op,piq,qhs,sw->oihw", A, B, C, D)',
    ),
    Example(
        "tensor ring",
        "A[z:2 out:6 p:3] B[p in:5 q:4] C[q kh:3 s:2] D[s kw:3 z]",
        'torch.einsum("zop,piq,qhs,swz->oihw", A, B, C, D)',
    ),
    Example(
        "block term",
        "U[out:6 a:2 t:3] G[a b:2 kh:3 kw:3 t] V[b in:5 t] -> [out in kh kw]",
        'torch.einsum("oat,abhwt,bit->oihw", U, G, V)',
    ),
    Example(
        "spatially separable",
        "A[out:6 in:5 kh:3] B[out in kw:3] -> [out in kh kw]",
        "A[:, :, :, None] * B[:, :, None, :]",
    ),
    Example(
        "depthwise separable",
        "D[in:5 kh:3 kw:3] P[out:6 in] -> [out in kh kw]",
        "P[:, :, None, None] * D",
    ),
    Example(
        "Monarch",
        "Fuse[in a:2 i:4] R[a j:3 i] L[j b:5 a] Fuse[out b j] -> [out in]",
        'torch.einsum("aji,jba->bjai", R, L).reshape(15, 8)',
    ),
    Example(
        "patch tensor",
        "X[n:2 in:3 x:5 y:6] Conv[x u kh:3 | padding=1] Conv[y v kw:3 | padding=1] -> [n in kh kw u v]",
        "torch.nn.functional.unfold(X, 3, padding=1).reshape(2, 3, 3, 3, 5, 6)",
    ),
    Example(
        "convolution",
        "X[n:2 in:3 x:5 y:6] Conv[x u kh:3 | stride=2 padding=1] Conv[y v kw:3 | stride=2 padding=1] "
        "K[out:4 in kh kw] -> [n out u v]",
        "torch.nn.functional.conv2d(X, K, stride=2, padding=1)",
    ),
    Example(
        "transposed convolution",
        "X[n:2 in:3 u:4 v:5] Conv[x u kh:3 | stride=2] Conv[y v kw:3 | stride=2] K[in out:4 kh kw] -> [n out x y]",
        "torch.nn.functional.conv_transpose2d(X, K, stride=2)",
    ),
    Example(
        "grouped convolution",
        "X[n:2 c:6 x:5 y:6] Fuse[c g:2 in:3] Conv[x u kh:3] Conv[y v kw:3] K[out:4 in kh kw] Fuse[out g m] "
        "-> [n out u v]",
        "torch.nn.functional.conv2d(X, K, groups=2)",
    ),
    Example(
        "average pooling",
        "X[n:2 c:3 x:4 y:6] Conv[x u kh:2 | stride=2] Conv[y v kw:2 | stride=2] "
        "Fill[kh | value=1/2] Fill[kw | value=1/2] -> [n c u v]",
        "torch.nn.functional.avg_pool2d(X, 2)",
    ),
    Example(
        "global average pooling",
        "X[n:2 c:3 x:4 y:5] Fill[x | value=mean] Fill[y | value=mean] -> [n c]",
        "X.mean((2, 3))",
    ),
)


def examples_section(examples: tuple[Example, ...]) -> str:
    """The examples in markdown: title, drawing, text, the shape of the value, and what it was compared with."""
    return "\n\n".join(
        f"### {example.title[0].upper()}{example.title[1:]}\n\n"
        f"![{example.title}](images/{example.picture})\n\n"
        f"```text\n{tn.parse(example.text)}\n```\n\n"
        f"The value has the shape {' x '.join(map(str, compare_with_torch(example)))} and equals `{example.torch}`."
        for example in examples
    )


def compare_with_torch(example: Example) -> tuple[int, ...]:
    """The shape of the value, after a comparison with torch on random tensors; an error where they differ."""
    network = tn.parse(example.text)
    generator = torch.Generator().manual_seed(0)
    values = {
        name: torch.randn(shape, dtype=torch.float64, generator=generator)
        for name, shape in tn.networks.shapes(network).items()
    }
    value, expected = tn.evaluate(network, values), eval(example.torch, {"torch": torch}, values)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12, msg=lambda text: f"{example.title}: {text}")
    return tuple(value.shape)


def draw_examples() -> None:
    """Write the drawings."""
    for example in (*NODES, *NETWORKS):
        tn.parse(example.text).draw(IMAGES / example.picture)
