"""Check ``index``: every tensor is in exactly the file that says it is; rank sets are complete."""

from __future__ import annotations

from collections.abc import Iterator

from .. import ranksets
from ..catalogue import Catalogue, open_catalogue
from ..codecs.base import Stored
from ..errors import FormatError, Fp8ConvertError, listed, shown
from ..layouts.deepseek import RANK_FILE
from ..layouts.hf import INDEX
from ..ranksets import RankSet, Spread
from ..strictjson import brief
from .report import Check
from .survey import MEMBERSHIP, Home, Survey

NAME = "index"


def check_index(survey: Survey) -> tuple[Check, Catalogue | None]:
    """Index, ``total_size`` and ``tp.json`` against the files; the catalogue if all is sound.

    Ranks that cannot be put together have no catalogue: each is compared with ``tp.json``.
    """
    problems = [survey.ranks_wrong] if survey.ranks_wrong else []
    if survey.unrelated and not problems:
        problems.append(f"there are folders of ranks, but no {ranksets.TP} beside them")
    warnings: list[str] = []
    for home in survey.homes:
        problems += _home(home, survey)
        warnings += _beside(home)
    catalogue = None
    if not problems and not survey.incomplete:
        if survey.ranks and survey.ranks.apart:
            problems += _apart(survey, survey.ranks)
        else:
            catalogue, problems = _opened(survey)
    elif not problems:
        warnings.append(f"{survey.incomplete}: what they should hold is not compared")
    return Check.of(NAME, _detail(survey), problems, warnings), catalogue


def _detail(survey: Survey) -> str:
    files = len(survey.members)
    if survey.ranks:
        said = survey.ranks
        apart = "; they cannot be put together" if said.apart else ""
        return f"{said.ranks} ranks of layout {said.layout}, {files:,} files, and tp.json{apart}"
    if survey.homes[0].weight_map is None:
        return f"no index: {files:,} files"
    names = len(survey.homes[0].weight_map)
    return f"{names:,} tensors of {files:,} files, where the index has them; total_size"


def _home(home: Home, survey: Survey) -> Iterator[str]:
    """What is wrong with one folder's index."""
    if home.wrong:
        yield home.wrong
        return
    if home.weight_map is None:
        yield from _twice(home, survey)
        return
    index = home.prefix + INDEX
    for file in sorted(home.named - set(home.files)):
        held = sum(home.prefix + f == file for f in home.weight_map.values())
        yield f"{index} puts {held:,} tensors in {shown(file)}, which is not there"
    where: dict[str, list[str]] = {}
    for file in home.members:
        for name in survey.tensors.get(file, {}):
            where.setdefault(name, []).append(file)
    yield from _mapped(index, home, where)
    sound = not any(f in survey.broken for f in home.members) and home.named <= set(home.files)
    total = sum(t.end - t.begin for f in home.members for t in survey.tensors.get(f, {}).values())
    yield from _metadata(index, home, total if sound else None)
    for file in home.files:
        if file not in home.named and not _consolidated(home, file):
            yield (
                f"{shown(file)} is not in {index}: TensorRT-LLM loads any safetensors file of "
                "the folder"
            )


def _mapped(index: str, home: Home, where: dict[str, list[str]]) -> Iterator[str]:
    """The weight map against where each tensor is."""
    assert home.weight_map is not None
    for name, files in where.items():
        if len(files) > 1:
            yield f"tensor {shown(name)} is in {listed(files)}, expected one file"
        said = home.weight_map.get(name)
        if said is None:
            yield f"tensor {shown(name)} is in {shown(files[0])}, but {index} does not list it"
        elif home.prefix + said not in files:
            yield f"tensor {shown(name)} is in {shown(files[0])}, but {index} says {shown(said)}"
    readable = {file for files in where.values() for file in files}
    for name, file in home.weight_map.items():
        if name not in where and home.prefix + file in readable:
            yield f"{index} puts {shown(name)} in {shown(file)}, which does not hold it"


def _twice(home: Home, survey: Survey) -> Iterator[str]:
    """Without an index, names that are in two files (of one rank)."""
    seen: dict[str, str] = {}
    for file in home.members:
        if RANK_FILE.fullmatch(file):
            return
        for name in survey.tensors.get(file, {}):
            if seen.setdefault(name, file) != file:
                yield f"tensor {shown(name)} is in {listed([seen[name], file])}, expected one file"


def _metadata(index: str, home: Home, total: int | None) -> Iterator[str]:
    """``total`` are the bytes of all tensors, None if that is not known."""
    if home.metadata is None:
        yield f"{index} has no metadata: transformers stops with a KeyError"
    elif total is not None and home.metadata.get("total_size", total) != total:
        said = brief(home.metadata["total_size"])
        yield f"{index}: metadata.total_size is {said}, the tensors have {total:,} bytes"


def _consolidated(home: Home, file: str) -> bool:
    return file.removeprefix(home.prefix).startswith("consolidated")


def _beside(home: Home) -> Iterator[str]:
    """What is doubtful in one folder."""
    members = set(home.members)
    if home.weight_map is not None and home.metadata is not None:
        if "total_size" not in home.metadata:
            yield f"{home.prefix}{INDEX}: metadata.total_size is missing"
    elif len(members) > 1 and not any(RANK_FILE.fullmatch(f) for f in members):
        yield f"{len(members):,} files and no {home.prefix}{INDEX}, which transformers needs"
    if other := [f for f in home.files if f not in members and _consolidated(home, f)]:
        yield f"{listed(other)} beside the checkpoint: vLLM may load it instead"


def _opened(survey: Survey) -> tuple[Catalogue | None, list[str]]:
    """As every other command opens it: names, ranks, links, and what else it refuses.

    Not without a sound config.json, of which another check speaks.
    """
    try:
        survey.declared(survey.config_home)
    except FormatError:
        return None, []
    if survey.lacks_config:
        return None, []
    try:
        return open_catalogue(survey.folder.root), []
    except Fp8ConvertError as e:
        return None, [str(e)]


def _apart(survey: Survey, said: RankSet) -> Iterator[str]:
    """Ranks with scales of their own: each holds what ``tp.json`` lists, in the listed shapes."""
    by_rank = _by_rank(survey)
    if set(by_rank) != set(range(said.ranks)):
        yield f"there are ranks {sorted(by_rank)}, expected {said.ranks}, 0 to {said.ranks - 1}"
        return
    own = tuple(name.removesuffix("weight") for name in said.apart)
    left = {(rank, name) for rank, of in by_rank.items() for name in of}
    for t in said.tensors:
        scale = t.name.startswith(own) and t.name not in said.apart
        for rank in range(said.ranks) if t.rank is None else [t.rank]:
            left.discard((rank, t.inside))
            found = by_rank[rank].get(t.inside)
            if found is None:
                yield f"tensor {shown(t.inside)} is missing on rank {rank}, {ranksets.TP} lists it"
            elif not scale and found.shape != (shape := _shape(t, rank, said.ranks)):
                yield (
                    f"rank {rank}: tensor {shown(t.inside)} is {found.dtype} {list(found.shape)}, "
                    f"expected {t.dtype} {list(shape)}"
                )
    for rank, name in sorted(left):
        yield f"rank {rank} has {shown(name)}, which {ranksets.TP} does not list"


def _by_rank(survey: Survey) -> dict[int, dict[str, Stored]]:
    found: dict[int, dict[str, Stored]] = {}
    for files in survey.units():
        member = MEMBERSHIP.match(files[0]) or RANK_FILE.fullmatch(files[0])
        if member:
            found[int(member[1])] = {n: t for f in files for n, t in survey.tensors[f].items()}
    return found


def _shape(t: Spread, rank: int, ranks: int) -> tuple[int, ...]:
    """Of what a rank has of ``t``."""
    if t.axis is None:
        return t.shape
    length = t.padded_to // ranks if t.padded_to else t.pieces[rank][2]
    return (*t.shape[: t.axis], length, *t.shape[t.axis + 1 :])
