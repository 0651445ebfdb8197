"""Fixtures of the magnitude-preserving operations of EDM2 (Karras et al. 2024, arXiv:2312.02696), written
from the paper's equations."""

import math

import torch
import torch.nn.functional as F

from cases import case, export_case

EPSILON = 1e-4


def unit(x, dims):
    """x over its root mean square along `dims` (eq. 30); the mean in float32 for float16."""
    wide = x.float() if x.dtype == torch.float16 else x
    magnitude = EPSILON + wide.square().mean(dim=dims, keepdim=True).sqrt()
    return x / magnitude.to(x.dtype)


def unit_weight(weight, gain=1):
    """A weight whose outputs have the magnitude of its inputs (eq. 66), times `gain`."""
    dims = tuple(range(1, weight.dim()))
    fan_in = weight[0].numel()
    wide = weight.float() if weight.dtype == torch.float16 else weight
    return (unit(wide, dims) * (gain / math.sqrt(fan_in))).to(weight.dtype)


def mp_silu(x):
    """eq. 81"""
    return F.silu(x) / 0.596


def mp_sum(a, b, t):
    """eq. 88"""
    return torch.lerp(a, b, t) / math.hypot(1 - t, t)


def mp_cat(a, b, t):
    """eq. 103, along the channels"""
    scale = math.sqrt((a.shape[1] + b.shape[1]) / ((1 - t) ** 2 + t**2))
    return torch.cat([a * (scale * (1 - t) / math.sqrt(a.shape[1])), b * (scale * t / math.sqrt(b.shape[1]))], dim=1)


def mp_fourier(x, freqs, phases):
    """eq. 75, in float32 at least"""
    x, freqs, phases = (v.float() if v.dtype == torch.float16 else v for v in (x, freqs, phases))
    return math.sqrt(2) * torch.cos(torch.outer(x, freqs) + phases)


def buffers(draw, channels):
    """Frequencies and phases: 2 pi times standard normal and uniform numbers."""
    uniform = torch.rand(channels, generator=draw.generator)
    return {"freqs": 2 * math.pi * draw(channels), "phases": 2 * math.pi * uniform}


for name, shape in {"2x17x5x7": (2, 17, 5, 7), "1x64x3x3": (1, 64, 3, 3), "3x33": (3, 33)}.items():

    @case(f"pixel_norm_{name}")
    def _(draw, path, shape=shape):
        return export_case(path, "pixel_norm", {}, lambda i, p: unit(i["x"], 1), {"x": 2 * draw(*shape)})

    @case(f"mp_silu_{name}")
    def _(draw, path, shape=shape):
        return export_case(path, "mp_silu", {}, lambda i, p: mp_silu(i["x"]), {"x": 2 * draw(*shape)})


for name, shape, other, t in [
    ("even", (2, 12, 5, 7), (2, 20, 5, 7), 0.5),
    ("uneven", (1, 33, 4, 6), (1, 16, 4, 6), 0.3),
    ("rows", (3, 24), (3, 8), 0.7),
]:

    @case(f"mp_sum_{name}")
    def _(draw, path, shape=shape, t=t):
        inputs = {"a": draw(*shape), "b": draw(*shape)}
        return export_case(path, "mp_sum", {"t": t}, lambda i, p: mp_sum(i["a"], i["b"], t), inputs)

    @case(f"mp_cat_{name}")
    def _(draw, path, shape=shape, other=other, t=t):
        inputs = {"a": draw(*shape), "b": draw(*other)}
        return export_case(path, "mp_cat", {"t": t}, lambda i, p: mp_cat(i["a"], i["b"], t), inputs)


for name, shape, out, kernel, gain in [
    ("3x3", (2, 17, 9, 7), 20, 3, 1.0),
    ("1x1_gain", (1, 32, 5, 7), 13, 1, 0.7),
    ("one_channel", (1, 1, 6, 5), 4, 3, 2.0),
]:

    @case(f"mp_conv2d_{name}")
    def _(draw, path, shape=shape, out=out, kernel=kernel, gain=gain):
        def run(i, p):
            return F.conv2d(i["x"], unit_weight(p["weight"], gain), padding=kernel // 2)

        weight = 1.5 * draw(out, shape[1], kernel, kernel)
        return export_case(path, "mp_conv2d", {"gain": gain}, run, {"x": draw(*shape)}, parameters={"weight": weight})


for name, shape, out, gain in [("3x40", (3, 40), 24, 1.0), ("gain", (2, 17), 33, 1.3)]:

    @case(f"mp_linear_{name}")
    def _(draw, path, shape=shape, out=out, gain=gain):
        weight = 0.5 * draw(out, shape[1])
        return export_case(
            path, "mp_linear", {"gain": gain}, lambda i, p: F.linear(i["x"], unit_weight(p["weight"], gain)),
            {"x": draw(*shape)}, parameters={"weight": weight},
        )


for batch, channels in [(4, 37), (1, 64)]:

    @case(f"mp_fourier_{batch}x{channels}")
    def _(draw, path, batch=batch, channels=channels):
        return export_case(
            path, "mp_fourier", {}, lambda i, p: mp_fourier(i["x"], p["freqs"], p["phases"]), {"x": draw(batch)},
            parameters=buffers(draw, channels),
        )
