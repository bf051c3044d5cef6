"""Ways in which a conversion can be wrong and still load: each changes a right one in place.

All are of DeepSeek-V3's tiny sample: 3 layers (the first dense), MTP layer 3, 16 experts, 4 heads
of 128 + 64 and 128 channels, hidden 192, blocks of 128 x 128.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]
Change = Callable[[Path, Path], None]  # of a right output, whose source is the second
L0, L1, L2 = (f"model.layers.{n}." for n in range(3))
KV_A = f"{L0}self_attn.kv_a_proj_with_mqa.weight"
SCALE = "_scale_inv"
BLOCK = 128


def files(folder: Path) -> list[Path]:
    """Its shards."""
    return sorted(folder.rglob("*.safetensors"))


def load(file: Path) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of a shard."""
    with safe_open(file, "pt") as f:
        return {name: f.get_tensor(name).clone() for name in f.keys()}, f.metadata() or {}  # noqa: SIM118


def home(folder: Path, name: str) -> Path:
    """The shard that holds ``name``."""
    for file in files(folder):
        with safe_open(file, "pt") as f:
            if name in f.keys():  # noqa: SIM118
                return file
    raise KeyError(name)


def get(folder: Path, name: str) -> torch.Tensor:
    """A tensor."""
    return load(home(folder, name))[0][name]


def put(folder: Path, name: str, tensor: torch.Tensor) -> None:
    """Another tensor under the name; the index's sum is made right."""
    file = home(folder, name)
    tensors, metadata = load(file)
    tensors[name] = tensor.contiguous()
    save_file(tensors, file, metadata)
    index = file.parent / "model.safetensors.index.json"
    if index.exists():
        said = json.loads(index.read_text())
        shards = {file.parent / f for f in said["weight_map"].values()}
        said["metadata"]["total_size"] = sum(
            t.nbytes for shard in shards for t in load(shard)[0].values()
        )
        index.write_text(json.dumps(said))


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """One tensor is another."""

    def run(folder: Path, source: Path) -> None:
        put(folder, name, change(get(folder, name)))

    return run


def swapped(*pairs: tuple[str, str]) -> Change:
    """Tensors under each other's names."""

    def run(folder: Path, source: Path) -> None:
        for one, other in pairs:
            first, second = get(folder, one), get(folder, other)
            put(folder, one, second)
            put(folder, other, first)

    return run


def expert(n: int, part: str) -> str:
    """Of layer 1."""
    return f"{L1}mlp.experts.{n}.{part}_proj.weight"


def shifted_experts(folder: Path, source: Path) -> None:
    """Expert n has the weights of expert n + 1."""
    for part in ("gate", "up", "down"):
        found = [get(folder, expert(n, part)) for n in range(16)]
        for n in range(16):
            put(folder, expert(n, part), found[(n + 1) % 16])


def transposed(w: torch.Tensor) -> torch.Tensor:
    """The right shape, the numbers in the other order."""
    return w.T.reshape(w.shape)


def halved(w: torch.Tensor, at: int) -> torch.Tensor:
    """The rope rows of a head from ``at``: pairs (2i, 2i + 1) put as (i, i + 32)."""
    out = w.clone()
    rows = w[at : at + 64]
    out[at : at + 64] = torch.cat([rows[0::2], rows[1::2]])
    return out


def not_interleaved(folder: Path, source: Path) -> None:
    """Queries only, as when a converter for Llama's rope is used on one of the two."""
    for layer in (L0, L1, L2):
        name = f"{layer}self_attn.q_b_proj.weight"
        w = get(folder, name)
        for head in range(4):
            w = halved(w, head * 192 + 128)
        put(folder, name, w)


def keys_for_values(w: torch.Tensor) -> torch.Tensor:
    """kv_b with each head's keys and values exchanged."""
    k, v = w.view(4, 2, 128, -1).unbind(1)
    return torch.stack([v, k], 1).reshape(w.shape)


def last_rows_by_wrong_scale(scales: torch.Tensor) -> torch.Tensor:
    """What a ragged last block gets that is decoded by the block above it."""
    out = scales.clone()
    out[-1] = scales[-2]
    return out


def without_scale(folder: Path, source: Path) -> None:
    """The codes of one weight cast to BF16, not multiplied."""
    codes = get(source, KV_A)
    put(folder, KV_A, codes.float().to(torch.bfloat16))


def by_grid(folder: Path, source: Path) -> None:
    """Blocks of 576 // 5 rows, as shapes alone suggest, not 128."""
    codes, scales = get(source, KV_A).float(), get(source, KV_A + SCALE)
    rows = (torch.arange(576) // (576 // 5)).clamp(max=4)
    columns = torch.arange(192) // BLOCK
    put(folder, KV_A, (codes * scales[rows][:, columns]).to(torch.bfloat16))


def truncated(folder: Path, source: Path) -> None:
    """Products cut to BF16, not rounded."""
    codes, scales = get(source, KV_A).float(), get(source, KV_A + SCALE)
    exact = codes * scales[torch.arange(576) // BLOCK][:, torch.arange(192) // BLOCK]
    cut = (exact.view(torch.int32) & -65536).view(torch.float32)
    put(folder, KV_A, cut.to(torch.bfloat16))


def config(**fields: object) -> Change:
    """Other values in config.json; None takes a field out."""

    def run(folder: Path, source: Path) -> None:
        for path in folder.rglob("config.json"):
            said = json.loads(path.read_text()) | fields
            path.write_text(json.dumps({k: v for k, v in said.items() if v is not None}))

    return run


def other_rank_order(folder: Path, source: Path) -> None:
    """Files of ranks 0 and 1 under each other's names."""
    ranks = [[f] for f in sorted(folder.glob("model*-mp2.safetensors"))]
    ranks = ranks or [sorted((folder / f"rank{n}").glob("model*")) for n in range(2)]
    for one, other in zip(*ranks, strict=True):
        os.rename(one, folder / "aside")
        os.rename(other, one)
        os.rename(folder / "aside", other)


def flipped_bit(w: torch.Tensor) -> torch.Tensor:
    """The last bit of one element."""
    out = w.clone()
    out.view(torch.int16)[0, 5] ^= 1
    return out


BF16: dict[str, Change] = {
    "experts shifted by one": shifted_experts,
    "gate and up swapped": swapped(
        (f"{L0}mlp.gate_proj.weight", f"{L0}mlp.up_proj.weight"),
    ),
    "gate and up of one expert swapped": swapped((expert(3, "gate"), expert(3, "up"))),
    "transposed": changed(f"{L0}self_attn.o_proj.weight", transposed),
    "rope not interleaved": not_interleaved,
    "keys for values": changed(f"{L1}self_attn.kv_b_proj.weight", keys_for_values),
    "router bias dropped": changed(f"{L1}mlp.gate.e_score_correction_bias", torch.zeros_like),
    "router bias rounded to BF16": changed(
        f"{L1}mlp.gate.e_score_correction_bias", lambda b: b.to(torch.bfloat16).float()
    ),
    "codes without their scale": without_scale,
    "blocks by the shape of the grid": by_grid,
    "cut, not rounded": truncated,
    "layers swapped": swapped(
        *((f"{L1}{part}", f"{L2}{part}") for part in ("self_attn.o_proj.weight", "mlp.gate.weight"))
    ),
    "norms swapped": swapped(
        (f"{L0}input_layernorm.weight", f"{L0}post_attention_layernorm.weight")
    ),
    "table of tokens shifted": changed("model.embed_tokens.weight", lambda w: w.roll(1, 0)),
    "one bit": changed(f"{L0}mlp.down_proj.weight", flipped_bit),
    "MTP's halves swapped": changed(
        "model.layers.3.eh_proj.weight", lambda w: torch.cat([w[:, 192:], w[:, :192]], 1)
    ),
    "NaN": changed("model.norm.weight", lambda w: w * float("nan")),
    "declared as FP8 still": lambda folder, source: config(
        quantization_config=json.loads((source / "config.json").read_text())["quantization_config"]
    )(folder, source),
    "another scale of experts' sum": config(routed_scaling_factor=1.0),
    "without its rope scaling": config(rope_scaling=None),
}
FP8: dict[str, Change] = {
    "a scale twice as large": changed(
        f"{L0}mlp.up_proj.weight{SCALE}", lambda s: torch.cat([s[:1] * 2, s[1:]])
    ),
    "scales missing by one block": changed(KV_A + SCALE, lambda s: s[:-1]),
    "scales shifted by one block": changed(KV_A + SCALE, lambda s: s.roll(1, 0)),
    "last rows by the block above": changed(KV_A + SCALE, last_rows_by_wrong_scale),
    "scales inverted": changed(KV_A + SCALE, lambda s: 1 / s),
    "scales in BF16": changed(KV_A + SCALE, lambda s: s.to(torch.bfloat16).float()),
}
RANKS: dict[str, Change] = {"ranks in the wrong order": other_rank_order}
