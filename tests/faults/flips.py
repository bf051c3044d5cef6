"""One change to a finished output, anywhere in it: ``verify`` says so, and in which file.

A bit, an end cut off or added, two blocks exchanged, a file gone, two files exchanged: the place is
drawn from all bytes of all files, so most are in tensors; every third is in one of the small files,
which are few bytes of the whole. What is not found is a manifest that is gone: then an output is as
good as another tool's, and the check of the manifest is not made, which ``verify`` says.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .lab import Files, Lab, Work, share
from .tally import Campaign, Tally

MANIFEST = "manifest.json"
TENSORS = ".safetensors"
SAMPLE = 50  # of so many changes one is shown to the real command as well
EXACT = ("to-bf16", "shard-deepseek", "shard-hf", "unshard-deepseek", "unshard-hf")


class Change(NamedTuple):
    """What is done to an output: files as they are after it, None if gone; and words for it."""

    words: str
    after: dict[str, bytes | None]

    @property
    def files(self) -> list[str]:
        """Those that are not as they were."""
        return list(self.after)


class Draw:
    """Random changes of one output."""

    def __init__(self, files: Files, rng: random.Random) -> None:
        self.files, self.rng = files, rng
        self.sizes = {name: len(data) for name, data in files.items() if data}

    def file(self) -> str:
        """By its share of the bytes; or of the small ones, each as often as any other."""
        small = [name for name in self.sizes if not name.endswith(TENSORS)]
        if self.rng.random() < 1 / 3:
            return self.rng.choice(small)
        return self.rng.choices(list(self.sizes), list(self.sizes.values()))[0]

    def change(self) -> Change:
        """A random one; bits more often than anything else."""
        kinds = (self.flip, self.flip, self.flip, self.cut, self.grow, self.blocks, self.gone,
                 self.exchange)  # fmt: skip
        found: Change | None = None
        while found is None:
            found = self.rng.choice(kinds)()
        return found

    def flip(self, name: str = "", begin: int = 0, end: int = 0) -> Change:
        """One bit, of a byte between ``begin`` and ``end``."""
        name = name or self.file()
        at, bit = self.rng.randrange(begin, end or self.sizes[name]), self.rng.randrange(8)
        data = bytearray(self.files[name])
        data[at] ^= 1 << bit
        return Change(f"{name}: bit {bit} of byte {at}", {name: bytes(data)})

    def cut(self) -> Change:
        """A file that ends earlier."""
        name = self.file()
        end = self.rng.randrange(self.sizes[name])
        return Change(f"{name}: cut to {end}", {name: self.files[name][:end]})

    def grow(self) -> Change:
        """A file that goes on: zeros, line ends, anything."""
        name = self.file()
        more = self.rng.choice([b"\0", b"\n", b" ", self.rng.randbytes(9), self.files[name]])
        return Change(f"{name}: {len(more)} bytes more", {name: self.files[name] + more})

    def blocks(self) -> Change | None:
        """Two pieces of one length in each other's place."""
        name = self.file()
        data, size = self.files[name], self.rng.randint(1, 64)
        if len(data) < 2 * size:
            return None
        a = self.rng.randint(0, len(data) - 2 * size)
        b = self.rng.randint(a + size, len(data) - size)
        found = data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size]
        found += data[b + size :]
        words = f"{name}: {size} bytes at {a} and {b} exchanged"
        return Change(words, {name: found}) if found != data else None

    def gone(self) -> Change | None:
        """A file that is not there; not the manifest, see above."""
        name = self.rng.choice(list(self.files))
        return Change(f"{name}: gone", {name: None}) if name != MANIFEST else None

    def exchange(self) -> Change | None:
        """Two files, each with the other's name."""
        a, b = self.rng.sample(list(self.files), 2)
        if self.files[a] == self.files[b]:
            return None
        return Change(f"{a} and {b} exchanged", {a: self.files[b], b: self.files[a]})

    def header(self) -> Change:
        """A bit of a header of tensors, but of its metadata."""
        name = self.rng.choice([n for n in self.sizes if n.endswith(TENSORS)])
        data = self.files[name]
        end = 8 + int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8:end]).get("__metadata__")
        spoken = json.dumps(metadata, separators=(",", ":")).encode()
        at = data.find(spoken, 8, end) if metadata else -1
        while True:
            change = self.flip(name, 0, end)
            byte = int(change.words.split()[-1])
            if at < 0 or not at <= byte < at + len(spoken):
                return change

    def tensor(self) -> Change:
        """A bit of a tensor."""
        name = self.rng.choice([n for n in self.sizes if n.endswith(TENSORS)])
        return self.flip(name, 8 + int.from_bytes(self.files[name][:8], "little"))


@contextmanager
def applied(finished: Path, change: Change) -> Iterator[Path]:
    """A copy with hard links to all that is as it was; the rest is written anew."""
    with tempfile.TemporaryDirectory(dir=finished.parent) as place:
        copy = Path(place) / "dst"
        shutil.copytree(finished, copy, copy_function=os.link)
        for name, data in change.after.items():
            (copy / name).unlink()
            if data is not None:
                (copy / name).write_bytes(data)
        yield copy


def seen_by_library(folder: Path, against: Path | None = None) -> tuple[int, str]:
    """Exit code and words of ``verify``, in this process."""
    from fp8convert.errors import Fp8ConvertError
    from fp8convert.verify import verify

    try:
        report = verify(folder, against, workers=1)
    except Fp8ConvertError as e:
        return e.exit_code, str(e)
    return 0 if report.passed else 3, "\n".join(report.lines())


def told(code: int, words: str, change: Change) -> bool:
    """Whether it was found, in a file that is named."""
    named = any(name in words for name in change.files)
    return code == 3 and named and "Traceback" not in words


def flips(
    lab: Lab, amount: int, seed: int, look: Callable[..., tuple[int, str]] = seen_by_library
) -> Tally:
    """Changes of the outputs of all works, in turn."""
    tally = Tally()
    rng = share(seed, "flips")
    places = {work.name: finished(lab, work) for work in lab.works}
    for n in range(amount):
        work = lab.works[n % len(lab.works)]
        change = Draw(work.expected, rng).change()
        with applied(places[work.name], change) as copy:
            code, words = look(copy)
            same = True
            if n % SAMPLE == 0:
                ended = lab.forker.run("verify", copy)
                same = ended.code == code and (change.files[0] in ended.out or code != 3)
        tally.add(f"{work.name}: {change.words}", told(code, words, change) and same, True, words)
    return tally


def finished(lab: Lab, work: Work) -> Path:
    """The output of ``work``, to link to."""
    place = lab.root / f"expected-{work.name}"
    assert work.ended_right(place)
    return place


def against(lab: Lab, amount: int, seed: int) -> Tally:
    """Bits of tensors and headers of outputs without a manifest, held against their source.

    Of the works whose every bit is known: of codes of a lossy encoding, the last bits may be right
    either way.
    """
    tally = Tally()
    rng = share(seed, "against")
    for n in range(amount):
        work = lab.by_name[EXACT[n % len(EXACT)]]
        draw = Draw(work.expected, rng)
        change = draw.header() if n % 5 == 4 else draw.tensor()
        gone: dict[str, Any] = {**change.after, MANIFEST: None}
        with applied(finished(lab, work), change._replace(after=gone)) as copy:
            code, words = seen_by_library(copy, work.source)
        tally.add(f"{work.name}: {change.words}", code == 3 and "Trace" not in words, True, words)
    return tally


CAMPAIGNS = (
    Campaign("flips and truncations", flips, 1000, 60),
    Campaign("flips, against the source", against, 200, 10),
)
