"""Load an exported model in diffusers and compare its output with one computed elsewhere.

    python check_export.py FOLDER [FILE]

FOLDER is a diffusers folder (model_index.json, unet/, scheduler/), as `cyanea export` or a run's
`model/` has it. FILE is a safetensors file with `x` [B, C, H, W], `timesteps` [B] and `y`, the
output under test; by default FOLDER/expected.safetensors. The bounds are those of
`cyanea compare` for whole networks. Exit code 0: equal within them; 1: not; 2: can't be read.
"""

import argparse
import sys

import torch
from diffusers import DDPMPipeline
from diffusers.utils import logging
from safetensors.torch import load_file

from export_case import allowed_shares

logging.set_verbosity_error()
logging.disable_progress_bar()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("file", nargs="?")
    arguments = parser.parse_args()
    file = arguments.file or f"{arguments.folder}/expected.safetensors"
    try:
        pipeline = DDPMPipeline.from_pretrained(arguments.folder, local_files_only=True)
        given = load_file(file)
        x, timesteps, y = given["x"], given["timesteps"], given["y"]
    except Exception as error:
        print(f"{arguments.folder}, {file}: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    model = pipeline.unet.eval().double()
    with torch.no_grad():
        want = model(x.double(), timesteps).sample
    if want.shape != y.shape:
        print(f"y has shape {list(y.shape)}, diffusers returns {list(want.shape)}")
        return 1
    share = allowed_shares("unet2d", {"y": y}, {"y": want})["y"]
    error = (y.double() - want).abs().max().item()
    passed = share <= 1  # false for NaN
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{type(pipeline.scheduler).__name__}, {parameters} parameters, output {list(y.shape)}")
    print(f"largest error {error:.3e}, {share:.3f} of what is allowed: {'pass' if passed else 'DIFFERS'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
