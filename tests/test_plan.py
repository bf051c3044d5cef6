"""The plan: pure, deterministic, exact, and enough to know every byte's origin."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from fp8convert.convert import execute, prepare
from fp8convert.engine import Engine
from fp8convert.errors import SchemeError, UsageError
from fp8convert.options import ToBf16
from fp8convert.publish import Staging, opened
from fp8convert.samples import make_sample
from fp8convert.settings import Settings


def plan_of(source: Path, **options: Any) -> dict[str, Any]:
    made: dict[str, Any] = prepare(source, source.parent / "dst", ToBf16(**options)).plan.to_dict()
    return made


def test_same_inputs_same_plan_wherever_the_source_lies(tiny_fp8: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_fp8, tmp_path / "copy")
    os.utime(tmp_path / "copy" / "config.json", (1, 1))
    assert json.dumps(plan_of(tiny_fp8)) == json.dumps(plan_of(tmp_path / "copy"))


@pytest.mark.parametrize(
    "options",
    [{"dtype": "float16"}, {"max_shard_size": 10**6}, {"checksum": "none"}, {"strict": True}],
)
def test_every_option_of_the_plan_changes_its_id(tiny_fp8: Path, options: dict[str, Any]) -> None:
    assert plan_of(tiny_fp8, **options)["id"] != plan_of(tiny_fp8)["id"]


def test_planning_reads_no_tensor_and_writes_nothing(
    tiny_fp8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "src"
    shutil.copytree(tiny_fp8, source)
    for shard in source.glob("*.safetensors"):  # holes instead of data: sizes and headers stay
        head = 8 + int.from_bytes(shard.read_bytes()[:8], "little")
        size = shard.stat().st_size
        os.truncate(shard, head)
        os.truncate(shard, size)
    assert plan_of(source) == plan_of(tiny_fp8)
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


def test_headers_in_the_plan_are_the_bytes_on_disk(tiny_fp8: Path, tmp_path: Path) -> None:
    job = prepare(tiny_fp8, tmp_path / "dst")
    execute(job)
    for task in job.plan.tasks:
        written = (tmp_path / "dst" / task.file).read_bytes()
        assert len(written) == task.size
        assert written[: len(task.header)] == task.header
    for name, text in job.plan.texts.items():
        assert (tmp_path / "dst" / name).read_bytes() == text.encode()
    written_bytes = sum(p.stat().st_size for p in (tmp_path / "dst").iterdir())
    manifest = (tmp_path / "dst" / "manifest.json").stat().st_size
    assert job.plan.bytes_out == written_bytes - manifest


def test_every_stored_byte_is_planned_exactly_once(tiny_fp8: Path) -> None:
    plan = plan_of(tiny_fp8)
    parts = [p for t in plan["tasks"] for w in t["tensors"] for p in w["parts"]]
    stored = prepare(tiny_fp8, tiny_fp8.parent / "dst").catalogue.tensors
    assert sorted(p["name"] for p in parts) == sorted(stored)
    assert plan["bytes_in"] == sum(t.end - t.begin for t in stored.values())


def test_a_plan_is_json_and_says_where_bytes_come_from(tiny_fp8: Path) -> None:
    plan = json.loads(json.dumps(plan_of(tiny_fp8)))
    first = next(t for t in plan["tasks"][1]["tensors"] if t["codec"] == "fp8-block")
    assert first["block"] == [128, 128]
    assert [p["role"] for p in first["parts"]] == ["codes", "scales"]
    assert {"shard", "begin", "end", "dtype", "shape", "name"} <= set(first["parts"][0])
    assert json.loads(plan["tasks"][1]["header"])["__metadata__"] == {"format": "pt"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "fp8"}, "dtype 'fp8', expected one of bfloat16"),
        ({"checksum": "md5"}, "checksum 'md5'"),
        ({"max_shard_size": 0}, "max_shard_size .0."),
    ],
)
def test_options_without_meaning_are_usage_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ToBf16(**options)


def test_full_size_plan_is_exact(tmp_path: Path) -> None:
    """The 671B inventory: every weight planned, none lost, each output byte accounted for."""
    make_sample(tmp_path / "full", size="full")
    job = prepare(tmp_path / "full", tmp_path / "dst")
    plan = job.plan
    weights = [i for t in plan.tasks for i in t.items]
    assert len(plan.tasks) == 163
    assert len(weights) == 46_183
    assert sum(i.weight.codec.coded for i in weights) == 45_808
    assert sum(len(i.weight.parts) for i in weights) == 91_991
    assert sum(i.nbytes for i in weights) == 684_489_845_504 * 2 + 59 * 256 * 2  # F32 biases
    for task in plan.tasks:
        end = len(task.header)
        for item in task.items:
            assert item.begin == end
            end += item.nbytes
        assert end == task.size


def test_a_header_that_no_reader_would_take_is_refused(
    tiny_fp8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fp8convert.planner.header.MAX_HEADER_BYTES", 4096 * 4)
    with pytest.raises(SchemeError, match=r"207 tensors in one .* smaller max_shard"):
        prepare(tiny_fp8, tmp_path / "dst", ToBf16(max_shard_size=10**12))


def test_a_single_task_writes_its_file_and_no_other(tiny_fp8: Path, tmp_path: Path) -> None:
    """A task needs only the plan and its number: what later runs tasks elsewhere."""
    job = prepare(tiny_fp8, tmp_path / "dst")
    staging = Staging(job.target, job.plan)
    with opened(staging):
        staging.begin(job.catalogue.fingerprint)
        (record,) = Engine(job.catalogue, staging, Settings()).run(job.plan.tasks[3:4])
    assert record.file == "model-00004-of-000005.safetensors"
    assert [p.name for p in staging.out.iterdir()] == [record.file]
    execute(prepare(tiny_fp8, tmp_path / "whole"))
    whole = (tmp_path / "whole" / record.file).read_bytes()
    assert (staging.out / record.file).read_bytes() == whole
