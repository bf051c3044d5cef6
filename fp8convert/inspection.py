"""What a checkpoint is, from headers, index and config alone."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from . import classes, schemes
from .catalogue import Catalogue, open_catalogue
from .declared import Config
from .errors import SchemeError, shown
from .header import numel
from .schemes.weight import Weight
from .strictjson import brief


@dataclass(frozen=True)
class Report:
    """The answer of ``inspect``. Counts are of weights, bytes of stored tensors."""

    path: str
    family: str
    architecture: str
    scheme: dict[str, Any]
    declared: str
    codecs: list[dict[str, Any]]
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
        scheme = schemes.detect(catalogue.declared, catalogue.tensors)
    except SchemeError as e:
        return _report(catalogue, {"scheme": "unknown"}, (), [str(e)])
    reading = scheme.read(catalogue.tensors, catalogue.shard_names)
    problems = list(reading.problems)
    return _report(catalogue, scheme.to_dict(), reading.weights, problems, reading.warnings)


def _report(
    catalogue: Catalogue,
    scheme: dict[str, Any],
    weights: tuple[Weight, ...],
    problems: list[str],
    notes: tuple[str, ...] = (),
) -> Report:
    config = _text(catalogue.config)
    sizes: Counter[str] = Counter()
    for t in catalogue.tensors.values():
        sizes[t.dtype] += t.end - t.begin
    layers = config.get("num_hidden_layers")
    layers = layers if type(layers) is int else None
    parameters, groups = _groups(weights, layers)
    mtp = sorted({n for w in weights if (n := classes.mtp_layer(w.name, layers)) is not None})
    declared = config.get("num_nextn_predict_layers")
    warnings = [*catalogue.warnings, *notes]
    if weights and type(declared) is int and declared != len(mtp):
        warnings.append(
            f"config.json: num_nextn_predict_layers is {declared}, found {len(mtp)} MTP layers"
        )
    return Report(
        path=catalogue.folder.place,
        family=_word(config.get("model_type")),
        architecture=_architecture(catalogue.config.get("architectures")),
        scheme=scheme,
        declared=_declared(catalogue),
        codecs=_codecs(weights),
        parameters=parameters,
        tensors=len(catalogue.tensors),
        weights=len(weights),
        coded_weights=sum(w.codec.coded for w in weights),
        bytes=sum(sizes.values()),
        bytes_by_dtype=dict(sizes.most_common()),
        shards=len(catalogue.shards),
        block_size=(catalogue.declared.quantization or {}).get("weight_block_size"),
        layers=layers,
        mtp_layers=mtp,
        groups=groups,
        problems=problems,
        warnings=warnings,
    )


def _declared(catalogue: Catalogue) -> str:
    """What made the scheme a candidate: the place of the declaration and the word in it."""
    said = catalogue.declared
    if said.quantization is None:
        return f"{said.ranks} rank files, no config" if said.ranks else "nothing"
    keys = ("quant_method", "quant_algo", "format", "fmt", "scale_fmt", "weight_block_size")
    words = [f"{k} {_word(v)}" for k in keys if (v := said.quantization.get(k)) is not None]
    return f"{said.where}: {', '.join(words)}"


def _codecs(weights: tuple[Weight, ...]) -> list[dict[str, Any]]:
    """Every codec met, most weights first: how many, and the dtypes and names that showed it."""
    found: dict[tuple[Any, ...], list[Weight]] = {}
    for w in weights:
        if w.codec.coded:
            key = (w.codec, *(f"{p.dtype} {_last(p.name, w.name)}" for p in w.parts))
            found.setdefault(key, []).append(w)
    rows = [
        {
            **of[0].codec.to_dict(),
            "weights": len(of),
            "parameters": sum(numel(w.shape) for w in of),
            "parts": list(parts),
            "example": of[0].name,
        }
        for (_, *parts), of in found.items()
    ]
    return sorted(rows, key=lambda row: -row["weights"])


def _last(part: str, weight: str) -> str:
    """What a part's name adds to its weight's: ``X.weight_scale`` -> ``weight_scale``."""
    module, _, own = part.rpartition(".")
    plain = module == weight.rpartition(".")[0] and shown(own) == f"'{own}'"
    return own if plain else shown(part)


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
        group = "mtp" if classes.mtp_layer(w.name, layers) is not None else classes.group(w.name)
        tensors[group] += 1
        parameters[group] += numel(w.shape)
    groups = {g: {"weights": tensors[g], "parameters": n} for g, n in parameters.most_common()}
    return parameters.total(), groups
