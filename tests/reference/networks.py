"""Fixtures of diffusers' UNet2DModel in small configurations.

`attributes` is the configuration. Some cases write only the keys that were chosen and leave the
rest to diffusers' defaults (among them attention_head_dim = 8), others the whole of config.json.
"""

import torch
from diffusers import UNet2DModel
from diffusers.utils import logging

from cases import case, export_case


logging.set_verbosity_error()


def levels(attention):
    """Block types of a U-Net; `attention` has one letter a level: "-" without, "a" with."""
    down = ["AttnDownBlock2D" if a == "a" else "DownBlock2D" for a in attention]
    up = ["AttnUpBlock2D" if a == "a" else "UpBlock2D" for a in reversed(attention)]
    return {"down_block_types": down, "up_block_types": up}


def build(draw, config):
    """A model with random weights of which none is left at an initial 0 or 1."""
    with torch.random.fork_rng():
        torch.manual_seed(draw.seed)
        model = UNet2DModel(**config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * draw(*parameter.shape)
    return model


def trunk(model):
    """Paths of the submodules worth looking at when an output differs."""
    kinds = ("resnets", "attentions", "downsamplers", "upsamplers")
    paths = [n for n, _ in model.named_modules() if n.count(".") and n.split(".")[-2] in kinds]
    return ["time_embedding", "conv_in", *paths, "mid_block", "conv_norm_out", "conv_out"]


DDPM = {"freq_shift": 1, "flip_sin_to_cos": False, "norm_eps": 1e-6, "downsample_padding": 0}

# name: (configuration, shape of x, timesteps, options)
UNETS = {
    "tiny": (
        {**levels("-a"), "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4, **DDPM,
         "attention_head_dim": None},
        (2, 3, 12, 20), [7, 993], {"intermediates"},
    ),
}


def register(name, config, shape, timesteps, options):
    @case(f"unet2d_{name}")
    def _(draw, path):
        model = build(draw, config)
        inputs = {"x": draw(*shape), "timesteps": torch.tensor(timesteps)}
        attributes = dict(config)
        if "whole config" in options:
            attributes = {k: v for k, v in model.config.items() if k != "_use_default_values"}
        return export_case(
            path, "unet2d", attributes, model, inputs, call=lambda m, i: m(i["x"], i["timesteps"]).sample,
            gradients="forward only" not in options,
            intermediates=trunk(model) if "intermediates" in options else (),
        )


for name, description in UNETS.items():
    register(name, *description)
