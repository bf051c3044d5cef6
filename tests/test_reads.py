"""What a task reads of each shard, as its plan says: all of it, and nothing else."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fp8convert
from fp8convert.convert import Job, execute, prepare
from fp8convert.engine import Engine
from fp8convert.options import Options, Quantize, ShardForTp, ToBf16, Unshard
from fp8convert.plan import Task
from fp8convert.samples import FAMILIES, make_sample
from fp8convert.settings import Settings

from .feeding import Strict, feeding
from .quantized.small import SMALL, dealt, tensors_of, write

MIB = 1 << 20


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sources, made when they are first asked for."""
    return tmp_path_factory.mktemp("sources")


def sample(places: Path, family: str, scheme: str = "published") -> Path:
    folder = places / f"{family}-{scheme}"
    if not folder.exists():
        make_sample(str(folder), family, "tiny", scheme)
    return folder


def fused(places: Path) -> Path:
    """Weights that are fused lie in different shards: one scale for all needs all of them."""
    folder = places / "fused"
    return folder if folder.exists() else write(folder, dealt(tensors_of(SMALL), 5))


def ranks(places: Path, layout: str) -> Path:
    folder = places / f"ranks-{layout}"
    if not folder.exists():
        fp8convert.shard_for_tp(sample(places, "deepseek-v3"), folder, 2, layout=layout)
    return folder


def jobs(places: Path) -> Iterator[tuple[str, Job]]:
    """Of all four commands."""
    dst = places / "dst"
    cut = {"max_shard_size": MIB}

    def made(name: str, source: Path, options: Options) -> tuple[str, Job]:
        return name, prepare(source, dst, options)

    for family in FAMILIES:
        yield made(f"to-bf16 {family}", sample(places, family), ToBf16())
    yield made("to-bf16, cut", sample(places, "deepseek-v3"), ToBf16(**cut))
    for scheme in ("nvfp4", "fp8-block", "int4-group"):
        yield made(f"quantize {scheme}", sample(places, "qwen3-fp8"), Quantize(scheme=scheme))
        yield made(f"quantize {scheme}, fused", fused(places), Quantize(scheme=scheme))
    yield made("quantize, cut", fused(places), Quantize(scheme="nvfp4", max_shard_size=50_000))
    plain = sample(places, "deepseek-v3")
    for layout in ("hf", "deepseek"):
        yield made(f"shard-for-tp {layout}", plain, ShardForTp(tp=2, layout=layout))
        yield made(f"unshard {layout}", ranks(places, layout), Unshard())
        yield made(f"unshard {layout} to 1", ranks(places, layout), Unshard(tp=1, layout="hf"))


NAMES = [
    *(f"to-bf16 {family}" for family in FAMILIES), "to-bf16, cut",
    *(f"quantize {scheme}{more}" for scheme in ("nvfp4", "fp8-block", "int4-group")
      for more in ("", ", fused")),
    "quantize, cut",
    *(f"{c} {layout}{more}" for layout in ("hf", "deepseek")
      for c, more in (("shard-for-tp", ""), ("unshard", ""), ("unshard", " to 1"))),
]  # fmt: skip


@pytest.fixture(scope="module")
def every(places: Path) -> dict[str, Job]:
    return dict(jobs(places))


@pytest.fixture(params=NAMES)
def job(request: pytest.FixtureRequest, every: dict[str, Job]) -> Job:
    return every[request.param]


def test_every_job_is_looked_at(every: dict[str, Job]) -> None:
    assert sorted(every) == sorted(NAMES)
    assert {j.plan.command for j in every.values()} == {
        "to-bf16", "quantize", "shard-for-tp", "unshard",
    }  # fmt: skip


# --- By a walk over the plan as JSON


def leaves(part: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """``(shard, begin, end, facts)`` of what a part in JSON is made of, files only."""
    if "pieces" in part:
        for piece in part["pieces"]:
            yield from leaves(piece)
    elif part["shard"] >= 0:
        facts = {k: v for k, v in part.items() if k != "role"}
        yield part["shard"], part["begin"], part["end"], json.dumps(facts, sort_keys=True)


def walked(task: dict[str, Any], parts_of: dict[str, list[dict[str, Any]]]) -> dict[int, int]:
    """Bytes by shard; each stored tensor, or slice of one, is read once."""
    seen = set()
    for tensor in task["tensors"]:
        members = tensor.get("encoded", {}).get("members", [])
        for parts in (tensor["parts"], *(parts_of[name] for name in members)):
            seen |= {leaf for part in parts for leaf in leaves(part)}
    found: Counter[int] = Counter()
    for shard, begin, end, _ in seen:
        found[shard] += end - begin
    return {shard: found[shard] for shard in {shard for shard, *_ in seen}}


def weights_of(tasks: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Parts of every weight that is encoded, by the name of the tensor of its codes."""
    return {
        t["name"].removesuffix("_packed"): t["parts"]
        for task in tasks for t in task["tensors"] if "encoded" in t
    }  # fmt: skip


def test_reads_are_the_parts_of_all_tensors(job: Job) -> None:
    tasks = json.loads(json.dumps([t.to_dict() for t in job.plan.tasks]))
    parts_of = weights_of(tasks)
    for task, said in zip(job.plan.tasks, tasks, strict=True):
        assert task.reads == walked(said, parts_of)
        assert list(task.reads) == sorted(task.reads)
        assert said["reads"] == {str(n): nbytes for n, nbytes in task.reads.items()}


def is_whole(job: Job) -> bool:
    """Whether every task has parts of its own, whole tensors."""
    parts = [p for t in job.plan.tasks for i in t.items for p in i.weight.parts if not i.part]
    shared = any(i.encoding.members for t in job.plan.tasks for i in t.items if i.encoding)
    return (
        not shared and not any(p.pieces or p.run for p in parts) and len(parts) == len(set(parts))
    )


def test_sums_are_the_bytes_of_the_plan(every: dict[str, Job]) -> None:
    whole = {name: job for name, job in every.items() if is_whole(job)}
    for name, job in whole.items():
        assert sum(sum(t.reads.values()) for t in job.plan.tasks) == job.plan.bytes_in, name
    assert len(whole) >= 12
    assert {job.plan.command for job in whole.values()} >= {"to-bf16", "quantize"}


def data_bytes(path: Path) -> dict[str, int]:
    """Of a safetensors file, by tensor."""
    with open(path, "rb") as f:
        (length,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(length))
    header.pop("__metadata__", None)
    return {name: t["data_offsets"][1] - t["data_offsets"][0] for name, t in header.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_byte_of_every_shard_is_read_once(every: dict[str, Job], family: str) -> None:
    """To BF16: of all files, all that means something there, as their headers have it."""
    job = every[f"to-bf16 {family}"]
    found: Counter[int] = Counter()
    for task in job.plan.tasks:
        found.update(task.reads)
    root = Path(job.catalogue.folder.place)
    files = [data_bytes(root / s.name) for s in job.catalogue.shards]
    parts = {p.name for t in job.plan.tasks for i in t.items for p in i.weight.parts}
    assert found == {n: sum(size for name, size in file.items() if name in parts)
                     for n, file in enumerate(files)}  # fmt: skip
    unread = {name: size for file in files for name, size in file.items() if name not in parts}
    assert all("scale" in name and size <= 4 for name, size in unread.items())


def test_partners_are_read_too(every: dict[str, Job]) -> None:
    """One scale for all that is fused: each file's task measures weights of other shards."""
    job = every["quantize nvfp4, fused"]
    own = [{p.shard for i in t.items for p in i.weight.parts} for t in job.plan.tasks]
    more = [set(t.reads) - shards for t, shards in zip(job.plan.tasks, own, strict=True)]
    assert any(more)
    assert not any(set(t.reads) - shards for t, shards in zip(
        every["quantize fp8-block, fused"].plan.tasks, own, strict=True
    ))  # fmt: skip


# --- By running


def test_tasks_read_these_shards_and_no_others(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each alone, as another machine would run it."""
    job = Job(job.catalogue, job.plan, tmp_path / "dst")
    stage = job.stage
    with stage.opened():
        stage.begin(job.catalogue.fingerprint)
        for task in job.plan.tasks:
            with monkeypatch.context() as patch:
                fed = feeding(patch.setattr, Strict)
                Engine(job.catalogue, stage, Settings(workers=1).fitted(job.plan.needs)).run([task])
            assert fed().errors == []
            nonempty = {n for n, nbytes in task.reads.items() if nbytes}
            assert nonempty <= fed().files.keys() <= task.reads.keys()


@pytest.mark.parametrize("broken", ["members", "pieces"])
def test_shards_that_are_not_told_are_missed(
    every: dict[str, Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """A control: who decides scales, and pieces, are to be told."""

    def reads(task: Task) -> dict[int, int]:
        parts = [p for i in task.items for p in i.weight.parts]
        if broken == "pieces":
            parts = [(p.pieces or (p,))[0] for p in parts]
        return {p.shard: p.end - p.begin for p in parts if p.shard >= 0}

    job = every["quantize nvfp4, fused" if broken == "members" else "unshard hf"]
    monkeypatch.setattr(Task, "reads", property(reads))
    fed = feeding(monkeypatch.setattr, Strict)
    stage = Job(job.catalogue, job.plan, tmp_path / "dst").stage
    errors = []
    with stage.opened():
        stage.begin(job.catalogue.fingerprint)
        for task in job.plan.tasks:
            fed = feeding(monkeypatch.setattr, Strict)
            Engine(job.catalogue, stage, Settings(workers=1).fitted(job.plan.needs)).run([task])
            errors += fed().errors
    assert errors


def test_shards_that_nobody_reads_are_not_wanted(
    every: dict[str, Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks that leave the predictor of further tokens out do not need its shard."""
    job = every["shard-for-tp deepseek"]
    wanted = {n for t in job.plan.tasks for n in t.reads}
    left_out = set(range(len(job.catalogue.shards))) - wanted
    assert left_out
    fed = feeding(monkeypatch.setattr, Strict)
    execute(Job(job.catalogue, job.plan, tmp_path / "dst"))
    assert fed().errors == []
    assert not left_out & fed().files.keys()
