"""Fixtures of noise schedules, samplers, the optimizer and short training runs.

Scheduler configurations leave out what is diffusers' default for the scheduler concerned:
DDPMScheduler for `add_noise`, `ddpm_step` and `training`, DDIMScheduler for `ddim`,
DPMSolverMultistepScheduler for `dpm_solver_pp_2m`. `epsilon` and `epsilons` are what the network
returned; with `prediction_type` `v_prediction` or `sample` that is v or the image.

The schedulers keep their tables in float32 in every run, the float64 one too: they are
diffusers' own, and at small timesteps 1 - alpha_bar is known to three or four digits only. With
tables in float64 most of these cases still pass, `ddpm_step` with `prediction_type` `sample` does
not. DDIM with eta > 0 takes its fresh noise from an input `noise` [steps, ...].
"""

import math
from unittest import mock

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel

from cases import case, export_case
from networks import build, levels

LINEAR = {}
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
V = {"prediction_type": "v_prediction"}
SAMPLE = {"prediction_type": "sample"}


# The forward process

for name, config in {
    "linear": LINEAR,
    "scaled_linear": SCALED,
    "cosine": COSINE,
    "linear_200": {"num_train_timesteps": 200, "beta_end": 0.05},
}.items():

    @case(f"add_noise_{name}")
    def _(draw, path, config=config):
        last = config.get("num_train_timesteps", 1000) - 1
        timesteps = torch.tensor([0, 1, last // 3, last // 2 + 1, last - 1, last])
        inputs = {"x0": draw(6, 3, 5, 7), "noise": draw(6, 3, 5, 7), "timesteps": timesteps}

        def run(i, p):
            return DDPMScheduler(**config).add_noise(i["x0"], i["noise"], i["timesteps"])

        return export_case(path, "add_noise", config, run, inputs, outputs=("x_t",), gradients=False)


# One step of DDPM at many timesteps

for name, config, shape in [
    ("linear", {"variance_type": "fixed_small", "clip_sample": True, **LINEAR}, (3, 5, 7)),
    ("linear_unclipped", {"variance_type": "fixed_small", "clip_sample": False, **LINEAR}, (3, 5, 7)),
    ("linear_fixed_large", {"variance_type": "fixed_large", "clip_sample": True, **LINEAR}, (2, 3, 4, 3)),
    ("scaled_linear_v", {"variance_type": "fixed_small", "clip_sample": True, **SCALED, **V}, (3, 5, 7)),
    ("cosine_v", {"variance_type": "fixed_large", "clip_sample": False, **COSINE, **V}, (3, 5, 7)),
    ("cosine", {"variance_type": "fixed_small", "clip_sample": True, **COSINE}, (3, 5, 7)),
    ("linear_sample", {"variance_type": "fixed_small", "clip_sample": False, **LINEAR, **SAMPLE}, (3, 5, 7)),
    ("cosine_sample", {"variance_type": "fixed_small", "clip_sample": True, "clip_sample_range": 1.5, **COSINE, **SAMPLE}, (17,)),
]:

    @case(f"ddpm_step_{name}")
    def _(draw, path, config=config, shape=shape):
        timesteps = torch.tensor([999, 998, 700, 333, 17, 2, 1, 0])
        inputs = {n: draw(len(timesteps), *shape) for n in ("x_t", "epsilon", "noise")}
        inputs["timesteps"] = timesteps

        def run(i, p):
            scheduler = DDPMScheduler(**config)
            steps = []
            for k, t in enumerate(i["timesteps"].tolist()):
                # A leading axis, since the step looks at the channel axis of a batch.
                x_t, epsilon, noise = (i[n][k][None] for n in ("x_t", "epsilon", "noise"))
                with mock.patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", return_value=noise):
                    steps.append(scheduler.step(epsilon, t, x_t).prev_sample[0])
            return torch.stack(steps)

        return export_case(path, "ddpm_step", config, run, inputs, outputs=("x_prev",), gradients=False)


# Whole sampling runs

def sampling(op, name, scheduler_class, config, steps, *, eta=None):
    @case(f"{op}_{name}")
    def _(draw, path):
        scheduler = scheduler_class(**config)
        scheduler.set_timesteps(steps)
        timesteps = scheduler.timesteps.clone()
        inputs = {"x_T": draw(2, 3, 4, 5), "epsilons": draw(len(timesteps), 2, 3, 4, 5), "timesteps": timesteps}
        if eta:
            inputs["noise"] = draw(len(timesteps), 2, 3, 4, 5)

        def run(i, p):
            scheduler = scheduler_class(**config)
            scheduler.set_timesteps(steps)
            x = i["x_T"]
            for k, (t, epsilon) in enumerate(zip(scheduler.timesteps, i["epsilons"])):
                fresh = {"eta": eta, "variance_noise": i["noise"][k]} if eta else {}
                x = scheduler.step(epsilon, t, x, **fresh).prev_sample
            return x

        attributes = {**config, "steps": steps} | ({} if eta is None else {"eta": eta})
        return export_case(path, op, attributes, run, inputs, outputs=("x_0",), gradients=False)


for name, config, steps, eta in [
    ("leading", {"clip_sample": False}, 10, 0.0),
    ("leading_clipped", {}, 7, None),
    ("leading_offset", {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False, **SCALED}, 20, 0.0),
    ("linspace", {"timestep_spacing": "linspace", "clip_sample": False}, 13, 0.0),
    ("trailing_v", {"timestep_spacing": "trailing", "clip_sample": False, **SCALED, **V}, 12, 0.0),
    ("trailing_cosine_v_clipped", {"timestep_spacing": "trailing", **COSINE, **V}, 10, None),
    ("sample", {"clip_sample": True, "clip_sample_range": 2.0, **SAMPLE}, 9, 0.0),
    ("one_step", {"timestep_spacing": "trailing", "clip_sample": False}, 1, 0.0),
    ("50_steps", {"clip_sample": True, **COSINE, **V}, 50, 0.0),
    ("eta", {"clip_sample": False}, 10, 0.6),
    ("eta_one_clipped_v", {"timestep_spacing": "trailing", **COSINE, **V}, 12, 1.0),
]:
    sampling("ddim", name, DDIMScheduler, config, steps, eta=eta)

for name, config, steps in [
    ("linspace", {}, 10),
    ("linspace_20", {}, 20),
    ("leading", {"timestep_spacing": "leading", **SCALED}, 8),
    ("leading_offset", {"timestep_spacing": "leading", "steps_offset": 1}, 15),
    ("trailing_v", {"timestep_spacing": "trailing", **SCALED, **V}, 12),
    ("cosine_v", {**COSINE, **V}, 11),
    ("sample", {**SAMPLE}, 16),
    ("sigma_min", {"final_sigmas_type": "sigma_min", "lower_order_final": False}, 10),
    ("sigma_min_lower_order", {"final_sigmas_type": "sigma_min"}, 6),
    ("one_step", {}, 1),
    ("two_steps", {}, 2),
]:
    sampling("dpm_solver_pp_2m", name, DPMSolverMultistepScheduler, config, steps)


# AdamW

for name, shape, options, scale in [
    ("defaults", (17, 3, 3, 3), {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 1e-2}, 1.0),
    ("no_decay", (33,), {"lr": 1e-4, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}, 1e-3),
    ("large_decay", (5, 7), {"lr": 2e-2, "betas": [0.5, 0.9], "eps": 1e-6, "weight_decay": 0.5}, 10.0),
    ("large_eps", (13, 19), {"lr": 1e-2, "betas": [0.95, 0.99], "eps": 1e-2, "weight_decay": 1e-2}, 1e-2),
]:

    @case(f"adamw_{name}")
    def _(draw, path, name=name, shape=shape, options=options, scale=scale):
        steps = 20 if name == "no_decay" else 6
        grads = scale * draw(steps, *shape)
        if name in ("defaults", "large_eps"):
            grads[0] = 0  # the first update is then 0 / (0 + eps)

        def run(i, p):
            w = p["w"].clone()
            optimizer = torch.optim.AdamW([w], **options)
            for grad in i["grads"]:
                w.grad = grad.clone()
                optimizer.step()
            return w

        return export_case(
            path, "adamw", {**options, "steps": steps}, run, {"grads": grads},
            parameters={"w": draw(*shape)}, outputs=("w",), gradients=False,
            # Float16 rounds a smaller eps to nothing, 0 / 0: then the gradients alone are of that type.
            half=options["eps"] > 1e-7 or (lambda i, p: run({"grads": i["grads"].half().float()}, p)),
        )


# Training

def learning_rate(schedule, initial, step):
    """Rate of a step counted from 0; cosine as in torch's CosineAnnealingLR."""
    if schedule["name"] == "constant":
        return initial
    phase = math.pi * step / schedule["steps"]
    return schedule["final_lr"] + (initial - schedule["final_lr"]) * (1 + math.cos(phase)) / 2


def train(config, attributes, inputs, parameters):
    """Losses and weights of a run. Float16 means autocast with float32 master weights."""
    half = inputs["x0"].dtype == torch.float16
    dtype = torch.float32 if half else inputs["x0"].dtype
    with torch.enable_grad():
        model = UNet2DModel(**config).eval().to(dtype)
        model.load_state_dict({n: t.to(dtype) for n, t in parameters.items()})
        rule = dict(attributes["optimizer"])
        optimizer = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[rule.pop("name")](model.parameters(), **rule)
        scheduler = DDPMScheduler(**attributes["schedule"])
        loss_scale = 1024.0 if half else 1.0
        losses = []
        for step in range(attributes["steps"]):
            x0, noise = (inputs[n][step].to(dtype) for n in ("x0", "noise"))
            t = inputs["timesteps"][step]
            x_t = scheduler.add_noise(x0, noise, t)
            target = {
                "epsilon": lambda: noise,
                "v_prediction": lambda: scheduler.get_velocity(x0, noise, t),
                "sample": lambda: x0,
            }[attributes["prediction"]]()
            with torch.autocast("cpu", dtype=torch.float16, enabled=half):
                prediction = model(x_t, t).sample
            loss = F.mse_loss(prediction.to(dtype), target)
            optimizer.zero_grad()
            (loss * loss_scale).backward()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(attributes["lr_schedule"], rule["lr"], step)
            for parameter in model.parameters():
                parameter.grad /= loss_scale
            optimizer.step()
            losses.append(loss.detach())
    weights = {f"parameter.{n}": p.detach() for n, p in model.named_parameters()}
    return {"losses": torch.stack(losses)} | weights


BASE = {"block_out_channels": [8, 12], "layers_per_block": 1, "norm_num_groups": 4, "freq_shift": 1, "flip_sin_to_cos": False}
ADAMW = {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 1e-2}

# eps is above Adam's usual 1e-8: the bias of an attention's keys has no influence, so its gradient
# is rounding noise, which Adam would blow up to whole steps in a direction of its own. In float16 so are
# single small gradients among large ones (an error of 1e-5 among 4e-3).
for name, config, shape, attributes in [
    (
        "cosine",
        {**levels("--"), **BASE, "attention_head_dim": None, "downsample_padding": 0},
        (2, 3, 8, 6),
        {"prediction": "epsilon", "schedule": LINEAR, "optimizer": {**ADAMW, "eps": 1e-4},
         "lr_schedule": {"name": "cosine", "steps": 12, "final_lr": 0.0}},
    ),
    (
        "attention_constant",
        {**levels("-a"), **BASE, "attention_head_dim": 4},
        (3, 3, 6, 8),
        {"prediction": "epsilon", "schedule": {**LINEAR, "num_train_timesteps": 1000}, "loss": "epsilon_mse",
         "optimizer": {**ADAMW, "lr": 5e-4, "eps": 1e-4}, "lr_schedule": {"name": "constant"}},
    ),
    (
        "v_cosine",
        {**levels("a"), **BASE, "block_out_channels": [8], "attention_head_dim": None},
        (2, 3, 5, 7),
        {"prediction": "v_prediction", "schedule": COSINE,
         "optimizer": {**ADAMW, "lr": 2e-3, "betas": [0.9, 0.99], "eps": 1e-3, "weight_decay": 0.0},
         "lr_schedule": {"name": "cosine", "steps": 20, "final_lr": 1e-4}},
    ),
    (
        "adam_sample",
        {**levels("a"), **BASE, "block_out_channels": [4], "attention_head_dim": 4},
        (1, 3, 4, 4),
        {"prediction": "sample", "schedule": SCALED,
         "optimizer": {**ADAMW, "name": "adam", "lr": 1e-3, "eps": 1e-3, "weight_decay": 0.05},
         "lr_schedule": {"name": "constant"}},
    ),
]:

    @case(f"training_{name}")
    def _(draw, path, config=config, shape=shape, attributes=attributes):
        steps = 12
        attributes = {"model": "unet2d", "config": config, "steps": steps, **attributes}
        inputs = {"x0": draw(steps, *shape).clamp(-1, 1), "noise": draw(steps, *shape)}
        inputs["timesteps"] = draw.integers(1000, steps, shape[0])
        return export_case(
            path, "training", attributes, lambda i, p: train(config, attributes, i, p), inputs,
            parameters=build(draw, config).state_dict(), gradients=False,
        )
