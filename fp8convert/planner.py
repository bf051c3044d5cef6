"""Making plans: which weight goes to which file, with which header. No tensor byte is read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from . import header
from .catalogue import Catalogue
from .companions import companions
from .configout import plain_config
from .declared import Config
from .dtypes import DTYPES
from .encoding.encoder import Encoding
from .errors import SchemeError, shown
from .layouts import hf
from .options import TARGETS, Options, ToBf16
from .plan import Item, Plan, Task
from .schemes.base import Reading, Scheme
from .schemes.weight import Weight

MAX_PROBLEMS_SHOWN = 8
MAX_FILE_NAME = 200  # temporaries and journal records add to it, and 255 is the limit
METADATA = {"format": "pt"}  # older transformers crash without it


class Output(NamedTuple):
    """One tensor to be written, not yet placed: see :class:`~fp8convert.plan.Item`."""

    weight: Weight
    dtype: str
    encoding: Encoding | None = None
    part: int = 0

    @property
    def item(self) -> Item:
        """At the start of a file."""
        shape = self.encoding.parts[self.part].shape if self.encoding else self.weight.shape
        nbytes = header.numel(shape) * DTYPES[self.dtype].bits // 8
        return Item(self.weight, self.dtype, 0, nbytes, self.encoding, self.part)


class Placed(NamedTuple):
    """A weight's outputs, and the number of the source shard that its first part is in."""

    shard: int
    outputs: tuple[Output, ...]


def plan_to_bf16(catalogue: Catalogue, scheme: Scheme, options: ToBf16) -> Plan:
    """Plan the conversion of every coded weight to ``options.dtype``; refuse here or not at all."""
    reading = read(catalogue, scheme, options)
    if not any(w.codec.coded for w in reading.weights):
        kinds = sorted({w.parts[0].dtype for w in reading.weights})
        raise SchemeError(
            f"nothing to convert: no weight is coded, the checkpoint is {', '.join(kinds)} already"
        )
    target = TARGETS[options.dtype]
    placed = [decoded(w, target) for w in reading.weights]
    config = plain_config(catalogue.config, options.dtype)
    return assembled("to-bf16", catalogue, scheme, options, reading, placed, config)


def decoded(weight: Weight, target: str) -> Placed:
    """``weight``, decoded to ``target`` if it is coded."""
    return Placed(weight.parts[0].shard, (Output(weight, weight.out_dtype(target)),))


def read(catalogue: Catalogue, scheme: Scheme, options: Options) -> Reading:
    """The checkpoint's weights; SchemeError if anything bars a conversion."""
    reading = scheme.read(catalogue.tensors, catalogue.shard_names)
    problems = list(reading.problems)
    if options.strict:
        problems += catalogue.warnings + reading.warnings
    refuse(problems)
    return reading


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
    config: Config,
) -> Plan:
    """The plan that writes ``placed`` in the source's order, beside ``config``."""
    tasks = tuple(_tasks(placed, catalogue, options))
    copied, not_copied = companions(catalogue, options.copy_code)
    texts: dict[str, str] = {}
    if catalogue.config:  # rank files may have none
        texts["config.json"] = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
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
        not_copied=tuple(_printable(n) for n in not_copied),
        dropped=tuple(t.name for t in reading.dropped),
        warnings=catalogue.warnings + reading.warnings,
    )


def _tasks(placed: Sequence[Placed], catalogue: Catalogue, options: Options) -> Iterator[Task]:
    if options.max_shard_size is None:
        groups = _by_shard(placed, len(catalogue.shards))
        files = hf.kept([catalogue.shards[n].name for n in groups])
        parts = list(groups.values())
    else:
        parts = list(_by_size(placed, options.max_shard_size))
        files = hf.numbered(len(parts))
    for file, items in zip(files, parts, strict=True):
        yield _task(file, items)


def _by_shard(placed: Sequence[Placed], shards: int) -> dict[int, list[Item]]:
    """Weights where their first part is. A shard that held only scales leaves no file."""
    groups: dict[int, list[Item]] = {n: [] for n in range(shards)}
    for p in placed:
        groups[p.shard] += [o.item for o in p.outputs]
    return {n: items for n, items in groups.items() if items}


def _by_size(placed: Iterable[Placed], limit: int) -> Iterator[list[Item]]:
    """Weights in stored order, a new file where the next would not fit (it may be larger)."""
    group: list[Item] = []
    used = 0
    for p in placed:
        items = [o.item for o in p.outputs]
        size = sum(i.nbytes for i in items)
        if group and used + size > limit:
            yield group
            group, used = [], 0
        group += items
        used += size
    if group:
        yield group


def _task(file: str, items: list[Item]) -> Task:
    """Wide elements first, as the safetensors library does, so that every tensor is aligned.

    What comes of encoding, scales, lies behind all codes: files are written and hashed in order.
    """
    items.sort(key=lambda i: (i.part > 0, -DTYPES[i.dtype].bits))  # stable: else stored order
    head = header.build(((i.name, i.dtype, i.shape) for i in items), METADATA)
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


def _printable(name: str) -> str:
    """A file name as text that JSON can hold; names on disk need not be UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()
