"""Convolutions over time that compute one output for one new frame.

The thesis turns networks for video clips into networks for streams. A layer keeps what its window still needs, so that
a new frame costs one step instead of a whole clip, and the outputs are those of the clip. Weights stay as trained.

A window along t, padded on the left alone, reads frames of the past. One step is the product of the kernel with the
last frames, which are the state. `tn.stream` makes such steps of networks, layers and whole models, and keeps products
of past frames with what comes before their window.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

import tnalgebra as tn
from recipes.gallery.frame import Cores, Paper, difference, random_values, sized, times_faster, value

WINDOWS = "Conv[x u h:3 | padding=1] Conv[y v w:3 | padding=1] K[o c k:3 h w]"

CORES: Cores = {
    "clip": sized(f"X[n c t x y] Conv[t s k:3 | padding=2:0] {WINDOWS} -> [n o s u v]", n=2, c=3, t=6, x=5, y=4, o=4),
    "step": sized(f"X[n c k:3 x y] {WINDOWS} -> [n o u v]", n=2, c=3, x=5, y=4, o=4),
}


def check(cores: Cores) -> dict[str, float]:
    """torch's `conv3d` of the clip, padded on the left; frame after frame from a state; and the stream."""
    clip, one = cores.values()
    values = random_values(clip)
    x, kernel = values["X"], values["K"]
    expected = torch.conv3d(pad(x, (1, 1, 1, 1, 2, 0)), kernel)
    state = torch.zeros(2, 3, 2, 5, 4, dtype=torch.float64)
    outputs = []
    for frame in x.unbind(2):
        window = torch.cat([state, frame[:, :, None]], 2)
        outputs.append(value(one, {"X": window, "K": kernel}))
        state = window[:, :, 1:]
    stream = tn.stream(clip, along="t", values={"K": kernel})
    streamed = [stream.step(frame) for frame in x.unbind(2)]
    return {
        "clip": difference(value(clip, values), expected),
        "steps": difference(torch.stack(outputs, 2), expected),
        "stream": difference(torch.stack([frame for frame in streamed if frame is not None], 2), expected),
    }


def gain() -> dict[str, float]:
    """Four 3x3x3 convolutions of 16 channels on frames of 28x28: a clip of 16 frames against one step."""
    layers = [torch.nn.Conv3d(16, 16, 3, padding=(0, 1, 1)) for _ in range(4)]
    model = torch.nn.Sequential(*(one for layer in layers for one in (layer, torch.nn.ReLU()))).eval()
    clip = torch.randn(1, 16, 16, 28, 28)
    stream = tn.stream(model, example=tuple(clip.shape))
    frame = clip[:, :, 0].contiguous()
    for _ in range(16):
        stream.step(frame)
    return {"clip in torch : step": times_faster(lambda: stream.step(frame), lambda: model(clip))}


PAPER = Paper(
    title="Efficient Online Processing with Deep Neural Networks",
    arxiv="2306.13474",
    source="`_ConvCoNd` in `continual/conv.py` of github.com/LukasHedegaard/continual-inference",
    cores=CORES,
    check=check,
    gain=gain,
    outside="Graph networks and attention for streams, and the pruning adapters of the thesis.",
)
