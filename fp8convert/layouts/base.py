"""The contract of a layout of ranks: what it calls a tensor, and how ranks share a weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from .shares import Share


class RankLayout(ABC):
    """How a model's weights are named and divided over tensor-parallel ranks."""

    renames: ClassVar[bool] = False  # whether ``renamed`` and ``stored_as`` change anything
    mtp: ClassVar[str] = "keep"  # what becomes of MTP layers unless it is said

    @abstractmethod
    def share(self, name: str, shape: tuple[int, ...]) -> Share | None:
        """What the ranks get of the weight ``name`` of decoded ``shape``; None: not known.

        SchemeError where its shape is not what the config says.
        """

    def renamed(self, name: str) -> str:
        """What a tensor of that name is called in a rank's files."""
        return name

    def plain(self, name: str) -> bool:
        """Whether loaders want the weight decoded, whatever the others are."""
        return False

    def dropped(self, name: str) -> bool:
        """Whether loaders want no such weight: it repeats another."""
        return False

    def stored_as(
        self, name: str, dtype: str, shape: tuple[int, ...]
    ) -> tuple[str, tuple[int, ...]]:
        """Dtype and shape of a tensor in a rank's files, where its bytes are as they were."""
        return dtype, shape

    def whole_as(
        self, name: str, dtype: str, shape: tuple[int, ...]
    ) -> tuple[str, tuple[int, ...]]:
        """The inverse of ``stored_as``."""
        return dtype, shape

    def limits(self, ranks: int) -> str | None:
        """What loaders of the layout are known to say of coded weights of so many ranks."""
        return None

    def adds(self, name: str) -> bool:
        """Whether all ranks have it, and one of them is to add it."""
        return False
