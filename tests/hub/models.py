"""Checkpoints for the hub's source: small, of several shards, with scales in the neighbour's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.mini import BLOCK, CONFIG, Tensor, write_shards

ROWS, COLUMNS = 256, 384


def make_chain(
    folder: Path, shards: int = 6, rows: int = ROWS, seed: int = 3, apart: int = 1
) -> Path:
    """``shards`` of a coded weight each; its scale is in the shard ``apart`` numbers further on."""
    rng = np.random.default_rng(seed)
    content: list[dict[str, Tensor]] = [{} for _ in range(shards)]
    for n in range(shards):
        name = f"model.layers.{n}.mlp.up_proj.weight"
        codes = rng.integers(0, 127, (rows, COLUMNS)) + 128 * rng.integers(0, 2, (rows, COLUMNS))
        content[n][name] = ("F8_E4M3", (rows, COLUMNS), codes.astype(np.uint8).tobytes())
        shape = (-(-rows // BLOCK), -(-COLUMNS // BLOCK))
        scale = rng.uniform(1e-4, 2, shape).astype("<f4").tobytes()
        content[(n + apart) % shards][f"{name}_scale_inv"] = ("F32", shape, scale)
    write_shards(folder, content, CONFIG)
    (folder / "LICENSE").write_text("MIT\n")
    return folder


def shards_of(folder: Path) -> list[str]:
    """Names, in order."""
    return sorted(p.name for p in folder.glob("*.safetensors"))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a target by name, but the manifest, which says where all came from."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def without_origin(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest but for what a folder and the hub cannot have in common."""
    kept = {k: v for k, v in manifest.items() if k not in ("plan", "source", "seal", "sha256")}
    identity = {k: v for k, v in kept["identity"].items() if k != "origin"}
    return {**kept, "identity": identity}
