"""What a page asks its reader to type: fenced blocks, and what must not stand elsewhere.

One that begins "```sh" is run; "```sh exit=1" must end with that code, "```sh file=NAME" is a file
that later blocks use; "```python" is run too. Output is in "```text", and not compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

RUN = ("sh", "python")
SHOWN = ("text", "json", "yaml")
COMMANDS = ("fp8convert", "shard-for-tp", "$", "sbatch", "srun", "ray", "mpirun", "mpiexec",
            "torchrun", "hf", "pip", "export")  # fmt: skip
_FENCE = re.compile(r"(?P<indent> *)(?P<ticks>`{3,})(?P<info>.*)")


class Block(NamedTuple):
    """One that is run, or written: ``line`` is where its text begins, 1 the first."""

    line: int
    language: str
    text: str
    code: int = 0
    file: str = ""


def blocks(page: str) -> list[Block]:
    """Those of a page in its order; ValueError for whatever would not be run, and seems to be meant
    to be."""
    found = []
    for line, info, text in _fenced(page):
        language, *words = info.split() or [""]
        if language in SHOWN:
            _check_shown(text, line)
        elif language in RUN:
            found.append(_block(line, language, text, words))
        else:
            raise ValueError(f"line {line}: a block of {language!r}, expected {(*RUN, *SHOWN)}")
    return found


def _block(line: int, language: str, text: str, words: list[str]) -> Block:
    made = Block(line, language, text)
    for word in words:
        key, _, value = word.partition("=")
        if key == "exit" and value.isdecimal():
            made = made._replace(code=int(value))
        elif key == "file" and re.fullmatch(r"[A-Za-z0-9_.-]+", value):
            made = made._replace(file=value)
        else:
            raise ValueError(f"line {line}: {word!r}, expected exit=CODE or file=NAME")
    if not text.strip():
        raise ValueError(f"line {line}: an empty block")
    return made


def _fenced(page: str) -> Iterator[tuple[int, str, str]]:
    """Line, info string and text of every fenced block; checks what is outside."""
    lines = page.splitlines()
    n = 0
    while n < len(lines):
        opened = _FENCE.fullmatch(lines[n])
        n += 1
        if not opened:
            _check_outside(lines[n - 1], n)
            continue
        begin, indent = n, len(opened["indent"])
        while n < len(lines) and lines[n].strip() != opened["ticks"]:
            n += 1
        if n == len(lines):
            raise ValueError(f"line {begin}: a block that does not end")
        text = "".join(f"{line[indent:]}\n" for line in lines[begin:n])
        yield begin + 1, opened["info"].strip(), text
        n += 1


def _check_outside(line: str, number: int) -> None:
    if line.startswith("    "):
        _check_shown(line.strip(), number)


def _check_shown(text: str, line: int) -> None:
    for n, shown in enumerate(text.splitlines()):
        if shown.split() and shown.split()[0] in COMMANDS:
            raise ValueError(f"line {line + n}: a command that is not run: {shown!r}")
