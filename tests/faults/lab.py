"""Where faults are injected: the four commands on a small model, and what each must end with."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..crash import Ended, Forker, state_of, temporaries
from ..sharded.deepseek import deepseek
from ..sharded.forms import bf16, blocks, fp8_config
from ..sharded.model import Source
from . import shim

__all__ = ["Files", "Lab", "Work", "lab", "share", "sources", "state_of", "takes_direct",
           "temporaries", "tree"]  # fmt: skip

Files = dict[str, bytes]

# A dense, an MoE and an MTP layer in 300 kB of FP8, so that a run is mostly steps, hardly work.
SIZES = {
    "hidden_size": 72, "intermediate_size": 256, "kv_lora_rank": 16, "moe_intermediate_size": 64,
    "n_group": 2, "n_routed_experts": 4, "n_shared_experts": 4, "num_attention_heads": 4,
    "num_key_value_heads": 4, "q_lora_rank": 24, "topk_group": 1,
}  # fmt: skip


class Work(NamedTuple):
    """One command on one source."""

    name: str
    words: tuple[str, ...]  # the command
    source: Path
    options: tuple[str, ...]
    expected: Files  # every file of the target, undisturbed

    def argv(self, target: Path, *more: object, source: Path | None = None) -> list[object]:
        """The command line; ``source`` is a copy of the work's own."""
        return [*self.words, source or self.source, target, *self.options, *more]

    def ended_right(self, target: Path) -> bool:
        """Whether the target is there, and has every byte of an undisturbed run."""
        return target.is_dir() and tree(target) == self.expected


class Lab:
    """A folder, sources, works and children. Use :func:`lab`."""

    def __init__(self, root: Path, preload: bool) -> None:
        self.root = root
        self.fp8, self.bf16 = (made.write(root / made.id) for made in sources())
        self.works: list[Work] = []
        for name, words, source, *options in self._commands():
            target = root / f"expected-{name}"
            self._add(name, words, source, target, options)
        self.by_name = {work.name: work for work in self.works}
        warm = [w.argv(root / f"warm-{w.name}") for w in self.works]
        self._preload = shim.built() if preload and not shim.missing() else None
        self.forker = self.new_forker(warm)

    def _commands(self) -> Iterator[tuple[Any, ...]]:
        cut = ("--max-shard-size", "150KB")
        ranks = {layout: self.root / f"expected-shard-{layout}" for layout in ("deepseek", "hf")}
        yield "to-bf16", "to-bf16", self.fp8, *cut
        yield "quantize", "quantize", self.bf16, "--scheme", "fp8-tensor", *cut
        yield "quantize-nvfp4", "quantize", self.fp8, "--scheme", "nvfp4", *cut
        for layout in ranks:
            yield f"shard-{layout}", "shard-for-tp", self.fp8, "--tp", "2", "--layout", layout
        for layout, folder in ranks.items():
            yield f"unshard-{layout}", "unshard", folder

    def _add(
        self, name: str, words: str, source: Path, target: Path, options: Sequence[str]
    ) -> None:
        from fp8convert.cli.main import cli

        work = Work(name, (words,), source, tuple(options), {})
        arguments = [str(a) for a in work.argv(target, "--quiet")]
        cli.main(arguments, standalone_mode=False)
        self.works.append(work._replace(expected=tree(target)))

    def new_forker(self, warm: Sequence[Sequence[object]] = ()) -> Forker:
        """Another, for two runs at once; the caller closes it."""
        return Forker(self._preload, warm)

    def new(self, where: Path | None = None) -> Path:
        """A target that is not there yet, alone in a folder of its own."""
        return Path(tempfile.mkdtemp(dir=where or self.root)) / "dst"

    def run(self, work: Work, target: Path, *more: object, **options: object) -> Ended:
        """One run with one worker, if ``more`` does not say otherwise."""
        some = more if "--workers" in more else ("--workers", 1, *more)
        return self.forker.run(*work.argv(target, *some), **options)


def sources() -> tuple[Source, Source]:
    """The model in FP8 and in BF16."""
    coded = deepseek("small-fp8", blocks(128), fp8_config(128, fmt="e4m3"), **SIZES)
    return coded, deepseek("small-bf16", bf16, None, **SIZES)


@contextlib.contextmanager
def lab(preload: bool = True, where: Path | None = None) -> Iterator[Lab]:
    """In memory where there is some, or in ``where``; gone at the end."""
    memory = Path("/dev/shm")
    place = where or (memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir()))
    root = Path(tempfile.mkdtemp(prefix="fp8convert-lab-", dir=place))
    made = None
    try:
        made = Lab(root, preload)
        yield made
    finally:
        if made:
            made.forker.close()
        shutil.rmtree(root)


def tree(folder: Path) -> Files:
    """Every file below ``folder``, by its path in it."""
    files = (p for p in sorted(folder.rglob("*")) if not p.is_dir())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def takes_direct(folder: Path) -> bool:
    """Whether files there can be read and written around the page cache."""
    path = folder / "direct"
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT))
    except OSError:  # tmpfs before Linux 6.6
        return False
    finally:
        path.unlink(missing_ok=True)
    return True


def share(seed: int, name: str) -> random.Random:
    """Random numbers of one class of faults, the same for the same seed."""
    return random.Random(f"{seed} {name}")
