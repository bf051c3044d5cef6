"""plan.json: damaged, from the future, with odd values; a message each time, never a traceback."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fp8convert import plan as plan_module
from fp8convert import planfile
from fp8convert.convert import prepare, quantize, unshard
from fp8convert.distributed import finalize, read_plan, replanned, run_tasks, write_plan
from fp8convert.errors import Fp8ConvertError, UsageError
from fp8convert.options import Options, Quantize, ShardForTp, ToBf16, Unshard
from fp8convert.planfile import COMMANDS, PlanFile
from fp8convert.settings import Settings

from ..crash import contents, marks
from ..mini import CUT, make_mini

ONE = Settings(workers=1)
Json = Any


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """plan.json of a run that is begun, in a folder with its source; nothing may change there."""
    folder = tmp_path_factory.mktemp("planned")
    job = prepare(make_mini(folder / "src"), folder / "dst", ToBf16(max_shard_size=CUT))
    write_plan(job, folder / "plan.json")
    return folder / "plan.json"


@pytest.fixture(scope="module")
def said(planned: Path) -> dict[str, Json]:
    found: dict[str, Json] = json.loads(planned.read_bytes())
    return found


def asked(path: Path) -> str:
    """What a worker and who ends it are told of a plan that neither can use."""
    told = set()
    for call in (lambda: run_tasks(path, [0], ONE), lambda: finalize(path)):
        with pytest.raises(Fp8ConvertError) as e:
            call()
        assert e.value.exit_code == 1, e.value
        told.add(str(e.value))
    assert len(told) == 1
    return told.pop()


def test_what_is_in_it(said: dict[str, Json], planned: Path) -> None:
    """The fields of docs/distributed.md, in this order; no secret, no clock."""
    assert [*said] == [
        "format", "tool", "plan", "run", "command", "source", "target", "base", "options",
        "bytes_in", "bytes_out", "shards", "tasks", "identity",
    ]  # fmt: skip
    assert (said["format"], said["command"]) == (1, "to-bf16")
    assert (said["source"], said["target"]) == tuple(
        str(planned.with_name(n)) for n in ("src", "dst")
    )
    assert [*said["tasks"][0]] == ["file", "size", "reads", "team"]
    assert os.listdir(planned.parent).count("plan.json") == 1
    umask = os.umask(0)
    os.umask(umask)
    assert planned.stat().st_mode & 0o777 == 0o666 & ~umask


WRONG: list[tuple[str, Callable[[dict[str, Json]], object], str]] = [
    ("the future", lambda d: d.update(format=2), "format '2', expected 1"),
    ("no format", lambda d: d.pop("format"), "format 'None', expected 1"),
    ("a format that is like one", lambda d: d.update(format=True), "format 'True', expected 1"),
    ("another version", lambda d: d.update(tool="fp8convert 99"),
     "planned by 'fp8convert 99', this is"),
    ("no tool", lambda d: d.pop("tool"), "planned by 'None'"),
    ("a field less", lambda d: d.pop("source"), "'source' is missing, or no field"),
    ("a field more", lambda d: d.update(more=1), "'more' is missing, or no field"),
    ("a number", lambda d: d.update(run=1), "run is '1', expected str"),
    ("no number", lambda d: d.update(bytes_in=1.5), "bytes_in is '1.5', expected int"),
    ("a truth", lambda d: d.update(bytes_out=True), "bytes_out is 'True', expected int"),
    ("no list", lambda d: d.update(tasks={}), "tasks is '{}', expected list"),
    ("a command", lambda d: d.update(command="verify"), "'verify', expected one of to-bf16,"),
    ("a relative source", lambda d: d.update(source="src"), "source 'src', expected a path"),
    ("a relative target", lambda d: d.update(target="../dst"), "target '../dst', expected a path"),
    ("no target", lambda d: d.update(target=""), "target '', expected a path"),
    ("a NUL", lambda d: d.update(source="/a\0b"), r"source '/a\x00b', expected a path"),
    ("a base elsewhere", lambda d: d.update(base="s3://bucket/key"), "base 's3://bucket/key'"),
    ("another plan", lambda d: d.update(plan="0" * 64), "not of plan '000000"),
    ("other options", lambda d: d["options"].update(dtype="float16"), "it was changed after"),
    ("another identity", lambda d: d["identity"].update(command="x"), "it was changed after"),
    ("another run", lambda d: d.update(run="run.1." + "0" * 32), "is not of the run that was"),
    ("no run", lambda d: d.update(run=""), "was finished when it was planned"),
    ("another source", lambda d: d.update(source="/nowhere"), "'/nowhere' does not exist"),
    ("another target", lambda d: d.update(target="/nowhere/dst"), "not to be seen from"),
    ("target as source", lambda d: d.update(target=d["source"]), "must not contain each other"),
    ("another scheme", lambda d: d.update(source="ftp://host/x"), "expected a path from the"),
    ("another command", lambda d: d.update(command="unshard"), "are not those of a Unshard"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "edit", "words"), WRONG, ids=[name for name, _, _ in WRONG])
def test_wrong(
    name: str, edit: Callable[[dict[str, Json]], object], words: str, said: dict[str, Json],
    planned: Path, tmp_path: Path,
) -> None:  # fmt: skip
    found = copy.deepcopy(said)
    edit(found)
    (tmp_path / "plan.json").write_text(json.dumps(found))
    before = marks(planned.parent)
    assert words in asked(tmp_path / "plan.json")
    assert marks(planned.parent) == before


def resigned(found: dict[str, Json]) -> dict[str, Json]:
    """A plan that was changed, with the sum that then belongs to it."""
    found["identity"]["options"] = found["options"]
    data = json.dumps(found["identity"], sort_keys=True).encode()
    found["plan"] = hashlib.sha256(data).hexdigest()
    return found


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"dtype": "float16"}, "is not the plan of what is in"),
        ({"dtype": "float8"}, "options: dtype 'float8', expected one of"),
        ({"dtype": ["bfloat16"]}, "options: dtype"),
        ({"strict": "yes"}, "are not those of a ToBf16"),
        ({"strict": None}, "are not those of a ToBf16"),
        ({"more": 1}, "are not those of a ToBf16"),
        ({"max_shard_size": -1}, "options: max_shard_size '-1'"),
        ({"max_shard_size": 1 << 90}, "is not"),
    ],
)
def test_options_that_were_changed_with_their_sum(
    changed: dict[str, Json], words: str, said: dict[str, Json], tmp_path: Path
) -> None:
    """The sum holds against accidents only; what it lets through is refused by what is planned."""
    found = copy.deepcopy(said)
    found["options"].update(changed)
    (tmp_path / "plan.json").write_text(json.dumps(resigned(found)))
    assert words in asked(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not valid JSON at byte 0"),
        (b"[]", "expected"),
        (b'{"format": 1, "format": 1}', "duplicate key 'format'"),
        (b"\x80\x04", "not UTF-8"),
        (b'{"format": NaN}', "NaN is not JSON"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not valid JSON"),
    ],
)
def test_no_plan_at_all(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(data)
    assert words in asked(tmp_path / "plan.json")


def test_places_where_no_plan_is(tmp_path: Path) -> None:
    """Nothing, a folder, a FIFO (no hang), a device, too much."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/dev/zero")
    with open(tmp_path / "large", "wb") as f:
        f.truncate(planfile.MOST_BYTES + 1)
    for name, words in (("none", "is missing"), ("folder", "is a folder"), ("fifo", "is a FIFO"),
                        ("link", "is a device"), ("large", "expected at most"),
                        ("none/plan.json", "is missing")):  # fmt: skip
        assert words in asked(tmp_path / name), name


def test_an_address_of_a_plan() -> None:
    """No file is read by one; it is not looked for as a path."""
    for call in (lambda: run_tasks("s3://b/plan.json", [0], ONE), lambda: finalize("x://plan")):
        with pytest.raises(UsageError, match="is an address, expected the path of a plan file"):
            call()


NAMES = ("a plan", "plan:10:30.json", "a\\b", "-x", "new\nline", "é", "x" * 255, "\udcff")


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_plan(name: str, mini: Path, fast_path: Path) -> None:
    """What can be written can be read: it is the user's own, no checkpoint's."""
    file = write_plan(prepare(mini, fast_path / "dst"), fast_path / name)
    assert read_plan(fast_path / name) == file
    assert len(run_tasks(fast_path / name, [0], ONE)) == 1


def test_a_link_to_a_plan(planned: Path, tmp_path: Path) -> None:
    """Is as good as it."""
    (tmp_path / "plan.json").symlink_to(planned)
    assert read_plan(tmp_path / "plan.json") == read_plan(planned)


def test_another_version_of_the_planner(planned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That says it is the same: its plan is not."""
    monkeypatch.setattr(plan_module, "VERSION", "99")
    told = asked(planned)
    assert "is not the plan of what is in" in told
    assert "fp8convert: " in told
    assert "'99' now" in told


# --- Fuzzed

ODD: list[Json] = [None, True, 0, -1, 1 << 70, 1.5, "", "x", "/", "..", "\0", "\x1b[31m", [], {},
                   [[]], {"": {}}, "hf://a/b", "s3://b/k", "memory://x", "a" * 5000]  # fmt: skip


def places(value: Json, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to everything in a JSON value."""
    yield way
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(
        value, list) else ()  # fmt: skip
    for key, inner in items:
        yield from places(inner, (*way, key))


def mutated(said: dict[str, Json], rng: random.Random) -> dict[str, Json]:
    """One or two places changed, removed, or doubled; sometimes with the sum mended."""
    found = copy.deepcopy(said)
    for _ in range(rng.randint(1, 2)):
        way = rng.choice([w for w in places(found) if w])
        holder = found
        for key in way[:-1]:
            holder = holder[key]
        action = rng.choice(("odd", "odd", "remove", "more"))
        if action == "odd":
            holder[way[-1]] = copy.deepcopy(rng.choice(ODD))
        elif action == "remove":
            del holder[way[-1]]
        elif isinstance(holder, dict):
            holder["more"] = rng.choice(ODD)
    mend = rng.random() < 0.5
    if mend and isinstance(found.get("identity"), dict) and "options" in found:
        resigned(found)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_fuzzed_values(
    seed: int, said: dict[str, Json], planned: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Whatever stands where: refused, or it makes no difference to what is done."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    rng, path, refusals = random.Random(seed), tmp_path / "plan.json", 0
    before = marks(planned.parent)
    local = {"source": said["source"], "target": said["target"]}
    for _ in range(60):
        found = mutated(said, rng)
        if any("://" in str(found.get(name)) for name in local):
            found |= local  # nothing here asks another machine
        path.write_text(json.dumps(found))
        try:
            replanned(path)
        except Fp8ConvertError:
            refusals += 1
    assert refusals > 30
    assert marks(planned.parent) == before


ODD_OPTIONS = [*ODD, [1, 2], ["a"], [None], [128, 128.5], "a\0b", "\ud800", "hf://", "ftp://x"]


@pytest.mark.parametrize("name", ["quantize", "shard-for-tp", "unshard"])
def test_odd_options(
    name: str, tiny_fp8: Path, tiny_bf16: Path, made_ranks: Path, fast_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of every command, with the sum mended: refused, or it makes no difference to the plan."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source, options = {
        "quantize": (tiny_bf16, Quantize(scheme="fp8-block", like=str(tiny_fp8))),
        "shard-for-tp": (tiny_fp8, ShardForTp(tp=2)),
        "unshard": (made_ranks / "ranks", Unshard(config=str(tiny_fp8 / "config.json"))),
    }[name]  # fmt: skip
    path = fast_path / "plan.json"
    write_plan(prepare(source, fast_path / "dst", options), path)
    said, refusals = json.loads(path.read_bytes()), 0
    odd = [(key, value) for key, was in said["options"].items() for value in ODD_OPTIONS
           if json.dumps(value) != json.dumps(was)]  # fmt: skip
    for key, value in odd:
        found = copy.deepcopy(said)
        found["options"][key] = value
        path.write_text(json.dumps(resigned(found)))
        try:
            replanned(path)
        except Fp8ConvertError:
            refusals += 1
    assert refusals > len(odd) * 0.9


@settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_fuzzed_bytes(planned: Path, data: st.DataObject) -> None:
    """Bytes flipped, cut, put in: refused, or the plan that it was."""
    raw = bytearray(planned.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        how = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if how == "flip":
            raw[at] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "cut":
            del raw[at : at + data.draw(st.integers(1, 500))]
        else:
            raw[at:at] = data.draw(st.binary(max_size=4))
    try:
        found = PlanFile.parse(bytes(raw), "plan.json")
    except Fp8ConvertError:
        return
    assert found.identity == read_plan(planned).identity


# --- All commands and options


def test_every_command_and_option_goes_there_and_back(mini: Path, tmp_path: Path) -> None:
    """Options as JSON mean what they meant."""
    some: list[Options] = [
        ToBf16(dtype="float32", strict=True, copy_code=True),
        Quantize(scheme="fp8-block", block=(64, 32), include=("a*",), exclude=("b", "c")),
        Quantize(scheme="int4-group", group=32, require_exact=True),
        ShardForTp(tp=8, ranks=(1, 3), layout="hf", pad_vocab=64, weights="mxfp4"),
        Unshard(tp=4, layout="hf", config="config.json"),
        Unshard(),
    ]
    names = {kind: name for name, kind in COMMANDS.items()}
    assert {type(o) for o in some} == set(COMMANDS.values())
    file = PlanFile.of(prepare(mini, tmp_path / "dst"), "run.1.0")
    for options in some:
        found = json.loads(json.dumps(asdict(options)))
        other = replace(file, command=names[type(options)], options=found)
        assert other.chosen == options


def test_paths_in_options_are_found_from_anywhere(
    made_ranks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--like and --config as they were given: the plan is the same as that of a local run."""
    folder, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(made_ranks, folder)
    monkeypatch.chdir(folder)
    cases = [
        (Quantize(scheme="fp8-block", like="fp8"), "bf16", lambda to: quantize(
            "bf16", to, "fp8-block", like="fp8")),
        (Unshard(config="fp8/config.json"), "ranks", lambda to: unshard(
            "ranks", to, config="fp8/config.json")),
    ]  # fmt: skip
    for options, source, local in cases:
        file = write_plan(prepare(source, "dst", options), elsewhere / "plan.json")
        assert file.base == str(folder)
        with monkeypatch.context() as patch:
            patch.chdir(elsewhere)
            run_tasks("plan.json", range(len(file.tasks)), ONE)
            finalize("plan.json")
        local("other")
        assert contents(Path("other")) == contents(Path("dst"))
        for name in ("dst", "other"):
            shutil.rmtree(name)


@pytest.fixture(scope="module")
def made_ranks(tiny_fp8: Path, tiny_bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both forms of a model, and its ranks without a config."""
    from fp8convert.convert import shard_for_tp

    folder = tmp_path_factory.mktemp("ranks")
    (folder / "fp8").symlink_to(tiny_fp8)
    (folder / "bf16").symlink_to(tiny_bf16)
    shard_for_tp(tiny_fp8, folder / "ranks", 2)
    for path in (folder / "ranks").iterdir():
        if path.suffix != ".safetensors":
            path.unlink()
    return folder
