"""Latency of a DDPM sampling step in PyTorch: the network and the scheduler's update.

    python step.py --preset ddpm-32 --batch 1 --threads 2 --json
    python step.py --preset ddpm-64 --device cuda --precision fp16 --mode graphs --json

On a GPU in float16 the network's weights and activations are float16. With `--mode graphs` the network
is one CUDA graph and the update runs behind it; with `--mode compile` torch.compile has the network.

Before timing, see that the engines agree. Either write a case for `cyanea compare`,

    python step.py --preset ddpm-32 --batch 1 --case step.safetensors

or hand over weights and input and get the network's output:

    python step.py --preset ddpm-32 --weights w.safetensors --input in.safetensors --output out.safetensors

where `w.safetensors` has the weights under diffusers' names (the file in a folder's `unet/`),
`in.safetensors` has `x` [B, C, H, W] and `timesteps` [B], and the output adds `y`. With `--model
FOLDER` the folder's own weights are used.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from common import arguments, captured, image_shape, measure, network, parsed, report


def write_case(path, model, x, timesteps):
    """A forward-only `unet2d` case of this very network."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "reference"))
    from export_case import export_case

    config = {k: v for k, v in model.config.items() if not k.startswith("_")}
    shares = export_case(
        path, "unet2d", config, model, {"x": x, "timesteps": timesteps},
        call=lambda m, i: m(i["x"], i["timesteps"]).sample, gradients=False, half=False,
    )
    print(f"{path}: PyTorch's float32 takes {shares['output.y']:.3f} of the allowed error", file=sys.stderr)


def main():
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--weights", help="safetensors with weights to load into the network")
    parser.add_argument("--input", help="safetensors with x and timesteps: compute y instead of timing")
    parser.add_argument("--output", help="where to write x, timesteps and y")
    parser.add_argument("--case", help="write a unet2d case for `cyanea compare` instead of timing")
    options = parsed(parser)
    if (options.input is None) != (options.output is None):
        parser.error("--input and --output go together")
    model, scheduler, layout = network(options)
    if options.weights:
        model.load_state_dict(load_file(options.weights))
    generator = torch.Generator().manual_seed(options.seed)
    x = torch.randn(options.batch, model.config.in_channels, *image_shape(model), generator=generator)
    if options.precision == "fp16":
        model = model.half()

    if options.case:
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (options.batch,), generator=generator)
        write_case(options.case, model, x, timesteps)
        return
    with torch.inference_mode():
        if options.input:
            given = load_file(options.input)
            y = model(given["x"].contiguous(memory_format=layout), given["timesteps"]).sample
            save_file({"x": given["x"], "timesteps": given["timesteps"], "y": y.contiguous()}, options.output)
            return

        scheduler.set_timesteps(scheduler.config.num_train_timesteps)
        on_device = {"device": options.device, "dtype": next(model.parameters()).dtype}
        state = x.to(**on_device).contiguous(memory_format=layout)
        timestep = torch.zeros((), dtype=torch.long, device=options.device)
        draws = torch.Generator(options.device).manual_seed(options.seed)
        forward = torch.compile(model) if options.mode == "compile" else model

        def evaluate(t):
            return forward(state, t).sample

        if options.mode == "graphs":
            # A graph reads and writes where it was captured.
            timestep, epsilon = torch.zeros((), dtype=torch.long, device=options.device), torch.empty_like(state)
            replay = captured(lambda: epsilon.copy_(model(state, timestep).sample))

            def evaluate(t):
                timestep.copy_(t)
                replay()
                return epsilon

        def step(i):
            nonlocal state
            t = scheduler.timesteps[i % len(scheduler.timesteps)]
            updated = scheduler.step(evaluate(t), t, state, generator=draws).prev_sample
            if options.mode == "graphs":
                state.copy_(updated)
            else:
                state = updated

        samples = measure(step, options)
    report(options, "step", samples, parameters=sum(p.numel() for p in model.parameters()))


if __name__ == "__main__":
    main()
