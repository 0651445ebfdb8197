"""Time of a training step in PyTorch eager.

    python train.py --preset ddpm-32 --batch 16 --threads 2 --json

A step draws noise and timesteps, adds the noise, runs the network forward and backward on the
mean squared error of the noise, and applies AdamW. Clipping and EMA are left to options.
"""

import torch
import torch.nn.functional as F

from common import arguments, image_shape, measure, network, report


def main():
    parser = arguments(__doc__.splitlines()[0])
    parser.set_defaults(batch=16, warmup=3, repetitions=15)
    parser.add_argument("--clip", type=float, help="clip the global norm of the gradient to this")
    parser.add_argument("--ema", type=float, metavar="DECAY", help="keep an exponential moving average of the weights")
    parser.add_argument("--fused", action="store_true", help="PyTorch's fused AdamW in place of its default")
    options = parser.parse_args()
    model, scheduler, layout = network(options)
    model.train()
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=options.fused or None)
    average = [w.detach().clone() for w in weights] if options.ema is not None else []
    generator = torch.Generator().manual_seed(options.seed)
    shape = (options.batch, model.config.in_channels, *image_shape(model))
    images = torch.rand(shape, generator=generator).mul_(2).sub_(1).contiguous(memory_format=layout)
    losses = []

    def step(_):
        noise = torch.randn(shape, generator=generator).contiguous(memory_format=layout)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, shape[:1], generator=generator)
        prediction = model(scheduler.add_noise(images, noise, timesteps), timesteps).sample
        loss = F.mse_loss(prediction, noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if options.clip is not None:
            torch.nn.utils.clip_grad_norm_(weights, options.clip)
        optimizer.step()
        if average:
            torch._foreach_lerp_(average, [w.detach() for w in weights], 1 - options.ema)
        losses.append(loss.item())

    samples = measure(step, options.warmup, options.repetitions)
    report(options, "train", samples, parameters=sum(w.numel() for w in weights), losses=losses)


if __name__ == "__main__":
    main()
