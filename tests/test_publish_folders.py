"""Files that lie in folders of the target or the source: the same promises as for flat ones."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fp8convert import convert, durable
from fp8convert.convert import prepare, to_bf16
from fp8convert.errors import FormatError, ResumableError, TargetError
from fp8convert.journal import Record, record_name
from fp8convert.options import ToBf16
from fp8convert.plan import Copy, Plan
from fp8convert.publish import JOB, Staging, opened
from fp8convert.seal import sealed
from fp8convert.target import MANIFEST

from .crash import CHANGES, FailAt, Forker, contents, kept, marks, nothing, real, state_of, trace
from .mini import CUT, SOURCE
from .nested import FILES, ODD, RANKS, SAME, nest, nested, tree
from .privileges import bound_by_modes

IN_FOLDERS = ["config.json", "model.safetensors.index.json", "LICENSE", "tokenizer.json", SAME]
EVERY = sorted([*(f"{rank}/{n}" for rank in RANKS for n in IN_FOLDERS), "LICENSE", SAME,
                "tp.json", MANIFEST])  # fmt: skip


@pytest.fixture(scope="module")
def plan(flat: Plan) -> Plan:
    return nested(flat)


@pytest.fixture
def nesting(monkeypatch: pytest.MonkeyPatch) -> None:
    """All conversions of the test put their files into folders."""
    nest(monkeypatch.setattr)


@pytest.fixture
def staging(fast_path: Path, plan: Plan) -> Iterator[Staging]:
    """A locked and begun staging folder."""
    made = Staging(fast_path / "dst", plan)
    with opened(made):
        made.begin(SOURCE)
        yield made


def again(staging: Staging) -> Staging:
    """Another process's view of the same target, same plan; the first one has ended."""
    staging.fence.let_go()
    return Staging(staging.target, staging.plan)


def finish_task(staging: Staging, number: int) -> Record:
    """Put a file in place of task ``number`` and journal it."""
    task = staging.plan.tasks[number]
    (staging.out / task.file).write_bytes(bytes(task.size))
    record = Record(task.file, task.size, "0" * 64, {}, {})
    staging.record(record)
    return record


def finish_all(staging: Staging) -> dict[str, Any]:
    records = [finish_task(staging, n) for n in range(len(staging.plan.tasks))]
    return {"files": [{"name": r.file, "size": r.size} for r in records]}


def run(src: Path, dst: Path, **options: Any) -> convert.Manifest:
    return to_bf16(src, dst, **{"max_shard_size": CUT, "workers": 1, **options})


# --- What stands there at the end


@pytest.fixture(scope="module")
def undisturbed(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What every run of mini must end with."""
    dst = tmp_path_factory.mktemp("undisturbed") / "dst"
    with pytest.MonkeyPatch.context() as patch:
        nest(patch.setattr)
        run(mini, dst)
    return tree(dst)


def test_the_files_are_those_of_the_flat_plan(
    mini: Path, fast_path: Path, undisturbed: dict[str, bytes], flat: Plan
) -> None:
    assert sorted(undisturbed) == EVERY
    run(mini, fast_path / "flat")
    files = contents(fast_path / "flat")
    for file, task in zip(FILES, flat.tasks, strict=True):
        assert undisturbed[file] == files[task.file]
    for rank in RANKS:
        for name in ("LICENSE", "tokenizer.json", *flat.texts):
            assert undisturbed[f"{rank}/{name}"] == files[name]
    assert undisturbed["LICENSE"] == (mini / "LICENSE").read_bytes()


def test_the_manifest_names_them_with_their_folders(undisturbed: dict[str, bytes]) -> None:
    manifest = json.loads(undisturbed[MANIFEST])
    sizes = {f["name"]: f["size"] for f in manifest["files"]}
    assert sizes == {n: len(data) for n, data in undisturbed.items() if n != MANIFEST}
    assert len({f["sha256"] for f in manifest["files"][: len(FILES)]}) == len(FILES)


def test_several_workers_write_the_same(
    mini: Path, fast_path: Path, undisturbed: dict[str, bytes], nesting: None
) -> None:
    run(mini, fast_path / "dst", workers=3)
    assert tree(fast_path / "dst") == undisturbed


def test_modes_follow_the_umask(mini: Path, fast_path: Path, nesting: None) -> None:
    before = os.umask(0o027)
    try:
        run(mini, fast_path / "dst")
    finally:
        os.umask(before)
    for path in (fast_path / "dst").rglob("*"):
        assert path.stat().st_mode & 0o7777 == (0o750 if path.is_dir() else 0o640)


# --- Copies


def test_a_copy_goes_to_its_target(flat: Plan, plan: Plan) -> None:
    assert Copy("a", 1).file == Copy("rank0/a", 1, "a").file == "a"
    sizes = {"LICENSE": 4, "tokenizer.json": 13}
    wanted = {f"{rank}/{name}": size for rank in RANKS for name, size in sizes.items()}
    assert plan.identity["copies"] == {**wanted, "LICENSE": 4}
    assert plan.to_dict()["copies"] == plan.identity["copies"]
    assert flat.identity["copies"] == sizes
    json.dumps(plan.to_dict())


def test_every_copy_counts(plan: Plan, undisturbed: dict[str, bytes]) -> None:
    assert plan.bytes_out == sum(len(d) for n, d in undisturbed.items() if n != MANIFEST)


def test_plans_that_copy_elsewhere_are_not_the_same(flat: Plan) -> None:
    moved = dataclasses.replace(
        flat, copies=tuple(Copy(*c[:2], f"x/{c.name}") for c in flat.copies)
    )
    same = dataclasses.replace(flat, copies=tuple(Copy(*c[:2]) for c in flat.copies))
    assert moved.id != flat.id == same.id


@pytest.mark.parametrize("by", [-1, 1])
def test_a_companion_that_changed(
    mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch, by: int
) -> None:
    src = Path(shutil.copytree(mini, fast_path / "src"))
    nest(monkeypatch.setattr)
    job = convert.prepare(src, fast_path / "dst", ToBf16(max_shard_size=CUT))
    os.truncate(src / "tokenizer.json", 13 + by)
    with pytest.raises(FormatError, match=r"'tokenizer\.json'"):
        convert.execute(job)
    assert not (fast_path / "dst").exists()


# --- Names


def with_name(plan: Plan, kind: str, name: str) -> Plan:
    """``plan`` with one more or another file, so called."""
    if kind == "copy":
        return dataclasses.replace(plan, copies=(*plan.copies, Copy("LICENSE", 4, name)))
    if kind == "text":
        return dataclasses.replace(plan, texts={**plan.texts, name: "{}"})
    tasks = (dataclasses.replace(plan.tasks[0], file=name), *plan.tasks[1:])
    return dataclasses.replace(plan, tasks=tasks)


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("kind", ["copy", "text", "task"])
def test_odd_names_are_refused(plan: Plan, fast_path: Path, kind: str, name: str) -> None:
    if kind == "copy" and not name:
        return  # goes to where its own name says
    with pytest.raises(FormatError, match="is not a plain file name, or one in a folder"):
        Staging(fast_path / "dst", with_name(plan, kind, name))
    assert not os.listdir(fast_path)


def test_odd_names_are_refused_before_anything_is_made(
    mini: Path, fast_path: Path, plan: Plan
) -> None:
    job = prepare(mini, fast_path / "a" / "dst", ToBf16(max_shard_size=CUT))
    job = dataclasses.replace(job, plan=with_name(plan, "text", "../mine"))
    with pytest.raises(FormatError, match="is not a plain file name"):
        convert.execute(job)
    assert not os.listdir(fast_path)


@pytest.mark.parametrize("name", [MANIFEST, "rank0/config.json", "LICENSE", "rank0", SAME])
def test_one_name_for_two_is_refused(plan: Plan, fast_path: Path, name: str) -> None:
    """Of two files, or of a file and a folder: the second would overwrite the first."""
    with pytest.raises(TargetError, match=rf"'{name}': expected one file, or one folder"):
        Staging(fast_path / "dst", with_name(plan, "copy", name))


def test_a_manifest_in_a_folder_is_a_file_like_any_other(plan: Plan, fast_path: Path) -> None:
    Staging(fast_path / "dst", with_name(plan, "text", f"rank0/{MANIFEST}"))


def test_records_have_names_of_their_own(staging: Staging) -> None:
    """Three files of one name, and one that is called as a record is."""
    odd = (staging.journal / record_name("rank0/x")).name
    files = [*FILES, "rank0/x", odd, odd.removesuffix(".json"), "rank0", "rank0x", "rank0%2Fx"]
    paths = {(staging.journal / record_name(file)) for file in files}
    assert len(paths) == len(set(files))
    assert {p.parent for p in paths} == {staging.journal}
    assert (
        staging.journal / record_name(SAME)
    ).name == f"{SAME}.json"  # as in states of older versions


def test_names_of_records_are_short_enough(fast_path: Path, plan: Plan) -> None:
    """With the longest folder and file, and what a temporary name adds."""
    made = Staging(fast_path / "dst", with_name(plan, "task", f"{'d' * 255}/{'f' * 200}"))
    with opened(made):
        made.begin(SOURCE)
        record = finish_task(made, 0)
        assert made.recorded(made.plan.tasks[0]) == record


# --- Beginning, going on, sweeping


def test_begin_makes_the_folders(staging: Staging) -> None:
    assert sorted(os.listdir(staging.out)) == list(RANKS)


def test_begin_again_keeps_what_is_journaled(staging: Staging) -> None:
    records = [finish_task(staging, n) for n in (1, 2)]
    before = kept(staging.state)
    other = again(staging)
    other.begin(SOURCE)
    assert [other.recorded(t) for t in other.plan.tasks] == [None, *records]
    assert kept(staging.state) == before


def test_a_record_is_of_its_own_folder(staging: Staging) -> None:
    """Two files of one name and one size: the record of one does not vouch for the other."""
    finish_task(staging, 0)
    tasks = staging.plan.tasks
    one, two = ((staging.journal / record_name(t.file)) for t in tasks[:2])
    shutil.copy(staging.out / tasks[0].file, staging.out / tasks[1].file)
    shutil.copy(one, two)
    other = (tasks[0], dataclasses.replace(tasks[0], file=tasks[1].file), tasks[2])
    same_size = Staging(staging.target, dataclasses.replace(staging.plan, tasks=other))
    assert [bool(same_size.recorded(t)) for t in other[:2]] == [True, False]


def test_the_journal_of_the_flat_plan_is_another_run(staging: Staging, flat: Plan) -> None:
    with pytest.raises(TargetError, match="is not this one") as e:
        Staging(staging.target, flat).begin(SOURCE)
    assert "copies.rank0/LICENSE: '4' then, 'None' now" in str(e.value)


def test_begin_sweeps_the_folders_too(staging: Staging) -> None:
    record = finish_task(staging, 0)
    kept = marks(staging.state)
    unjournaled = staging.plan.tasks[1]
    (staging.out / unjournaled.file).write_bytes(bytes(unjournaled.size))
    for folder in staging.folders:
        staging.temporary(folder, SAME).write_bytes(b"x")
        (folder / "stranger").write_bytes(b"x")
        (folder / "config.json").write_text("{}")
    (staging.folders[1] / "link").symlink_to("nowhere")
    (staging.journal / record_name(unjournaled.file)).write_text("")
    again(staging).begin(SOURCE)
    assert kept.keys() == marks(staging.state).keys()
    assert staging.recorded(staging.plan.tasks[0]) == record


def test_the_sweep_follows_no_link(staging: Staging) -> None:
    """In the place of a folder it would lead to files that are not ours."""
    finish_all(staging)
    elsewhere = staging.target.with_name("elsewhere")
    os.rename(staging.folders[0], elsewhere)
    (elsewhere / "mine").write_text("mine")
    staging.folders[0].symlink_to(elsewhere)
    before = marks(elsewhere)
    other = again(staging)
    other.begin(SOURCE)
    assert marks(elsewhere) == before
    assert not staging.folders[0].is_symlink()
    assert not os.listdir(staging.folders[0])
    assert [bool(other.recorded(t)) for t in other.plan.tasks] == [False, True, True]


def test_a_file_in_the_place_of_a_folder(staging: Staging) -> None:
    finish_all(staging)
    shutil.rmtree(staging.folders[1])
    staging.folders[1].write_text("x")
    again(staging).begin(SOURCE)
    assert [bool(staging.recorded(t)) for t in staging.plan.tasks] == [True, False, True]
    assert staging.folders[1].is_dir()


def test_a_folder_that_is_gone(staging: Staging) -> None:
    finish_all(staging)
    shutil.rmtree(staging.folders[1])
    assert staging.recorded(staging.plan.tasks[1]) is None
    again(staging).begin(SOURCE)
    assert staging.folders[1].is_dir()


def test_begin_after_the_target_was_moved_away(staging: Staging) -> None:
    finish_all(staging)
    os.rename(staging.out, staging.target.with_name("elsewhere"))
    again(staging).begin(SOURCE)
    assert not os.listdir(staging.journal)
    assert [os.listdir(f) for f in staging.folders] == [[], []]


@pytest.mark.parametrize("text", ["", "{"])
def test_begin_with_a_damaged_job(staging: Staging, text: str) -> None:
    finish_all(staging)
    (staging.state / JOB).write_text(text)
    again(staging).begin(SOURCE)
    assert not os.listdir(staging.journal)
    assert [os.listdir(f) for f in staging.folders] == [[], []]


# --- Committing


def test_commit(staging: Staging) -> None:
    staging.commit(finish_all(staging))
    assert sorted(tree(staging.target)) == sorted([*FILES, MANIFEST])
    assert os.listdir(staging.target.parent) == ["dst"]


def stranger(out: Path) -> None:
    (out / "rank1" / "stranger").write_text("x")


def odd_folder(out: Path) -> None:
    (out / "rank1" / "stranger").mkdir()


def other_folder(out: Path) -> None:
    (out / "rank2").mkdir()


def missing(out: Path) -> None:
    (out / FILES[1]).unlink()


def misplaced(out: Path) -> None:
    os.rename(out / FILES[1], out / "rank1.safetensors")


def shorter(out: Path) -> None:
    os.truncate(out / FILES[1], 5)


def folderless(out: Path) -> None:
    shutil.rmtree(out / "rank1")


def hidden_manifest(out: Path) -> None:
    """Only the one at the top is ours."""
    (out / "rank1" / MANIFEST).write_text("{}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (stranger, "rank1/stranger: 'None' then, '1' now"),
        (odd_folder, "rank1/stranger: 'None' then"),
        (other_folder, "rank2: 'None' then"),
        (missing, f"{FILES[1]}: '[0-9]+' then, 'None' now"),
        (misplaced, f"{FILES[1]}: '[0-9]+' then, 'None' now"),
        (shorter, f"{FILES[1]}: '[0-9]+' then, '5' now"),
        (hidden_manifest, f"rank1/{MANIFEST}: 'None' then, '2' now"),
    ],
)
def test_commit_of_something_else(
    staging: Staging, change: Callable[[Path], None], words: str
) -> None:
    manifest = finish_all(staging)
    change(staging.out)
    with pytest.raises(TargetError, match=words):
        staging.commit(manifest)
    assert not staging.target.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (missing, f"{FILES[1]}: '[0-9]+' then, 'None' now"),
        (misplaced, f"{FILES[1]}: '[0-9]+' then, 'None' now"),
        (shorter, f"{FILES[1]}: '[0-9]+' then, '5' now"),
        (folderless, f"{FILES[1]}: '[0-9]+' then, 'None' now"),
        (stranger, None),
        (odd_folder, None),
        (other_folder, None),
        (hidden_manifest, None),
    ],
)
def test_finished_and_then_changed(
    mini: Path, fast_path: Path, nesting: None, change: Callable[[Path], None], words: str | None
) -> None:
    """More may have come to lie there, nothing else may have changed."""
    run(mini, fast_path / "dst")
    change(fast_path / "dst")
    before = marks(fast_path)
    if words is None:
        assert run(mini, fast_path / "dst").already_done
    else:
        with pytest.raises(TargetError, match=words):
            run(mini, fast_path / "dst")
    assert marks(fast_path) == before


@pytest.mark.parametrize("name", ["../mine", "rank0/../../mine", "/mine", "rank0/a/b", 5, None])
def test_a_manifest_is_not_believed(mini: Path, fast_path: Path, nesting: None, name: Any) -> None:
    """It names files of a target only; what it says of others is not looked for."""
    run(mini, fast_path / "dst")
    (fast_path / "mine").write_text("m")
    manifest = json.loads((fast_path / "dst" / MANIFEST).read_bytes())
    manifest["files"].append({"name": name, "size": 1})
    (fast_path / "dst" / MANIFEST).write_bytes(sealed(manifest))
    with pytest.raises(TargetError, match="'1' then, 'None' now"):
        run(mini, fast_path / "dst")


# --- The order of the steps


@pytest.fixture
def steps(
    mini: Path, fast_path: Path, nesting: None, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, ...]]:
    """Every call of a whole run that changes something, with paths for descriptors."""
    if not os.path.exists("/proc/self/fd"):
        pytest.skip("no /proc to tell a descriptor's path")
    found: list[tuple[str, ...]] = []

    def before(name: str, args: tuple[Any, ...]) -> None:
        fd = isinstance(args[0], int)
        where = [os.readlink(f"/proc/self/fd/{args[0]}") if fd else real(args[0])]
        if name in ("replace", "rename"):
            where.append(real(args[1]))
        found.append((name, *where))

    with monkeypatch.context() as patch:
        trace(patch.setattr, CHANGES, before, nothing)
        run(mini, fast_path / "dst")
    return found


def test_folders_are_there_for_good_before_the_job(
    steps: list[tuple[str, ...]], fast_path: Path
) -> None:
    state = fast_path / ".dst.fp8convert"
    job = next(n for n, s in enumerate(steps) if s[0] == "replace" and s[2] == str(state / JOB))
    for rank in RANKS:
        made = steps.index(("mkdir", str(state / "out" / rank)))
        assert steps[made + 1] == ("fsync", str(state / "out"))
        assert made < job


def test_temporaries_lie_beside_their_files(steps: list[tuple[str, ...]]) -> None:
    """In another folder the rename would make two folders' names durable, one fsync does one."""
    renames = [(n, *s[1:]) for n, s in enumerate(steps) if s[0] == "replace"]
    finals = [Path(final) for _, _, final in renames]
    assert sum(f.parent.name in RANKS for f in finals) == 2 * len(IN_FOLDERS)
    for at, temporary, final in renames:
        assert Path(temporary).parent == Path(final).parent
        assert [s[0] for s in steps[:at] if s[1] == temporary][-1] == "fsync"
        assert steps[at + 1] == ("fsync", str(Path(final).parent))


def test_files_then_records_then_the_rest(steps: list[tuple[str, ...]], fast_path: Path) -> None:
    state = fast_path / ".dst.fp8convert"
    finals = [Path(s[2]).relative_to(state) for s in steps if s[0] == "replace"]
    expected = [f for file in FILES for f in (Path("out", file), None)]
    assert [f if f.parts[0] == "out" else None for f in finals[1 : 1 + 2 * len(FILES)]] == expected
    assert {f.parts[0] for f in finals[1 + 2 * len(FILES) :]} == {"out"}
    assert finals[-1] == Path("out", MANIFEST)


def test_every_folder_is_synced_before_the_last_rename(
    steps: list[tuple[str, ...]], fast_path: Path
) -> None:
    out = fast_path / ".dst.fp8convert" / "out"
    (last,) = [n for n, s in enumerate(steps) if s[0] == "rename"]
    manifest = [n for n, s in enumerate(steps) if s[0] == "replace"][-1]
    begun = [
        n for n, s in enumerate(steps) if s[0] == "open" and Path(s[1]).name.startswith(MANIFEST)
    ]
    synced = {steps[n] for n in range(begun[0] - len(RANKS), begun[0])}
    assert synced == {("fsync", str(out / rank)) for rank in RANKS}
    assert steps[manifest + 1 : last] == [("fsync", str(out))]
    assert steps[last] == ("rename", str(out), str(fast_path / "dst"))


# --- Killed, failing, without resources


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    made = Forker()
    yield made
    made.close()


def forked(forker: Forker, src: Path, dst: Path, *tamper: object) -> int:
    words = ["to-bf16", src, dst, "--max-shard-size", CUT, "--workers", 1]
    ended = forker.run(*words, tamper=("in_folders", *tamper))
    assert ended.code in (0, 75, -signal.SIGKILL), ended
    return ended.code


def test_killed_at_every_step(
    mini: Path, fast_path: Path, forker: Forker, undisturbed: dict[str, bytes]
) -> None:
    """Before each call that changes the disk; some resumptions are killed too, at a random one."""
    rng, n = random.Random(1), 0
    left: set[str] = set()
    while True:
        n += 1
        dst = fast_path / f"{n}" / "dst"
        code = forked(forker, mini, dst, "signal_at", n, signal.SIGKILL)
        if code == 0:
            break
        assert not dst.exists() or tree(dst) == undisturbed
        left |= {p.parent.name for p in dst.parent.rglob("*.tmp")}
        if n % 3 == 0:
            forked(forker, mini, dst, "signal_at", rng.randint(1, 105), signal.SIGKILL)
        assert forked(forker, mini, dst, "slow", 0) == 0
        assert tree(dst) == undisturbed
        assert os.listdir(dst.parent) == ["dst"]
        shutil.rmtree(dst.parent)
    assert n > 100  # it really was killed at that many steps
    assert left >= {*RANKS, "out", "journal"}


@pytest.mark.parametrize("late", [False, True])
def test_every_call_fails_once(
    mini: Path, fast_path: Path, undisturbed: dict[str, bytes], nesting: None, late: bool
) -> None:
    """EIO from each call that changes the disk, or right after it was done all the same."""
    failed: dict[str, int] = {}
    n = 0
    while True:
        n += 1
        dst, fail = fast_path / f"{n}" / "dst", FailAt(n)
        with pytest.MonkeyPatch.context() as patch:
            trace(patch.setattr, CHANGES, *((nothing, fail) if late else (fail, nothing)))
            error = attempt(mini, dst)
        if error:
            assert "Input/output error" in str(error)
            assert not dst.exists() or tree(dst) == undisturbed
            assert fail.failed == "open" or not list(dst.parent.rglob("*.tmp"))
        else:
            assert fail.failed in ("", "unlink", "rmdir") or (late and fail.failed == "mkdir")
            assert tree(dst) == undisturbed
        if not fail.failed:
            break
        failed[fail.failed] = failed.get(fail.failed, 0) + 1
        run(mini, dst)
        assert tree(dst) == undisturbed
        assert os.listdir(dst.parent) == ["dst"]
        shutil.rmtree(dst.parent)
    assert set(failed) == set(CHANGES)
    assert failed["fsync"] > 40
    assert failed["mkdir"] >= len(RANKS) + 3


@pytest.mark.parametrize(
    ("name", "code"),
    [("mkdir", errno.EROFS), ("mkdir", errno.EACCES), ("mkdir", errno.ENOSPC),
     ("fsync", errno.ENOSPC), ("pwritev", errno.ENOSPC), ("posix_fallocate", errno.EDQUOT)],
)  # fmt: skip
def test_resources_run_out(
    mini: Path, fast_path: Path, undisturbed: dict[str, bytes], nesting: None, name: str, code: int
) -> None:
    for n in (1, 2, 4, 5):
        dst, calls = fast_path / f"{n}" / "dst", 0

        def fail(called: str, args: tuple[Any, ...], first: int = n) -> None:
            nonlocal calls
            calls += 1
            if calls >= first:
                raise OSError(code, os.strerror(code))

        with pytest.MonkeyPatch.context() as patch:
            trace(patch.setattr, (name,), fail, nothing)
            error = attempt(mini, dst, workers=3)
        assert bool(error) == (calls >= n)
        assert not (error and dst.exists())
        assert not list(fast_path.rglob("*.tmp"))
        run(mini, dst)
        assert tree(dst) == undisturbed


def attempt(src: Path, dst: Path, **options: Any) -> ResumableError | None:
    """The error a run ended with, if it did."""
    try:
        run(src, dst, **options)
    except ResumableError as e:
        return e
    return None


def unfinished(src: Path, dst: Path) -> Path:
    """Have a run fail when all tensors are journaled; what is to become the target."""

    def fail(self: Any, name: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Staging, "put_bytes", fail)
        with pytest.raises(ResumableError, match="No space left"):
            run(src, dst)
    out = state_of(dst) / "out"
    assert sorted(tree(out)) == sorted(FILES)
    assert len(os.listdir(state_of(dst) / "journal")) == len(FILES)
    return out


def test_a_foreign_file_does_not_get_into_the_target(
    mini: Path, fast_path: Path, undisturbed: dict[str, bytes], nesting: None, written: list[str]
) -> None:
    out = unfinished(mini, fast_path / "dst")
    written.clear()
    (out / "rank0" / "mine").write_text("mine")
    run(mini, fast_path / "dst")
    assert written == []
    assert tree(fast_path / "dst") == undisturbed


def test_a_foreign_file_that_comes_while_it_runs(
    mini: Path, fast_path: Path, undisturbed: dict[str, bytes], nesting: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Refused at the last moment; the next run sweeps it."""
    real = Staging.put_bytes

    def put(self: Staging, name: str, data: bytes) -> dict[str, Any]:
        (self.out / "rank0" / "mine").write_text("mine")
        return real(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Staging, "put_bytes", put)
        with pytest.raises(TargetError, match="rank0/mine: 'None' then, '4' now"):
            run(mini, fast_path / "dst")
    assert not (fast_path / "dst").exists()
    run(mini, fast_path / "dst")
    assert tree(fast_path / "dst") == undisturbed


def test_a_folder_that_is_not_empty_or_ours(mini: Path, fast_path: Path, nesting: None) -> None:
    """A folder within a folder of ours is nobody's leftover: it is not removed with all it has."""
    out = unfinished(mini, fast_path / "dst")
    (out / "rank0" / "deep").mkdir()
    (out / "rank0" / "deep" / "mine").write_text("mine")
    with pytest.raises(ResumableError, match="deep"):
        run(mini, fast_path / "dst")
    assert (out / "rank0" / "deep" / "mine").read_text() == "mine"


def test_a_folder_is_read_only(
    mini: Path, fast_path: Path, undisturbed: dict[str, bytes], nesting: None
) -> None:
    out = unfinished(mini, fast_path / "dst")
    (out / "rank1").chmod(0o555)
    with bound_by_modes(), pytest.raises(ResumableError, match="Permission denied"):
        run(mini, fast_path / "dst")
    assert not (fast_path / "dst").exists()
    (out / "rank1").chmod(0o755)
    run(mini, fast_path / "dst")
    assert tree(fast_path / "dst") == undisturbed


def test_no_temporary_is_left_by_a_failed_write(
    staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "sync", fail)
    with pytest.raises(OSError, match="No space left"):
        staging.put_bytes("rank0/config.json", b"{}")
    assert [os.listdir(f) for f in staging.folders] == [[], []]
