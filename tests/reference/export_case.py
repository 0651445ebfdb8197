"""Write a reference case: one file that `cyanea compare` can replay.

A case holds the arguments and weights of an operation, a network or a short procedure, what
PyTorch computed from them, and the gradients. Only torch and safetensors are needed.

    import torch, torch.nn.functional as F
    from export_case import export_case

    # An nn.Module: its state_dict() becomes parameter.*
    export_case("conv.safetensors", "conv2d", {"stride": 2, "padding": 1},
                torch.nn.Conv2d(3, 17, 3, stride=2, padding=1), {"x": torch.randn(2, 3, 13, 19)})

    # A function: it is given two dicts, the inputs and the parameters.
    export_case("linear.safetensors", "linear", {},
                lambda i, p: F.linear(i["x"], p["weight"], p["bias"]),
                {"x": torch.randn(3, 17)},
                parameters={"weight": torch.randn(5, 17), "bias": torch.randn(5)})

    # diffusers: say how to call it, and which submodules to record on the way.
    export_case("unet.safetensors", "unet2d", dict(model.config), model,
                {"x": x, "timesteps": t},
                call=lambda m, i: m(i["x"], i["timesteps"]).sample,
                intermediates=["conv_in", "mid_block"])

What is written, in PyTorch's layouts, floats as float32 and integers as int64:

    input.NAME, parameter.NAME           arguments and weights
    output.NAME                          result of a float64 run
    grad_output.NAME                     upstream gradient
    grad_input.NAME, grad_parameter.NAME gradients of sum(grad_output * output), float64 run
    half.TENSOR                          float16: the same output or gradient from a float16 run
    intermediate.PATH                    outputs of submodules, float64 run

and the metadata `format`, `op`, `attributes` (JSON) and, if given, `rtol` and `atol`.
"""

import copy
import json
import math
import os
import tempfile
import warnings
from collections import OrderedDict

import torch
from safetensors.torch import save

FORMAT = "reference-case/1"

# Operations judged by the tight bounds: one rounding step away from their inputs.
SINGLE_OPERATIONS = frozenset(
    "conv2d conv_transpose2d group_norm group_norm_silu silu upsample_nearest2d linear mse_loss "
    "attention norm_silu_conv2d pixel_norm mp_silu clip mp_sum mp_cat mp_conv2d mp_linear mp_fourier "
    "add_noise".split()
)


def export_case(
    path,
    op,
    attributes,
    function,
    inputs,
    *,
    parameters=None,
    call=None,
    outputs=("y",),
    gradients=True,
    grad_outputs=None,
    half=True,
    intermediates=(),
    seed=0,
    rtol=None,
    atol=None,
):
    """Run `function` in float64, float32 and float16 and write the case to `path`.

    path            file to write; replaced as a whole or not at all
    op, attributes  name of the operation and its attributes (anything that JSON can hold)
    function        an nn.Module (put it in `eval()` mode if it has dropout), or a callable
                    `function(inputs, parameters)` on two dicts of tensors
    inputs          dict of tensors; floats are rounded to float32 first, so that every run
                    starts from the numbers in the file
    parameters      dict of tensors; only for a plain function, a module brings its own
    call            how to call a module, `call(module, inputs)`; by default
                    `module(*inputs.values())`
    outputs         names of the results, in the order in which the function returns them;
                    a function may also return a dict of tensors, which names them itself
    gradients       True: for every float input and parameter; False: none; or a collection of
                    the names wanted, such as {"x", "weight"}
    grad_outputs    dict of upstream gradients by output name; by default standard normal
    half            also run in float16 (on the CPU) and store the `half.` twins, where they are
                    finite. The float16 run sees every float input, weight and upstream gradient
                    rounded to float16. Or how to make that run, for networks that keep float32
                    weights and cast activations themselves: a function that is called as `call`
                    (or `function`, if that is none of a module) with everything in float32
    intermediates   paths of submodules whose outputs are recorded, or True for all those that
                    return one tensor; a submodule that runs more than once is refused, or
                    passed over with True
    seed            of the default upstream gradients
    rtol, atol      override the reader's default tolerances; `atol` is absolute

    Returns a dict: for each output and gradient, the largest error of PyTorch's own float32
    run as a share of what the reader allows. Above about a third the case is too ill
    conditioned to judge another float32 implementation by: change its inputs.
    """
    inputs = {name: _canonical(tensor) for name, tensor in inputs.items()}
    is_module = isinstance(function, torch.nn.Module)
    if is_module:
        if parameters is not None:
            raise ValueError("a module brings its own parameters; leave `parameters` out")
        parameters = function.state_dict()
    elif intermediates or call:
        raise ValueError("`call` and `intermediates` need an nn.Module")
    parameters = {name: _canonical(tensor) for name, tensor in (parameters or {}).items()}

    def run(dtype, upstream, hooks=()):
        """Outputs, gradients by tensor name, and intermediates of a run in `dtype`."""
        evaluation = call if is_module else function
        if dtype == torch.float16 and callable(half):
            dtype, evaluation = torch.float32, half
        wanted = lambda name: gradients is True or (gradients is not False and name in gradients)
        args = {n: _cast(t, dtype) for n, t in inputs.items()}
        leaves = {f"grad_input.{n}": t for n, t in args.items() if t.is_floating_point() and wanted(n)}
        recorded = OrderedDict()
        if is_module:
            module = copy.deepcopy(function).cpu().to(dtype)
            module.load_state_dict({n: _cast(t, dtype) for n, t in parameters.items()})
            weights = dict(module.named_parameters())
            handles = _record(module, hooks, recorded)
            evaluate = lambda: evaluation(module, args) if evaluation else module(*args.values())
        else:
            weights = {n: _cast(t, dtype) for n, t in parameters.items()}
            handles = []
            evaluate = lambda: evaluation(args, weights)
        leaves |= {f"grad_parameter.{n}": t for n, t in weights.items() if t.is_floating_point() and wanted(n)}
        for leaf in leaves.values():
            leaf.requires_grad_(True)
        with torch.set_grad_enabled(gradients is not False):
            results = _named(evaluate(), outputs)
        for handle in handles:
            handle.remove()
        grads = {}
        if gradients is not False:
            if upstream is None:
                upstream = _upstream(results, grad_outputs, seed)
            names = list(results)
            got = torch.autograd.grad(
                [results[n] for n in names],
                list(leaves.values()),
                [upstream[n].to(results[n].dtype) for n in names],
                allow_unused=True,
            )
            grads = {n: g for n, g in zip(leaves, got) if g is not None}
        results = {f"output.{n}": t.detach() for n, t in results.items()}
        return results | grads, upstream, recorded

    want, upstream, recorded = run(torch.float64, None, intermediates)
    tensors = {f"input.{n}": t for n, t in inputs.items()}
    tensors |= {f"parameter.{n}": t for n, t in parameters.items()}
    tensors |= {f"grad_output.{n}": t for n, t in (upstream or {}).items()}
    tensors |= want
    tensors |= {f"intermediate.{n}": t for n, t in recorded.items()}
    if half:
        twins, _, _ = run(torch.float16, upstream)
        for name, twin in twins.items():
            if torch.isfinite(twin).all():
                tensors[f"half.{name}"] = twin
            else:
                warnings.warn(f"{path}: {name} is not finite in float16, so it gets no half. twin")
    attributes = dict(attributes)
    if recorded:
        attributes["intermediates"] = list(recorded)
    write_case(path, op, attributes, tensors, rtol=rtol, atol=atol)

    single, _, _ = run(torch.float32, upstream)
    return allowed_shares(op, single, want, rtol=rtol, atol=atol)


def write_case(path, op, attributes, tensors, *, rtol=None, atol=None):
    """Write tensors that are already named (`input.x`, `output.y`, …) as a case.

    For procedures that `export_case` can't run by itself, such as an optimizer or a training
    run. Floats become float32, those named `half.…` float16, integers int64.
    """
    metadata = {"format": FORMAT, "op": op, "attributes": json.dumps(attributes)}
    if rtol is not None:
        metadata["rtol"] = repr(float(rtol))
    if atol is not None:
        metadata["atol"] = repr(float(atol))
    stored = {}
    for name, tensor in tensors.items():
        stored[name] = _canonical(tensor, torch.float16 if name.startswith("half.") else torch.float32)
        if stored[name].is_floating_point() and not torch.isfinite(stored[name]).all():
            raise ValueError(f"{path}: {name} has values that are not finite")
    folder = os.path.dirname(os.path.abspath(path))
    content = _with_sorted_metadata(save(stored, metadata=metadata))
    handle, temporary = tempfile.mkstemp(dir=folder, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _with_sorted_metadata(content):
    """The same safetensors file with its metadata in order, so that equal cases are equal files."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text + content[end:]


def allowed_shares(op, got, want, *, rtol=None, atol=None):
    """Largest |got - want| / (atol + rtol |want|) of each tensor, as `cyanea compare` has it.

    `got` and `want` are dicts of tensors by their names in the file. A share above 1 fails.
    """
    rms = lambda t: t.double().square().mean().sqrt().item() if t.numel() else 0.0
    floor = 0.01 * max([rms(t) for n, t in want.items() if n.startswith("grad_")], default=0.0)
    shares = {}
    for name, expected in want.items():
        gradient = name.startswith("grad_")
        tight = op in SINGLE_OPERATIONS and not gradient
        scale = max(rms(expected), 1e-3, floor if gradient else 0.0)
        relative = rtol if rtol is not None else (1e-4 if tight else 1e-3)
        absolute = atol if atol is not None else (1e-5 if tight else 1e-4) * scale
        expected = expected.double()
        error = (got[name].double() - expected).abs() / (absolute + relative * expected.abs())
        # NaN, and an infinity where both are one, are infinitely far off.
        shares[name] = error.nan_to_num(nan=math.inf).max().item() if error.numel() else 0.0
    return shares


def _canonical(tensor, floats=torch.float32):
    """A contiguous copy on the CPU: floats in the given type, everything else int64."""
    tensor = torch.as_tensor(tensor).detach().cpu()
    return tensor.to(floats if tensor.is_floating_point() else torch.int64).contiguous().clone()


def _cast(tensor, dtype):
    """A fresh leaf in `dtype`; integers stay as they are."""
    return tensor.to(dtype).clone() if tensor.is_floating_point() else tensor.clone()


def _named(result, names):
    """The results of a call as a dict of tensors."""
    if isinstance(result, torch.Tensor):
        result = (result,)
    if isinstance(result, dict) and set(result) != set(names) and len(result) == len(names):
        result = tuple(result.values())  # a model output class: ours are the names
    if isinstance(result, dict):
        return dict(result)
    if len(result) != len(names):
        raise ValueError(f"the function returned {len(result)} results, `outputs` names {list(names)}")
    return dict(zip(names, result))


def _upstream(results, given, seed):
    """Upstream gradients in float32 numbers: the given ones, else standard normal deviates."""
    generator = torch.Generator().manual_seed(seed)
    upstream = {}
    for name, result in results.items():
        if given is not None and name in given:
            upstream[name] = _canonical(given[name])
        else:
            upstream[name] = torch.randn(result.shape, generator=generator)
    return upstream


def _record(module, paths, recorded):
    """Forward hooks that put the outputs of submodules into `recorded`, in order of execution."""
    everything = paths is True
    submodules = OrderedDict((n, m) for n, m in module.named_modules() if n)
    seen = set()

    def hook_for(path):
        def hook(_module, _arguments, output):
            if not isinstance(output, torch.Tensor):
                if everything:
                    return
                raise ValueError(f"submodule {path} doesn't return one tensor")
            if path in seen:
                if not everything:
                    raise ValueError(f"submodule {path} runs more than once")
                recorded.pop(path, None)
                return
            seen.add(path)
            recorded[path] = output.detach()

        return hook

    handles = []
    for path in submodules if everything else paths:
        if path not in submodules:
            raise ValueError(f"there is no submodule {path}")
        handles.append(submodules[path].register_forward_hook(hook_for(path)))
    return handles
