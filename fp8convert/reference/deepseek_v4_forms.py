"""DeepSeek-V4's two forms: as published, and as transformers saves it.

The config says the same in other fields (``compress_ratios`` or ``layer_types``,
``num_hash_layers`` or ``mlp_layer_types``, ``rope_scaling`` or ``rope_parameters``). Names of
weights gain a ``model.``, and three of them change. The model has the published names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import FormatError
from ..strictjson import brief
from .config import Config
from .rope import Rope, rope_of
from .weights import Blocks, Source

RATIOS = {0: "window", 4: "csa", 128: "hca"}
SPARSE, HEAVY = "compressed_sparse_attention", "heavily_compressed_attention"
TYPES = {"sliding_attention": "window", SPARSE: "csa", HEAVY: "hca"}
ROUTERS = {"moe": False, "hash_moe": True}


class Kind(NamedTuple):
    """Of a layer: window, csa or hca; how many tokens make an entry (0: there are none)."""

    name: str
    ratio: int


def supported(config: Config) -> None:
    """FormatError on a field that would change the function and is not read."""
    config.only("hidden_act", "silu")
    config.only("scoring_func", "sqrtsoftplus")
    config.only("topk_method", "noaux_tc")
    config.only("norm_topk_prob", True)
    config.only("num_key_value_heads", 1)
    config.only("n_shared_experts", 1)
    for field in ("attention_bias", "mlp_bias", "tie_word_embeddings"):
        config.only(field, False)
    config.only("compress_rate_csa", 4)  # once beside ``compress_rates``
    config.only("compress_rate_hca", 128)


def kinds(config: Config, layers: int) -> list[Kind]:
    """Of every layer, and of the first MTP layer: where nothing is said of it, it has a window."""
    rates = config.within("compress_rates") or Config({})
    ratios = {"window": 0}
    for kind, ratio, said in (("csa", 4, SPARSE), ("hca", 128, HEAVY)):
        ratios[kind] = rates.integer(said, ratio, least=1)
    if "layer_types" in config.found:
        found = _each(config, "layer_types", TYPES, layers)
    else:
        found = _each(config, "compress_ratios", RATIOS, layers)
    found = [*found, *["window"] * _mtp(config)][: layers + _mtp(config)]
    return [Kind(kind, ratios[kind]) for kind in found]


def hashed(config: Config, layers: int) -> list[bool]:
    """Whether a layer chooses experts by token id. The MTP layer does not."""
    if "mlp_layer_types" in config.found:
        found = _each(config, "mlp_layer_types", ROUTERS, layers)
    else:
        found = [n < config.integer("num_hash_layers") for n in range(layers)]
    return [*found[:layers], *[False] * _mtp(config)]


def ropes(config: Config, channels: int) -> tuple[Rope, Rope]:
    """Of layers with a window only: plain. Of all others: YaRN, another theta, no mscale."""
    saved = config.within("rope_parameters") or Config({})
    near, far = saved.within("main"), saved.within("compress")
    if near is None or far is None:
        said = config.within("rope_scaling") or saved
        theta = {"rope_theta": config.number("compress_rope_theta")}
        far = Config({"attention_factor": 1.0, **said.found, **theta}, said.where)
        near = Config({"rope_theta": config.number("rope_theta")})
    return rope_of(config, channels, near), rope_of(config, channels, far)


def _mtp(config: Config) -> int:
    """Of MTP layers only the first is run."""
    return min(1, config.integer("num_nextn_predict_layers", 0))


def _each(config: Config, field: str, known: Mapping[Any, Any], layers: int) -> list[Any]:
    """What ``known`` has for each entry of a field with one for every layer."""
    said = config.items(field)
    if len(said) < layers:
        raise FormatError(f"{config.where}: {field} has {len(said)} entries, expected {layers}")
    for value in said:
        if value not in list(known):
            names = ", ".join(brief(k) for k in known)
            raise FormatError(f"{config.where}: {field} has {brief(value)}, supported: {names}")
    return [known[value] for value in said]


def saved_by_transformers(source: Source) -> bool:
    """Whether the weights have transformers' names."""
    return "embed.weight" not in source and saved_name("embed.weight") in source


def saved_name(name: str) -> str:
    """Of a published name, what ``save_pretrained`` makes of it (in transformers 5.23)."""
    if name.startswith(("head.", "mtp.")):
        return name
    if name.startswith("hc_head_"):
        return f"model.hc_head.{name.replace('hc_head_', 'hc_')}"
    if name == "embed.weight":
        return "model.embed_tokens.weight"
    return f"model.{name}".replace(".attn.kv_norm.", ".attn.norm.")


class Saved:
    """Weights by published names, in a source that has transformers'. See weights.Source."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __contains__(self, name: str) -> bool:
        return saved_name(name) in self.source

    def shape(self, name: str) -> tuple[int, ...]:
        """Decoded, as are all here."""
        return self.source.shape(saved_name(name))

    def coded(self, name: str) -> bool:
        """Whether it is stored in codes."""
        return self.source.coded(saved_name(name))

    def read(self, name: str, rows: slice | None = None) -> Any:
        """Decoded rows."""
        return self.source.read(saved_name(name), rows)

    def blocks(self, name: str, rows: slice) -> Blocks | None:
        """Codes and scales of rows."""
        return self.source.blocks(saved_name(name), rows)
