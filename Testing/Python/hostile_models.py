"""Model files from somebody who means harm, written into a folder: name, and what is to be said."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import UNet

NETWORK = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [2, 4]}
NETWORK |= {"strides": [2]}
METADATA = {
    "network_data_format": {
        "inputs": {"image": {"channel_def": {"0": "CT"}}},
        "outputs": {"pred": {"format": "segmentation"}},
    }
}

PICKLED = "holds pickled Python objects beside its tensors"
SCRIPT = "is a TorchScript file: it holds a program"
CODE = "would run code when loaded"


def _touch(canary: Path) -> str:
    return f"touch {canary}"


# Pickles, in each way in which a pickle calls something


class Reduced:
    """Called by REDUCE, with whatever function and arguments."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.told = function, arguments

    def __reduce__(self) -> Any:
        return self.told


class Renewed:
    """Called by NEWOBJ, which is ``cls.__new__``, then its state is set by BUILD."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce_ex__(self, protocol: int) -> Any:
        return eval, (f"open({str(self.canary)!r}, 'w')",), {"state": 1}


def pickles(canary: Path) -> dict[str, bytes]:
    text = _touch(canary).encode()
    named = f"open({str(canary)!r}, 'w')"
    long = struct.pack("<I", len(text))
    return {
        "reduce system": pickle.dumps({"state_dict": Reduced(os.system, text.decode())}, 2),
        "reduce popen": pickle.dumps(Reduced(subprocess.Popen, ["touch", str(canary)]), 2),
        "reduce eval": pickle.dumps(Reduced(eval, named), 2),
        "reduce exec": pickle.dumps(Reduced(exec, named), 2),
        "reduce and build": pickle.dumps(Renewed(canary), 2),
        "protocol 4": pickle.dumps(Reduced(os.system, text.decode()), 4),
        "pickle in a pickle": pickle.dumps(
            Reduced(pickle.loads, pickle.dumps(Reduced(os.system, text.decode()))), 2
        ),
        "getattr": pickle.dumps(Reduced(getattr, Reduced(__import__, "os"), "system"), 2),
        "torch.load": pickle.dumps(Reduced(torch.load, "reduce system.pth"), 2),
        "inst": b"\x80\x02(X" + long + text + b"ios\nsystem\n.",
        "obj": b"\x80\x02(cos\nsystem\nX" + long + text + b"o.",
        "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93X" + long + text + b"\x85R.",
    }


def archive_of(data: bytes, packing: int = zipfile.ZIP_STORED) -> bytes:
    """What torch.save writes, around any pickle."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", packing) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
    return written.getvalue()


def scripted() -> bytes:
    """A TorchScript program."""
    written = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Conv3d(1, 2, 1)), written)
    return written.getvalue()


def weight_files(home: Path, canary: Path) -> dict[str, tuple[Path, str]]:
    found = {}

    def write(name: str, content: bytes, told: str) -> None:
        (home / name).write_bytes(content)
        found[name] = home / name, told

    for name, content in pickles(canary).items():
        write(f"{name}.pth", content, PICKLED)
        write(f"{name}.pt", archive_of(content), PICKLED)
        write(f"{name} packed.pt", archive_of(content, zipfile.ZIP_DEFLATED), PICKLED)
        write(f"{name}.safetensors", content, "safetensors")
    write("program.pt", scripted(), SCRIPT)
    write("program.pth", scripted(), SCRIPT)
    write("program.ts", scripted(), SCRIPT)
    write("bytes.pth", b"\x80\x02cbuiltins\nbytearray\nL10000000000L\n\x85R.", "byte arrays")
    write(
        "bytes.pt", archive_of(b"\x80\x02c__builtin__\nbytearray\nL10000000000L\n\x85R."),
        "byte arrays",
    )  # fmt: skip
    write("long text.pth", b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"abc.", PICKLED)
    write("long bytes.pth", b"\x80\x02T" + struct.pack("<i", 2**31 - 1) + b"abc.", "")
    write("storage.pth", _storage(), "could not be read as weights")
    bomb = b"\x80\x02X" + struct.pack("<I", 10**9) + bytes(10**8)
    write("bomb.pt", archive_of(bomb, zipfile.ZIP_DEFLATED), "would unpack to")
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4]}})
    write("shape.safetensors", struct.pack("<Q", len(header)) + header.encode() + bytes(4), "")
    write("header.safetensors", struct.pack("<Q", 1 << 60) + b"{}", "")
    return found


def _storage() -> bytes:
    """An old file of weights that says that its storage holds 10^12 numbers."""
    written = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, written, _use_new_zipfile_serialization=False)
    return written.getvalue().replace(
        b"K\x03N", b"\x8a\x06" + (10**12).to_bytes(6, "little") + b"N"
    )


# Bundles


def a_bundle(
    home: Path, name: str, config: Any = None, text: str = "", suffix: str = "json", **parts: Any
) -> Path:
    """A bundle that needs no trust, but for the parts that are given."""
    root = home / name
    (root / "configs").mkdir(parents=True)
    (root / "models").mkdir()
    plain = {
        "network_def": {"_target_": "UNet", **NETWORK},
        "inferer": {"_target_": "SimpleInferer"},
    }
    told = text or json.dumps((plain if config is None else config) | parts)
    (root / "configs" / f"inference.{suffix}").write_text(told)
    (root / "configs" / "metadata.json").write_text(json.dumps(METADATA))
    torch.manual_seed(0)
    torch.save(UNet(**NETWORK).state_dict(), root / "models" / "model.pt")
    return root


def laughs(levels: int = 40) -> str:
    """Text of YAML whose last value has 10 ** levels values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        many = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} [{many}]")
    network = f"network_def: {{_target_: UNet, act: *a{levels - 1}}}"
    return "\n".join([*lines, network])


def bundles(home: Path, canary: Path) -> dict[str, tuple[Path, str]]:
    touch, opened = _touch(canary), f"open({str(canary)!r}, 'w')"
    evil = {"_target_": "os.system", "command": touch}
    unet = {"_target_": "UNet", **NETWORK}
    told = {
        "system": ({"network_def": evil}, CODE),
        "popen": ({"network_def": {"_target_": "subprocess.Popen", "args": [touch]}}, CODE),
        "eval": ({"network_def": {"_target_": "builtins.eval", "source": opened}}, CODE),
        "torch.load": ({"network_def": {"_target_": "torch.load", "f": "x.pth"}}, CODE),
        "torch.hub": ({"network_def": {"_target_": "torch.hub.load", "repo_or_dir": "x"}}, CODE),
        "runpy": ({"network_def": {"_target_": "runpy.run_path", "path_name": "x"}}, CODE),
        "expression": ({"network_def": f"$__import__('os').system({touch!r})"}, CODE),
        "expression inside": ({"network_def": {**unet, "act": f"${opened}"}}, CODE),
        "requires": ({"network_def": {**unet, "_requires_": [f"${opened}"]}}, CODE),
        "requires a part": ({"network_def": {**unet, "_requires_": "@x"}, "x": evil}, CODE),
        "imports": ({"imports": [f"$exec({opened!r})"]}, "loaded"),
        "import and use": ({"imports": ["$import os"], "inferer": "$os.system('x')"}, CODE),
        "reference": ({"network_def": {**unet, "act": "@x"}, "x": evil}, CODE),
        "chain": ({"network_def": {**unet, "act": "@x"}, "x": "@y", "y": ["@z"], "z": evil}, CODE),
        "macro": ({"network_def": "%/etc/passwd"}, CODE),
        "inferer": ({"inferer": {"_target_": "os.system", "command": touch}}, CODE),
        "wide": ({"network_def": {**unet, "channels": [10**6, 10**6]}}, "GB of memory"),
        "rather wide": ({"network_def": {**unet, "channels": [4000, 4000]}}, "GB of memory"),
        "large kernel": ({"network_def": {**unet, "kernel_size": 4001}}, "GB of memory"),
        "many layers": ({"network_def": {**unet, "num_res_units": 10**5}}, "tensors"),
        "units": ({"network_def": {**unet, "channels": [2] * 3000, "strides": [1] * 2999}}, ""),
    }
    found = {f"bundle {name}": (a_bundle(home, name, **parts), said)
             for name, (parts, said) in told.items()}  # fmt: skip
    texts = {
        "laughs": (laughs(), "yaml", "more than 200,000 values"),
        "itself": ("network_def: &a [*a]", "yaml", "holds itself"),
        "deep list": ("network_def: " + "[" * 50_000, "yaml", "too deep"),
        "deep object": ('{"network_def":' * 50_000, "json", "nested more than"),
        "rather deep": ('{"network_def":' * 200 + "1" + "}" * 200, "json", "nested more than"),
        "long": (json.dumps({"network_def": ["x" * 100] * 60_000}), "json", "more than 4 MB"),
        "python tag": (f"network_def: !!python/object/apply:os.system [{touch!r}]", "yaml",
                       "no valid YAML"),
        "bytes": ("\ud800", "json", ""),
    }  # fmt: skip
    for name, (text, suffix, said) in texts.items():
        if name == "bytes":
            root = a_bundle(home, name)
            (root / "configs" / "inference.json").write_bytes(b"\xff\xfe{}")
            said = "could not be read"
        else:
            root = a_bundle(home, name, text=text, suffix=suffix)
        found[f"bundle {name}"] = root, said
    return found | _linked(home, canary)


def _linked(home: Path, canary: Path) -> dict[str, tuple[Path, str]]:
    """Bundles whose parts are links, pipes and devices."""
    evil = home / "evil.pt"
    evil.write_bytes(archive_of(pickles(canary)["reduce system"]))
    found = {}
    for name, target, said in (
        ("linked weights", evil, PICKLED),
        ("endless weights", Path("/dev/zero"), "has no weights"),
        ("no weights", Path("/dev/null"), "has no weights"),
    ):
        root = a_bundle(home, name)
        (root / "models" / "model.pt").unlink()
        (root / "models" / "model.pt").symlink_to(target)
        found[name] = root, said
    for name, part in (("piped metadata", "metadata.json"), ("piped config", "inference.json")):
        root = a_bundle(home, name)
        (root / "configs" / part).unlink()
        os.mkfifo(root / "configs" / part)
        found[name] = root, "has no configs/"
    os.mkfifo(home / "pipe.pt")
    found["pipe"] = home / "pipe.pt", "a device or a pipe"
    found["device"] = Path("/dev/zero"), "a device or a pipe"
    root = a_bundle(home, "linked config")
    (root / "configs" / "inference.json").unlink()
    (root / "configs" / "inference.json").symlink_to("/etc/passwd")
    found["linked config"] = root, "is no valid JSON"
    root = home / "linked to itself"
    root.symlink_to(root)
    found["linked to itself"] = root, "There is no model"
    return found


# Archives


def archives(home: Path, canary: Path) -> dict[str, tuple[Path, str]]:
    plain = a_bundle(home, "plain")
    outside = canary.parent / "outside.txt"
    found = {}

    def write(name: str, said: str, **members: bytes | str) -> None:
        path = home / f"{name}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in plain.rglob("*"):
                archive.write(file, file.relative_to(plain))
            for member, content in members.items():
                archive.writestr(member, content)
        found[path.name] = path, said

    escapes = "wants to write outside its folder"
    write("upwards", escapes, **{f"../../{outside.name}": "x"})
    write("absolute", escapes, **{str(outside): "x"})
    write("inner", escapes, **{f"a/../../{outside.name}": "x"})
    write("backslashes", escapes, **{f"..\\..\\{outside.name}": "x"})
    write("drive", escapes, **{"C:\\outside.txt": "x"})
    write("bomb", "would unpack to", **{"zeros": bytes(2 * 10**8)})
    write("several bombs", "would unpack to", **{f"zeros{i}": bytes(10**7) for i in range(20)})
    write("many", "files; models have some hundreds", **{f"f/{i}": b"" for i in range(20_001)})
    write("long name", "could not be unpacked", **{"n" * 5000: "x"})
    write("file as a folder", "could not be unpacked", **{"configs/metadata.json/x": "x"})
    path = home / "link.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in plain.rglob("*"):
            if file.name != "model.pt":
                archive.write(file, file.relative_to(plain))
        for member, target in (("link", str(canary.parent)), ("models/model.pt", str(plain))):
            link = zipfile.ZipInfo(member)
            link.external_attr = 0o120777 << 16  # a symbolic link
            archive.writestr(link, target)
        archive.writestr("link/outside.txt", "x")
    found[path.name] = path, "could not be unpacked"
    write("plain", "loaded")
    content = bytearray((home / "plain.zip").read_bytes())
    at = 0
    while (at := content.find(b"PK\x01\x02", at + 1)) > 0:
        content[at + 8] |= 1  # as if with a password
    (home / "password.zip").write_bytes(content)
    found["password.zip"] = home / "password.zip", "could not be unpacked"
    return found


def write_all(home: Path, canary: Path) -> dict[str, tuple[Path, str]]:
    """Write every model; name, path and what is to be said ("loaded" where it does no harm)."""
    found = weight_files(home, canary) | bundles(home, canary) | archives(home, canary)
    text = home / "text.pt"
    text.write_text("import os")
    return found | {"text": (text, "is no model file")}
