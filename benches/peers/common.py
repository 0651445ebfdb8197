"""What the PyTorch peers share: networks of the presets, timing, reports."""

import argparse
import json
import os
import platform
import sys
import time

import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()

PRESETS = {
    "ddpm-32": {
        "sample_size": 32,
        "block_out_channels": [32, 64, 64],
        "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
    },
    "ddpm-64": {
        "sample_size": 64,
        "block_out_channels": [128, 256, 256, 256],
        "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
    },
}
for _config in PRESETS.values():
    _config |= {
        "layers_per_block": 2, "attention_head_dim": 8, "norm_num_groups": 32, "norm_eps": 1e-6,
        "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1,
    }  # fmt: skip


def arguments(description):
    """Options of the benchmarks of a network."""
    parser = argparse.ArgumentParser(description=description)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--preset", choices=sorted(PRESETS), default="ddpm-32")
    source.add_argument("--model", metavar="FOLDER", help="a diffusers folder instead of a preset")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--channels-last", action="store_true", help="NHWC in memory; the default is PyTorch's own")
    add_environment(parser)
    return parser


def add_environment(parser):
    """Options that all benchmarks here have: where and how it runs, and how often."""
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--warmup", type=int, default=5, help="steps that are not timed (default %(default)s)")
    parser.add_argument("--repetitions", type=int, default=30, help="steps that are timed (default %(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "fp16"], default="fp32", help="fp16 needs cuda")
    parser.add_argument("--mode", choices=["eager", "compile", "graphs"], default="eager",
                        help="PyTorch as it is, torch.compile, or a CUDA graph of the eager network")  # fmt: skip
    parser.add_argument("--tf32", action="store_true", help="let PyTorch's float32 products round to TF32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")


def parsed(parser):
    """The options, once those that contradict each other are refused."""
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU")
    if options.device == "cpu" and (options.precision != "fp32" or options.mode == "graphs"):
        parser.error("--precision fp16 and --mode graphs need --device cuda")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32
    torch.backends.cudnn.benchmark = options.device == "cuda"
    return options


def network(options):
    """The network and its DDPM scheduler, from a folder or with PyTorch's initial weights."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    if options.model:
        model = UNet2DModel.from_pretrained(options.model, subfolder="unet", local_files_only=True)
        scheduler = DDPMScheduler.from_pretrained(options.model, subfolder="scheduler", local_files_only=True)
    else:
        model, scheduler = UNet2DModel(**PRESETS[options.preset]), DDPMScheduler()
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    return model.eval().to(options.device, memory_format=layout), scheduler, layout


def image_shape(model):
    """(height, width) that the configuration names."""
    size = model.config.sample_size
    return (size, size) if isinstance(size, int) else tuple(size)


def measure(step, options):
    """Milliseconds of each measured call of `step(i)` after the warm-up; a GPU has finished by then."""
    wait = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    for i in range(options.warmup):
        step(i)
    wait()
    samples = []
    for i in range(options.repetitions):
        start = time.perf_counter()
        step(options.warmup + i)
        wait()
        samples.append(1000 * (time.perf_counter() - start))
    return samples


def captured(call, warmup=3, stream=None):
    """A CUDA graph of `call()`, whose tensors keep their places; replayed by calling what comes back. The call runs on
    this stream or, without one, on others than the current one."""
    side = stream or torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warmup):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    return graph.replay


def percentile(samples, share):
    """Nearest-rank percentile."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def report(options, name, samples, **more):
    """Print the result, as one JSON object with `--json`."""
    result = {
        "bench": name,
        "engine": f"PyTorch {torch.__version__} {options.mode}",
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "precision": options.precision,
        "tf32": options.tf32,
        "channels_last": options.channels_last,
        "model": options.model or options.preset,
        "batch": options.batch,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "p50_ms": percentile(samples, 0.50),
        "p95_ms": percentile(samples, 0.95),
        "samples_ms": samples,
        **more,
    }
    if options.json:
        json.dump(result, sys.stdout)
        print()
    else:
        print(
            f"{result['engine']} ({result['simd']}), {name}, {result['model']}, batch {options.batch}, "
            f"{result['threads']} threads: p50 {result['p50_ms']:.2f} ms, p95 {result['p95_ms']:.2f} ms"
        )
