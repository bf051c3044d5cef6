"""A checkpoint in memory and on disk, and what the models of all families have in common."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..quantized.readers import Stored
from .arrays import nbytes
from .forms import Form, plain

COMPANIONS = {
    "generation_config.json": b'{"eos_token_id": 1}\n',
    "tokenizer.json": b'{"model": {}}\n',
    "tokenizer_config.json": b'{"tokenizer_class": "None"}\n',
    "special_tokens_map.json": b"{}\n",
    "LICENSE": b"MIT\n",
}


@dataclass(frozen=True)
class Source:
    """A checkpoint in memory."""

    id: str
    config: dict[str, Any]
    tensors: Stored
    shards: int = 3
    files: dict[str, bytes] = field(default_factory=lambda: dict(COMPANIONS))

    def write(self, folder: Path) -> Path:
        """As files: names in turn, so that a scale is in another shard than its weight."""
        folder.mkdir(parents=True)
        weight_map: dict[str, str] = {}
        for number in range(self.shards):
            file = f"model-{number + 1:05}-of-{self.shards:06}.safetensors"
            names = sorted(self.tensors)[number :: self.shards]
            write_shard(folder / file, {n: self.tensors[n] for n in names})
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": nbytes(self.tensors)}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "config.json").write_bytes(self.config_bytes)
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
        return folder

    @property
    def config_bytes(self) -> bytes:
        """Indented by three, as no writer of ours would."""
        return json.dumps(self.config, indent=3).encode() + b"\n\n"

    def changed(self, id: str, **fields: Any) -> Source:
        """With other fields in the config; None takes one out."""
        config = {
            k: v for k, v in {**self.config, **fields}.items() if k not in fields or v is not None
        }
        return replace(self, id=id, config=config)

    def without(self, *ends: str) -> Source:
        """Without the tensors of such names."""
        return replace(
            self, tensors={n: t for n, t in self.tensors.items() if not n.endswith(ends)}
        )


def write_shard(file: Path, tensors: Stored) -> None:
    """One safetensors file: a length, a header, the data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (tag, shape, data) in tensors.items():
        header[name] = {"dtype": tag, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(data for _, _, data in tensors.values())
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)


class Builder:
    """Collects the tensors of a model."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.tensors: Stored = {}

    def linear(self, module: str, rows: int, columns: int, form: Form | None = None) -> None:
        """In the form of the model, or one of its own."""
        self.tensors |= dict((form or self.form)(module, rows, columns))

    def plain(self, name: str, *shape: int, tag: str = "BF16") -> None:
        """Unquantized in any form."""
        self.tensors[name] = plain(name, *shape, tag=tag)

    def tables(self, c: Mapping[str, Any]) -> None:
        """What is around the layers."""
        rows = (c["vocab_size"], c["hidden_size"])
        self.plain("model.embed_tokens.weight", *rows)
        self.plain("model.norm.weight", c["hidden_size"])
        if not c["tie_word_embeddings"]:
            self.plain("lm_head.weight", *rows)

    def norms(self, at: str, hidden: int) -> None:
        """Of a layer."""
        self.plain(f"{at}.input_layernorm.weight", hidden)
        self.plain(f"{at}.post_attention_layernorm.weight", hidden)

    def attention(self, at: str, c: Mapping[str, Any], bias: tuple[str, ...] = ()) -> None:
        """Grouped-query attention."""
        width, hidden = c["head_dim"], c["hidden_size"]
        q, kv = c["num_attention_heads"] * width, c["num_key_value_heads"] * width
        for leaf, rows, columns in (("q_proj", q, hidden), ("k_proj", kv, hidden),
                                    ("v_proj", kv, hidden), ("o_proj", hidden, q)):  # fmt: skip
            self.linear(f"{at}.{leaf}", rows, columns)
            if leaf in bias:
                self.plain(f"{at}.{leaf}.bias", rows)

    def mlp(self, at: str, hidden: int, width: int, form: Form | None = None) -> None:
        """Gate, up and down."""
        self.linear(f"{at}.gate_proj", width, hidden, form)
        self.linear(f"{at}.up_proj", width, hidden, form)
        self.linear(f"{at}.down_proj", hidden, width, form)


def moe(
    made: Builder, at: str, c: Mapping[str, Any], hidden: int, width: int, form: Form | None = None
) -> None:
    """Router, shared expert, routed experts, as DeepSeek and GLM name them."""
    made.plain(f"{at}.gate.weight", c["n_routed_experts"], hidden)
    made.plain(f"{at}.gate.e_score_correction_bias", c["n_routed_experts"], tag="F32")
    made.mlp(f"{at}.shared_experts", hidden, width * c["n_shared_experts"])
    for e in range(c["n_routed_experts"]):
        made.mlp(f"{at}.experts.{e}", hidden, width, form)


def mtp(made: Builder, at: str, c: Mapping[str, Any]) -> None:
    """What an MTP layer has beside a layer; its tables are the model's."""
    hidden = c["hidden_size"]
    for leaf, name in (("embed_tokens", "model.embed_tokens"), ("shared_head.head", "lm_head")):
        made.tensors[f"{at}.{leaf}.weight"] = made.tensors[f"{name}.weight"]
    for leaf in ("enorm", "hnorm", "shared_head.norm"):
        made.plain(f"{at}.{leaf}.weight", hidden)
    made.plain(f"{at}.eh_proj.weight", hidden, 2 * hidden)


def config_of(kind: str, name: str, base: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A config.json."""
    return {"architectures": [f"{name}ForCausalLM"], "model_type": kind, **base, **more}
