"""The plan: every output file with its exact header, and where each of its bytes comes from.

Pure and deterministic: made from headers, config and options only. Two equal plans write equal
bytes, so resuming is running the same plan again, and ``id`` is what "the same" means.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

from . import header
from .catalogue import Catalogue
from .dtypes import DTYPES
from .errors import SchemeError, UsageError, shown
from .layouts import hf
from .schemes.base import Reading, Scheme, Weight, plain_config
from .version import VERSION

FORMAT = 1
TARGETS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
CHECKSUMS = ("sha256", "none")
MAX_PROBLEMS_SHOWN = 8
METADATA = {"format": "pt"}  # older transformers crash without it


@dataclass(frozen=True)
class Options:
    """What decides the bytes of the output. Everything else (workers, I/O) is the engine's."""

    dtype: str = "bfloat16"
    max_shard_size: int | None = None  # bytes of tensors a file; None keeps the source's shards
    checksum: str = "sha256"
    copy_code: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in TARGETS:
            raise UsageError(f"dtype {shown(self.dtype)}, expected one of {', '.join(TARGETS)}")
        if self.checksum not in CHECKSUMS:
            raise UsageError(f"checksum {shown(self.checksum)}, expected sha256 or none")
        if self.max_shard_size is not None and self.max_shard_size < 1:
            raise UsageError(f"max_shard_size {self.max_shard_size}, expected a positive size")


class Item(NamedTuple):
    """One output tensor: ``[begin, begin + nbytes)`` of its file."""

    weight: Weight
    dtype: str
    begin: int
    nbytes: int


@dataclass(frozen=True)
class Task:
    """One output file: the unit of work, of the journal, of resume and of distribution."""

    file: str
    header: bytes
    items: tuple[Item, ...]

    @cached_property
    def size(self) -> int:
        """Bytes of the whole file."""
        last = self.items[-1]
        return last.begin + last.nbytes

    def to_dict(self) -> dict[str, Any]:
        """As JSON: tensors in file order with the stored parts each is decoded from."""
        return {
            "file": self.file,
            "size": self.size,
            "header": self.header.decode("utf-8", "surrogateescape")[8:].rstrip(" "),
            "data_start": len(self.header),
            "tensors": [
                {
                    "name": i.weight.name,
                    "dtype": i.dtype,
                    "shape": i.weight.shape,
                    "begin": i.begin,
                    **i.weight.codec.to_dict(),
                    "parts": [
                        {"role": role, **part._asdict()}
                        for role, part in zip(i.weight.codec.roles, i.weight.parts, strict=True)
                    ],
                }
                for i in self.items
            ],
        }


class Copy(NamedTuple):
    """A small file carried over as it is."""

    name: str
    size: int


@dataclass(frozen=True)
class Plan:
    """See the module's first lines. ``texts`` are small files written whole, index and config."""

    command: str
    options: Options
    scheme: dict[str, Any]
    source: tuple[tuple[str, int, str], ...]  # shard name, size, header SHA-256
    tasks: tuple[Task, ...]
    texts: dict[str, str]
    copies: tuple[Copy, ...]
    not_copied: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def bytes_in(self) -> int:
        """Bytes of tensors read."""
        return sum(p.end - p.begin for t in self.tasks for i in t.items for p in i.weight.parts)

    @property
    def bytes_out(self) -> int:
        """Bytes of all files written."""
        return (
            sum(t.size for t in self.tasks)
            + sum(len(text.encode()) for text in self.texts.values())
            + sum(c.size for c in self.copies)
        )

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What must not differ between a run and its resumption, by name."""
        return {
            "plan_format": FORMAT,
            "fp8convert": VERSION,
            "command": self.command,
            "options": asdict(self.options),
            "scheme": self.scheme,
            "source": [list(s) for s in self.source],
            "copies": [list(c) for c in self.copies],
            "texts": {name: _sha256(text.encode()) for name, text in self.texts.items()},
            "tasks": {t.file: _sha256(t.header) for t in self.tasks},
        }

    @cached_property
    def id(self) -> str:
        """SHA-256 of ``identity``."""
        return _sha256(json.dumps(self.identity, sort_keys=True).encode())

    def to_dict(self) -> dict[str, Any]:
        """The whole plan as JSON."""
        return {
            "id": self.id,
            **{k: v for k, v in self.identity.items() if k not in ("texts", "tasks")},
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "warnings": list(self.warnings),
            "texts": self.texts,
            "not_copied": list(self.not_copied),
            "tasks": [t.to_dict() for t in self.tasks],
        }


def plan_to_bf16(catalogue: Catalogue, scheme: Scheme, options: Options) -> Plan:
    """Plan the conversion of every coded weight to ``options.dtype``; refuse here or not at all."""
    reading = scheme.read(catalogue.tensors, catalogue.shard_names)
    _refuse(reading, catalogue, options)
    tasks = tuple(_tasks(reading, catalogue, options))
    dtype = options.dtype
    config = json.dumps(plain_config(catalogue.config, dtype), indent=2, ensure_ascii=False) + "\n"
    copies, not_copied = _companions(catalogue, options.copy_code)
    texts = {"config.json": config}
    weight_map = {i.weight.name: t.file for t in tasks for i in t.items}
    total = sum(i.nbytes for t in tasks for i in t.items)
    index = hf.index(weight_map, total, catalogue.index_metadata)
    if index is not None:
        texts[hf.INDEX] = index
    return Plan(
        command="to-bf16",
        options=options,
        scheme=scheme.to_dict(),
        source=tuple((s.name, s.size, s.header_sha256) for s in catalogue.shards),
        tasks=tasks,
        texts=texts,
        copies=tuple(copies),
        not_copied=tuple(not_copied),
        warnings=catalogue.warnings,
    )


def _refuse(reading: Reading, catalogue: Catalogue, options: Options) -> None:
    problems = list(reading.problems)
    if options.strict:
        problems += catalogue.warnings
    if problems:
        shown_problems = problems[:MAX_PROBLEMS_SHOWN]
        more = len(problems) - len(shown_problems)
        raise SchemeError("\n".join(shown_problems + ([f"and {more} more"] if more else [])))
    if not any(w.codec.coded for w in reading.weights):
        kinds = sorted({w.parts[0].dtype for w in reading.weights})
        raise SchemeError(
            f"nothing to convert: no weight is coded, the checkpoint is {', '.join(kinds)} already"
        )


def _tasks(reading: Reading, catalogue: Catalogue, options: Options) -> Iterator[Task]:
    target = TARGETS[options.dtype]
    if options.max_shard_size is None:
        groups = _by_shard(reading, len(catalogue.shards))
        files = hf.kept([catalogue.shards[n].name for n in groups])
        parts = list(groups.values())
    else:
        parts = list(_by_size(reading, target, options.max_shard_size))
        files = hf.numbered(len(parts))
    for file, weights in zip(files, parts, strict=True):
        yield _task(file, weights, target)


def _by_shard(reading: Reading, shards: int) -> dict[int, list[Weight]]:
    """Weights where their first part is. A shard that held only scales leaves no file."""
    groups: dict[int, list[Weight]] = {n: [] for n in range(shards)}
    for w in reading.weights:
        groups[w.parts[0].shard].append(w)
    return {n: ws for n, ws in groups.items() if ws}


def _by_size(reading: Reading, target: str, limit: int) -> Iterator[list[Weight]]:
    """Weights in stored order, a new file where the next would not fit (it may be larger)."""
    group: list[Weight] = []
    used = 0
    for w in reading.weights:
        size = header.numel(w.shape) * DTYPES[w.out_dtype(target)].bits // 8
        if group and used + size > limit:
            yield group
            group, used = [], 0
        group.append(w)
        used += size
    if group:
        yield group


def _task(file: str, weights: list[Weight], target: str) -> Task:
    """Wide elements first, as the safetensors library does, so that every tensor is aligned."""
    rows = [(w, w.out_dtype(target)) for w in weights]
    rows.sort(key=lambda row: -DTYPES[row[1]].bits)  # stable: stored order within a width
    head = header.build(((w.name, dtype, w.shape) for w, dtype in rows), METADATA)
    items, offset = [], len(head)
    for w, dtype in rows:
        nbytes = header.numel(w.shape) * DTYPES[dtype].bits // 8
        items.append(Item(w, dtype, offset, nbytes))
        offset += nbytes
    return Task(file, head, tuple(items))


# What a loader or a reader of the licence needs, by name; weights, quantization sidecars, model
# cards and images stay behind and are listed in the manifest.
MAX_COMPANION = 100_000_000  # they are copied whole; the largest tokenizers have 40 MB
COPIED_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".tiktoken")
COPIED_STEMS = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY", "THIRD_PARTY")
STALE = ("config.json", "manifest.json", "hf_quant_config.json", "quant_model_description.json",
         "quantize_config.json", "quantization_config.json", "quant_config.json")  # fmt: skip


def _companions(catalogue: Catalogue, copy_code: bool) -> tuple[list[Copy], list[str]]:
    copies, not_copied = [], []
    shards = set(catalogue.shard_names)
    for name in catalogue.folder.names():
        if name in shards or name in ("config.json", hf.INDEX) or name.startswith("."):
            continue
        wanted = _is_companion(name, copy_code) and not (catalogue.folder.root / name).is_dir()
        size = catalogue.folder.size(name) if wanted else 0
        if wanted and size <= MAX_COMPANION:
            copies.append(Copy(name, size))
        else:
            not_copied.append(name)
    return copies, not_copied


def _is_companion(name: str, copy_code: bool) -> bool:
    if name in STALE or name.endswith(".index.json"):
        return False
    if name.endswith(".py"):
        return copy_code
    return name.endswith(COPIED_SUFFIXES) or name.upper().startswith(COPIED_STEMS)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
