"""Making plans: which weight goes to which file, with which header. No tensor byte is read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from . import header
from .catalogue import CONFIG, Catalogue
from .companions import companions
from .declared import Config
from .dtypes import DTYPES
from .errors import SchemeError, shown
from .layouts import hf
from .options import Options, ToBf16
from .plan import Copy, Item, Needs, Plan, Task
from .schemes.base import Reading, Scheme
from .writers import Decoded

MAX_PROBLEMS_SHOWN = 8
MAX_FILE_NAME = 200  # temporaries and journal records add to it, and 255 is the limit
METADATA = {"format": "pt"}  # older transformers crash without it


class Placed(NamedTuple):
    """What is written for a weight, and the number of the source's file its first part is in.

    The items do not know yet where in a file they begin.
    """

    shard: int
    items: tuple[Item, ...]


def plan_to_bf16(catalogue: Catalogue, scheme: Scheme, options: ToBf16) -> Plan:
    """Plan the conversion of every coded weight to ``options.dtype``; refuse here or not at all."""
    reading = read(catalogue, scheme, options)
    if not any(w.codec.coded for w in reading.weights):
        kinds = sorted({w.parts[0].dtype for w in reading.weights})
        raise SchemeError(
            f"nothing to convert: no weight is coded, the checkpoint is {', '.join(kinds)} already"
        )
    writer = Decoded(options.dtype)
    placed = [Placed(catalogue.place(w.parts[0]), writer.items(w, w)) for w in reading.weights]
    config = writer.config(catalogue.config)
    return assembled("to-bf16", catalogue, scheme, options, reading, placed, config)


def read(catalogue: Catalogue, scheme: Scheme, options: Options) -> Reading:
    """The checkpoint's weights; SchemeError if anything bars a conversion."""
    reading = scheme.read(catalogue.tensors, catalogue.shard_names)
    refuse(reading.problems)
    if options.strict:
        refuse_strictly(catalogue.warnings + reading.warnings)
    return reading


def refuse_strictly(warnings: Sequence[str]) -> None:
    """SchemeError with ``warnings``, if there are any, saying why they are refused."""
    refuse([f"{warning} (refused by strict)" for warning in warnings])


def refuse(problems: Sequence[str]) -> None:
    """SchemeError with the first few of ``problems``, if there are any."""
    if problems:
        more = len(problems) - MAX_PROBLEMS_SHOWN
        rest = [f"and {more} more"] if more > 0 else []
        raise SchemeError("\n".join([*problems[:MAX_PROBLEMS_SHOWN], *rest]))


def assembled(
    command: str,
    catalogue: Catalogue,
    scheme: Scheme,
    options: Options,
    reading: Reading,
    placed: Sequence[Placed],
    config: Config | None,
    limit: int | None = None,
    kept: bool = False,
) -> Plan:
    """The plan that writes ``placed`` in the source's order, beside ``config`` (None: copied).

    ``limit``: of a file's bytes, where no option says it; ``kept``: weights stay as they are.
    """
    tasks = tuple(_tasks(placed, catalogue.files, options.max_shard_size or limit))
    copied, not_copied = companions(catalogue, options.copy_code, kept)
    texts: dict[str, str] = {}
    if config is None:
        copied.append(same_config(catalogue))
    elif catalogue.config:  # rank files may have none
        texts[CONFIG] = config_text(config)
    weight_map = {i.name: t.file for t in tasks for i in t.items}
    total = sum(i.nbytes for t in tasks for i in t.items)
    index = hf.index(weight_map, total, catalogue.index_metadata)
    if index is not None:
        texts[hf.INDEX] = index
    return Plan(
        command=command,
        options=options,
        scheme=scheme.to_dict(),
        source=tuple((s.name, s.size, s.header_sha256) for s in catalogue.shards),
        tasks=tasks,
        texts=texts,
        copies=tuple(copied),
        not_copied=tuple(printable(n) for n in not_copied),
        dropped=tuple(t.name for t in reading.dropped),
        warnings=catalogue.warnings + reading.warnings,
        needs=Needs(items=len(weight_map)),
    )


def same_config(catalogue: Catalogue) -> Copy:
    """The source's own config.json, byte for byte."""
    name = catalogue.home + CONFIG
    return Copy(name, catalogue.folder.size(name), CONFIG)


def _tasks(placed: Sequence[Placed], files: Sequence[str], limit: int | None) -> Iterator[Task]:
    if limit is None:
        groups = _by_shard(placed, len(files))
        names = hf.kept([files[n] for n in groups])
        parts = list(groups.values())
    else:
        parts = list(_by_size(placed, limit))
        names = hf.numbered(len(parts))
    for name, items in zip(names, parts, strict=True):
        yield task(name, items)


def _by_shard(placed: Sequence[Placed], shards: int) -> dict[int, list[Item]]:
    """Weights where their first part is. A shard that held only scales leaves no file."""
    groups: dict[int, list[Item]] = {n: [] for n in range(shards)}
    for p in placed:
        groups[p.shard] += p.items
    return {n: items for n, items in groups.items() if items}


def _by_size(placed: Iterable[Placed], limit: int) -> Iterator[list[Item]]:
    """Weights in stored order, a new file where the next would not fit (it may be larger)."""
    group: list[Item] = []
    used = 0
    for p in placed:
        size = sum(i.nbytes for i in p.items)
        if group and used + size > limit:
            yield group
            group, used = [], 0
        group += p.items
        used += size
    if group:
        yield group


def task(file: str, items: list[Item], more: Mapping[str, str] = METADATA) -> Task:
    """Wide elements first, as the safetensors library does, so that every tensor is aligned.

    What comes of encoding, scales, lies behind all codes: files are written and hashed in order.
    (If the codes have an odd number of bytes, those are not; readers do not mind.) ``more`` is
    metadata beside ``METADATA``.
    """
    items.sort(key=lambda i: (i.part > 0, -DTYPES[i.dtype].bits))  # stable: else stored order
    head = header.build(((i.name, i.dtype, i.shape) for i in items), {**METADATA, **more})
    if len(file.encode("utf-8")) > MAX_FILE_NAME:
        raise SchemeError(f"shard name {shown(file)}: expected at most {MAX_FILE_NAME} bytes")
    if len(head) > header.MAX_HEADER_BYTES:  # more than any reader, we included, takes
        raise SchemeError(
            f"{file}: {len(items):,} tensors in one file need a header of {len(head):,} bytes, "
            f"expected at most {header.MAX_HEADER_BYTES:,}: choose a smaller max_shard_size"
        )
    begun, offset = [], len(head)
    for item in items:
        begun.append(item._replace(begin=offset))
        offset += item.nbytes
    return Task(file, head, tuple(begun))


def config_text(config: Config) -> str:
    """A config as JSON."""
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def printable(name: str) -> str:
    """A file name as text that JSON can hold; names on disk need not be UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()
