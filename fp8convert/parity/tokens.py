"""The tokens that both models are given: from a JSON file, a prompt, or a seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..companions import MAX_COMPANION
from ..errors import FormatError, UsageError, shown
from ..folder import Folder
from ..reference.run import check_tokens
from ..strictjson import brief, loads

TOKENIZER = "tokenizer.json"
INSIDE = (TOKENIZER, f"rank0/{TOKENIZER}")  # of a folder of ranks: beside them, or in each
MOST = 1 << 63


class Tokens(NamedTuple):
    """Ids [b, l], and in words where they come from."""

    ids: Tensor
    source: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, without the ids."""
        batch, length = self.ids.shape
        return {"batch": batch, "length": length, "source": self.source}


@dataclass(frozen=True)
class Wanted:
    """One of ``file``, ``prompt`` and ``seed``; with a seed ``batch`` sequences of ``length``."""

    file: str | None = None
    prompt: str | None = None
    seed: int | None = None
    length: int | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        given = [x for x in (self.file, self.prompt, self.seed) if x is not None]
        if len(given) != 1:
            raise UsageError(f"{len(given)} sources of tokens, expected one: file, prompt or seed")
        if self.seed is None and (self.length, self.batch) != (None, None):
            raise UsageError("length and batch are for tokens by a seed")
        if self.seed is not None and self.length is None:
            raise UsageError("tokens by a seed need a length")

    def tokens(self, checkpoint: str, vocabulary: int) -> Tokens:
        """For the model in the folder ``checkpoint``; UsageError if ids are not in its vocabulary.

        FormatError if the file, or the tokenizer that a prompt needs, is not as it must be.
        """
        if self.file is not None:
            found = from_file(self.file)
        elif self.prompt is not None:
            found = from_prompt(checkpoint, self.prompt)
        else:
            assert self.seed is not None
            found = seeded(self.seed, self.batch or 1, self.length or 1, vocabulary)
        check_tokens(found.ids, vocabulary)
        return found


def from_file(path: str) -> Tokens:
    """JSON: a list of ids, or a list of equally long ones."""
    found = loads(Path(path).read_bytes(), shown(path))
    if not isinstance(found, list) or not found:
        raise FormatError(f"{shown(path)} holds {brief(found)}, expected a list of token ids")
    nested = isinstance(found[0], list)
    lists = found if nested else [found]
    for n, ids in enumerate(lists):
        where = f"{shown(path)}: list {n}" if nested else shown(path)
        _check(ids, where)
        if len(ids) != len(lists[0]):
            raise FormatError(
                f"{where} has {len(ids)} ids, list 0 has {len(lists[0])}: expected equally many"
            )
    return Tokens(torch.tensor(lists), f"file {shown(path)}")


def _check(ids: Any, where: str) -> None:
    if not isinstance(ids, list) or not ids:
        raise FormatError(f"{where} is {brief(ids)}, expected a list of token ids")
    for at, token in enumerate(ids):
        if type(token) is not int or not -MOST <= token < MOST:
            raise FormatError(f"{where}: position {at} is {brief(token)}, expected a token id")


def from_prompt(checkpoint: str, text: str) -> Tokens:
    """The text by tokenizer.json of the checkpoint, with the special tokens that it adds."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UsageError(
            "a prompt needs the tokenizers library, which is not installed: "
            "pip install 'fp8convert[prompt]', or give token ids"
        ) from None
    folder = Folder.at(checkpoint)
    name = next((n for n in INSIDE if folder.has(n)), None)
    if name is None:
        raise FormatError(f"{shown(checkpoint)} has no {TOKENIZER}, which a prompt needs")
    data = folder.read(name, MAX_COMPANION, "for the prompt")
    try:
        made = Tokenizer.from_buffer(data)
        made.no_padding()  # which may be of any length
        made.no_truncation()
        ids = made.encode(text).ids
    except Exception as e:  # the library has no class of its own
        raise FormatError(
            f"{shown(folder.root / name)}: the tokenizers library says {shown(e)}"
        ) from e
    if not ids:
        raise UsageError("the prompt has no tokens")
    return Tokens(torch.tensor([ids]), f"prompt {shown(text)}")


def seeded(seed: int, batch: int, length: int, vocabulary: int) -> Tokens:
    """Random ids, the same for the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    return Tokens(torch.randint(vocabulary, (batch, length), generator=generator), f"seed {seed}")
