"""Fixtures of the EDM2 network, built from the equations of Karras et al. 2024 (arXiv:2312.02696) under the
parameter names of its released weights. Stored weights are used as they are, as in evaluation."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from cases import case, export_case
from procedures import learning_rate
from magnitude import mp_cat, mp_fourier, mp_silu, mp_sum, unit, unit_weight


class Layer(nn.Module):
    """A convolution or linear layer without bias whose weight is normalised in use."""

    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape))

    def forward(self, x, gain=1):
        # A learned gain is float32 even where the rest is float16.
        weight = (unit_weight(self.weight.float() if x.dtype == torch.float16 else self.weight) * gain).to(x.dtype)
        if weight.dim() == 2:
            return F.linear(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


class Fourier(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, x):
        return mp_fourier(x, self.freqs, self.phases)


class Block(nn.Module):
    def __init__(self, config, c_in, c_out, c_emb, *, encoder, resample=None, attention=False):
        super().__init__()
        self.config, self.encoder, self.resample = config, encoder, resample
        self.heads = c_out // config["channels_per_head"] if attention else 0
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = Layer(c_out, c_out if encoder else c_in, 3, 3)
        self.emb_linear = Layer(c_out, c_emb)
        self.conv_res1 = Layer(c_out, c_out, 3, 3)
        self.conv_skip = Layer(c_out, c_in, 1, 1) if c_in != c_out else None
        if self.heads:
            self.attn_qkv = Layer(3 * c_out, c_out, 1, 1)
            self.attn_proj = Layer(c_out, c_out, 1, 1)

    def forward(self, x, emb):
        if self.resample == "down":
            x = F.avg_pool2d(x, 2)
        elif self.resample == "up":
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        if self.encoder:
            x = unit(self.conv_skip(x) if self.conv_skip else x, 1)
        y = self.conv_res0(mp_silu(x))
        scale = self.emb_linear(emb, self.emb_gain) + 1
        y = self.conv_res1(mp_silu(y * scale[:, :, None, None].to(y.dtype)))
        if not self.encoder and self.conv_skip:
            x = self.conv_skip(x)
        x = mp_sum(x, y, self.config["res_balance"])
        if self.heads:
            x = mp_sum(x, self.attn_proj(self.attend(self.attn_qkv(x))), self.config["attn_balance"])
        limit = self.config["clip_act"]
        return x if limit is None else x.clip(-limit, limit)

    def attend(self, qkv):
        batch, _, height, width = qkv.shape
        # One channel after another, each as query, key and value.
        q, k, v = unit(qkv.reshape(batch, self.heads, -1, 3, height * width), 2).unbind(3)
        scores = torch.einsum("bhdq,bhdk->bhqk", q, k / math.sqrt(q.shape[2]))
        weights = (scores.float() if scores.dtype == torch.float16 else scores).softmax(-1).to(scores.dtype)
        return torch.einsum("bhqk,bhdk->bhdq", weights, v).reshape(batch, -1, height, width)


class UNet(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        widths = [int(config["model_channels"] * m) for m in config["channel_mult"]]
        share = lambda key, default: int(config["model_channels"] * config[key]) if config[key] else default
        c_noise, c_emb = share("channel_mult_noise", widths[0]), share("channel_mult_emb", max(widths))
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = Fourier(c_noise)
        self.emb_noise = Layer(c_emb, c_noise)
        self.emb_label = Layer(c_emb, config["label_dim"]) if config["label_dim"] else None

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        names = [config["img_resolution"] >> level for level in range(len(widths))]
        blocks = config["num_blocks"]
        skips = [widths[0]]
        self.enc[f"{names[0]}x{names[0]}_conv"] = Layer(widths[0], config["img_channels"] + 1, 3, 3)
        width = widths[0]
        for level, (name, c_out) in enumerate(zip(names, widths)):
            if level:
                self.enc[f"{name}x{name}_down"] = Block(config, width, width, c_emb, encoder=True, resample="down")
                skips.append(width)
            for index in range(blocks):
                attention = name in config["attn_resolutions"]
                self.enc[f"{name}x{name}_block{index}"] = Block(config, width, c_out, c_emb, encoder=True, attention=attention)
                width = c_out
                skips.append(width)
        for level, (name, c_out) in reversed(list(enumerate(zip(names, widths)))):
            if level == len(widths) - 1:
                self.dec[f"{name}x{name}_in0"] = Block(config, width, width, c_emb, encoder=False, attention=True)
                self.dec[f"{name}x{name}_in1"] = Block(config, width, width, c_emb, encoder=False)
            else:
                self.dec[f"{name}x{name}_up"] = Block(config, width, width, c_emb, encoder=False, resample="up")
            for index in range(blocks + 1):
                attention = name in config["attn_resolutions"]
                c_in = width + skips.pop()
                self.dec[f"{name}x{name}_block{index}"] = Block(config, c_in, c_out, c_emb, encoder=False, attention=attention)
                width = c_out
        self.out_conv = Layer(config["img_channels"], width, 3, 3)

    def forward(self, x, noise, labels=None):
        emb = self.emb_noise(self.emb_fourier(noise))
        if self.emb_label is not None:
            labels = torch.zeros(len(x), self.emb_label.weight.shape[1]) if labels is None else labels
            one_hot = labels.to(emb.dtype) * math.sqrt(labels.shape[1])
            emb = mp_sum(emb, self.emb_label(one_hot), self.config["label_balance"])
        emb = mp_silu(emb)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips = []
        for name, module in self.enc.items():
            x = module(x) if name.endswith("conv") else module(x, emb)
            skips.append(x)
        for name, module in self.dec.items():
            if "block" in name:
                x = mp_cat(x, skips.pop(), self.config["concat_balance"])
            x = module(x, emb)
        return self.out_conv(x, self.out_gain)


class Precond(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.unet = UNet(config)
        self.sigma_data = config["sigma_data"]
        self.logvar_fourier = Fourier(config["logvar_channels"])
        self.logvar_linear = Layer(1, config["logvar_channels"])

    def forward(self, x, sigma, labels=None):
        """The float16 run is that of a GPU: activations in float16, the embedding, the output's scales and
        the log-variance in float32."""
        half = x.dtype == torch.float16
        wide = (lambda v: v.float()) if half else (lambda v: v)
        x, sigma = wide(x), wide(sigma).reshape(-1, 1, 1, 1)
        squares = sigma**2 + self.sigma_data**2
        c_skip, c_out, c_in = self.sigma_data**2 / squares, sigma * self.sigma_data / squares.sqrt(), 1 / squares.sqrt()
        noise = sigma.flatten().log() / 4
        scaled = c_in * x
        output = self.unet(scaled.half() if half else scaled, noise, labels)
        logvar = self.logvar_linear(self.logvar_fourier(noise)).reshape(-1, 1, 1, 1)
        return c_skip * x + c_out * wide(output), logvar


DEFAULTS = {
    "sigma_data": 0.5, "logvar_channels": 128, "channel_mult": [1, 2, 3, 4],
    "channel_mult_noise": None, "channel_mult_emb": None, "num_blocks": 3, "attn_resolutions": [16, 8],
    "label_balance": 0.5, "concat_balance": 0.5, "channels_per_head": 64, "res_balance": 0.3, "attn_balance": 0.3,
    "clip_act": 256,
}  # fmt: skip


def build(draw, config):
    """A network whose weights and gains are near those of the paper's, but for none that is zero."""
    with torch.random.fork_rng():
        torch.manual_seed(draw.seed)
        model = Precond({**DEFAULTS, **config}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 + 0.3 * draw(1).squeeze() if parameter.dim() == 0 else parameter * (1 + 0.1 * draw(1)))
    return model


# Of every kind of weight one gradient, where all would make a large file.
def some_gradients(model):
    names, kinds = ["x", "sigma"], set()
    for name, _ in model.named_parameters():
        kind = (name.split(".")[1], name.split(".", 3)[-1])
        if kind not in kinds:
            kinds.add(kind)
            names.append(name)
    return names


TINY = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8], "img_resolution": 16,
        "channels_per_head": 8, "img_channels": 4, "label_dim": 0}  # fmt: skip

for name, config, shape, sigma, options in [
    ("tiny", {**TINY}, (2, 4, 8, 12), [0.03, 4.0], {"intermediates"}),
    ("labels", {**TINY, "label_dim": 5, "label_balance": 0.4}, (2, 4, 6, 6), [0.5, 20.0], {"labels"}),
    ("labels_absent", {**TINY, "label_dim": 3, "num_blocks": 2}, (1, 4, 4, 6), [1.0], {"forward only"}),
    ("one_level", {**TINY, "channel_mult": [1], "img_channels": 3, "attn_resolutions": []}, (2, 3, 7, 5), [80.0, 0.002], set()),
    (
        "three_levels",
        {**TINY, "channel_mult": [1, 2, 3], "img_resolution": 32, "attn_resolutions": [16, 8], "sigma_data": 0.7},
        (1, 4, 20, 12), [0.8], set(),
    ),
    (
        "other_balances",
        {**TINY, "channel_mult_noise": 0.5, "channel_mult_emb": 3, "concat_balance": 0.3, "res_balance": 0.4,
         "attn_balance": 0.2, "clip_act": 0.8, "channels_per_head": 4, "logvar_channels": 24},
        (3, 4, 8, 6), [0.1, 1.0, 10.0], set(),
    ),
]:  # fmt: skip

    @case(f"edm2_precond_{name}")
    def _(draw, path, config=config, shape=shape, sigma=sigma, options=options):
        model = build(draw, config)
        inputs = {"x": draw(*shape) * torch.tensor(sigma).reshape(-1, 1, 1, 1), "sigma": torch.tensor(sigma)}
        if "labels" in options:
            inputs["labels"] = torch.eye(config["label_dim"])[draw.integers(config["label_dim"], len(sigma))]
        # A query's and key's channels come in turns here, so that module's output is left out.
        paths = [n for n, m in model.named_modules() if isinstance(m, (Block, Layer)) and not n.endswith("attn_qkv")]
        return export_case(
            path, "edm2_precond", config, model, inputs, outputs=("y", "logvar"),
            call=lambda m, i: m(i["x"], i["sigma"], i.get("labels")),
            gradients=False if "forward only" in options else some_gradients(model),
            intermediates=paths if "intermediates" in options else (),
        )


# Procedures

def heun(model, noise, levels):
    """Karras et al. 2022 (arXiv:2206.00364), algorithm 1 without churn; the state in float64."""
    slope = lambda x, sigma: (x - model(x.to(noise.dtype), torch.tensor([sigma], dtype=noise.dtype))[0].double()) / sigma
    x = levels[0] * noise.double()
    for now, following in zip(levels, levels[1:]):
        first = slope(x, now)
        euler = x + (following - now) * first
        x = euler if following == 0 else x + (following - now) * (first + slope(euler, following)) / 2
    return x


for name, config, shape, steps, sigma_min, sigma_max, rho in [
    ("tiny", {**TINY}, (2, 4, 8, 6), 6, 0.002, 80, 7),
    ("one_level", {**TINY, "channel_mult": [2], "img_channels": 3, "attn_resolutions": []}, (1, 3, 5, 7), 9, 0.01, 20, 3),
    ("one_step", {**TINY, "num_blocks": 2}, (1, 4, 4, 4), 1, 0.002, 10, 7),
]:

    @case(f"edm_heun_{name}")
    def _(draw, path, config=config, shape=shape, steps=steps, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho):
        model = build(draw, config)
        ends = [sigma_max ** (1 / rho), sigma_min ** (1 / rho)]
        levels = [sigma_max] + [(ends[0] + k / (steps - 1) * (ends[1] - ends[0])) ** rho for k in range(1, steps)] + [0]
        attributes = {"model": "edm2_precond", "config": config, "steps": steps, "sigma_min": sigma_min,
                      "sigma_max": sigma_max, "rho": rho}  # fmt: skip
        return export_case(
            path, "edm_heun", attributes, model, {"noise": draw(*shape)}, outputs=("x_0",), gradients=False,
            call=lambda m, i: heun(m, i["noise"], levels),
        )


def exponent(std):
    """The power function whose standard deviation is a share `std` of the training (arXiv:2312.02696, eq. 126)."""
    companion = torch.tensor([[-7.0, std**-2 - 16, std**-2 - 12], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)
    return torch.linalg.eigvals(companion).real.max().item()


for name, stds, updates, batch in [("two_widths", [0.05, 0.10], 40, 16), ("wide", [0.2], 7, 512)]:

    @case(f"power_ema_{name}")
    def _(draw, path, stds=stds, updates=updates, batch=batch):
        # A walk, so that averages of other widths differ.
        weights = draw(updates, 5, 7).cumsum(0)

        def run(i, p):
            averages = []
            for std in stds:
                average = i["weights"][0]
                for update, now in enumerate(i["weights"]):
                    kept = (1 - 1 / (update + 1)) ** (exponent(std) + 1)
                    average = kept * average + (1 - kept) * now
                averages.append(average)
            return torch.stack(averages)

        return export_case(
            path, "power_ema", {"stds": stds, "batch_size": batch}, run, {"weights": weights}, outputs=("ema",),
            gradients=False,
        )


def train(config, attributes, inputs, parameters):
    """Losses and weights of a run with EDM2's loss; weights are normalised in place before each step. Float16
    means activations in float16 with float32 master weights."""
    half = inputs["x0"].dtype == torch.float16
    dtype = torch.float32 if half else inputs["x0"].dtype
    with torch.enable_grad():
        model = Precond({**DEFAULTS, **config}).to(dtype)
        model.load_state_dict({n: t.to(dtype) for n, t in parameters.items()})
        rule = dict(attributes["optimizer"])
        optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[rule.pop("name")](model.parameters(), **rule)
        losses = []
        for step in range(attributes["steps"]):
            with torch.no_grad():
                for layer in model.modules():
                    if isinstance(layer, Layer):
                        layer.weight.copy_(unit(layer.weight, tuple(range(1, layer.weight.dim()))))
            x0, noise, sigma = (inputs[n][step].to(dtype) for n in ("x0", "noise", "sigma"))
            wide = sigma.reshape(-1, 1, 1, 1)
            noisy = x0 + wide * noise
            denoised, u = model(noisy.half() if half else noisy, sigma)
            weight = (wide**2 + model.sigma_data**2) / (wide * model.sigma_data) ** 2
            loss = (weight / u.exp() * (denoised - x0) ** 2 + u).sum() / len(x0)
            optimizer.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(attributes["lr_schedule"], rule["lr"], step)
            optimizer.step()
            losses.append(loss.detach())
    weights = {f"parameter.{n}": p.detach() for n, p in model.named_parameters()}
    return {"losses": torch.stack(losses)} | weights


# eps is far above Adam's usual 1e-8: gradients that are rounding noise must not become whole steps.
ADAM = {"name": "adam", "lr": 1e-2, "betas": [0.9, 0.99], "eps": 0.1}

for name, config, shape, attributes in [
    ("constant", {**TINY}, (1, 4, 4, 6), {"optimizer": ADAM, "lr_schedule": {"name": "constant"}}),
    (
        "cosine",
        {**TINY, "channel_mult": [1], "img_channels": 3, "sigma_data": 0.7},
        (2, 3, 5, 4),
        {"optimizer": {**ADAM, "name": "adamw", "weight_decay": 0.01},
         "lr_schedule": {"name": "cosine", "steps": 12, "final_lr": 0.0}},
    ),
]:

    @case(f"training_edm2_{name}")
    def _(draw, path, config=config, shape=shape, attributes=attributes):
        steps = 12
        attributes = {"model": "edm2_precond", "config": config, "steps": steps, "loss": "edm2", **attributes}
        model = build(draw, config)
        inputs = {"x0": 0.5 * draw(steps, *shape), "noise": draw(steps, *shape),
                  "sigma": (1.2 * draw(steps, shape[0]) - 0.4).exp()}  # fmt: skip
        names = ("losses", *(f"parameter.{n}" for n, _ in model.named_parameters()))
        return export_case(
            path, "training", attributes, lambda i, p: train(config, attributes, i, p), inputs,
            parameters=model.state_dict(), outputs=names, gradients=False,
        )
