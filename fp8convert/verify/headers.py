"""Check ``headers``: this library and the safetensors library read the same in every file."""

from __future__ import annotations

from pathlib import Path

from ..codecs.base import Stored
from ..errors import listed, shown
from .report import Check
from .survey import Survey

NAME = "headers"
Metadata = dict[str, str]


def check_headers(survey: Survey) -> tuple[Check, dict[str, Metadata]]:
    """Names, dtypes and shapes, of strict parsing and of the library; and metadata by file."""
    problems = [_named(file, wrong) for file, wrong in survey.broken.items()]
    metadata: dict[str, Metadata] = {}
    for file, tensors in survey.tensors.items():
        found = _differences(survey.folder.root / file, file, tensors)
        if isinstance(found, str):
            problems.append(found)
        else:
            metadata[file] = found
    count = sum(map(len, survey.tensors.values()))
    if not count and not problems:
        problems.append("no file has a tensor")
    files = len(survey.tensors) + len(survey.broken)
    detail = f"{count:,} tensors in {files:,} files, read by this and the safetensors library"
    return Check.of(NAME, detail, problems, files=files, tensors=count), metadata


def _named(file: str, wrong: str) -> str:
    return wrong if shown(file) in wrong else f"{shown(file)}: {wrong}"


def _differences(path: Path, file: str, tensors: dict[str, Stored]) -> Metadata | str:
    """What the library reads otherwise than ``tensors``, or the metadata it found."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as f:
            names = set(f.keys())
            if odd := names ^ tensors.keys():
                return f"{shown(file)}: {listed(sorted(odd))} only one of two readers finds"
            for name, t in tensors.items():
                part = f.get_slice(name)
                theirs, ours = (part.get_dtype(), tuple(part.get_shape())), (t.dtype, t.shape)
                if theirs != ours:
                    return (
                        f"{shown(file)}: tensor {shown(name)} is {theirs[0]} {list(theirs[1])} to "
                        f"the safetensors library, expected {ours[0]} {list(ours[1])}"
                    )
            return f.metadata() or {}
    except (SafetensorError, OSError) as e:
        return f"{shown(file)}: the safetensors library: {shown(e)}"
