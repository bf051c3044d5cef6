"""Bands of tensors, read by the safetensors library from the files of one folder or rank."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..codecs.base import Stored
from . import mapped
from .survey import Survey

if TYPE_CHECKING:
    from .bits import Tensor


class Opened(contextlib.AbstractContextManager["Opened"]):
    """Files mapped by the library until it is closed; ``owner`` gives the file of each name.

    Not for several threads: each has its own.
    """

    def __init__(self, survey: Survey, owner: Mapping[str, str]) -> None:
        self._survey, self._owner = survey, owner
        self._stack = contextlib.ExitStack()
        self._files: dict[str, Any] = {}

    def stored(self, name: str) -> Stored | None:
        """What the header says of a tensor."""
        file = self._owner.get(name)
        return self._survey.tensors[file][name] if file else None

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        """Rows [begin, end) of the first axis; a scalar as it is; F4 as bytes of two."""
        import torch

        t, f = self.stored(name), self._file(self._owner[name])
        assert t is not None
        if t.dtype == "F4":  # the library does not slice it
            whole: Tensor = f.get_tensor(name).view(torch.uint8)
            return whole[begin:end]
        found: Tensor = f.get_slice(name)[begin:end] if t.shape else f.get_tensor(name)
        return found

    def _file(self, file: str) -> Any:
        if file not in self._files:
            path = self._survey.folder.root / file
            self._files[file] = self._stack.enter_context(mapped.opened(path))
        return self._files[file]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._files.clear()
        self._stack.close()
