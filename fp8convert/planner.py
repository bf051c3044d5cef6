"""Making plans: which weight goes to which file, with which header. No tensor byte is read."""

from __future__ import annotations

import json
from collections.abc import Iterator

from . import header
from .catalogue import Catalogue
from .companions import companions
from .configout import plain_config
from .dtypes import DTYPES
from .errors import SchemeError, shown
from .layouts import hf
from .plan import TARGETS, Item, Options, Plan, Task
from .schemes.base import Reading, Scheme
from .schemes.weight import Weight

MAX_PROBLEMS_SHOWN = 8
MAX_FILE_NAME = 200  # temporaries and journal records add to it, and 255 is the limit
METADATA = {"format": "pt"}  # older transformers crash without it


def plan_to_bf16(catalogue: Catalogue, scheme: Scheme, options: Options) -> Plan:
    """Plan the conversion of every coded weight to ``options.dtype``; refuse here or not at all."""
    reading = scheme.read(catalogue.tensors, catalogue.shard_names)
    _refuse(reading, catalogue, options)
    tasks = tuple(_tasks(reading, catalogue, options))
    dtype = options.dtype
    copies, not_copied = companions(catalogue, options.copy_code)
    texts: dict[str, str] = {}
    if catalogue.config:  # rank files may have none
        config = plain_config(catalogue.config, dtype)
        texts["config.json"] = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
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
        not_copied=tuple(_printable(n) for n in not_copied),
        dropped=tuple(t.name for t in reading.dropped),
        warnings=catalogue.warnings + reading.warnings,
    )


def _refuse(reading: Reading, catalogue: Catalogue, options: Options) -> None:
    problems = list(reading.problems)
    if options.strict:
        problems += catalogue.warnings + reading.warnings
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
    if len(file.encode("utf-8")) > MAX_FILE_NAME:
        raise SchemeError(f"shard name {shown(file)}: expected at most {MAX_FILE_NAME} bytes")
    if len(head) > header.MAX_HEADER_BYTES:  # more than any reader, we included, takes
        raise SchemeError(
            f"{file}: {len(weights):,} tensors in one file need a header of {len(head):,} bytes, "
            f"expected at most {header.MAX_HEADER_BYTES:,}: choose a smaller max_shard_size"
        )
    items, offset = [], len(head)
    for w, dtype in rows:
        nbytes = header.numel(w.shape) * DTYPES[dtype].bits // 8
        items.append(Item(w, dtype, offset, nbytes))
        offset += nbytes
    return Task(file, head, tuple(items))


def _printable(name: str) -> str:
    """A file name as text that JSON can hold; names on disk need not be UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()
