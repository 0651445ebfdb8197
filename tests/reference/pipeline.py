"""The fixture folder diffusers_ddpm_tiny: a DDPMPipeline as diffusers saves it.

`expected.safetensors` in it has an input (`x`, `timesteps`) and the network's float64 output (`y`).
"""

import torch
from diffusers import DDPMPipeline, DDPMScheduler
from safetensors.torch import save_file

from cases import FIXTURES, case
from export_case import allowed_shares
from networks import DDPM, build, levels

CONFIG = {
    **levels("-a"), **DDPM, "sample_size": 16, "block_out_channels": [8, 16], "layers_per_block": 1,
    "norm_num_groups": 4, "attention_head_dim": 8,
}  # fmt: skip


@case("diffusers_ddpm_tiny/expected")
def _(draw, path):
    model = build(draw, CONFIG)
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=True)
    DDPMPipeline(model, scheduler).save_pretrained(FIXTURES / "diffusers_ddpm_tiny")
    x, timesteps = draw(3, 3, 16, 12), torch.tensor([0, 500, 999])
    with torch.no_grad():
        single = model(x, timesteps).sample
        y = model.double()(x.double(), timesteps).sample
    save_file({"x": x, "timesteps": timesteps, "y": y.float()}, path)
    return allowed_shares("unet2d", {"y": single}, {"y": y})
