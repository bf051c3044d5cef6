"""The plan: every output file with its exact header, and where each of its bytes comes from.

Pure and deterministic: made from headers, config and options only. Two equal plans write equal
bytes, so resuming is running the same plan again, and ``id`` is what "the same" means.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from .codecs.base import Codec, Stored
from .encoding.encoder import Encoder, Encoding
from .options import Options
from .schemes.weight import Weight
from .version import VERSION

FORMAT = 1
MOST_FILES = 4  # are written at a time
MOST_TOGETHER = 16  # of a team: descriptors are bounded


class Item(NamedTuple):
    """One output tensor: ``[begin, begin + nbytes)`` of its file.

    ``weight`` decoded to ``dtype``; or, with an ``encoding``, its part number ``part``. Part 0, the
    codes, is what the weight is read for; the others come of it and lie behind all codes.
    """

    weight: Weight
    dtype: str
    begin: int
    nbytes: int
    encoding: Encoding | None = None
    part: int = 0

    @property
    def name(self) -> str:
        """Of the tensor."""
        return self.encoding.parts[self.part].name if self.encoding else self.weight.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return self.encoding.parts[self.part].shape if self.encoding else self.weight.shape


@dataclass(frozen=True)
class Task:
    """One output file: the unit of work, of the journal, of resume and of distribution.

    Tasks that follow each other with the same ``team`` (of 0 or more) are written together.
    """

    file: str
    header: bytes
    items: tuple[Item, ...]
    team: int = -1

    @cached_property
    def size(self) -> int:
        """Bytes of the whole file."""
        last = self.items[-1]
        return last.begin + last.nbytes

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the header and of how each tensor is read and encoded: codecs, parts."""
        words: dict[Codec | Encoder, str] = {}

        def said(of: Codec | Encoder) -> str:
            if of not in words:
                words[of] = json.dumps(of.to_dict())
            return words[of]

        sha = hashlib.sha256(self.header)
        for item in self.items:
            facts = [(said(item.weight.codec), [tuple(p) for p in item.weight.parts])]
            if item.encoding:
                facts += [(said(w.codec), [tuple(p) for p in w.parts])
                          for w in item.encoding.members]  # fmt: skip
                facts += [(said(item.encoding.encoder), [])]
            sha.update(repr(facts if item.encoding else facts[0]).encode())
        return sha.hexdigest()

    @cached_property
    def reads(self) -> dict[int, int]:
        """Bytes read of each shard, by its number; also by what decides scales."""
        weights = {i.weight for i in self.items}
        weights |= {w for i in self.items if i.encoding for w in i.encoding.members}
        found: dict[int, int] = {}
        for part in {leaf for w in weights for p in w.parts for leaf in _leaves(p)}:
            if part.shard >= 0:
                found[part.shard] = found.get(part.shard, 0) + part.end - part.begin
        return dict(sorted(found.items()))

    @cached_property
    def spool(self) -> int:
        """Bytes of parts that wait until all codes are written."""
        return sum(i.nbytes for i in self.items if i.part)

    def to_dict(self) -> dict[str, Any]:
        """As JSON: tensors in file order with the stored parts each is decoded from."""
        return {
            "file": self.file,
            "size": self.size,
            "reads": self.reads,
            "header": self.header.decode("utf-8", "surrogateescape")[8:].rstrip(" "),
            "data_start": len(self.header),
            "tensors": [
                {
                    "name": i.name,
                    "dtype": i.dtype,
                    "shape": i.shape,
                    "begin": i.begin,
                    **i.weight.codec.to_dict(),
                    **({"encoded": i.encoding.to_dict()} if i.encoding else {}),
                    "parts": [
                        {"role": role, **_stored(part)}
                        for role, part in zip(i.weight.codec.roles, i.weight.parts, strict=True)
                    ],
                }
                for i in self.items
            ],
        }


class Needs(NamedTuple):
    """What a plan asks of memory: ``tile`` bytes at least; a worker's ``scratch`` of elements to
    encode (two float32 each and a code), and ``grids`` bytes of numbers for each of their blocks;
    ``items`` tensors to know of; and what ``downloads`` take, bytes."""

    tile: int = 0
    scratch: int = 0
    grids: int = 0
    items: int = 0
    downloads: int = 0


NO_NEEDS = Needs()


class Copy(NamedTuple):
    """A small file carried over as it is, to ``target`` if that is not its ``name`` as well."""

    name: str
    size: int
    target: str = ""

    @property
    def file(self) -> str:
        """Its name in the target."""
        return self.target or self.name


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
    dropped: tuple[str, ...]  # tensors that belong to no weight and mean nothing in the output
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()  # what else a user wants to hear
    copied: tuple[str, ...] = ()  # weights whose parts need no encoding, being what is asked for
    needs: Needs = NO_NEEDS
    origin: Mapping[str, str] = field(default_factory=dict)  # a repository and its commit
    asked: str = ""  # the branch, say, that the commit was found by; another one is as good

    @property
    def bytes_in(self) -> int:
        """Bytes of tensors read."""
        parts = {p for t in self.tasks for i in t.items for p in i.weight.parts}
        return sum(p.end - p.begin for p in parts)

    @property
    def disk_needed(self) -> int:
        """Bytes on the disk while it runs: all files, and what waits beside those at work."""
        spools = sorted(t.spool for t in self.tasks)
        most = MOST_TOGETHER if any(t.team >= 0 for t in self.tasks) else MOST_FILES
        return self.bytes_out + sum(spools[-most:])

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
            **({"origin": dict(self.origin)} if self.origin else {}),
            "options": json.loads(json.dumps(asdict(self.options))),  # tuples are lists
            "scheme": self.scheme,
            "source": {
                name: {"size": size, "header_sha256": sha} for name, size, sha in self.source
            },
            "copies": {c.file: c.size for c in self.copies},
            "texts": {name: _sha256(text.encode()) for name, text in self.texts.items()},
            "dropped": list(self.dropped),
            "tasks": {t.file: t.digest for t in self.tasks},
        }

    @cached_property
    def id(self) -> str:
        """SHA-256 of ``identity``."""
        return _sha256(json.dumps(self.identity, sort_keys=True).encode())

    def to_dict(self) -> dict[str, Any]:
        """The whole plan as JSON."""
        return {
            "id": self.id,
            **{k: v for k, v in self.identity.items() if k not in ("texts", "tasks", "dropped")},
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "texts": self.texts,
            "dropped": list(self.dropped),
            "not_copied": list(self.not_copied),
            "tasks": [t.to_dict() for t in self.tasks],
        }


def _leaves(part: Stored) -> Iterator[Stored]:
    """The stored tensors, or slices of them, that a part is made of."""
    if not part.pieces:
        yield part
    for piece in part.pieces:
        yield from _leaves(piece)


def _stored(part: Stored) -> dict[str, Any]:
    facts = part._asdict()
    if not part.run:
        del facts["run"], facts["pitch"]
    if not facts.pop("pieces"):
        del facts["axis"]
        return facts
    return {**facts, "pieces": [_stored(p) for p in part.pieces]}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
