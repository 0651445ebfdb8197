"""Fixtures of the single operations.

Forms of the attributes used here: `stride` is a number or [vertical, horizontal]; `padding` is
a number, [vertical, horizontal], or four numbers [left, right, top, bottom] in the order of
torch.nn.functional.pad, which is how an asymmetric padding is written ([0, 1, 0, 1] pads right
and bottom by one).
"""

import torch
import torch.nn.functional as F

from cases import case, export_case


def convolve(x, weight, bias, stride, padding):
    """conv2d with the paddings described above; a list of four can be asymmetric."""
    if isinstance(padding, (list, tuple)) and len(padding) == 4:
        x, padding = F.pad(x, padding), 0
    return F.conv2d(x, weight, bias, stride=stride, padding=padding)


# Elementwise, resampling, linear, loss

for name, shape in {"silu_2x3x13x19": (2, 3, 13, 19), "silu_1": (1,), "silu_3x33": (3, 33)}.items():

    @case(name)
    def _(draw, path, shape=shape):
        return export_case(path, "silu", {}, lambda i, p: F.silu(i["x"]), {"x": 3 * draw(*shape)})


@case("silu_extreme")
def _(draw, path):
    x = torch.tensor([[-200.0, -100, -88, -30, -10, -1e-3, 0, 1e-3, 1, 10, 30, 88, 100, 200]])
    return export_case(path, "silu", {}, lambda i, p: F.silu(i["x"]), {"x": x})


# No value is at the limit: there PyTorch's gradient is 1 in versions before 2.15 and 0 from then on.
for shape, limit in [((2, 17, 5, 7), 1.0), ((3, 33), 0.375), ((1, 3, 13, 19), 256.0)]:

    @case("clip_" + "x".join(map(str, shape)))
    def _(draw, path, shape=shape, limit=limit):
        run = lambda i, p: i["x"].clip(-limit, limit)
        x = limit * draw(*shape)
        assert not (x.half().abs() == limit).any()
        return export_case(path, "clip", {"limit": limit}, run, {"x": x})


for factor, shape in [(2, (2, 3, 5, 7)), (2, (1, 17, 1, 3)), (3, (2, 5, 4, 3))]:

    @case(f"upsample_nearest2d_x{factor}_{shape[1]}ch")
    def _(draw, path, factor=factor, shape=shape):
        def run(i, p):
            return F.interpolate(i["x"], scale_factor=factor, mode="nearest")

        return export_case(path, "upsample_nearest2d", {"scale_factor": factor}, run, {"x": draw(*shape)})


for name, shape, features in [
    ("linear_17_to_33", (3, 17), 33),
    ("linear_1_to_1", (1, 1), 1),
    ("linear_one_row", (37,), 5),
    ("linear_tokens_40_to_24", (2, 13, 40), 24),
    ("linear_129_to_65", (1, 129), 65),
]:

    @case(name)
    def _(draw, path, shape=shape, features=features):
        return export_case(
            path, "linear", {}, lambda i, p: F.linear(i["x"], p["weight"], p["bias"]), {"x": draw(*shape)},
            parameters={"weight": draw.weight(features, shape[-1]), "bias": draw(features)},
        )


for name, shape in {"mse_loss_images": (2, 3, 13, 19), "mse_loss_vector": (7,)}.items():

    @case(name)
    def _(draw, path, shape=shape):
        def run(i, p):
            return F.mse_loss(i["x"], i["target"]).reshape(1)

        return export_case(path, "mse_loss", {}, run, {"x": draw(*shape), "target": draw(*shape)})


# Group normalisation

for name, shape, groups, eps, mean in [
    ("16ch_4groups", (2, 16, 9, 11), 4, 1e-5, 0.0),
    ("17ch_1group", (3, 17, 5, 7), 1, 1e-6, 0.0),
    ("12ch_12groups", (1, 12, 9, 5), 12, 1e-5, 0.5),
    ("33ch_3groups_large_eps", (2, 33, 7, 3), 3, 1e-2, 0.0),
    ("64ch_32groups", (1, 64, 5, 7), 32, 1e-6, -1.0),
    # E[x^2] - E[x]^2 in float32 loses this one.
    ("24ch_8groups_large_mean", (2, 24, 11, 6), 8, 1e-5, 6.0),
]:
    for op in ("group_norm", "group_norm_silu"):

        @case(f"{op}_{name}")
        def _(draw, path, op=op, shape=shape, groups=groups, eps=eps, mean=mean):
            def run(i, p):
                y = F.group_norm(i["x"], groups, p["weight"], p["bias"], eps)
                return F.silu(y) if op == "group_norm_silu" else y

            weight, bias = draw.affine(shape[1])
            return export_case(
                path, op, {"groups": groups, "eps": eps}, run, {"x": mean + draw(*shape)},
                parameters={"weight": weight, "bias": bias},
            )


@case("group_norm_weights_as_inputs")
def _(draw, path):
    """A user may take the weights for arguments: then they are named input.weight, input.bias."""

    def run(i, p):
        return F.group_norm(i["x"], 2, i["weight"], i["bias"], 1e-5)

    weight, bias = draw.affine(6)
    inputs = {"x": draw(2, 6, 5, 4), "weight": weight, "bias": bias}
    return export_case(path, "group_norm", {"groups": 2, "eps": 1e-5}, run, inputs)


# Convolutions

for name, shape, out, kernel, stride, padding in [
    ("1x1", (2, 17, 7, 11), 33, (1, 1), 1, 0),
    ("1x1_stride2", (1, 8, 13, 19), 5, (1, 1), 2, 0),
    ("3x3", (2, 3, 13, 19), 17, (3, 3), 1, 1),
    ("3x3_wide", (1, 33, 17, 12), 20, (3, 3), 1, 1),
    ("3x3_48_to_33", (1, 48, 13, 11), 33, (3, 3), 1, 1),
    ("3x3_unpadded", (3, 5, 7, 9), 6, (3, 3), 1, 0),
    ("3x3_stride2", (1, 17, 13, 19), 8, (3, 3), 2, 1),
    ("3x3_stride2_even", (1, 8, 16, 12), 16, (3, 3), 2, 1),
    ("3x3_stride2_right_bottom", (2, 6, 12, 10), 9, (3, 3), 2, [0, 1, 0, 1]),
    ("3x3_stride2_right_bottom_odd", (1, 4, 13, 7), 4, (3, 3), 2, [0, 1, 0, 1]),
    ("3x3_asymmetric", (1, 3, 6, 5), 4, (3, 3), 1, [2, 0, 0, 1]),
    ("3x3_padding_list", (2, 4, 8, 5), 3, (3, 3), 1, [1, 0]),
    ("3x3_stride_list", (1, 4, 9, 8), 3, (3, 3), [2, 1], [1, 1]),
    ("3x3_one_pixel", (3, 16, 1, 1), 8, (3, 3), 1, 1),
    ("5x5", (1, 3, 11, 8), 7, (5, 5), 1, 2),
    ("3x1", (1, 3, 6, 8), 4, (3, 1), 1, [1, 0]),
]:

    @case(f"conv2d_{name}")
    def _(draw, path, shape=shape, out=out, kernel=kernel, stride=stride, padding=padding):
        return export_case(
            path, "conv2d", {"stride": stride, "padding": padding},
            lambda i, p: convolve(i["x"], p["weight"], p["bias"], stride, padding), {"x": draw(*shape)},
            parameters={"weight": draw.weight(out, shape[1], *kernel), "bias": draw(out)},
        )


for name, shape, out, kernel, stride, padding in [
    ("4x4_stride2", (2, 6, 7, 5), 9, 4, 2, 1),
    ("2x2_stride2", (1, 17, 5, 9), 3, 2, 2, 0),
    ("3x3", (2, 5, 6, 7), 4, 3, 1, 1),
    ("3x3_stride2", (1, 4, 5, 3), 8, 3, 2, 1),
    ("3x3_lists", (1, 3, 4, 6), 5, 3, [1, 2], [1, 0]),
]:

    @case(f"conv_transpose2d_{name}")
    def _(draw, path, shape=shape, out=out, kernel=kernel, stride=stride, padding=padding):
        def run(i, p):
            return F.conv_transpose2d(i["x"], p["weight"], p["bias"], stride=stride, padding=padding)

        weight = draw.weight(shape[1], out, kernel, kernel, fan_in=shape[1] * kernel * kernel)
        return export_case(
            path, "conv_transpose2d", {"stride": stride, "padding": padding}, run, {"x": draw(*shape)},
            parameters={"weight": weight, "bias": draw(out)},
        )


@case("conv_transpose2d_weights_as_inputs")
def _(draw, path):
    def run(i, p):
        return F.conv_transpose2d(i["x"], i["weight"], i["bias"], stride=2, padding=1)

    inputs = {"x": draw(1, 3, 4, 5), "weight": draw.weight(3, 5, 4, 4), "bias": draw(5)}
    return export_case(path, "conv_transpose2d", {"stride": 2, "padding": 1}, run, inputs)


# Attention

for heads, tokens, size, batch, scale in [
    (3, 33, 4, 2, None),
    (2, 37, 8, 1, None),
    (2, 19, 40, 1, None),
    (1, 41, 64, 1, None),
    (2, 257, 8, 1, None),
    (1, 1, 8, 3, None),
    (2, 13, 20, 1, 0.5),
    (1, 9, 132, 1, None),
]:

    @case(f"attention_{heads}heads_{tokens}x{size}")
    def _(draw, path, heads=heads, tokens=tokens, size=size, batch=batch, scale=scale):
        scale = scale or size**-0.5
        inputs = {n: draw(batch, heads, tokens, size) for n in ("q", "k", "v")}

        def run(i, p):
            return F.scaled_dot_product_attention(i["q"], i["k"], i["v"], scale=scale)

        return export_case(path, "attention", {"scale": scale}, run, inputs)


@case("attention_large_scores")
def _(draw, path):
    """Scores of about ±100: exp overflows unless the largest is taken off first."""
    inputs = {"q": 5 * draw(1, 2, 21, 8), "k": 5 * draw(1, 2, 21, 8), "v": draw(1, 2, 21, 8)}

    def run(i, p):
        return F.scaled_dot_product_attention(i["q"], i["k"], i["v"], scale=0.5)

    return export_case(path, "attention", {"scale": 0.5}, run, inputs)


# Norm, SiLU and convolution in one

for name, shape, out, skip, groups, stride, padding, silu, residual, shift in [
    ("plain", (2, 16, 9, 11), 17, 0, 4, 1, 1, True, False, False),
    ("no_silu", (1, 12, 7, 9), 12, 0, 3, 1, 1, False, False, False),
    ("residual", (2, 8, 9, 7), 8, 0, 2, 1, 1, True, True, False),
    ("shift", (3, 8, 6, 5), 12, 0, 8, 1, 1, True, False, True),
    ("residual_shift", (2, 8, 7, 8), 16, 0, 4, 1, 1, True, True, True),
    ("skip", (1, 16, 8, 8), 16, 8, 4, 1, 1, True, False, True),
    # A group of 6 channels that holds some of x and some of skip.
    ("skip_straddling", (2, 10, 7, 5), 9, 8, 3, 1, 1, True, True, True),
    ("stride2", (2, 8, 13, 9), 8, 0, 4, 2, 1, True, False, False),
    ("stride2_right_bottom", (1, 8, 8, 12), 6, 4, 4, 2, [0, 1, 0, 1], False, False, True),
    ("1x1", (2, 20, 5, 7), 11, 0, 5, 1, 0, True, True, False),
]:

    @case(f"norm_silu_conv2d_{name}")
    def _(
        draw, path, name=name, shape=shape, out=out, skip=skip, groups=groups,
        stride=stride, padding=padding, silu=silu, residual=residual, shift=shift,
    ):
        eps = 1e-6 if skip else 1e-5
        batch, channels, height, width = shape
        kernel = 1 if name == "1x1" else 3

        def run(i, p):
            h = torch.cat([i["x"], i["skip"]], dim=1) if skip else i["x"]
            h = F.group_norm(h, groups, p["norm.weight"], p["norm.bias"], eps)
            h = convolve(F.silu(h) if silu else h, p["weight"], p["bias"], stride, padding)
            h = h + i["residual"] if residual else h
            return h + i["shift"][:, :, None, None] if shift else h

        norm_weight, norm_bias = draw.affine(channels + skip)
        inputs = {"x": draw(*shape)}
        if skip:
            inputs["skip"] = 2 * draw(batch, skip, height, width) + 0.5
        if residual:
            inputs["residual"] = draw(batch, out, height, width)
        if shift:
            inputs["shift"] = draw(batch, out)
        attributes = {"groups": groups, "eps": eps, "stride": stride, "padding": padding, "silu": silu}
        return export_case(
            path, "norm_silu_conv2d", attributes, run, inputs,
            parameters={
                "norm.weight": norm_weight,
                "norm.bias": norm_bias,
                "weight": draw.weight(out, channels + skip, kernel, kernel),
                "bias": draw(out),
            },
        )
