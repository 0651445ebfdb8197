"""The quickstart in stock diffusers: train a small UNet2DModel for some minutes, report the held-out loss.

    python quickstart.py --data IMAGES --held-out RUN/held_out.safetensors --minutes 4 --threads 2 --json

`--model RUN/model` takes the network's configuration, noise schedule and prediction from a run of
cyanea, not its weights; without it the network has channels 32-48-64, one block a level, and
predicts v on the linear schedule. Images of the folder that are among the held-out ones aren't
trained on.

    python quickstart.py --evaluate RUN/model --held-out RUN/held_out.safetensors

recomputes the held-out loss of a model that is already trained.

Held-out loss: the mean squared error of the noise, with `x0` [N, C, H, W] in -1..1, `noise` like it
and `timesteps` [N] from the file. A network that predicts v or the image is converted to noise.
"""

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.utils import logging
from PIL import Image
from safetensors.torch import load_file

logging.set_verbosity_error()
logging.disable_progress_bar()

CONFIG = {
    "sample_size": 32,
    "block_out_channels": [32, 48, 64],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
    "attention_head_dim": 8,
    "norm_num_groups": 16,
    "norm_eps": 1e-6,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
}
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


def load_images(folder, size, held_out):
    """Images of a folder, recursively, as [N, 3, H, W] in -1..1, less those held out."""
    height, width = size
    excluded = {((x + 1) * 127.5).round().to(torch.uint8).numpy().tobytes() for x in held_out}
    images = []
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        image = Image.open(path).convert("RGB")
        if image.size != (width, height):  # scale the short side, crop the centre
            scale = max(width / image.width, height / image.height)
            scaled = max(width, round(image.width * scale)), max(height, round(image.height * scale))
            image = image.resize(scaled, Image.Resampling.BICUBIC)
            left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
            image = image.crop((left, top, left + width, top + height))
        pixels = np.asarray(image).transpose(2, 0, 1)
        if pixels.tobytes() not in excluded:
            images.append(torch.from_numpy(pixels.copy()))
    if not images:
        sys.exit(f"{folder}: no images to train on")
    return torch.stack(images).float() / 127.5 - 1


def target_of(scheduler, x0, noise, timesteps):
    """What the network is to predict."""
    kind = scheduler.config.prediction_type
    if kind == "v_prediction":
        return scheduler.get_velocity(x0, noise, timesteps)
    return noise if kind == "epsilon" else x0


def held_out_loss(model, scheduler, held_out):
    """Mean squared error of the noise on the held-out images."""
    x0, noise, timesteps = held_out["x0"], held_out["noise"], held_out["timesteps"]
    alpha = scheduler.alphas_cumprod[timesteps].double().view(-1, 1, 1, 1)
    x_t = scheduler.add_noise(x0, noise, timesteps)
    training = model.training
    model.eval()
    with torch.inference_mode():
        parts = zip(x_t.split(16), timesteps.split(16))
        prediction = torch.cat([model(x, t).sample for x, t in parts]).double()
    model.train(training)
    if scheduler.config.prediction_type == "v_prediction":
        prediction = alpha.sqrt() * prediction + (1 - alpha).sqrt() * x_t
    elif scheduler.config.prediction_type == "sample":
        prediction = (x_t - alpha.sqrt() * prediction) / (1 - alpha).sqrt()
    return (prediction - noise).square().mean().item()


def sample_grid(model, scheduler, path, seed, count=64, columns=8, steps=50):
    """A grid of images from DDIM with clipping."""
    sampler = DDIMScheduler.from_config(scheduler.config, clip_sample=True)
    sampler.set_timesteps(steps)
    size = model.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    x = torch.randn(count, model.config.in_channels, height, width, generator=torch.Generator().manual_seed(seed))
    model.eval()
    with torch.inference_mode():
        for t in sampler.timesteps:
            x = sampler.step(model(x, t).sample, t, x).prev_sample
    rows = -(-count // columns)
    pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    grid = torch.zeros(3, rows * height, columns * width, dtype=torch.uint8)
    for i, image in enumerate(pixels):
        top, left = i // columns * height, i % columns * width
        grid[:, top : top + height, left : left + width] = image
    Image.fromarray(grid.permute(1, 2, 0).numpy()).save(path)


def learning_rate(peak, elapsed, warmup):
    """Linear warm-up and cosine to zero over the elapsed share 0..1 of the time."""
    if elapsed < warmup:
        return peak * (elapsed + 1e-3) / (warmup + 1e-3)
    return peak * (1 + math.cos(math.pi * min(1.0, (elapsed - warmup) / (1 - warmup)))) / 2


def train(options, model, scheduler, images):
    """Train until the minutes (or steps) are over. Returns steps, the averaged weights and recent losses."""
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=options.rate, betas=(0.9, 0.99), weight_decay=options.weight_decay)
    average = [w.detach().clone() for w in weights]
    generator = torch.Generator().manual_seed(options.seed)
    model.train()
    steps, losses, shown = 0, [], 0.0
    begin = time.perf_counter()

    def share():
        """Elapsed share of the run."""
        return steps / options.steps if options.steps else (time.perf_counter() - begin) / (60 * options.minutes)

    while (elapsed := share()) < 1:
        x0 = images[torch.randint(len(images), (options.batch,), generator=generator)]
        if options.flip:
            mirrored = torch.rand(len(x0), 1, 1, 1, generator=generator) < 0.5
            x0 = torch.where(mirrored, x0.flip(3), x0)
        noise = torch.randn(x0.shape, generator=generator)
        # One timestep from each of `batch` equal parts of 0..T-1: the same distribution, less variance.
        offsets = (torch.arange(options.batch) + torch.rand(options.batch, generator=generator)) / options.batch
        timesteps = (offsets * scheduler.config.num_train_timesteps).long()
        prediction = model(scheduler.add_noise(x0, noise, timesteps), timesteps).sample
        loss = F.mse_loss(prediction, target_of(scheduler, x0, noise, timesteps))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate(options.rate, elapsed, options.warmup)
        optimizer.step()
        steps += 1
        decay = min(options.ema, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(average, [w.detach() for w in weights], 1 - decay)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            sys.exit(f"step {steps}: the loss is {losses[-1]}")
        if elapsed - shown >= 0.1:
            shown = elapsed
            recent = sum(losses[-50:]) / len(losses[-50:])
            print(f"{100 * elapsed:3.0f} %  step {steps}  loss {recent:.4f}", file=sys.stderr, flush=True)
    return steps, average, losses


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--held-out", required=True, help="safetensors with x0, noise, timesteps")
    parser.add_argument("--data", help="folder of images to train on")
    parser.add_argument("--evaluate", metavar="FOLDER", help="compute the loss of this model; no training")
    parser.add_argument("--model", metavar="FOLDER", help="take configuration and scheduler from here")
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--steps", type=int, help="train for so many steps, however long they take")
    parser.add_argument("--prediction", choices=["v_prediction", "epsilon", "sample"], help="default v_prediction")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate (default 2e-3)")
    parser.add_argument("--warmup", type=float, default=0.05, help="share of the time (default 0.05)")
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--ema", type=float, default=0.99, help="largest decay of the average (default 0.99)")
    parser.add_argument("--flip", action="store_true", help="mirror every other image")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", help="folder for samples.png and model/")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if bool(options.data) == bool(options.evaluate):
        parser.error("give either --data or --evaluate")
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    held_out = load_file(options.held_out)

    if options.evaluate:
        pipeline = DDPMPipeline.from_pretrained(options.evaluate, local_files_only=True)
        loss = held_out_loss(pipeline.unet, pipeline.scheduler, held_out)
        print(json.dumps({"held_out_loss": loss}) if options.json else f"held-out loss {loss:.4f}")
        return

    config, schedule = dict(CONFIG), {"prediction_type": "v_prediction"}
    if options.model:
        config = UNet2DModel.load_config(f"{options.model}/unet", local_files_only=True)
        schedule = DDPMScheduler.load_config(f"{options.model}/scheduler", local_files_only=True)
    schedule = {**schedule, **({"prediction_type": options.prediction} if options.prediction else {})}
    model, scheduler = UNet2DModel.from_config(config), DDPMScheduler.from_config(schedule)
    images = load_images(options.data, held_out["x0"].shape[2:], held_out["x0"])
    begin = time.perf_counter()
    steps, average, losses = train(options, model, scheduler, images)
    minutes = (time.perf_counter() - begin) / 60
    raw = held_out_loss(model, scheduler, held_out)
    with torch.no_grad():
        for weight, mean in zip(model.parameters(), average):
            weight.copy_(mean)
    loss = held_out_loss(model, scheduler, held_out)
    if options.out:
        out = Path(options.out)
        out.mkdir(parents=True, exist_ok=True)
        DDPMPipeline(model, scheduler).save_pretrained(out / "model")
        sample_grid(model, scheduler, out / "samples.png", options.seed)
    result = {
        "bench": "quickstart",
        "engine": f"PyTorch {torch.__version__} eager, diffusers",
        "held_out_loss": loss,
        "held_out_loss_without_ema": raw,
        "steps": steps,
        "minutes": minutes,
        "threads": torch.get_num_threads(),
        "images": len(images),
        "parameters": sum(w.numel() for w in model.parameters()),
        "prediction": scheduler.config.prediction_type,
        "final_training_loss": sum(losses[-50:]) / len(losses[-50:]),
    }
    if options.json:
        print(json.dumps(result))
    else:
        print(
            f"{steps} steps on {len(images)} images in {minutes:.2f} minutes: "
            f"held-out loss {loss:.4f} ({raw:.4f} without EMA)"
        )


if __name__ == "__main__":
    main()
