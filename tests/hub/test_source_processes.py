"""Whole commands on a checkpoint of the hub: killed, interrupted, and what they say of tokens."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fp8convert import space
from fp8convert.cli.main import cli
from fp8convert.convert import prepare

from .faults import Fault
from .models import contents, shards_of
from .server import Hub

REPO = "org/model"
AT = f"hf://{REPO}"
SHARD = "model-00003-of-00006.safetensors"
BODY = f"cdn/.*{SHARD}"
COMMAND = str(Path(sys.executable).with_name("fp8convert"))
SECRET = "hf_SecretOfMine123"


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that end with the test."""
    found: list[subprocess.Popen[str]] = []
    yield found
    for process in found:
        process.kill()
        process.communicate()


def start(hub: Hub, target: Path, *more: str) -> subprocess.Popen[str]:
    words = [COMMAND, "to-bf16", AT, str(target), *more]
    return subprocess.Popen(
        words, env=hub.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=target.parent,
    )  # fmt: skip


def run(hub: Hub, target: Path, *more: str, **env: str) -> subprocess.CompletedProcess[str]:
    words = [COMMAND, "to-bf16", AT, str(target), *more]
    return subprocess.run(words, env={**hub.env, **env}, capture_output=True, text=True)


@pytest.mark.parametrize("at", [None, 1, 50_000])
@pytest.mark.parametrize("scratch", [False, True])
def test_killed_and_run_again(
    scratch: bool, at: int | None, chain: Path, expected: dict[str, bytes], hub: Hub,
    tmp_path: Path, started: list[subprocess.Popen[str]],
) -> None:  # fmt: skip
    hub.add(REPO, chain)
    more = ["--scratch", str(tmp_path / "scratch")] if scratch else []
    # The first time that all of it is asked for, not of its header.
    hub.on(f"/resolve/.*{SHARD}", lambda r: hub.on(
        BODY, lambda r: os.kill(started[0].pid, signal.SIGKILL), at=at
    ), method="HEAD")  # fmt: skip
    started.append(start(hub, tmp_path / "dst", *more))
    assert started[0].wait(60) == -signal.SIGKILL
    assert not (tmp_path / "dst").exists()
    done = run(hub, tmp_path / "dst", *more)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "dst") == expected
    left = {p.name for p in tmp_path.iterdir()} - {"hub", "dst"}
    assert left == ({"scratch"} if scratch else set())
    assert not scratch or list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stalled", ["a download", "a header", "the listing"])
def test_interrupted_while_the_network_is_silent(
    stalled: str, number: signal.Signals, chain: Path, expected: dict[str, bytes], hub: Hub,
    tmp_path: Path, started: list[subprocess.Popen[str]],
) -> None:  # fmt: skip
    """It does not wait for the rest: that would take hours at this rate."""
    hub.add(REPO, chain)
    path, skip = {"a download": (BODY, 2), "a header": (BODY, 0), "the listing": ("/tree/", 0)}[
        stalled
    ]
    hub.faults.add(Fault(path, rate=1, skip=skip))
    seen = iter(range(skip))

    def asked(request: object) -> None:
        if next(seen, None) is None:
            started[0].send_signal(number)

    hub.on(path, asked, times=skip + 1)
    started.append(start(hub, tmp_path / "dst"))
    _, said = started[0].communicate(timeout=60)
    assert started[0].returncode == 75, said
    assert "error: interrupted" in said
    assert "Traceback" not in said
    assert not list(tmp_path.rglob("*.incomplete"))
    if stalled == "a download":
        place = tmp_path / ".dst.fp8convert"
        assert f"Unfinished work is in {place}, downloads in {place}-downloads (" in said
    hub.faults.clear()
    done = run(hub, tmp_path / "dst")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "dst") == expected


def test_what_is_said_of_downloads(chain: Path, hub: Hub, tmp_path: Path) -> None:
    hub.add(REPO, chain)
    done = run(hub, tmp_path / "dst", "--dry-run", "--scratch-size", "1kB")
    assert done.returncode == 2
    assert "--scratch-size 1,000 bytes, expected at least" in done.stderr
    done = run(hub, tmp_path / "dst", "--dry-run", "--scratch", str(tmp_path / "there"))
    assert done.returncode == 0
    size = sum((chain / name).stat().st_size for name in shards_of(chain))
    assert f"scratch      {size / 1000:.2f} kB in {tmp_path / 'there'}, free " in done.stdout
    assert "NOT ENOUGH" not in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hub"]


@pytest.mark.parametrize(
    ("disks", "spare", "line"),
    [("one", 1, ""), ("one", 0, ""), ("one", -1, "disk needed"),
     ("two", -1, ""), ("little there", 0, "scratch     ")],
)  # fmt: skip
def test_what_a_dry_run_says_of_room(
    chain: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    disks: str, spare: int, line: str,
) -> None:  # fmt: skip
    """As much as the run itself would ask for, where downloads and target share a disk."""
    hub.add(REPO, chain)
    (tmp_path / "there").mkdir()
    plan = prepare(AT, tmp_path / "dst").plan
    both = plan.disk_needed + sum((chain / name).stat().st_size for name in shards_of(chain))
    if disks != "one":
        monkeypatch.setattr(space, "_disk", lambda place: len(str(place)))
    real = shutil.disk_usage
    little = 1 if disks == "little there" else both + spare

    def usage(place: Path) -> Any:
        return real(place)._replace(free=little if place == tmp_path / "there" else both + spare)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    words = ["to-bf16", AT, tmp_path / "dst", "--dry-run", "--scratch", tmp_path / "there"]
    done = CliRunner().invoke(cli, list(map(str, words)))
    assert done.exit_code == 0, done
    short = [text for text in done.stdout.splitlines() if text.endswith("NOT ENOUGH")]
    assert [text.startswith(line) for text in short] == ([True] if line else [])


class TestTokens:
    """In no file, and in nothing that is printed."""

    def nowhere(self, hub: Hub, tmp_path: Path, *said: str) -> None:
        for text in said:
            assert SECRET not in text
            assert "X-Amz" not in text, "a signed link is one too"
        for path in tmp_path.rglob("*"):
            if path.is_file() and not path.is_relative_to(hub.root):
                assert SECRET.encode() not in path.read_bytes(), path

    @pytest.mark.parametrize("way", ["variable", "file"])
    def test_a_private_repository(
        self, way: str, chain: Path, expected: dict[str, bytes], hub: Hub, tmp_path: Path
    ) -> None:
        hub.add(REPO, chain)
        hub.private(REPO, SECRET)
        env = {"HF_TOKEN": SECRET}
        if way == "file":
            hub.home.mkdir(parents=True, exist_ok=True)
            (hub.home / "token").write_text(SECRET)
            env = {}
        fault = hub.faults.add(Fault(BODY, status=403, skip=2))
        stopped = run(hub, tmp_path / "dst", "--scratch", str(tmp_path / "scratch"), **env)
        assert (stopped.returncode, fault.struck > 0) == (1, True), stopped.stderr
        self.nowhere(hub, tmp_path, stopped.stdout, stopped.stderr)
        hub.faults.clear()
        plan = run(hub, tmp_path / "dst", "--dry-run", "--json", **env)
        done = run(hub, tmp_path / "dst", "--json", **env)
        assert done.returncode == 0, done.stderr
        assert contents(tmp_path / "dst") == expected
        self.nowhere(hub, tmp_path, plan.stdout, done.stdout, done.stderr)
        sent = [r.authorization for r in hub.log if r.host == "hub"]
        assert set(sent) == {f"Bearer {SECRET}"}
        assert {r.authorization for r in hub.log if r.host == "cdn"} == {None}

    @pytest.mark.parametrize("fault", [
        Fault("/revision/", status=403, message=f"no {SECRET}"),
        Fault("/tree/", status=500, message=f"no {SECRET}"),
        Fault(BODY, status=403, message=f"no {SECRET}", skip=2),
    ])  # fmt: skip
    def test_refused(self, fault: Fault, chain: Path, hub: Hub, tmp_path: Path) -> None:
        hub.add(REPO, chain)
        if fault.status == 500:
            fault.times = 1
        hub.faults.add(fault)
        done = run(hub, tmp_path / "dst", HF_TOKEN=SECRET)
        assert done.returncode == (0 if fault.status == 500 else 1)
        assert fault.struck > 0
        self.nowhere(hub, tmp_path, done.stdout, done.stderr)
