"""Where downloads wait: never more than was allowed, nothing left, nothing of others touched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fp8convert
from fp8convert import space
from fp8convert.convert import execute, prepare
from fp8convert.errors import ResumableError, UsageError
from fp8convert.hub import scratch
from fp8convert.hub.ledger import Ledger, Step
from fp8convert.options import ToBf16
from fp8convert.origin import Scratch
from fp8convert.settings import Progress, Settings
from fp8convert.sources import Sources

from .faults import Fault
from .models import contents, make_chain, shards_of
from .server import Hub
from .traffic import Request

pytestmark = pytest.mark.usefixtures("hasty")

REPO = "org/model"
AT = f"hf://{REPO}"
SHARD = "model-00003-of-00006.safetensors"
BODY = f"cdn/.*{SHARD}"
NOTES = 64 << 10  # bytes of huggingface_hub's notes beside a download


@pytest.fixture
def two(chain: Path) -> int:
    """Bytes of two shards, which is what a file needs."""
    return 2 * max((chain / name).stat().st_size for name in shards_of(chain))


def held(folder: Path) -> int:
    """Bytes of all that is below a folder now."""
    found = 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                found += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:  # it has just gone
                continue
    return found


def deleted_and_open(folder: Path) -> list[str]:
    """Files of a folder that take room though they have no name any more."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue
    return [link for link in links if "(deleted)" in link and link.startswith(str(folder))]


def watched(hub: Hub, folder: Path) -> list[int]:
    """What is below ``folder`` at every request, and at the middle of every shard."""
    found: list[int] = []

    def look(request: Request) -> None:
        found.append(held(folder))

    hub.on("", look, times=None)
    hub.on("cdn/", look, at=50_000, times=None)
    return found


class TestBound:
    @pytest.mark.parametrize("shards", [2, 3, 6])
    def test_never_more_than_was_allowed(
        self, shards: int, chain: Path, expected: dict[str, bytes], hub: Hub, tmp_path: Path,
        two: int,
    ) -> None:  # fmt: skip
        hub.add(REPO, chain)
        size = two * shards // 2
        peaks, open_still = watched(hub, tmp_path / "scratch"), []
        asked = Scratch(tmp_path / "scratch", size)

        def look(now: Progress) -> None:
            peaks.append(held(tmp_path / "scratch"))
            open_still.extend(deleted_and_open(tmp_path / "scratch"))

        settings = Settings(scratch=asked, progress=look)
        execute(prepare(AT, tmp_path / "dst"), settings)
        assert contents(tmp_path / "dst") == expected
        assert two // 2 < max(peaks) <= size + NOTES
        assert open_still == []
        assert list((tmp_path / "scratch").iterdir()) == []

    def test_a_tool_that_takes_more_is_found_out(
        self, chain: Path, hub: Hub, tmp_path: Path, two: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def reserved(self: Ledger, n: int, g: int) -> Step:
            self._state[n] = type(self._state[n]).COMING
            return Step(True, n)

        monkeypatch.setattr(Ledger, "_reserved", reserved)
        monkeypatch.setattr(Ledger, "done", lambda self, g: (self._done.add(g), [])[1])
        hub.add(REPO, chain)
        peaks = watched(hub, tmp_path / "scratch")
        asked = Scratch(tmp_path / "scratch", two)
        execute(prepare(AT, tmp_path / "dst"), Settings(scratch=asked))
        assert max(peaks) > two + NOTES

    def test_a_shard_that_stays_open_is_found_out(
        self, chain: Path, hub: Hub, tmp_path: Path, two: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its room is not free as long as it is."""
        monkeypatch.setattr(Sources, "forget", lambda self, shard: None)
        hub.add(REPO, chain)
        open_still: list[str] = []
        settings = Settings(
            scratch=Scratch(tmp_path / "scratch", two),
            progress=lambda now: open_still.extend(deleted_and_open(tmp_path / "scratch")),
        )
        execute(prepare(AT, tmp_path / "dst"), settings)
        assert open_still != []

    def test_too_small(self, chain: Path, hub: Hub, tmp_path: Path) -> None:
        hub.add(REPO, chain)
        sizes = [(chain / name).stat().st_size for name in shards_of(chain)]
        need = max(a + b for a, b in zip(sizes, sizes[1:] + sizes[:1], strict=True))
        job = prepare(AT, tmp_path / "dst")
        asked = Scratch(tmp_path / "scratch", need - 1)
        with pytest.raises(UsageError) as e:
            execute(job, Settings(scratch=asked))
        assert f"--scratch-size {need - 1:,} bytes, expected at least {need:,}" in str(e.value)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["hub"]
        execute(job, Settings(scratch=Scratch(tmp_path / "scratch", need)))

    def test_what_comes_twice(self, hub: Hub, tmp_path: Path) -> None:
        """A shard that the first and the last file are made of goes, and comes again."""
        source = make_chain(tmp_path / "chain", apart=3)
        fp8convert.to_bf16(source, tmp_path / "here")
        hub.add(REPO, source)
        size = 2 * max((source / name).stat().st_size for name in shards_of(source))
        asked = Scratch(tmp_path / "scratch", size)
        peaks = watched(hub, tmp_path / "scratch")
        fp8convert.to_bf16(AT, tmp_path / "dst", scratch=asked)
        assert contents(tmp_path / "dst") == contents(tmp_path / "here")
        assert max(peaks) <= size + NOTES

    def test_one_file_of_all_shards(
        self, chain: Path, hub: Hub, tmp_path: Path, expected: dict[str, bytes]
    ) -> None:
        hub.add(REPO, chain)
        every = sum((chain / name).stat().st_size for name in shards_of(chain))
        options = ToBf16(max_shard_size=1 << 40)
        job = prepare(AT, tmp_path / "dst", options)
        with pytest.raises(UsageError, match=f"expected at least {every:,}"):
            job.fitted(Settings(scratch=Scratch(size=every - 1)))
        execute(job)
        fp8convert.to_bf16(chain, tmp_path / "here", max_shard_size=1 << 40)
        assert contents(tmp_path / "dst") == contents(tmp_path / "here")

    def test_a_target_that_is_not_on_a_disk(self, chain: Path, hub: Hub, tmp_path: Path) -> None:
        hub.add(REPO, chain)
        job = prepare(AT, "memory://bucket/dst")
        with pytest.raises(UsageError, match="--scratch DIR is needed"):
            job.fitted(Settings())
        job.fitted(Settings(scratch=Scratch(tmp_path / "scratch")))

    @pytest.mark.parametrize("place", ["dst", "dst/in", "other/../dst"])
    def test_a_scratch_in_the_target(
        self, place: str, chain: Path, hub: Hub, tmp_path: Path
    ) -> None:
        hub.add(REPO, chain)
        job = prepare(AT, tmp_path / "dst")
        with pytest.raises(UsageError, match="not in the target"):
            execute(job, Settings(scratch=Scratch(tmp_path / place)))
        assert sorted(p.name for p in tmp_path.iterdir()) == ["hub"]

    @pytest.mark.parametrize("target", ["dst", "memory://bucket/dst"])
    def test_a_scratch_that_is_no_folder(
        self, target: str, chain: Path, hub: Hub, tmp_path: Path
    ) -> None:
        hub.add(REPO, chain)
        (tmp_path / "file").write_bytes(b"mine")
        job = prepare(AT, target if "://" in target else tmp_path / target)
        with pytest.raises(UsageError, match=r"scratch .*file': not a folder"):
            execute(job, Settings(scratch=Scratch(tmp_path / "file")))
        assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "hub"]

    def test_memory_is_counted(self, chain: Path, hub: Hub, tmp_path: Path) -> None:
        hub.add(REPO, chain)
        there = prepare(AT, tmp_path / "dst")
        here = prepare(chain, tmp_path / "dst")
        small = 256 << 20
        assert here.fitted(Settings(memory=small)).peak_memory <= small
        with pytest.raises(UsageError, match="too little"):
            there.fitted(Settings(memory=small))


class TestDisk:
    @pytest.fixture
    def free(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
        def say(nbytes: int) -> None:
            real = shutil.disk_usage
            monkeypatch.setattr(shutil, "disk_usage", lambda p: real(p)._replace(free=nbytes))

        return say

    def test_target_and_scratch_on_one_disk(
        self, chain: Path, hub: Hub, tmp_path: Path, two: int, free: Callable[[int], None]
    ) -> None:
        hub.add(REPO, chain)
        job = prepare(AT, tmp_path / "dst")
        asked = Settings(scratch=Scratch(tmp_path / "scratch", two))
        free(job.plan.disk_needed + two - 1)
        with pytest.raises(ResumableError, match=f"{job.plan.disk_needed + two:,} bytes needed"):
            execute(job, asked)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["hub"]
        free(job.plan.disk_needed + two)
        execute(job, asked)

    def test_on_two(
        self, chain: Path, hub: Hub, tmp_path: Path, two: int, free: Callable[[int], None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        hub.add(REPO, chain)
        job = prepare(AT, tmp_path / "dst")
        (tmp_path / "scratch").mkdir()
        monkeypatch.setattr(space, "_disk", lambda place: len(str(place)))
        asked = Settings(scratch=Scratch(tmp_path / "scratch", two))
        free(two - 1)
        with pytest.raises(ResumableError, match=rf"scratch': {two:,} bytes needed"):
            execute(job, asked)
        free(job.plan.disk_needed)  # more than two shards
        execute(job, asked)

    def test_what_is_there_is_not_needed_again(
        self, chain: Path, hub: Hub, tmp_path: Path, two: int
    ) -> None:
        hub.add(REPO, chain)
        job = prepare(AT, tmp_path / "dst")
        asked = Scratch(tmp_path / "scratch", two)
        assert job.feed(asked).room == two
        name = scratch.slot_name(job.catalogue.folder.pinned)  # type: ignore[attr-defined]
        folder = tmp_path / "scratch" / f"{name}.0"
        folder.mkdir(parents=True)
        shutil.copy(chain / SHARD, folder)
        assert job.feed(asked).room == two - (chain / SHARD).stat().st_size

    def test_what_goes_first_is_not_needed(
        self, chain: Path, expected: dict[str, bytes], hub: Hub, tmp_path: Path, two: int
    ) -> None:
        """What a run that was killed has not completed takes room, and goes before any comes."""
        hub.add(REPO, chain)
        job = prepare(AT, tmp_path / "dst")
        name = scratch.slot_name(job.catalogue.folder.pinned)  # type: ignore[attr-defined]
        half = tmp_path / "scratch" / f"{name}.0" / "incoming-x" / "cache" / "x.incomplete"
        half.parent.mkdir(parents=True)
        half.write_bytes(b"x" * 1000)
        asked = Scratch(tmp_path / "scratch", two)
        assert job.feed(asked).room == two - 1000
        peaks = watched(hub, tmp_path / "scratch")
        execute(job, Settings(scratch=asked))
        assert contents(tmp_path / "dst") == expected
        assert max(peaks) <= two + NOTES


class TestAgain:
    """Run again, after something went wrong."""

    def interrupted(self, hub: Hub, target: Path, asked: Scratch) -> None:
        fault = hub.faults.add(Fault(BODY, drop=True, skip=2))
        with pytest.raises(ResumableError):
            fp8convert.to_bf16(AT, target, scratch=asked, workers=1)
        assert fault.struck
        hub.faults.clear()
        hub.traffic.clear()

    def came(self, hub: Hub) -> dict[str, int]:
        """How often each shard came whole."""
        found: dict[str, int] = {}
        for r in hub.log:
            if r.host == "cdn" and not r.range and r.method == "GET":
                name = r.path.rsplit("/", 1)[-1]
                found[name] = found.get(name, 0) + 1
        return found

    def test_what_was_complete_is_used(
        self, chain: Path, expected: dict[str, bytes], hub: Hub, tmp_path: Path
    ) -> None:
        hub.add(REPO, chain)
        self.interrupted(hub, tmp_path / "dst", Scratch())
        (root,) = tmp_path.glob(".dst.fp8convert-downloads")
        left = sorted(p.name for p in root.rglob("*.safetensors"))
        assert len(left) >= 1
        assert SHARD not in left
        assert not list(root.rglob("*.incomplete"))
        fp8convert.to_bf16(AT, tmp_path / "dst")
        assert contents(tmp_path / "dst") == expected
        assert not self.came(hub).keys() & set(left)
        assert set(self.came(hub).values()) == {1}
        assert not root.exists()

    @pytest.mark.parametrize("damage", ["flipped", "short", "a folder", "a link"])
    def test_what_was_damaged_is_not(
        self, damage: str, chain: Path, expected: dict[str, bytes], hub: Hub, tmp_path: Path
    ) -> None:
        hub.add(REPO, chain)
        self.interrupted(hub, tmp_path / "dst", Scratch())
        (root,) = tmp_path.glob(".dst.fp8convert-downloads")
        (path, *_) = sorted(root.rglob("*.safetensors"))
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.unlink()
        if damage == "a folder":
            (path / "in").mkdir(parents=True)
        elif damage == "a link":
            (tmp_path / "elsewhere").write_bytes(data)
            path.symlink_to(tmp_path / "elsewhere")
        else:
            path.write_bytes(data[:-1] if damage == "short" else data)
        fp8convert.to_bf16(AT, tmp_path / "dst")
        assert contents(tmp_path / "dst") == expected
        assert self.came(hub)[path.name] == 1
        if damage == "a link":
            assert (tmp_path / "elsewhere").read_bytes() == data

    def test_with_less_room_than_before(
        self, chain: Path, expected: dict[str, bytes], hub: Hub, tmp_path: Path, two: int
    ) -> None:
        """As a run that was killed has left it, which had room for all."""
        folder = tmp_path / "scratch" / f"org--model@{hub.add(REPO, chain)[:12]}.0"
        folder.mkdir(parents=True)
        for name in shards_of(chain)[1:]:
            shutil.copy(chain / name, folder)
        job = prepare(AT, tmp_path / "dst")
        peaks = watched(hub, tmp_path / "scratch")
        execute(job, Settings(scratch=Scratch(tmp_path / "scratch", two)))
        assert contents(tmp_path / "dst") == expected
        assert max(peaks) <= two + NOTES

    def test_all_was_done_but_for_the_end(
        self, chain: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.add(REPO, chain)
        hub.faults.add(Fault("LICENSE", drop=True))
        with pytest.raises(ResumableError):
            fp8convert.to_bf16(AT, tmp_path / "dst")
        stale = tmp_path / ".dst.fp8convert-downloads" / "org--model@0123.0"
        stale.mkdir(parents=True)
        (stale / "x").write_bytes(b"x")
        stale.with_name(stale.name + ".lock").touch()
        hub.faults.clear()
        fp8convert.to_bf16(AT, tmp_path / "dst")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["dst", "hub"]


class TestKept:
    def test_they_stay_and_are_used(
        self, chain: Path, expected: dict[str, bytes], hub: Hub, tmp_path: Path
    ) -> None:
        sha = hub.add(REPO, chain)
        kept = Scratch(tmp_path / "scratch", keep=True)
        fp8convert.to_bf16(AT, tmp_path / "dst", scratch=kept)
        assert contents(tmp_path / "dst") == expected
        folder = tmp_path / "scratch" / f"org--model@{sha[:12]}"
        assert [p.name for p in (tmp_path / "scratch").iterdir()] == [folder.name]
        found = {p.name: p.read_bytes() for p in folder.iterdir()}
        assert found == {name: (chain / name).read_bytes() for name in shards_of(chain)}
        hub.traffic.clear()
        for more in (kept, Scratch(tmp_path / "scratch", size=0)):
            fp8convert.to_bf16(AT, tmp_path / "dst", scratch=more)
            shutil.rmtree(tmp_path / "dst")
            fp8convert.to_bf16(AT, tmp_path / "dst", scratch=more)
            assert contents(tmp_path / "dst") == expected
        assert not any(r.host == "cdn" and not r.range for r in hub.log)
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == found

    def test_all_must_have_room(self, chain: Path, hub: Hub, tmp_path: Path) -> None:
        hub.add(REPO, chain)
        every = sum((chain / name).stat().st_size for name in shards_of(chain))
        job = prepare(AT, tmp_path / "dst")
        with pytest.raises(UsageError, match=f"expected at least {every:,}: to keep all"):
            job.fitted(Settings(scratch=Scratch(size=every - 1, keep=True)))
        assert job.feed(Scratch(tmp_path / "x", every, keep=True)).room == every


@pytest.fixture(autouse=True)
def no_threads_are_left() -> Iterator[None]:
    import threading

    before = set(threading.enumerate())
    yield
    names = [t.name for t in set(threading.enumerate()) - before if "download" in t.name]
    assert names == []
