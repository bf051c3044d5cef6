"""The contract of a codec: how stored parts encode a weight. A codec opens no file.

A weight is seen as a matrix [rows, columns]. The engine asks for rectangles of it that lie
contiguously in the output (whole rows, or a run within one row), cut at the codec's steps; the
codec says which bytes of each part such a rectangle needs and decodes exactly those.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Bytes = npt.NDArray[np.uint8]


class Stored(NamedTuple):
    """A stored tensor: bytes ``[begin, end)`` of shard number ``shard``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: int
    begin: int
    end: int


class Grid(NamedTuple):
    """A weight as a matrix, and where it may be cut: multiples of the steps (and its ends)."""

    rows: int
    columns: int
    row_step: int
    column_step: int


class Rect(NamedTuple):
    """Rows ``[r0, r1)`` and columns ``[c0, c1)`` of a weight."""

    r0: int
    r1: int
    c0: int
    c1: int


class Span(NamedTuple):
    """Bytes ``[begin, end)`` of one part, relative to that part's first byte."""

    begin: int
    end: int


@dataclass(slots=True)
class Findings:
    """What decoding met. ``damage`` (if set) says why no correct checkpoint has these bytes."""

    overflowed: int = 0  # finite code and scale, product beyond the target dtype
    damage: str | None = None


class Codec(ABC):
    """How one or more stored tensors encode a weight. Instances are frozen and hashable."""

    name: ClassVar[str]
    rule: ClassVar[str]  # the numerical rule, for the manifest
    roles: ClassVar[tuple[str, ...]]  # what the parts are, in order
    coded: ClassVar[bool]  # whether decoding changes the bytes

    @abstractmethod
    def check(self, parts: Sequence[Stored]) -> str | None:
        """Why dtypes and shapes of ``parts`` do not fit (expected and found), or None."""

    @abstractmethod
    def shape(self, parts: Sequence[Stored]) -> tuple[int, ...]:
        """The weight's shape."""

    @abstractmethod
    def out_dtype(self, parts: Sequence[Stored], target: str) -> str:
        """The safetensors dtype of the decoded weight when ``target`` is asked for."""

    @abstractmethod
    def grid(self, parts: Sequence[Stored]) -> Grid:
        """The weight as a matrix."""

    @abstractmethod
    def spans(self, parts: Sequence[Stored], rect: Rect) -> tuple[Span, ...]:
        """The bytes of each part that decoding ``rect`` needs."""

    @abstractmethod
    def decode(
        self, parts: Sequence[Stored], rect: Rect, data: Sequence[Bytes], out: Array, target: str
    ) -> Findings:
        """Decode ``rect`` from ``data`` (its spans) into ``out``, 1-D, of ``target``'s bits."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The codec as JSON, with a ``codec`` field holding its name."""
