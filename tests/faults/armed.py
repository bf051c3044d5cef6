"""Checkpoints that would like to be executed, or to lead out of their folder."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"
MODULES = ("modeling_evil", "configuration_evil", "sitecustomize", "usercustomize", "numpy", "json",
           "torch", "click", "tqdm", "safetensors", "tokenizers", "numba", "conftest", "setup",
           "fp8convert", "yaml")  # fmt: skip
PICKLES = ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pth", "x.pkl",
           "model.ckpt", "data.npz")  # fmt: skip
NEVER = (".py", ".pyc", ".bin", ".pt", ".pth", ".pkl", ".ckpt", ".npz", ".yaml", ".cfg", ".toml")
"""Ends of names that no command opens."""


class Payload:
    """What unpickling would do: make a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


def arm(source: Path, mark: Path) -> None:
    """Code and pickles in every place that something might load; ``mark`` is what they make."""
    code = f"import os\nos.makedirs({str(mark)!r}, exist_ok=True)\n"
    for name in MODULES:
        (source / f"{name}.py").write_text(code)
    (source / "fp8convert" / "cli").mkdir(parents=True)
    for folder in ("fp8convert", "fp8convert/cli"):
        (source / folder / "__init__.py").write_text(code)
    for name in PICKLES:
        (source / name).write_bytes(pickle.dumps(Payload(mark)))
    (source / "evil.pth").write_text(f"import os; os.makedirs({str(mark)!r})\n")
    (source / "pyproject.toml").write_text("[tool.numba]\n")
    (source / "setup.cfg").write_text("[options]\n")
    configure(source, trust_remote_code=True, auto_map={
        "AutoConfig": "configuration_evil.EvilConfig", "AutoModel": "modeling_evil.EvilModel",
        "AutoModelForCausalLM": "--modeling_evil.EvilModel"},
        _name_or_path="../outside", tokenizer_class="EvilTokenizer")  # fmt: skip


def configure(source: Path, **fields: Any) -> None:
    """More in config.json."""
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, **fields}))


def link(name: str) -> Callable[[Path, Path], None]:
    """A file of the source moved outside, and a link to it in its place."""

    def lead_out(source: Path, outside: Path) -> None:
        file = source / name
        if not file.exists():
            file.write_text("{}")
        file.rename(outside / file.name)
        file.symlink_to(os.path.relpath(outside / file.name, source))

    return lead_out


def mapped(file: str) -> Callable[[Path, Path], None]:
    """An index that names a shard elsewhere."""

    def lead_out(source: Path, outside: Path) -> None:
        (source / "model-00001-of-000003.safetensors").rename(outside / "s.safetensors")
        index = json.loads((source / INDEX).read_text())
        there = file.format(outside=outside)
        found = {
            n: there if f.startswith("model-00001") else f for n, f in index["weight_map"].items()
        }
        (source / INDEX).write_text(json.dumps({**index, "weight_map": found}))

    return lead_out


def ranks_out(source: Path, outside: Path) -> None:
    """A rank's folder that is a link."""
    (source / "rank1").rename(outside / "rank1")
    (source / "rank1").symlink_to(outside / "rank1")


def inner_out(source: Path, outside: Path) -> None:
    """A shard in a rank's folder that is a link."""
    file = sorted((source / "rank1").glob("*.safetensors"))[0]
    file.rename(outside / file.name)
    file.symlink_to(outside / file.name)


def device(source: Path, outside: Path) -> None:
    """A shard that would never end, through a link."""
    file = source / "model-00002-of-000003.safetensors"
    file.unlink()
    file.symlink_to("/dev/zero")


def pipe(source: Path, outside: Path) -> None:
    """A companion that hangs whoever opens it."""
    (source / "tokenizer.json").unlink()
    os.mkfifo(source / "tokenizer.json")


WHOLE: dict[str, Callable[[Path, Path], None]] = {
    "config": link("config.json"),
    "index": link(INDEX),
    "shard": link("model-00003-of-000003.safetensors"),
    "companion": link("tokenizer.json"),
    "declaration": link("hf_quant_config.json"),
    "ranks": link("tp.json"),
    "map-up": mapped("../outside/s.safetensors"),
    "map-absolute": mapped("{outside}/s.safetensors"),
    "map-twice": mapped("x/../../outside/s.safetensors"),
    "device": device,
    "fifo": pipe,
}
RANKS: dict[str, Callable[[Path, Path], None]] = {
    "rank-folder": ranks_out,
    "rank-shard": inner_out,
    "rank-config": link("rank0/config.json"),
    "rank-record": link("rank0/tp.json"),
}
