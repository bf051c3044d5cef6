"""What a user types, or points to: sizes, layers, ranks, patterns, tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import click

from fp8convert.cli.running import Layers
from fp8convert.cli.shard_for_tp import Ranks
from fp8convert.cli.sizes import KeepOrSize, human
from fp8convert.convert import prepare
from fp8convert.options import Quantize

from .benches import bench, root
from .promises import sound


def split(data: bytes, *known: tuple[str, ...]) -> tuple[tuple[str, ...], bytes]:
    """The words of the first line, one of each of ``known``, and the rest."""
    line, _, rest = data.partition(b"\n")
    said = [*line.decode("latin-1").split(" "), *("",) * len(known)]
    return tuple(w if w in of else of[0] for w, of in zip(said, known, strict=False)), rest


@contextlib.contextmanager
def refusing_usage() -> Iterator[None]:
    """What is inside may call it a usage error, as click does."""
    with contextlib.suppress(click.UsageError):
        yield


def _converted(kind: click.ParamType, said: bytes) -> Any:
    return kind.convert(said.decode("utf-8", "surrogateescape"), None, None)


def size(said: bytes) -> None:
    """``--max-shard-size``."""
    found = _converted(KeepOrSize(), said)
    assert found is None or (type(found) is int and found >= 0), found
    human(found or 0)


def layers(said: bytes) -> None:
    """``--layers``."""
    found = _converted(Layers(), said)
    assert all(type(n) is int and n >= 0 for n in found), found


def ranks(said: bytes) -> None:
    """``--ranks``."""
    found = _converted(Ranks(), said)
    assert list(found) == sorted(set(found)), found


def include(said: bytes) -> None:
    """``--include``: patterns of weights' names, each a line."""
    patterns = tuple(said[:200].decode("utf-8", "surrogateescape").split("\n"))
    options = Quantize(scheme="fp8-tensor", include=patterns)
    sound(prepare(bench("index", "-whole"), root() / "x", options).plan)


def tokens(said: bytes) -> None:
    """``--tokens``."""
    from fp8convert.parity.tokens import Wanted

    path = root() / "tokens.json"
    path.write_bytes(said)
    found = Wanted(file=str(path)).tokens(str(root()), 1000)
    lowest, highest = int(found.ids.min()), int(found.ids.max())
    assert found.ids.dim() == 2, found
    assert 0 <= lowest <= highest < 1000, found


WORDS: dict[str, Callable[[bytes], None]] = {
    "size": size, "layers": layers, "ranks": ranks, "include": include, "tokens": tokens,
}  # fmt: skip
