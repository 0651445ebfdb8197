"""Fixtures of the EDM2 network (Karras et al. 2024, arXiv:2312.02696), its sampler, averages and training, made by
NVlabs' own code (see `nvlabs.py`) from random weights.

The network names its levels by one square resolution when it is built and never looks at it again, so it takes
inputs of any height and width. Float16 runs are those of a GPU: float32 weights and preconditioning, activations
in float16 from the U-Net's input on.
"""

import contextlib

import torch

import nvlabs
from cases import case, export_case
from nvlabs import arithmetic, networks
from procedures import learning_rate


def build(draw, config):
    """A network whose weights and gains are near those of the paper's, but for none that is zero. All numbers are
    float16's, as in a network snapshot."""
    with torch.random.fork_rng():
        torch.manual_seed(draw.seed)
        model = networks().Precond(**config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 + 0.3 * draw(1).squeeze() if parameter.dim() == 0 else parameter * (1 + 0.1 * draw(1)))
    return model.half().float()


@contextlib.contextmanager
def half_activations(model):
    """The path that NVlabs' wrapper takes on CUDA only: its U-Net gets a float16 input."""
    handle = model.unet.register_forward_pre_hook(lambda _, given: (given[0].half(), *given[1:]))
    try:
        yield
    finally:
        handle.remove()


def twins(run):
    """`run(module, inputs)` for all three precisions, as `export_case` takes it."""

    def call(model, inputs):
        with arithmetic(next(model.parameters()).dtype):
            return run(model, inputs)

    def half(model, inputs):
        with half_activations(model):
            return run(model, inputs)

    return {"call": call, "half": half}


TINY = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8], "img_resolution": 16,
        "channels_per_head": 8, "img_channels": 4, "label_dim": 0}  # fmt: skip
ONE_LEVEL = {**TINY, "channel_mult": [1], "img_channels": 3, "attn_resolutions": []}

for name, config, shape, sigma, options in [
    ("tiny", {**TINY}, (2, 4, 8, 12), [0.03, 4.0], {"intermediates"}),
    ("labels", {**TINY, "label_dim": 5, "label_balance": 0.4}, (2, 4, 6, 6), [0.5, 20.0], {"labels"}),
    ("labels_absent", {**TINY, "label_dim": 3, "num_blocks": 2}, (1, 4, 4, 6), [1.0], {"forward only"}),
    ("one_level", ONE_LEVEL, (2, 3, 7, 5), [80.0, 0.002], set()),
    (
        "three_levels",
        {**TINY, "channel_mult": [1, 2, 3], "attn_resolutions": [8, 4], "sigma_data": 0.7},
        (1, 4, 16, 16), [0.8], set(),
    ),
    # A limit that clips a hundred activations, none so near that rounding to float16 decides.
    (
        "other_balances",
        {**TINY, "channel_mult_noise": 2, "channel_mult_emb": 3, "concat_balance": 0.3, "res_balance": 0.4,
         "attn_balance": 0.2, "clip_act": 1.34, "channels_per_head": 4, "logvar_channels": 24, "label_dim": 4},
        (2, 4, 4, 6), [0.1, 10.0], {"labels"},
    ),
]:  # fmt: skip

    @case(f"edm2_precond_{name}", needs_nvlabs=True)
    def _(draw, path, config=config, shape=shape, sigma=sigma, options=options):
        model = build(draw, config)
        inputs = {"x": draw(*shape) * torch.tensor(sigma).reshape(-1, 1, 1, 1), "sigma": torch.tensor(sigma)}
        if "labels" in options:
            inputs["labels"] = torch.eye(config["label_dim"])[draw.integers(config["label_dim"], len(sigma))]
        # A query's and key's channels come in turns here, so that module's output is left out.
        kinds = (networks().Block, networks().MPConv)
        paths = [n for n, m in model.named_modules() if isinstance(m, kinds) and not n.endswith("attn_qkv")]
        return export_case(
            path, "edm2_precond", config, model, inputs, outputs=("y", "logvar"),
            **twins(lambda m, i: m(i["x"], i["sigma"], i.get("labels"), return_logvar=True)),
            gradients="forward only" not in options,
            intermediates=paths if "intermediates" in options else (),
        )


# Sampling: NVlabs' sampler with its state in float64. It can't make a run of one step, which is one evaluation.
def sample(model, noise, steps, sigma_min, sigma_max, rho):
    if steps == 1:
        return model(sigma_max * noise, torch.tensor([float(sigma_max)]))
    edm_sampler = nvlabs.module("generate_images").edm_sampler
    levels = {"num_steps": steps, "sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho}
    return edm_sampler(model, noise, dtype=torch.float64, **levels)


for name, config, shape, steps, sigma_min, sigma_max, rho in [
    ("tiny", {**TINY, "img_channels": 3}, (2, 3, 8, 6), 6, 0.002, 80, 7),
    ("one_level", {**ONE_LEVEL, "channel_mult": [2]}, (1, 3, 5, 7), 9, 0.01, 20, 3),
    ("one_step", ONE_LEVEL, (1, 3, 4, 4), 1, 0.002, 10, 7),
]:

    @case(f"edm_heun_{name}", needs_nvlabs=True)
    def _(draw, path, config=config, shape=shape, steps=steps, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho):
        levels = {"steps": steps, "sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho}
        return export_case(
            path, "edm_heun", {"model": "edm2_precond", "config": config, **levels}, build(draw, config),
            {"noise": draw(*shape)}, outputs=("x_0",), gradients=False,
            **twins(lambda m, i: sample(m, i["noise"], **levels)),
        )


for name, stds, updates, batch in [("two_widths", [0.05, 0.10], 40, 16), ("wide", [0.2], 7, 512)]:

    @case(f"power_ema_{name}", needs_nvlabs=True)
    def _(draw, path, stds=stds, updates=updates, batch=batch):
        # A walk, so that averages of other widths differ.
        weights = draw(updates, 5, 7).cumsum(0)

        def run(i, p):
            net = torch.nn.Module()
            net.w = torch.nn.Parameter(i["weights"][0].clone())
            ema = nvlabs.module("training.phema").PowerFunctionEMA(net, stds)
            for update, now in enumerate(i["weights"], 1):
                net.w.data.copy_(now)
                ema.update(cur_nimg=update * batch, batch_size=batch)
            return torch.stack([average.w.detach() for average, _ in ema.get()])

        return export_case(
            path, "power_ema", {"stds": stds, "batch_size": batch}, run, {"weights": weights}, outputs=("ema",),
            gradients=False,
        )


def train(config, attributes, inputs, parameters, half=False):
    """Losses and weights of a run in training mode, whose forward passes overwrite the weights, with NVlabs' loss
    on the given noise and Adam as its training loop has it."""
    loop = nvlabs.module("training.training_loop")
    dtype = inputs["x0"].dtype
    batch = inputs["x0"].shape[1]
    rule = dict(attributes["optimizer"])
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[rule.pop("name")]
    with torch.enable_grad(), contextlib.ExitStack() as around:
        model = networks().Precond(**config).to(dtype).train()
        model.load_state_dict(parameters)
        around.enter_context(half_activations(model) if half else arithmetic(dtype))
        optimizer = kind(model.parameters(), **rule)
        loss_fn = loop.EDM2Loss(sigma_data=model.sigma_data)
        losses = []
        for step in range(attributes["steps"]):
            x0, noise, sigma = (inputs[n][step] for n in ("x0", "noise", "sigma"))
            normal = (sigma.log() - loss_fn.P_mean) / loss_fn.P_std
            given = {"randn": lambda shape, device: normal.reshape(shape), "randn_like": lambda images: noise}
            with nvlabs.torch_with(loop, **given):
                loss = loss_fn(net=model, images=x0).sum() / batch
            optimizer.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = rate(loop, attributes["lr_schedule"], rule["lr"], step, batch)
            for parameter in model.parameters():
                torch.nan_to_num(parameter.grad, nan=0, posinf=0, neginf=0, out=parameter.grad)
            optimizer.step()
            losses.append(loss.detach())
    weights = {f"parameter.{n}": p.detach() for n, p in model.named_parameters()}
    return {"losses": torch.stack(losses)} | weights


def rate(loop, schedule, peak, step, batch):
    """The learning rate of a step; `edm2` is NVlabs' schedule under the names of its arguments."""
    if schedule["name"] != "edm2":
        return learning_rate(schedule, peak, step)
    arguments = {name: value for name, value in schedule.items() if name != "name"}
    return loop.learning_rate_schedule(step * batch, batch, ref_lr=peak, **arguments)


# eps is far above Adam's usual 1e-8: gradients that are rounding noise must not become whole steps.
ADAM = {"name": "adam", "lr": 1e-2, "betas": [0.9, 0.99], "eps": 0.1}

for name, config, shape, attributes in [
    ("constant", {**TINY}, (1, 4, 4, 6), {"optimizer": ADAM, "lr_schedule": {"name": "constant"}}),
    (
        "cosine",
        {**ONE_LEVEL, "sigma_data": 0.7},
        (2, 3, 5, 4),
        {"optimizer": {**ADAM, "name": "adamw", "weight_decay": 0.01},
         "lr_schedule": {"name": "cosine", "steps": 12, "final_lr": 0.0}},
    ),
    # The paper's recipe, in which the first step's rate is 0.
    (
        "recipe",
        ONE_LEVEL,
        (2, 3, 6, 4),
        {"optimizer": {**ADAM, "eps": 1e-8},
         "lr_schedule": {"name": "edm2", "ref_batches": 4, "rampup_Mimg": 1e-5}},
    ),
]:

    @case(f"training_edm2_{name}", needs_nvlabs=True)
    def _(draw, path, config=config, shape=shape, attributes=attributes):
        steps = 12
        attributes = {"model": "edm2_precond", "config": config, "steps": steps, "loss": "edm2", **attributes}
        model = build(draw, config)
        inputs = {"x0": 0.5 * draw(steps, *shape), "noise": draw(steps, *shape),
                  "sigma": (1.2 * draw(steps, shape[0]) - 0.4).exp()}  # fmt: skip
        names = ("losses", *(f"parameter.{n}" for n, _ in model.named_parameters()))
        return export_case(
            path, "training", attributes, lambda i, p: train(config, attributes, i, p), inputs,
            half=lambda i, p: train(config, attributes, i, p, half=True),
            parameters=model.state_dict(), outputs=names, gradients=False,
        )
