"""What single kernels of cyanea do, in PyTorch: the same names as `benches/kernels`, a line each in a file.

    cargo bench --bench kernels -- --list | sed -n 's/: benchmark$//p' > names
    python kernels.py --names names --device cuda --precision fp16 --mode graphs --json

A name says what is done and on which shapes; one that isn't known is an error. What cyanea does in one launch takes
PyTorch as many as it takes; gradients are those of autograd, without the forward pass before them. Images lie in
memory as [B, H, W, C], but for group normalisation, which PyTorch's kernels want as [B, C, H, W]. `graphs` and
`compile` replay CUDA graphs, the latter of what torch.compile made, so neither has Python in it. Nanoseconds a call, on
a GPU over 20 calls or as many as take 2 ms, which follow each other on a stream. A line a name comes as soon as it is
measured, or says why it can't be.

Unlike here, cyanea's AdamW also clips, and its linear layers of rows keep float32 in memory in float16.
"""

import argparse
import json
import math
import re

import torch
import torch._functorch.config
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding

from common import add_environment, captured, measure, parsed, percentile

CALLS = 20  # that follow each other on a GPU, as in benches/kernels/harness.rs
LEAST_MS = 2.0  # of a sample on a GPU
WARM_UP_MS = 200.0
STEPS = 50  # rows of a sampler's table


class Maker:
    """Tensors of a bench on its device."""

    def __init__(self, options):
        self.device = options.device
        self.dtype = torch.float16 if options.precision == "fp16" else torch.float32
        self.generator = torch.Generator(options.device).manual_seed(options.seed)

    def tensor(self, *shape, dtype=None):
        values = torch.rand(shape, generator=self.generator, device=self.device) * 2 - 1
        return values.to(dtype or self.dtype)

    def image(self, batch, size, channels, dtype=None):
        """[B, C, H, W], which lies in memory as [B, H, W, C]."""
        return self.tensor(batch, channels, size, size, dtype=dtype).contiguous(memory_format=torch.channels_last)


def conv2d(make, what, batch, size, c_in, c_out, kernel, stride):
    x, weight = make.image(batch, size, c_in), make.tensor(c_out, c_in, kernel, kernel)
    weight = weight.contiguous(memory_format=torch.channels_last)
    bias, padding = make.tensor(c_out), kernel // 2
    if what == "dgrad":
        return lambda: F.conv2d(x, weight, None, stride, padding), [x]
    if what == "wgrad":
        return lambda: F.conv2d(x, weight, bias, stride, padding), [weight, bias]
    scale, offset = make.tensor(batch, c_in, 1, 1), make.tensor(batch, c_in, 1, 1)
    shift, residual = make.tensor(batch, c_out, 1, 1), make.image(batch, -(-size // stride), c_out)

    def call():
        operand = torch.addcmul(offset, x, scale)
        if kernel == 3:
            operand = F.silu(operand)
        return F.conv2d(operand, weight, bias, stride, padding) + shift + residual

    return call, []


def attention(make, what, batch, tokens, heads, depth):
    q, k, v = (make.tensor(batch, tokens, heads * depth) for _ in range(3))

    def call():
        split = (x.unflatten(2, (heads, depth)).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)

    return call, [q, k, v] if what == "dgrad" else []


def group_norm(make, what, batch, size, channels, groups):
    x, gamma, beta = make.tensor(batch, channels, size, size), make.tensor(channels), make.tensor(channels)
    if what == "affine fwd":
        # What a convolution would apply while it reads x.
        def call():
            variance, mean = torch.var_mean(x.view(batch, groups, -1), 2, correction=0)
            factor = (torch.rsqrt(variance + 1e-5)[..., None] * gamma.view(groups, -1)).flatten(1)
            return factor, beta - mean.repeat_interleave(channels // groups, 1) * factor

        return call, []

    def call():
        return F.silu(F.group_norm(x, groups, gamma, beta, 1e-5))

    return call, [x, gamma, beta] if what == "silu dgrad" else []


def pointwise(make, what, batch, size, channels):
    x = make.image(batch, size, channels, torch.float32 if what == "cast to f16" else None)
    if what == "silu dgrad":
        return lambda: F.silu(x), [x]
    other, row = make.image(batch, size, channels), make.tensor(batch, channels, 1, 1)
    calls = {
        "silu fwd": lambda: F.silu(x),
        "add": lambda: x + other,
        "add row": lambda: x + row,
        "concat": lambda: torch.cat([x, other], 1),
        "upsample": lambda: F.interpolate(x, scale_factor=2),
        "pool": lambda: F.avg_pool2d(x, 2),
        "sum_pixels": lambda: x.sum((0, 2, 3)),
        "cast to f16": lambda: x.half(),
    }
    return calls[what], []


def row_linear(make, what, rows, width, layers, channels):
    x = make.tensor(rows, width)
    weights = [make.tensor(channels, width) for _ in range(layers)]
    biases = [make.tensor(channels) for _ in range(layers)]

    def call():
        return [F.linear(x, weight, bias) for weight, bias in zip(weights, biases)]

    return call, {"fwd": [], "dgrad": [x], "wgrad": weights + biases}[what]


def pixel_norm(make, what, batch, size, channels, groups):
    x = make.image(batch, size, channels)

    def call():
        parts = x.unflatten(1, (groups, -1))
        norm = torch.linalg.vector_norm(parts, dim=2, keepdim=True, dtype=torch.float32)
        return (parts / (1e-4 + norm * (channels // groups) ** -0.5).to(x.dtype)).flatten(1, 2)

    return call, [x] if what == "dgrad" else []


def weight_norm(make, what, c_out, c_in, kernel):
    weight = make.tensor(c_out, c_in, kernel, kernel, dtype=torch.float32)

    def call():
        norm = torch.linalg.vector_norm(weight, dim=(1, 2, 3), keepdim=True)
        return weight / (1e-4 + norm * (c_in * kernel * kernel) ** -0.5)

    return call, [weight] if what == "wgrad" else []


def grad_norm(make, parameters):
    vector = make.tensor(parameters, dtype=torch.float32)
    return lambda: torch.linalg.vector_norm(vector), []


def adamw(make, parameters, average):
    weight = torch.nn.Parameter(make.tensor(parameters, dtype=torch.float32))
    weight.grad = make.tensor(parameters, dtype=torch.float32)
    kept = weight.detach().clone()
    # Its own fastest form.
    optimizer = torch.optim.AdamW([weight], fused=True, capturable=make.device == "cuda")

    def call():
        optimizer.step()
        if average:
            kept.lerp_(weight.detach(), 1e-3)

    return call, []


def mse(make, what, batch, size, channels):
    y, target = (make.tensor(batch, size, size, channels, dtype=torch.float32) for _ in range(2))
    return lambda: F.mse_loss(y, target), [y] if what == "dgrad" else []


def diffusion(make, what, batch, size, channels):
    float32 = torch.float32
    x0, noise, history = (make.tensor(batch, channels, size, size, dtype=float32) for _ in range(3))
    table, row = make.tensor(1000, 2, dtype=float32), make.tensor(STEPS, 14, dtype=float32)
    timesteps = torch.full((batch,), 500, device=make.device)
    sigma = torch.full((batch, 1, 1, 1), 1.5, device=make.device)

    def add_noise(noise):
        signal, share = table[timesteps].T[..., None, None, None]
        return signal * x0 + share * noise

    def sampler_update():
        c = row[0]
        clipped = (c[0] * x0 + c[1] * noise).clamp(-1, 1)
        epsilon = c[2] * x0 + c[3] * noise
        state = c[4] * x0 + c[5] * clipped + c[6] * epsilon + c[7] * history + c[8] * torch.randn_like(x0)
        return state, c[9] * x0 + c[10] * clipped + c[11] * epsilon + c[12] * history

    calls = {
        "add_noise": lambda: add_noise(noise),
        "add_noise drawn": lambda: add_noise(torch.randn_like(x0)),
        "add_noise drawn levels": lambda: torch.addcmul(x0, torch.randn_like(x0), sigma),
        "sampler_update": sampler_update,
        "timestep_embedding": lambda: get_timestep_embedding(timesteps, 128, downscale_freq_shift=1),
    }
    return calls[what], []


# Names, and what their words and numbers are to the functions above. Each gives what is called, and the tensors whose
# gradients are timed in its place, if any.
IMAGE = r"(\d+)x(\d+)x\d+ (\d+)"
KNOWN = [
    (rf"conv2d/(fwd|dgrad|wgrad) {IMAGE}-(\d+) k(\d+)(?: s(\d+))?", conv2d),
    (r"attention/(fwd|dgrad) (\d+)x(\d+) (\d+) heads of (\d+)", attention),
    (rf"group_norm/(silu fwd|affine fwd|silu dgrad) {IMAGE} g(\d+)", group_norm),
    (rf"pointwise/(silu fwd|silu dgrad|add|add row|concat|upsample|pool|sum_pixels|cast to f16) {IMAGE}", pointwise),
    (r"row_linear/(fwd|dgrad|wgrad) (\d+)x(\d+) (\d+) of (\d+)", row_linear),
    (rf"magnitude/pixel_norm (fwd|dgrad) {IMAGE} g(\d+)", pixel_norm),
    (r"magnitude/weight_norm (fwd|wgrad) (\d+)x(\d+) (\d+)x\d+", weight_norm),
    (r"optimizer/grad_norm (\d+)", grad_norm),
    (r"optimizer/adamw (\d+)( ema)?", adamw),
    (rf"optimizer/mse (fwd|dgrad) {IMAGE}", mse),
    (rf"diffusion/(add_noise(?: drawn)?(?: levels)?|sampler_update|timestep_embedding) {IMAGE}", diffusion),
]  # fmt: skip


def understood(name):
    """The function of a name and what it gets behind the maker; None for a name that nothing knows."""
    for pattern, function in KNOWN:
        if match := re.fullmatch(pattern, name):
            # Only convolutions leave out a number: the stride of gradients, 1.
            words = [1 if word is None and function is conv2d else word for word in match.groups()]
            return function, [int(word) if str(word).isdigit() else word for word in words]
    return None


def gradients(call, leaves):
    """The backward pass of a call towards leaves, behind its forward pass."""
    for leaf in leaves:
        leaf.requires_grad_()
    results = call()
    results = results if isinstance(results, list) else [results]
    towards = [torch.ones_like(y) for y in results]
    return lambda: torch.autograd.grad(results, leaves, towards, retain_graph=True)


def samples(work, options):
    """Nanoseconds a call of each measured sample."""
    if options.device == "cpu":
        return [1e6 * sample for sample in measure(lambda _: work(), options)]

    def many():
        for _ in range(CALLS):
            work()

    run = many if options.mode == "eager" else captured(many, stream=torch.cuda.current_stream())

    def sample(count):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(count):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    sample(options.warmup)
    each = sample(options.warmup) / options.warmup
    sample(math.ceil(WARM_UP_MS / each))
    count = math.ceil(LEAST_MS / each)
    return [1e6 * sample(count) / (count * CALLS) for _ in range(options.repetitions)]


def timed(name, options):
    function, words = understood(name)
    call, leaves = function(Maker(options), *words)
    # Inductor has no part in the optimizer, whose fused form is one kernel.
    if options.mode == "compile" and function is not adamw:
        torch._dynamo.reset()
        call = torch.compile(call)
    with torch.set_grad_enabled(bool(leaves)):
        return samples(gradients(call, leaves) if leaves else call, options)


def line(name, options):
    """What came of a name: a failure must not take the others with it."""
    # A graph can't be made of what runs on the default stream, as gradients do if their forward pass did.
    stream = torch.cuda.Stream() if options.device == "cuda" else None
    try:
        with torch.cuda.stream(stream):
            times = timed(name, options)
    except Exception as why:
        return {"name": name, "error": f"{type(why).__name__}: {why}"}
    return {"name": name, "median_ns": percentile(times, 0.5), "samples_ns": times}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_environment(parser)
    parser.set_defaults(warmup=3, repetitions=10)
    parser.add_argument("--names", required=True, help="file with a name a line")
    options = parsed(parser)
    with open(options.names) as file:
        names = [line.strip() for line in file if line.strip()]
    unknown = [name for name in names if understood(name) is None]
    if unknown:
        parser.error(f"{options.names}: {unknown[0]!r} is no kernel that is known here")
    # The backward pass of what was compiled runs more than once.
    torch._functorch.config.donated_buffer = False
    torch.set_num_threads(options.threads)
    if options.json:
        print(json.dumps({"engine": f"PyTorch {torch.__version__} {options.mode}", "precision": options.precision,
                          "tf32": options.tf32}), flush=True)  # fmt: skip
    for name in names:
        result = line(name, options)
        if options.json:
            print(json.dumps(result), flush=True)
        else:
            told = result.get("error") or f"{result['median_ns'] / 1e3:.2f} us"
            print(f"{name}: {told}", flush=True)


if __name__ == "__main__":
    main()
