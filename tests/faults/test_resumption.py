"""What is not the same run any more is refused, by each of the four commands, and says why."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fp8convert.errors import shown
from fp8convert.options import Options, Quantize, ShardForTp, ToBf16, Unshard
from fp8convert.version import VERSION

from .damages import flipped
from .scenes import COMMANDS, Scenes

ANY = pytest.mark.parametrize("command", COMMANDS)


# --- Other options


class Other(NamedTuple):
    """A resumption with an option that the run did not have."""

    work: str
    option: str
    then: object
    now: object
    more: tuple[str, ...]  # what is added to the command
    begun: tuple[str, ...] | None = None  # the run's options, if not the work's

    @property
    def words(self) -> str:
        """How it is named."""
        return f"options.{self.option}: {shown(self.then)} then, {shown(self.now)} now"


def _everywhere(
    work: str, size: object = 150_000, strict: tuple[str, ...] | None = None
) -> list[Other]:
    """Of the options that every command has. A run with options ``strict`` has no warnings."""
    cut = [Other(work, "max_shard_size", size, 170_000, ("--max-shard-size", "170KB"))]
    return cut * (work != "shard-deepseek") + [
        Other(work, "checksum", "sha256", "none", ("--checksum", "none")),
        Other(work, "copy_code", False, True, ("--copy-code",)),
        Other(work, "strict", False, True, ("--strict",), strict),
    ]


def _encoding(work: str, scheme: tuple[str, ...]) -> list[Other]:
    """Of the options of both commands that encode; ``scheme`` is how they are told which."""
    blocks, groups = ((*scheme, name) for name in ("fp8-block-ue8m0", "int4-group"))
    return [
        Other(work, "block", None, [64, 64], ("--block", "64x64"), blocks),
        Other(work, "scale_dtype", None, "e8m0", ("--scale-dtype", "e8m0"), blocks),
        Other(work, "group", None, 32, ("--group", "32"), groups),
        Other(work, "scale_search", "plain", "mse", ("--scale-search", "mse"), blocks),
        Other(work, "include", [], ["*.mlp.*"], ("--include", "*.mlp.*"), blocks),
        Other(work, "exclude", [], ["*.0.*"], ("--exclude", "*.0.*"), blocks),
        Other(work, "require_exact", False, True, ("--require-exact",), blocks),
    ]


RANKS = ("--tp", "2", "--layout", "hf")
OTHERS = {
    ToBf16: [
        Other("to-bf16", "dtype", "bfloat16", "float32", ("--dtype", "float32")),
        *_everywhere("to-bf16"),
    ],
    Quantize: [
        Other("quantize-nvfp4", "scheme", "nvfp4", "mxfp4", ("--scheme", "mxfp4")),
        *_encoding("quantize", ("--scheme",)),
        *_everywhere("quantize", strict=("--scheme", "fp8-channel")),
    ],
    ShardForTp: [
        Other("shard-hf", "tp", 2, 1, ("--tp", "1")),
        Other("shard-hf", "layout", "hf", "deepseek", ("--layout", "deepseek")),
        Other("shard-hf", "weights", "keep", "bf16", ("--weights", "bf16")),
        Other("shard-deepseek", "mtp", None, "drop", ("--mtp", "drop")),
        Other("shard-hf", "ranks", None, [1], ("--ranks", "1")),
        Other("shard-hf", "misaligned", "error", "bf16", ("--misaligned", "bf16")),
        Other("shard-hf", "experts", "owner", "cut", ("--experts", "cut", "--misaligned", "bf16")),
        Other("shard-hf", "pad_vocab", None, 64, ("--pad-vocab", "64")),
        Other("shard-hf", "n_experts", None, 4, ("--n-experts", "4")),
        *_encoding("shard-hf", (*RANKS, "--misaligned", "bf16", "--weights")),
        *_everywhere("shard-hf", None),
    ],
    Unshard: [
        Other("unshard-hf", "tp", None, 1, ("--tp", "1")),
        Other("unshard-hf", "layout", None, "deepseek", ("--tp", "2", "--layout", "deepseek")),
        *_everywhere("unshard-hf", None),
    ],
}  # fmt: skip
PATHS = {"like", "config"}  # options that name a path: a test of their own


@pytest.mark.parametrize("kind", OTHERS, ids=lambda kind: kind.__name__)
def test_every_option_is_in_the_table(kind: type[Options]) -> None:
    assert {o.option for o in OTHERS[kind]} == {f.name for f in dataclasses.fields(kind)} - PATHS


def _named(other: Other) -> str:
    return f"{other.work} {other.option}"


@pytest.mark.parametrize("other", [o for found in OTHERS.values() for o in found], ids=_named)
def test_other_options(scenes: Scenes, other: Other) -> None:
    """Named with both values."""
    scenes.killed(other.work, other.begun).refused([other.words], *other.more)


@pytest.mark.parametrize(("work", "option"), [("quantize", "like"), ("shard-hf", "like"),
                                              ("unshard-deepseek", "config")])  # fmt: skip
def test_other_paths(scenes: Scenes, work: str, option: str) -> None:
    path = scenes.lab.fp8 / ("config.json" if option == "config" else "")
    begun = (*RANKS, "--weights", "fp8-block", "--misaligned", "bf16")
    scene = scenes.killed(work, begun if work == "shard-hf" else None)
    words = f"options.{option}: 'None' then, {shown(path)} now"
    scene.refused([words], f"--{option}", path)


@pytest.mark.parametrize("other", [found[0] for found in OTHERS.values()], ids=_named)
def test_other_options_of_a_finished_target(scenes: Scenes, other: Other) -> None:
    words = ["exists and is not empty: it was made by another plan", other.words]
    scenes.finished(other.work).refused(words, *other.more)


def test_another_command(scenes: Scenes) -> None:
    scene = scenes.killed("to-bf16")
    scene.work = scenes.lab.by_name["quantize-nvfp4"]
    scene.refused(["command: 'to-bf16' then, 'quantize' now"])


@ANY
def test_another_version(scenes: Scenes, command: str) -> None:
    words = [f"fp8convert: '{VERSION}' then, '99.0' now"]
    scenes.killed(command).refused(words, tamper=("breaks:version", "99.0"))
    scenes.finished(command).refused(words, tamper=("breaks:version", "99.0"))


@ANY
def test_other_settings_are_no_other_run(scenes: Scenes, command: str) -> None:
    """Threads, memory and I/O decide no byte."""
    scene = scenes.killed(command)
    ended = scene.run("--workers", 3, "--memory", "300MiB", "--io", "buffered")
    assert (ended.code, scene.work.ended_right(scene.target)) == (0, True), ended


# --- Another source


def _shard(source: Path) -> Path:
    return sorted(source.rglob("*.safetensors"))[-1]


def later(source: Path) -> str:
    """The time of a shard."""
    state = (shard := _shard(source)).stat()
    os.utime(shard, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    name = shard.relative_to(source).as_posix()
    return f"{name}.mtime_ns: '{state.st_mtime_ns}' then, '{state.st_mtime_ns + 1}' now"


def other_weights(source: Path) -> str:
    """One bit of a shard, written as any program would."""
    shard = _shard(source)
    shard.write_bytes(flipped(shard.read_bytes(), -1))
    return f"{shard.relative_to(source).as_posix()}.mtime_ns: '"


def other_header(source: Path) -> str:
    """A word in a shard's header; the old time and size."""
    state = (shard := _shard(source)).stat()
    data = shard.read_bytes()
    assert data.count(b'"pt"') == 1
    shard.write_bytes(data.replace(b'"pt"', b'"tp"'))
    os.utime(shard, ns=(state.st_atime_ns, state.st_mtime_ns))
    return f"source.{shard.relative_to(source).as_posix()}.header_sha256: '"


def other_config(source: Path) -> str:
    """Another number in the model's config."""
    for path in source.rglob("config.json"):
        config = json.loads(path.read_bytes())
        path.write_text(json.dumps({**config, "max_position_embeddings": 1234}))
    return "config.json: '"


def other_companion(source: Path) -> str:
    """A longer licence."""
    for path in source.rglob("LICENSE"):
        path.write_bytes(path.read_bytes() + b"2\n")
    return "LICENSE: '"


SOURCES = (later, other_weights, other_header, other_config, other_companion)


@ANY
@pytest.mark.parametrize("change", SOURCES)
def test_another_source(scenes: Scenes, command: str, change: Callable[[Path], str]) -> None:
    """Refused whether the target is finished or not; the same source elsewhere is no other."""
    scene, finished = scenes.killed(command), scenes.finished(command)
    source = scene.copied()
    words = change(source)
    scene.refused([words], source=source)
    finished.refused(["it was made by another plan", words], source=source)


@ANY
def test_the_same_source_elsewhere(scenes: Scenes, command: str) -> None:
    scene = scenes.killed(command)
    ended = scene.run(source=scene.copied())
    assert (ended.code, scene.work.ended_right(scene.target)) == (0, True), ended


# --- Another job


@ANY
def test_the_job_of_another_plan(scenes: Scenes, command: str) -> None:
    """Every field that differs is named."""
    scene = scenes.killed(command)
    path = scene.state / "job.json"
    job: dict[str, Any] = json.loads(path.read_text())
    job["identity"]["options"]["strict"] = True
    job["identity"]["plan_format"] = 0
    path.write_text(json.dumps(job))
    scene.refused(["options.strict: 'True' then, 'False' now", "plan_format: '0' then, "])
    for text in ("{}", "[]", "1"):
        path.write_text(text)
        scene.refused(["an unfinished run in", "is not this one", "plan_format: 'None' then, "])
