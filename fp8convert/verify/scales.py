"""Check ``scales``: no codes without their scale, no scale without its codes, each of its shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from .. import schemes
from ..catalogue import Catalogue
from ..codecs.base import Stored
from ..codecs.fp4_block import Fp4Block
from ..codecs.fp8_block import Fp8Block
from ..codecs.gpt_oss import PAIRS, GptOss
from ..declared import Declared
from ..errors import SchemeError
from ..schemes.base import Reading, Scheme
from ..schemes.weight import Tensors, Weight
from .report import Check
from .survey import Survey

NAME = "scales"


@dataclass(frozen=True)
class View:
    """Tensors that are understood together: a checkpoint's, or, if ranks are apart, one rank's.

    ``files`` are by shard number; ``inside`` are names in the files where they differ.
    """

    tensors: Tensors
    declared: Declared
    files: Sequence[str]
    inside: dict[str, str] = field(default_factory=dict)
    label: str = ""


@dataclass(frozen=True)
class Scale:
    """A stored tensor of scales: ``block`` [rows, stored columns] of ``codes`` share one.

    ``mask`` are the bits of a byte of codes that are not zero in a code that is not; None for
    integers, whose scales may be negative.
    """

    codes: str
    block: tuple[int, int] | None
    mask: int | None


def views(survey: Survey, catalogue: Catalogue | None) -> list[View]:
    """What scales are looked for in. FormatError if config.json is damaged."""
    files = [f for home in survey.homes for f in home.files]
    if survey.ranks and survey.ranks.apart:
        return [
            View(_merged(survey, unit), survey.declared(_prefix(unit)), files, label=_label(unit))
            for unit in survey.units()
        ]
    said = survey.declared(survey.config_home)
    if catalogue is not None:
        inside = {t.name: t.inside for t in survey.ranks.tensors} if survey.ranks else {}
        return [View(catalogue.tensors, catalogue.declared, catalogue.shard_names, inside)]
    return [View(_merged(survey, unit), said, files) for unit in survey.units()]


def _merged(survey: Survey, unit: list[str]) -> dict[str, Stored]:
    return {name: t for file in unit for name, t in survey.tensors[file].items()}


def _prefix(unit: list[str]) -> str:
    return unit[0][: unit[0].rfind("/") + 1]


def _label(unit: list[str]) -> str:
    return f"{_prefix(unit).rstrip('/') or unit[0]}: "


@dataclass
class Understood:
    """All views as schemes read them."""

    weights: list[Weight] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unknown: str = ""  # why there is no scheme to read them by
    declared_only: str = ""  # declared coded, but nothing is
    scales: dict[str, Scale] = field(default_factory=dict)  # by name in the files

    @property
    def coded(self) -> list[Weight]:
        """Weights that are not stored as they are."""
        return [w for w in self.weights if w.codec.coded]


def understood(found: Sequence[View]) -> Understood:
    """Pair codes and scales in every view."""
    out = Understood()
    for view in found:
        scheme = _scheme(view, out)
        if scheme is None:
            continue
        reading = scheme.read(view.tensors, view.files)
        nothing = scheme.nothing_coded()
        out.declared_only = nothing if nothing in reading.problems else out.declared_only
        out.problems += [view.label + p for p in reading.problems if p != nothing]
        out.warnings += [view.label + w for w in reading.warnings]
        _gather(view, reading, out)
    return out


def _scheme(view: View, out: Understood) -> Scheme | None:
    """By dtypes and config; notes why there is none."""
    try:
        return schemes.detect(view.declared, view.tensors)
    except SchemeError as e:
        answers = [s.recognise(view.declared, view.tensors) for s in schemes.known()]
        if any(answers):
            out.problems.append(view.label + str(e))
        out.unknown = str(e)
    return None


def _gather(view: View, reading: Reading, out: Understood) -> None:
    out.weights += reading.weights
    for w in reading.weights:
        if w.codec.coded:
            names = [view.inside.get(p.name, p.name) for p in w.parts]
            for role, name in zip(w.codec.roles[1:], names[1:], strict=True):
                if role in ("scales", "global"):
                    out.scales[name] = _scale(w, names[0], role)


def _scale(w: Weight, codes: str, role: str) -> Scale:
    if isinstance(w.codec, GptOss):
        return Scale(codes, (1, PAIRS), 0x77)
    if not isinstance(w.codec, (Fp8Block, Fp4Block)):
        return Scale(codes, None, None)
    element = w.codec.element
    fnuz = element.name.endswith("fnuz")  # 0x80 is not a zero there
    mask = 0x77 if element.bits == 4 else 0xFF if fnuz else 0x7F
    if role == "global":
        return Scale(codes, None, mask)
    rows, columns = w.codec.block_of(w.shape)
    return Scale(codes, (rows, -(-columns * element.bits // 8)), mask)


def check_scales(found: Understood) -> Check:
    """Codes and scales of every weight."""
    if found.unknown and not found.problems:
        return Check.skipped(NAME, found.unknown)
    coded = found.coded
    kinds = Counter(w.codec.name for w in coded)
    words = ", ".join(f"{n:,} {kind}" for kind, n in kinds.most_common())
    detail = f"{len(coded):,} coded weights ({words})" if coded else "no weight is coded"
    return Check.of(NAME, detail, found.problems, found.warnings, weights=len(coded))
