#!/usr/bin/env python3
"""A network snapshot of NVlabs' EDM2 (network-snapshot-*.pkl) as a model folder for cyanea; plain Python, nothing else.

    scripts/import-edm2.py edm2-img64-s-1073741-0.075.pkl model
    cyanea import model                   # checks every name and shape
    cyanea sample --model model --out samples

The weights that NVlabs released are under CC BY-NC-SA 4.0: not for commercial use, and what is made of them
only under the same licence. A snapshot of your own training is yours.

Nothing in the file is run. Snapshots are pickles that bring Python code of their own; this script looks up none of
what they name, but knows the few classes of such a file as plain data and refuses all others. So it can't see
whether that code was changed: a network that keeps NVlabs' names, shapes and settings is taken for theirs.
"""

import argparse
import io
import json
import os
import pickle
import shutil
import struct
import sys
import tempfile

LICENCE = "CC BY-NC-SA 4.0, if released by NVlabs: not for commercial use"

# Arguments of `Precond` that are positional, and all those that cyanea's configuration has too.
POSITIONAL = ("img_resolution", "img_channels", "label_dim", "use_fp16", "sigma_data", "logvar_channels")
SETTINGS = {
    *POSITIONAL, "model_channels", "channel_mult", "channel_mult_noise", "channel_mult_emb", "num_blocks",
    "attn_resolutions", "label_balance", "concat_balance", "resample_filter", "channels_per_head", "dropout",
    "res_balance", "attn_balance", "clip_act",
}  # fmt: skip
# What holds where a snapshot doesn't say.
DEFAULTS = {
    "sigma_data": 0.5, "label_balance": 0.5, "concat_balance": 0.5, "resample_filter": [1, 1], "channels_per_head": 64,
    "dropout": 0, "res_balance": 0.3, "attn_balance": 0.3, "clip_act": 256,
}  # fmt: skip
# Settings that modules keep a copy of; these must agree.
COPIES = {
    "Precond": ("img_resolution", "img_channels", "label_dim", "sigma_data"),
    "UNet": ("label_balance", "concat_balance"),
    "Block": ("resample_filter", "dropout", "res_balance", "attn_balance", "clip_act"),
    "MPConv": (),
    "MPFourier": (),
    "ModuleDict": (),
}
# PyTorch's storages as safetensors names them, and bytes an element.
STORAGES = {"HalfStorage": ("F16", 2), "BFloat16Storage": ("BF16", 2), "FloatStorage": ("F32", 4), "DoubleStorage": ("F64", 8)}
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
PERSISTENCE = 6


class Refused(Exception):
    """The file is not what can be imported; says why."""


class Record:
    """An object of the file: its class by name, and what it was saved with."""

    def __init__(self, kind, state):
        self.kind = kind
        self.__setstate__(state)

    def __setstate__(self, state):
        if not isinstance(state, dict):
            raise Refused(f"a {self.kind} has a state that is no dictionary; the file is damaged")
        self.state = state


class ModuleDict(Record):
    """PyTorch's, which a pickle makes first and gives its state after."""

    kind, state = "ModuleDict", {}


class EasyDict(dict):
    """A dictionary of NVlabs' whose attributes are its items; here the items alone."""

    __slots__ = ()


class Opaque:
    """Something that no network needs, such as the constants of an encoder."""

    def __init__(self, *_):
        pass

    def __setstate__(self, _):
        pass


class Tensor:
    def __init__(self, dtype, shape, data):
        self.dtype, self.shape, self.data = dtype, shape, data


def reconstruct(meta):
    """A persistent object; its source code stays a string."""
    version = meta.get("version")
    if version != PERSISTENCE or meta.get("type") != "class":
        raise Refused(f"an object was saved by version {version} of NVlabs' persistence; {PERSISTENCE} can be read")
    return Record(meta["class_name"], meta["state"])


class Narrow(pickle.Unpickler):
    """An unpickler that knows what `known` lists, and nothing else."""

    known = {}

    def find_class(self, module, name):
        found = self.known.get((module, name))
        if found is None:
            raise Refused(f"the file asks for {module}.{name}, which no EDM2 snapshot needs; nothing was loaded")
        return found

    def persistent_load(self, pid):
        raise Refused("the file refers to data outside of itself; a network snapshot does not")


class StorageHead(Narrow):
    """What stands in front of a storage's bytes: its type and length."""

    known = {("torch", name): name for name in STORAGES}

    def persistent_load(self, pid):
        kind, storage, key, _, length, view = pid
        if kind != "storage" or storage not in STORAGES or view is not None:
            raise Refused(f"a tensor has a storage of the kind {kind}, {storage}; floats can be imported")
        return storage, key, length


def load_storage(data):
    """PyTorch's older format for one storage: four pickles, then a length and the bytes."""
    file = io.BytesIO(data)
    magic, version, system = (Narrow(file).load() for _ in range(3))
    if magic != MAGIC or version != PROTOCOL or not system.get("little_endian"):
        raise Refused("a tensor is not stored in PyTorch's format of little-endian machines")
    storage, key, length = StorageHead(file).load()
    keys = Narrow(file).load()
    dtype, size = STORAGES[storage]
    stored = file.read(8)
    if keys != [key] or stored != struct.pack("<q", length) or len(data) - file.tell() != length * size:
        raise Refused(f"a tensor of {length} elements has another number of bytes; the file is damaged")
    return dtype, size, memoryview(data)[file.tell() :]


def rebuild_tensor(storage, offset, shape, strides, *_):
    dtype, size, data = storage
    count, packed = 1, []
    for extent in reversed(shape):
        packed.insert(0, count)
        count *= extent
    if any(stride != wanted for extent, stride, wanted in zip(shape, strides, packed) if extent > 1):
        raise Refused(f"a tensor {list(shape)} has strides {list(strides)}; row by row can be imported: call .contiguous()")
    if offset < 0 or count < 0 or (offset + count) * size > len(data):
        raise Refused(f"a tensor {list(shape)} reaches beyond its storage; the file is damaged")
    return Tensor(dtype, list(shape), data[offset * size : (offset + count) * size])


class Snapshot(Narrow):
    known = {
        ("builtins", "set"): set,
        ("__builtin__", "set"): set,
        ("collections", "OrderedDict"): dict,
        ("dnnlib.util", "EasyDict"): EasyDict,
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): reconstruct,
        ("torch.nn.modules.container", "ModuleDict"): ModuleDict,
        ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
        ("torch.storage", "_load_from_bytes"): load_storage,
        # An encoder's constants.
        ("numpy", "ndarray"): Opaque,
        ("numpy", "dtype"): Opaque,
        ("numpy.core.multiarray", "_reconstruct"): Opaque,
        ("numpy._core.multiarray", "_reconstruct"): Opaque,
        ("numpy.core.multiarray", "scalar"): Opaque,
        ("numpy._core.multiarray", "scalar"): Opaque,
    }


def read(path):
    """The dictionary that a snapshot is."""
    with open(path, "rb") as file:
        head = file.read(2)
        if head == b"PK":
            raise Refused("is a PyTorch checkpoint, not a network snapshot; take network-snapshot-*.pkl of the run")
        if head[:1] != b"\x80":
            raise Refused("is no pickle; a network snapshot is a file network-snapshot-*.pkl")
        file.seek(0)
        try:
            data = Snapshot(file).load()
        except Refused:
            raise
        except Exception as error:  # whatever a damaged pickle makes of the unpickler
            raise Refused(f"can't be read as a pickle ({type(error).__name__}: {error}); is it complete?") from error
    if not isinstance(data, dict) or not isinstance(data.get("ema"), Record):
        what = ", ".join(map(str, data)) if isinstance(data, dict) else type(data).__name__
        raise Refused(f"holds {what or 'nothing'}; a network snapshot has its network under `ema`")
    return data


def settings(network):
    """The network's settings, from the arguments that it was made with."""
    arguments, named = network.state.get("_init_args"), network.state.get("_init_kwargs")
    if not isinstance(arguments, tuple) or not isinstance(named, dict):
        raise Refused("its network does not say which arguments it was made with")
    if len(arguments) > len(POSITIONAL):
        raise Refused(f"its network was made with {len(arguments)} positional arguments; {len(POSITIONAL)} are known")
    given = {**dict(zip(POSITIONAL, arguments)), **named}
    missing = [key for key in POSITIONAL[:3] if key not in given]
    if missing:
        raise Refused(f"its network was made without {', '.join(missing)}")
    unknown = sorted(map(str, set(given) - SETTINGS))
    if unknown:
        raise Refused(f"its network has the settings {', '.join(unknown)}, which EDM2 does not have")
    for key, value in given.items():
        each = value if isinstance(value, list) else [value]
        if not all(one is None or isinstance(one, (bool, int, float)) for one in each):
            raise Refused(f"its network has {key} = {value!r}; a number or a list of numbers can be imported")
    if given.get("resample_filter", [1, 1]) != [1, 1]:
        raise Refused(f"its network resamples with the filter {given['resample_filter']}; [1, 1] can be imported")
    return given


def tensors(module, path, given, found):
    """Collects parameters and buffers under their names, and checks each module against the settings."""
    what = path or "the network"
    if not isinstance(module, Record) or module.kind not in COPIES:
        raise Refused(f"{what} is {getattr(module, 'kind', type(module).__name__)}, which is no part of EDM2")
    state = module.state
    wanted = {**DEFAULTS, **given}
    for key in COPIES[module.kind]:
        if key not in state or state[key] != wanted.get(key):
            raise Refused(f"{what} has {key} = {state.get(key)}, but its settings say {wanted.get(key)}")
    if state.get("num_heads") and state["num_heads"] * wanted["channels_per_head"] != state.get("out_channels"):
        raise Refused(f"{what} has {state['num_heads']} heads, not of {wanted['channels_per_head']} channels each")
    for kind in ("_parameters", "_buffers", "_modules"):
        if not isinstance(state.get(kind, {}), dict):
            raise Refused(f"{what} has {kind} that are no dictionary; the file is damaged")
        for name, value in state.get(kind, {}).items():
            inner = f"{path}.{name}" if path else name
            if value is None:
                continue
            if kind == "_modules":
                tensors(value, inner, given, found)
            elif isinstance(value, Tensor):
                found[inner] = value
            else:
                raise Refused(f"{inner} is no tensor; the file is damaged")
    return found


def process(loss):
    """The noise levels of training."""
    if loss is None:
        return {}
    if not isinstance(loss, Record) or loss.kind != "EDM2Loss":
        raise Refused(f"was trained with a loss {getattr(loss, 'kind', type(loss).__name__)}; EDM2Loss can be imported")
    noise = {key.lower(): loss.state.get(key) for key in ("P_mean", "P_std")}
    if not all(isinstance(value, (int, float)) for value in noise.values()):
        raise Refused("its loss does not say P_mean and P_std as numbers")
    return noise


def write_json(path, value):
    with open(path, "w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")


def write_safetensors(path, named, metadata):
    header, end = {"__metadata__": metadata}, 0
    for name, tensor in sorted(named.items()):
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [end, end + len(tensor.data)]}
        end += len(tensor.data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in sorted(named.items()):
            file.write(tensor.data)


def write(folder, config, noise, named, metadata):
    """The model folder, whole or not at all."""
    folder = os.path.abspath(folder)
    if os.path.exists(folder) and not (os.path.isdir(folder) and not os.listdir(folder)):
        raise Refused(f"{folder} exists; choose a new folder")
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    staging = tempfile.mkdtemp(prefix=".import-edm2-", dir=os.path.dirname(folder))
    try:
        os.mkdir(os.path.join(staging, "unet"))
        os.mkdir(os.path.join(staging, "scheduler"))
        write_json(os.path.join(staging, "unet", "config.json"), {"_class_name": "Edm2Unet", **config})
        write_json(os.path.join(staging, "scheduler", "scheduler_config.json"), {"_class_name": "EdmProcess", **noise})
        write_safetensors(os.path.join(staging, "unet", "diffusion_pytorch_model.safetensors"), named, metadata)
        parts = {"scheduler": ["cyanea", "EdmProcess"], "unet": ["cyanea", "Edm2Unet"]}
        write_json(os.path.join(staging, "model_index.json"), {"_class_name": "DDPMPipeline", **parts})
        os.chmod(staging, 0o755)
        os.replace(staging, folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def convert(source, folder):
    data = read(source)
    network = data["ema"]
    if network.kind != "Precond":
        raise Refused(f"its network is {network.kind}; EDM2's Precond can be imported")
    config = settings(network)
    found = tensors(network, "", config, {})
    noise = process(data.get("loss_fn"))
    metadata = {"format": "pt", "source": os.path.basename(source), "license": LICENCE}
    write(folder, config, noise, found, metadata)
    count = sum(len(tensor.data) // dict(STORAGES.values())[tensor.dtype] for tensor in found.values())
    print(f"{folder}: {count:,} numbers in {len(found)} tensors, {config['img_resolution']}×{config['img_resolution']}×"
          f"{config['img_channels']}, {config['label_dim'] or 'no'} classes")  # fmt: skip
    encoder = data.get("encoder")
    if isinstance(encoder, Record) and encoder.kind == "StabilityVAEEncoder":
        print(f"It makes latents of the autoencoder {encoder.state.get('vae_name')}, not images.")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("snapshot", help="network-snapshot-*.pkl, or a reconstruction of an average")
    parser.add_argument("out", help="folder to write; refused where it holds something")
    options = parser.parse_args()
    print("Note: weights that NVlabs released with EDM2 are under CC BY-NC-SA 4.0: not for commercial use, and what is "
          "made of them only under the same licence.", file=sys.stderr)  # fmt: skip
    try:
        convert(options.snapshot, options.out)
    except (Refused, OSError, RecursionError) as error:
        sys.exit(f"error: {options.snapshot}: {error}")


if __name__ == "__main__":
    main()
