"""Controls of the random checkpoints: every property finds a bug that is planted for it.

The properties themselves hold in ``test_campaigns.py``, which runs a slice of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import Phase

from fp8convert import convert
from fp8convert.codecs import blocks, coded
from fp8convert.encoding import band
from fp8convert.schemes import leftovers
from fp8convert.verify import against

from .campaign import PROPERTIES, tried

BY_NAME = {one.name: one for one in PROPERTIES}
DECODE, READ, QUANTIZE, RANKS, SAME, VERIFY, CODES, DEFECT = BY_NAME
Plant = Callable[[pytest.MonkeyPatch], None]


def found(name: str, plant: Plant, monkeypatch: pytest.MonkeyPatch, examples: int = 120) -> str:
    """What the property says with the bug planted."""
    plant(monkeypatch)
    _, failed = tried(BY_NAME[name], examples, 0, (Phase.generate,))
    return failed


def last_row_of_ragged_blocks(patch: pytest.MonkeyPatch) -> None:
    """Forgotten where rows are no multiple of the block."""
    real = blocks.decode_matrix

    def decode(element: Any, piece: Any, out: Any, target: str) -> Any:
        result = real(element, piece, out, target)
        if (piece.row + len(out)) % piece.block[0]:
            out[-1] = 0
        return result

    patch.setattr(blocks, "decode_matrix", decode)


def two_scales_swapped(patch: pytest.MonkeyPatch) -> None:
    """The first and the last of what is read at once."""
    real = blocks.to_float32

    def scales(raw: Any, dtype: str) -> Any:
        found = real(raw, dtype).copy()
        found[[0, -1]] = found[[-1, 0]]
        return found

    patch.setattr(blocks, "to_float32", scales)


def overflow_not_counted(patch: pytest.MonkeyPatch) -> None:
    """Infinities in the output, and no word of them."""
    patch.setattr(coded, "count_infinite", lambda out, target: 0)


def codes_by_other_scales(patch: pytest.MonkeyPatch) -> None:
    """The scales of a band the other way round."""
    real = band.Group._scales

    def scales(self: Any, whole: float) -> Any:
        made, told = real(self, whole)
        return made[:, ::-1].copy(), told

    patch.setattr(band.Group, "_scales", scales)


def scales_from_the_first(patch: pytest.MonkeyPatch) -> None:
    """As the published script cuts: every rank has the scales of the first."""
    real = blocks.grid_cut

    def cut(grid: Any, shape: Any, block: Any, axis: int, begin: int, end: int) -> Any:
        return real(grid, shape, block, axis, 0, end - begin)

    patch.setattr(blocks, "grid_cut", cut)


def resumed_is_another(patch: pytest.MonkeyPatch) -> None:
    """A resumption leaves its mark in the manifest."""
    run, manifest = convert._run, convert._manifest
    begun: list[bool] = []

    def noted(job: Any, staging: Any, settings: Any) -> Any:
        begun[:] = [(staging.state / "job.json").exists()]
        return run(job, staging, settings)

    def marked(*given: Any) -> Any:
        return manifest(*given) | {"resumed": begun[0]}

    patch.setattr(convert, "_run", noted)
    patch.setattr(convert, "_manifest", marked)


def another_tile_another_byte(patch: pytest.MonkeyPatch) -> None:
    """The first row of every tile but the first is wrong."""
    real = blocks.decode_matrix

    def decode(element: Any, piece: Any, out: Any, target: str) -> Any:
        result = real(element, piece, out, target)
        if piece.row:
            out[0] = 0
        return result

    patch.setattr(blocks, "decode_matrix", decode)


def verify_is_blind(patch: pytest.MonkeyPatch) -> None:
    """No difference is a problem."""
    patch.setattr(against, "_differences", lambda found: iter(()))


def leftovers_pass(patch: pytest.MonkeyPatch) -> None:
    """Codes without scales are kept as they are, with exit code 0."""
    patch.setattr(leftovers.Leftovers, "problem", lambda self, t: None)


def damage_passes(patch: pytest.MonkeyPatch) -> None:
    """NaN in, NaN out."""
    patch.setattr(coded, "damage_of", lambda element, p: None)


CONTROLS: list[tuple[str, Plant]] = [
    (DECODE, last_row_of_ragged_blocks),
    (DECODE, two_scales_swapped),
    (DECODE, overflow_not_counted),
    (READ, last_row_of_ragged_blocks),
    (QUANTIZE, codes_by_other_scales),
    (QUANTIZE, two_scales_swapped),
    (RANKS, scales_from_the_first),
    (SAME, another_tile_another_byte),
    (SAME, resumed_is_another),
    (VERIFY, verify_is_blind),
    (VERIFY, last_row_of_ragged_blocks),
    (CODES, codes_by_other_scales),
    (DEFECT, leftovers_pass),
    (DEFECT, damage_passes),
]


@pytest.mark.parametrize(("name", "plant"), CONTROLS, ids=lambda x: getattr(x, "__name__", x))
def test_a_planted_bug_is_found(name: str, plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(name, plant, monkeypatch)
