"""Fixtures of diffusers' UNet2DModel in small configurations.

`attributes` is the configuration. Some cases write only the keys that were chosen and leave the
rest to diffusers' defaults (among them attention_head_dim = 8), others the whole of config.json.
"""

import json

import torch
from diffusers import UNet2DModel
from diffusers.utils import logging
from safetensors import safe_open

from cases import case, export_case, write_case

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
    "one_level": (
        {**levels("-"), "block_out_channels": [12], "layers_per_block": 2, "norm_num_groups": 3, "norm_eps": 1e-2},
        (3, 3, 7, 9), [0, 500, 999], {"some gradients"},
    ),
    "one_level_attention": (
        {**levels("a"), "block_out_channels": [12], "layers_per_block": 1, "norm_num_groups": 3,
         "attention_head_dim": 4, "freq_shift": 1},
        (2, 3, 5, 9), [1, 42], set(),
    ),
    # Keys that are absent take diffusers' defaults: two layers, attention_head_dim 8, norm_eps
    # 1e-5, downsample_padding 1, flip_sin_to_cos true, freq_shift 0.
    "defaults": (
        {**levels("-a"), "block_out_channels": [8, 16], "norm_num_groups": 8},
        (1, 3, 6, 10), [321], {"some gradients"},
    ),
    "three_levels_middle_attention": (
        {**levels("-a-"), "block_out_channels": [8, 12, 16], "layers_per_block": 1, "norm_num_groups": 4, **DDPM,
         "attention_head_dim": 4},
        (1, 3, 12, 20), [640], {"intermediates", "forward only"},
    ),
    "three_levels_all_attention": (
        {**levels("aaa"), "block_out_channels": [8, 8, 16], "layers_per_block": 1, "norm_num_groups": 2,
         "attention_head_dim": 8, "downsample_padding": 1},
        (2, 3, 20, 12), [999, 0], {"forward only"},
    ),
    "four_levels": (
        {**levels("--a-"), "block_out_channels": [8, 8, 12, 12], "layers_per_block": 1, "norm_num_groups": 4, **DDPM,
         "attention_head_dim": None},
        (1, 3, 24, 16), [777], {"some gradients", "whole config"},
    ),
    "three_layers": (
        {**levels("-a"), "block_out_channels": [4, 8], "layers_per_block": 3, "norm_num_groups": 2, **DDPM,
         "attention_head_dim": 4, "downsample_padding": 1},
        (2, 3, 10, 14), [12, 13], {"some gradients", "whole config"},
    ),
    "narrowing": (
        {**levels("a-"), "block_out_channels": [16, 8], "layers_per_block": 1, "norm_num_groups": 4,
         "attention_head_dim": 4, "downsample_padding": 0},
        (1, 3, 6, 8), [250], {"forward only"},
    ),
    "scale_shift": (
        {**levels("-a"), "block_out_channels": [8, 12], "layers_per_block": 1, "norm_num_groups": 4,
         "attention_head_dim": 4, "resnet_time_scale_shift": "scale_shift"},
        (2, 3, 8, 14), [99, 600], {"intermediates"},
    ),
    "scale_shift_mid_norm": (
        {**levels("-a"), "block_out_channels": [8, 12], "layers_per_block": 1, "norm_num_groups": 4,
         "attn_norm_num_groups": 2, "attention_head_dim": None, "resnet_time_scale_shift": "scale_shift", **DDPM},
        (1, 3, 8, 6), [400], {"some gradients"},
    ),
    "centred_input": (
        {**levels("-a"), "in_channels": 4, "out_channels": 2, "center_input_sample": True,
         "block_out_channels": [8, 12], "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4},
        (2, 4, 8, 6), [5, 995], {"some gradients"},
    ),
    "sine_first_no_shift": (
        {**levels("-a"), "block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4,
         "attention_head_dim": 4, "flip_sin_to_cos": False, "freq_shift": 0, "norm_eps": 1e-4},
        (3, 3, 4, 2), [1, 10, 100], {"forward only"},
    ),
    "legacy_names": (
        {**levels("-a"), "block_out_channels": [4, 8], "layers_per_block": 1, "norm_num_groups": 4, **DDPM,
         "attention_head_dim": None},
        (1, 1, 8, 8), [50], {"forward only", "legacy names"},
    ),
}
UNETS["legacy_names"][0].update(in_channels=1, out_channels=1)

# Gradients of "some gradients": one weight of every kind, to keep the files small.
SOME_GRADIENTS = (
    "x", "conv_in.weight", "conv_out.bias", "time_embedding.linear_1.weight", "time_embedding.linear_2.bias",
    "down_blocks.0.resnets.0.conv1.weight", "down_blocks.0.resnets.0.time_emb_proj.weight",
    "down_blocks.0.downsamplers.0.conv.weight", "mid_block.attentions.0.to_q.weight",
    "mid_block.attentions.0.to_v.bias", "mid_block.attentions.0.to_out.0.weight", "mid_block.resnets.1.norm2.weight",
    "up_blocks.0.resnets.0.conv_shortcut.weight", "up_blocks.0.resnets.1.norm1.bias",
    "up_blocks.0.upsamplers.0.conv.weight", "conv_norm_out.weight",
)  # fmt: skip

# What attention weights were called in diffusers before 0.12; files with these names are about.
LEGACY_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def rename_legacy(path):
    """Rewrite a case with the old names of the attention weights."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    for new, old in LEGACY_NAMES.items():
        tensors = {n.replace(f".{new}.", f".{old}."): t for n, t in tensors.items()}
    write_case(path, metadata["op"], json.loads(metadata["attributes"]), tensors)


def register(name, config, shape, timesteps, options):
    @case(f"unet2d_{name}")
    def _(draw, path):
        model = build(draw, config)
        inputs = {"x": draw(*shape), "timesteps": torch.tensor(timesteps)}
        attributes = config
        if "whole config" in options:
            attributes = {k: v for k, v in model.config.items() if k != "_use_default_values"}
        gradients = "forward only" not in options
        if "some gradients" in options:
            gradients = SOME_GRADIENTS
        shares = export_case(
            path, "unet2d", attributes, model, inputs, call=lambda m, i: m(i["x"], i["timesteps"]).sample,
            gradients=gradients, intermediates=trunk(model) if "intermediates" in options else (),
        )
        if "legacy names" in options:
            rename_legacy(path)
        return shares


for name, description in UNETS.items():
    register(name, *description)
