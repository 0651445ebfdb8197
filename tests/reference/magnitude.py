"""Fixtures of the magnitude-preserving operations of EDM2 (Karras et al. 2024, arXiv:2312.02696), made by NVlabs' own
code; see `nvlabs.py`."""

import math

import torch
from torch.func import functional_call

from cases import case, export_case
from nvlabs import arithmetic, networks


def export(path, op, attributes, function, inputs, parameters=None):
    """A case of `function(NVlabs' module, inputs, parameters)`."""

    def run(i, p):
        with arithmetic(next(iter(i.values())).dtype):
            return function(networks(), i, p)

    return export_case(path, op, attributes, run, inputs, parameters=parameters)


def buffers(draw, channels):
    """Frequencies and phases: 2 pi times standard normal and uniform numbers."""
    uniform = torch.rand(channels, generator=draw.generator)
    return {"freqs": 2 * math.pi * draw(channels), "phases": 2 * math.pi * uniform}


for name, shape in {"2x17x5x7": (2, 17, 5, 7), "1x64x3x3": (1, 64, 3, 3), "3x33": (3, 33)}.items():

    @case(f"pixel_norm_{name}", needs_nvlabs=True)
    def _(draw, path, shape=shape):
        return export(path, "pixel_norm", {}, lambda n, i, p: n.normalize(i["x"], dim=1), {"x": 2 * draw(*shape)})

    @case(f"mp_silu_{name}", needs_nvlabs=True)
    def _(draw, path, shape=shape):
        return export(path, "mp_silu", {}, lambda n, i, p: n.mp_silu(i["x"]), {"x": 2 * draw(*shape)})


for name, shape, other, t in [
    ("even", (2, 12, 5, 7), (2, 20, 5, 7), 0.5),
    ("uneven", (1, 33, 4, 6), (1, 16, 4, 6), 0.3),
    ("rows", (3, 24), (3, 8), 0.7),
]:

    @case(f"mp_sum_{name}", needs_nvlabs=True)
    def _(draw, path, shape=shape, t=t):
        inputs = {"a": draw(*shape), "b": draw(*shape)}
        return export(path, "mp_sum", {"t": t}, lambda n, i, p: n.mp_sum(i["a"], i["b"], t), inputs)

    @case(f"mp_cat_{name}", needs_nvlabs=True)
    def _(draw, path, shape=shape, other=other, t=t):
        inputs = {"a": draw(*shape), "b": draw(*other)}
        return export(path, "mp_cat", {"t": t}, lambda n, i, p: n.mp_cat(i["a"], i["b"], t=t), inputs)


# A layer's weight is stored as it is in evaluation.
for name, op, shape, out, kernel, gain, scale in [
    ("3x3", "mp_conv2d", (2, 17, 9, 7), 20, [3, 3], 1.0, 1.5),
    ("1x1_gain", "mp_conv2d", (1, 32, 5, 7), 13, [1, 1], 0.7, 1.5),
    ("one_channel", "mp_conv2d", (1, 1, 6, 5), 4, [3, 3], 2.0, 1.5),
    ("3x40", "mp_linear", (3, 40), 24, [], 1.0, 0.5),
    ("gain", "mp_linear", (2, 17), 33, [], 1.3, 0.5),
]:

    @case(f"{op}_{name}", needs_nvlabs=True)
    def _(draw, path, op=op, shape=shape, out=out, kernel=kernel, gain=gain, scale=scale):
        def run(n, i, p):
            return functional_call(n.MPConv(shape[1], out, kernel).eval(), p, (i["x"], gain))

        parameters = {"weight": scale * draw(out, shape[1], *kernel)}
        return export(path, op, {"gain": gain}, run, {"x": draw(*shape)}, parameters)


for batch, channels in [(4, 37), (1, 64)]:

    @case(f"mp_fourier_{batch}x{channels}", needs_nvlabs=True)
    def _(draw, path, batch=batch, channels=channels):
        def run(n, i, p):
            return functional_call(n.MPFourier(channels), p, (i["x"],))

        return export(path, "mp_fourier", {}, run, {"x": draw(batch)}, buffers(draw, channels))
