"""A network snapshot as NVlabs' EDM2 saves it, made without NVlabs' code and without PyTorch: a pickle of the same
structure, whose network has the settings and the weights, in float16, of a reference case.

    edm2_snapshot.py CASE.safetensors OUT.pkl [FAULT]
"""

import io
import json
import os
import pickle
import struct
import sys
import types
from collections import OrderedDict

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
SETTINGS = {"label_balance": 0.5, "concat_balance": 0.5, "sigma_data": 0.5}
OF_A_BLOCK = {"resample_filter": [1, 1], "dropout": 0, "res_balance": 0.3, "attn_balance": 0.3, "clip_act": 256}


def named(module, name, thing):
    """Puts something where a pickle will say that it is from."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        sys.modules.setdefault(path, types.ModuleType(path))
    thing.__module__, thing.__qualname__, thing.__name__ = module, name, name
    setattr(sys.modules[module], name, thing)
    return thing


def function(module, name):
    return named(module, name, lambda *_: None)


EasyDict = named("dnnlib.util", "EasyDict", type("EasyDict", (dict,), {}))
ModuleDict = named("torch.nn.modules.container", "ModuleDict", type("ModuleDict", (), {}))
HalfStorage = named("torch", "HalfStorage", type("HalfStorage", (), {}))
reconstruct = function("torch_utils.persistence", "_reconstruct_persistent_obj")
rebuild_tensor = function("torch._utils", "_rebuild_tensor_v2")
rebuild_parameter = function("torch._utils", "_rebuild_parameter")
load_from_bytes = function("torch.storage", "_load_from_bytes")
rebuild_array = function("numpy.core.multiarray", "_reconstruct")
ndarray = named("numpy", "ndarray", type("ndarray", (), {}))


class Persistent:
    """An object of a class that is saved with its source code."""

    def __init__(self, kind, state, arguments=(), settings=None):
        self.kind, self.state = kind, {**state, "_init_args": arguments, "_init_kwargs": settings or {}}

    def __reduce__(self):
        code = "raise SystemExit('the code of a snapshot was run')"
        meta = {"type": "class", "version": 6, "module_src": code, "class_name": self.kind, "state": self.state}
        return reconstruct, (meta,)


class Storage:
    def __init__(self, data):
        self.data = data

    def __reduce__(self):
        class Head(pickle.Pickler):
            def persistent_id(_, thing):
                length = len(self.data) // 2
                return ("storage", HalfStorage, "94870790534128", "cpu", length, None) if thing is self else None

        head = io.BytesIO()
        sizes = {"short": 2, "int": 4, "long": 4}
        for value in (MAGIC, PROTOCOL, {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": sizes}):
            pickle.dump(value, head, 2)
        Head(head, 2).dump(self)
        pickle.dump(["94870790534128"], head, 2)
        return load_from_bytes, (head.getvalue() + struct.pack("<q", len(self.data) // 2) + self.data,)


class Tensor:
    def __init__(self, shape, values, parameter, turned=False):
        self.shape, self.parameter, self.turned = shape, parameter, turned
        self.storage = Storage(struct.pack(f"<{len(values)}e", *values))

    def __reduce__(self):
        if self.parameter:
            return rebuild_parameter, (Tensor.plain(self), False, OrderedDict())
        strides, count = [], 1
        for extent in reversed(self.shape):
            strides.insert(0, count)
            count *= extent
        strides = strides[::-1] if self.turned else strides
        return rebuild_tensor, (self.storage, 0, tuple(self.shape), tuple(strides), False, OrderedDict())

    def plain(self):
        tensor = Tensor.__new__(Tensor)
        tensor.__dict__.update(self.__dict__, parameter=False)
        return tensor


class Array:
    """A constant of an encoder."""

    def __reduce__(self):
        return rebuild_array, (ndarray, (0,), b"b")


class Command:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def module(kind, children, tensors, **more):
    state = {
        "training": False,
        "_parameters": {n: t for n, t in tensors.items() if t.parameter},
        "_buffers": {n: t for n, t in tensors.items() if not t.parameter},
        "_non_persistent_buffers_set": set(),
        "_forward_hooks": OrderedDict(),
        "_modules": dict(children),
        **more,
    }
    if kind != "ModuleDict":
        return Persistent(kind, state)
    made = ModuleDict()
    made.__dict__.update(state)
    return made


def kind_of(path, names):
    if path == "":
        return "Precond"
    if path == "unet":
        return "UNet"
    if path in ("unet.enc", "unet.dec"):
        return "ModuleDict"
    inner = {name[len(path) + 1 :] for name in names if name.startswith(f"{path}.")}
    if "conv_res0.weight" in inner:
        return "Block"
    return "MPFourier" if "freqs" in inner else "MPConv"


def network(path, weights, config):
    """The module at `path` with everything in it."""
    inner = [name[len(path) + 1 :] if path else name for name in weights if name.startswith(f"{path}." if path else "")]
    join = lambda name: f"{path}.{name}" if path else name
    children = {part: network(join(part), weights, config) for part in dict.fromkeys(n.split(".")[0] for n in inner if "." in n)}
    tensors = {name: weights[join(name)] for name in inner if "." not in name}
    kind, more = kind_of(path, weights), {}
    if kind == "Precond":
        more = {key: config[key] for key in ("img_resolution", "img_channels", "label_dim", "sigma_data")}
    elif kind == "UNet":
        more = {key: config[key] for key in ("label_balance", "concat_balance")}
    elif kind == "Block":
        channels = weights[join("conv_res1.weight")].shape[0]
        heads = channels // config["channels_per_head"] if "attn_qkv" in children else 0
        more = {**{key: config.get(key, OF_A_BLOCK[key]) for key in OF_A_BLOCK}, "out_channels": channels, "num_heads": heads}
    made = module(kind, children, tensors, **more)
    if kind == "Precond":
        made.state["_init_kwargs"] = EasyDict(json.loads(json.dumps(config["given"])))
    return made


def read(path):
    """Settings and parameters of a reference case."""
    with open(path, "rb") as file:
        content = file.read()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    attributes = json.loads(header.pop("__metadata__")["attributes"])
    weights = {}
    for name, entry in header.items():
        if name.startswith("parameter."):
            first, last = entry["data_offsets"]
            values = struct.unpack(f"<{(last - first) // 4}f", content[end + first : end + last])
            buffer = name.endswith((".freqs", ".phases"))
            weights[name[len("parameter.") :]] = Tensor(entry["shape"], values, not buffer)
    return attributes.get("config", attributes), weights


def main(case, out, fault=None):
    given, weights = read(case)
    config = {"channels_per_head": 64, **SETTINGS, **given, "given": given}
    if fault == "turned":
        weights["unet.emb_noise.weight"].turned = True
    elif fault == "setting":
        config["given"] = {**given, "augment_dim": 9}
    elif fault == "filter":
        config["given"] = {**given, "resample_filter": [1, 3, 3, 1]}
    elif fault == "balance":
        config["concat_balance"] = 0.25
    net = network("", weights, config)
    if fault == "class":
        net.kind = "EDMPrecond"
    elif fault == "module":
        net.state["_modules"]["unet"].kind = "SongUNet"
    encoder = Persistent("StabilityVAEEncoder", {"vae_name": "stabilityai/sd-vae-ft-mse", "scale": Array()})
    loss = Persistent("EDM2Loss", {"P_mean": -0.8, "P_std": 1.6, "sigma_data": 0.5})
    data = EasyDict(encoder=encoder, dataset_kwargs=EasyDict(path="data.zip"), loss_fn=loss, ema=net)
    if fault == "missing":
        del data["ema"]
    elif fault == "command":
        data["more"] = Command(f"touch {out}.ran")
    with open(out, "wb") as file:
        pickle.dump(data, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
