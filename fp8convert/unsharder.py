"""Planning ``unshard``: the files of ranks as one checkpoint, or for another number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

from . import strictjson
from .catalogue import CONFIG, Catalogue
from .classes import mtp_layer
from .codecs.base import Stored
from .configout import config_without, config_without_mtp
from .declared import Config, declared, layers_of
from .dtypes import CODED_FLOATS
from .errors import SchemeError, shown
from .folder import Folder
from .layouts.deepseek_models import DeepSeek
from .options import Options, ShardForTp, Unshard
from .plan import Plan
from .planner import Placed, assembled, read
from .schemes.base import Scheme
from .schemes.weight import Weight
from .shardplan import plan_shard
from .shards import MAX_JSON
from .writers import RAW, Kept

USUAL_SHARD = 5_000_000_000  # bytes, where it is not recorded how the files were


def plan_unshard(catalogue: Catalogue, scheme: Scheme, options: Unshard) -> Plan:
    """Plan the whole checkpoint, every tensor byte for byte; or, with ``tp``, other ranks."""
    if options.tp is not None:
        shared = {f.name: getattr(options, f.name) for f in fields(Options)}
        layout = options.layout or ("hf" if catalogue.home else "deepseek")
        again = ShardForTp(tp=options.tp, layout=layout, mtp="keep", **shared)
        return replace(plan_shard(catalogue, scheme, again), command="unshard", options=options)
    reading = read(catalogue, scheme, options)
    weights = [*reading.weights, *(Weight(t.name, RAW, (t,)) for t in reading.dropped)]
    items = (i for w in weights for i in Kept().items(w, w))
    placed = [Placed(catalogue.place(i.weight.parts[0]), (i,)) for i in items]
    config = None if catalogue.verbatim else catalogue.config
    limit = None if catalogue.origins else USUAL_SHARD
    return assembled(
        "unshard", catalogue, scheme, options, replace(reading, dropped=()), placed, config, limit,
        kept=True,
    )  # fmt: skip


def _as_they_are(config: Config, tensors: Mapping[str, Stored], layout: DeepSeek) -> Config:
    """The model's config for rank files that were made of it: DeepSeek's script leaves out MTP
    layers, and decodes what its code wants plain."""
    layers = layers_of(config)
    if layers is not None and all(mtp_layer(name, layers) is None for name in tensors):
        config = config_without_mtp(config)
    coded = any(t.dtype in CODED_FLOATS for t in tensors.values())
    plain = [
        name.removesuffix(".weight") for name, t in tensors.items()
        if layout.plain(name) and t.dtype not in CODED_FLOATS
    ]  # fmt: skip
    return (config_without(config, plain) or config) if coded and plain else config


def whole_names(catalogue: Catalogue, config: str | None) -> Catalogue:
    """Rank files, their tensors named as the checkpoint has them that they were cut from.

    ``config`` is the path of its config.json, for files that have none beside them. SchemeError if
    they are no rank files, or if nothing says what they were cut from.
    """
    if catalogue.origins:
        return catalogue
    ranks = catalogue.declared.ranks
    if not ranks:
        raise SchemeError(
            "no files of tensor-parallel ranks: expected tp.json, or DeepSeek's own "
            "model{i}-mp{N}.safetensors"
        )
    found = catalogue.config or (_read(config) if config is not None else {})
    if not found:
        raise SchemeError(
            f"rank files without a {CONFIG}, which says what they were cut from: put the model's "
            "own beside them, or give it to unshard with --config"
        )
    layout = DeepSeek.of(found, catalogue.tensors)
    tensors = {layout.original(name): t for name, t in catalogue.tensors.items()}
    for name, t in tensors.items():
        dtype, shape = layout.whole_as(name, t.dtype, t.shape)
        tensors[name] = t._replace(name=name, dtype=dtype, shape=shape)
    fitted = _as_they_are(found, tensors, layout)
    verbatim = bool(catalogue.config) and fitted == found
    said = declared(fitted, {}, ranks)
    return replace(catalogue, tensors=tensors, declared=said, verbatim=verbatim)


def _read(path: str) -> Config:
    data = Folder.at(Path(path).absolute().parent).read(Path(path).name, MAX_JSON, "config")
    found = strictjson.loads(data, path)
    if not isinstance(found, dict):
        raise SchemeError(f"{shown(path)} is no object, expected a model's {CONFIG}")
    return found
