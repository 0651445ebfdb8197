"""Time of a training step in PyTorch.

    python train.py --preset ddpm-32 --batch 16 --threads 2 --json
    python train.py --preset ddpm-64 --batch 64 --device cuda --precision fp16 --mode compile --json

On a GPU in float16 autocast chooses element types and the loss scale is constant, with no look at
overflows, which favours PyTorch a little. With `--mode graphs` everything behind the draws is one CUDA
graph. A step draws noise and timesteps, adds the noise, runs the network forward and backward on the
mean squared error of the noise, and applies AdamW. Clipping and EMA are left to options.
"""

import torch
import torch.nn.functional as F

from common import arguments, captured, image_shape, measure, network, parsed, report

LOSS_SCALE = 1024.0


def main():
    parser = arguments(__doc__.splitlines()[0])
    parser.set_defaults(batch=16, warmup=3, repetitions=15)
    parser.add_argument("--clip", type=float, help="clip the global norm of the gradient to this")
    parser.add_argument("--ema", type=float, metavar="DECAY", help="keep an exponential moving average of the weights")
    parser.add_argument("--fused", action="store_true", help="PyTorch's fused AdamW in place of its default")
    options = parsed(parser)
    model, scheduler, layout = network(options)
    model.train()
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(
        weights, lr=1e-4, fused=options.fused or None, capturable=options.mode == "graphs"
    )
    average = [w.detach().clone() for w in weights] if options.ema is not None else []
    draws = torch.Generator(options.device).manual_seed(options.seed)
    shape = (options.batch, model.config.in_channels, *image_shape(model))
    place = {"generator": draws, "device": options.device}
    images = torch.rand(shape, **place).mul_(2).sub_(1).contiguous(memory_format=layout)
    noise, timesteps = torch.empty_like(images), torch.zeros(shape[:1], dtype=torch.long, device=options.device)
    loss = torch.zeros((), device=options.device)
    half = options.precision == "fp16"
    scale = LOSS_SCALE if half else 1.0
    forward = torch.compile(model) if options.mode == "compile" else model
    # What the graph reads must lie on the device when it is captured.
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(options.device)
    losses = []

    def behind_the_draws():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(options.device, torch.float16, enabled=half):
            prediction = forward(scheduler.add_noise(images, noise, timesteps), timesteps).sample
        missed = F.mse_loss(prediction.float(), noise)
        (missed * scale).backward()
        if half:
            torch._foreach_mul_([w.grad for w in weights], 1 / scale)
        if options.clip is not None:
            torch.nn.utils.clip_grad_norm_(weights, options.clip)
        optimizer.step()
        if average:
            torch._foreach_lerp_(average, [w.detach() for w in weights], 1 - options.ema)
        loss.copy_(missed.detach())

    work = captured(behind_the_draws) if options.mode == "graphs" else behind_the_draws

    def step(_):
        noise.copy_(torch.randn(shape, **place))
        timesteps.copy_(torch.randint(scheduler.config.num_train_timesteps, shape[:1], **place))
        work()
        losses.append(loss.item())

    samples = measure(step, options)
    report(options, "train", samples, parameters=sum(w.numel() for w in weights), losses=losses)


if __name__ == "__main__":
    main()
