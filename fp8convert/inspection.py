"""What a checkpoint is, from headers, index and config alone."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from . import schemes
from .catalogue import Catalogue, open_catalogue
from .errors import SchemeError
from .header import numel
from .schemes.base import Config, Weight, quantization_config
from .strictjson import brief

# A part of a name -> group; the deepest part that is found here decides.
GROUPS = {
    "embed_tokens": "embedding",
    "lm_head": "head",
    "experts": "routed experts",
    "shared_experts": "shared experts",
    "gate": "router",
    "self_attn": "attention",
    "mlp": "dense mlp",
    "norm": "norms",
    "input_layernorm": "norms",
    "post_attention_layernorm": "norms",
}


@dataclass(frozen=True)
class Report:
    """The answer of ``inspect``. Counts are of weights, bytes of stored tensors."""

    path: str
    family: str
    architecture: str
    scheme: dict[str, Any]
    parameters: int
    tensors: int
    weights: int
    coded_weights: int
    bytes: int
    bytes_by_dtype: dict[str, int]
    shards: int
    block_size: list[int] | None
    layers: int | None
    mtp_layers: list[int]
    groups: dict[str, dict[str, int]]
    problems: list[str]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def inspect(path: str | os.PathLike[str]) -> Report:
    """Describe the checkpoint folder ``path``; FormatError if its files are not sound."""
    catalogue = open_catalogue(path)
    try:
        scheme = schemes.detect(catalogue.config, catalogue.tensors)
    except SchemeError as e:
        return _report(catalogue, {"scheme": "unknown"}, (), [str(e)])
    reading = scheme.read(catalogue.tensors, catalogue.shard_names)
    return _report(catalogue, scheme.to_dict(), reading.weights, list(reading.problems))


def _report(
    catalogue: Catalogue,
    scheme: dict[str, Any],
    weights: tuple[Weight, ...],
    problems: list[str],
) -> Report:
    config = _text(catalogue.config)
    sizes: Counter[str] = Counter()
    for t in catalogue.tensors.values():
        sizes[t.dtype] += t.end - t.begin
    layers = config.get("num_hidden_layers")
    layers = layers if type(layers) is int else None
    parameters, groups = _groups(weights, layers)
    mtp = sorted({n for w in weights if (n := _mtp_layer(w.name, layers)) is not None})
    declared = config.get("num_nextn_predict_layers")
    warnings = list(catalogue.warnings)
    if weights and type(declared) is int and declared != len(mtp):
        warnings.append(
            f"config.json: num_nextn_predict_layers is {declared}, found {len(mtp)} MTP layers"
        )
    return Report(
        path=str(catalogue.folder.root),
        family=_word(config.get("model_type")),
        architecture=_architecture(catalogue.config.get("architectures")),
        scheme=scheme,
        parameters=parameters,
        tensors=len(catalogue.tensors),
        weights=len(weights),
        coded_weights=sum(w.codec.coded for w in weights),
        bytes=sum(sizes.values()),
        bytes_by_dtype=dict(sizes.most_common()),
        shards=len(catalogue.shards),
        block_size=(quantization_config(catalogue.config) or {}).get("weight_block_size"),
        layers=layers,
        mtp_layers=mtp,
        groups=groups,
        problems=problems,
        warnings=warnings,
    )


def _architecture(found: Any) -> str:
    return ", ".join(map(_word, found[:4])) if isinstance(found, list) and found else _word(found)


def _word(found: Any) -> str:
    """An untrusted word without quotes: escaped, cut to length."""
    quoted = "'unknown'" if found is None else brief(found)
    return quoted[1:-1] if quoted.endswith("'") else quoted  # else cut, and its length follows


def _text(config: Config) -> Config:
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _groups(
    weights: tuple[Weight, ...], layers: int | None
) -> tuple[int, dict[str, dict[str, int]]]:
    tensors: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    for w in weights:
        group = "mtp" if _mtp_layer(w.name, layers) is not None else _group(w.name)
        tensors[group] += 1
        parameters[group] += numel(w.shape)
    groups = {g: {"weights": tensors[g], "parameters": n} for g, n in parameters.most_common()}
    return parameters.total(), groups


def _group(name: str) -> str:
    """``model.layers.4.mlp.experts.7.up_proj.weight`` -> routed experts: the deepest known part."""
    for part in reversed(name.split(".")):
        if part in GROUPS:
            return GROUPS[part]
    return "other"


def _mtp_layer(name: str, layers: int | None) -> int | None:
    """The layer number of a tensor beyond the model's own layers."""
    parts = name.split(".", 3)
    if layers is None or len(parts) < 4 or parts[1] != "layers" or not parts[2].isdecimal():
        return None
    number = int(parts[2])
    return number if number >= layers else None
