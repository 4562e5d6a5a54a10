"""Blur is a convolution as wide as the image, so its kernel is learnt and applied in Fourier space.

The paper deblurs images with a network that also estimates the blur. Features are transformed by Fourier, a small
network predicts a kernel for each of them there, both are multiplied, and the result is transformed back, put beside
the features and mixed by a 1x1 convolution.

The product of transforms is a circular window over the whole image, with a kernel for each example and channel. Putting
two maps beside each other before a 1x1 convolution is a sum of two terms, each with its own part of the matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

import tnalgebra as tn
from recipes.gallery.frame import Cores, Paper, difference, random_values, sized, times_faster, value

BLUR = "X[n c x y] Conv[u x a | padding=0:{h} mode=circular] Conv[v y b | padding=0:{w} mode=circular] k[n c a b]"

CORES: Cores = {
    "blur": sized(f"{BLUR.format(h=5, w=6)} -> [n c u v]", n=2, c=3, x=6, y=7, a=6, b=7, u=6, v=7),
    "blur, beside the features": sized(
        f"{BLUR.format(h=5, w=6)} A[o c] + X[n c u v] B[o c] -> [n o u v]", n=2, c=3, x=6, y=7, a=6, b=7, u=6, v=7, o=4
    ),
}


def by_fourier(x: Tensor, kernel: Tensor) -> Tensor:
    """As in the public code: `rfft2` of the features, times that of the kernel, and back."""
    result: Tensor = torch.fft.irfft2(torch.fft.rfft2(x) * torch.fft.rfft2(kernel), s=x.shape[2:])
    return result


def check(cores: Cores) -> dict[str, float]:
    """`rfft2`, a product and `irfft2`; then `cat` and a 1x1 convolution."""
    blur, beside = cores.values()
    values = random_values(beside)
    blurred = by_fourier(values["X"], values["k"])
    weight = torch.cat([values["A"], values["B"]], 1)[:, :, None, None]
    return {
        "blur": difference(value(blur, {name: values[name] for name in "Xk"}), blurred),
        "beside the features": difference(value(beside, values), conv2d(torch.cat([blurred, values["X"]], 1), weight)),
    }


def gain() -> dict[str, float]:
    """2 images of 16 channels, 56x56, with kernels of 31x31 padded circularly: torch's `conv2d`, and compiled."""
    x, kernel = torch.randn(2, 16, 56, 56), torch.randn(16, 31, 31)
    text = "X[n c x y] Conv[x u a:31 | padding=15 mode=circular] Conv[y v b:31 | padding=15 mode=circular] k[c a b]"
    program = tn.compile(f"{text} -> [n c u v]", inputs={"X": tuple(x.shape)}, values={"k": kernel})

    def direct() -> Tensor:
        return conv2d(torch.nn.functional.pad(x, [15] * 4, mode="circular"), kernel[:, None], groups=16)

    return {"conv2d in torch : compiled": times_faster(lambda: program(X=x), direct, rounds=5)}


PAPER = Paper(
    title="DeepRFTv2: Kernel-level Learning for Image Deblurring",
    arxiv="2511.21132",
    source="`GetPSF`, `EstOTF` and `KernelEstimator` in `basicsr/models/archs/DeepRFTv2_arch.py` of "
    "github.com/INVOKERer/DeepRFTv2",
    cores=CORES,
    check=check,
    gain=gain,
    outside="The networks that predict the kernel from the transformed features, and the encoder and decoder around "
    "it.",
)
