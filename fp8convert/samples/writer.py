"""Write a sample: one tensor at a time into shards, beside the target, renamed when complete."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fp8convert import header
from fp8convert.errors import TargetError, shown

from .spec import Sample, Stored, shard_names, shards, store
from .values import pieces

METADATA = {"format": "pt"}


def write_sample(dst: str, sample: Sample, scheme: str, seed: int) -> list[list[Stored]]:
    """Write ``sample`` under ``scheme`` into the folder ``dst``; return the tensors of each shard.

    Raises TargetError if ``dst`` exists and is not an empty folder, or cannot be written.
    """
    cut = shards(store(sample, scheme), sample.shard_bytes)
    names = shard_names(sample, len(cut))
    with _staged(dst) as folder:
        for name, tensors in zip(names, cut, strict=True):
            _write_shard(os.path.join(folder, name), tensors, sample.sparse, seed)
        _write_json(folder, "model.safetensors.index.json", _index(names, cut))
        _write_json(folder, "config.json", _config(sample, scheme))
        for name, text in _files(sample, scheme).items():
            _write_text(folder, name, text)
    return cut


@contextmanager
def _staged(dst: str) -> Iterator[str]:
    """A new folder beside ``dst`` that takes its place at the end, or is removed on any error."""
    target = os.path.realpath(dst)
    parent, name = os.path.split(target)
    folder = os.path.join(parent, f".{name}.sample-{os.getpid()}")
    try:
        _refuse_taken(target)
        os.makedirs(parent, exist_ok=True)
        os.mkdir(folder)  # not tempfile.mkdtemp: the mode follows the umask
        try:
            yield folder
            os.rename(folder, target)  # replaces an empty folder, fails on any other
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as e:
        raise TargetError(f"{shown(dst)}: cannot write the sample: {e}") from e


def _refuse_taken(target: str) -> None:
    if not os.path.lexists(target):
        return
    if not os.path.isdir(target):
        raise TargetError(f"{shown(target)}: expected a new or empty folder, found a file")
    if os.listdir(target):
        raise TargetError(f"{shown(target)}: expected a new or empty folder, it is not empty")


def _write_shard(path: str, tensors: list[Stored], sparse: bool, seed: int) -> None:
    head = header.build([(t.name, t.dtype, t.shape) for t in tensors], METADATA)
    with open(path, "wb") as file:
        file.write(head)
        if sparse:
            file.truncate(len(head) + sum(t.nbytes for t in tensors))
            return
        for tensor in tensors:
            for piece in pieces(tensor, seed):
                file.write(piece.data)


def _index(names: list[str], cut: list[list[Stored]]) -> dict[str, Any]:
    total = sum(t.nbytes for tensors in cut for t in tensors)
    place = {t.name: name for name, tensors in zip(names, cut, strict=True) for t in tensors}
    return {"metadata": {"total_size": total}, "weight_map": place}


def _config(sample: Sample, scheme: str) -> dict[str, Any]:
    """The family's config; an unquantized model must not claim to be quantized."""
    hidden = sample.coded_keys if scheme == "bf16" else frozenset()
    return {key: value for key, value in sample.config.items() if key not in hidden}


def _files(sample: Sample, scheme: str) -> dict[str, str]:
    coded = {} if scheme == "bf16" else sample.coded_files
    return {**sample.files, **coded}


def _write_json(folder: str, name: str, value: Any) -> None:
    _write_text(folder, name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _write_text(folder: str, name: str, text: str) -> None:
    with open(os.path.join(folder, name), "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
