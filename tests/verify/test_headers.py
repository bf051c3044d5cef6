"""Two readers of headers that disagree: the library's word against what was parsed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fp8convert.folder import Folder
from fp8convert.verify.headers import check_headers
from fp8convert.verify.survey import Survey, survey

from .made import Made

FILE = "model-00001-of-000005.safetensors"


@pytest.fixture
def seen(right: Made) -> Survey:
    return survey(Folder.at(right.output("v3")))


def changed(seen: Survey, **fields: object) -> tuple[str, Survey]:
    """The first tensor of a file read otherwise."""
    tensors = dict(seen.tensors[FILE])
    name = next(iter(tensors))
    tensors[name] = tensors[name]._replace(**fields)  # type: ignore[arg-type]
    return name, replace(seen, tensors={**seen.tensors, FILE: tensors})


def test_alike(seen: Survey) -> None:
    check, metadata = check_headers(seen)
    assert check.passed
    assert check.counts == {"files": 5, "tensors": 383}
    assert metadata == {file: {"format": "pt"} for file in seen.tensors}


@pytest.mark.parametrize(("field", "value"), [("dtype", "I8"), ("shape", (3, 4))])
def test_another_dtype_or_shape(field: str, value: object, seen: Survey) -> None:
    name, other = changed(seen, **{field: value})
    (problem,) = check_headers(other)[0].problems
    assert FILE in problem
    assert name in problem
    assert str(list(value) if isinstance(value, tuple) else value) in problem


def test_another_name(seen: Survey) -> None:
    tensors = dict(seen.tensors[FILE])
    name = next(iter(tensors))
    tensors["other"] = tensors.pop(name)
    (problem,) = check_headers(replace(seen, tensors={FILE: tensors}))[0].problems
    assert f"'{name}', 'other'" in problem or f"'other', '{name}'" in problem
