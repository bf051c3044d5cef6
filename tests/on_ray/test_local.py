"""The command without a cluster: it starts one, and leaves nothing of it."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import fsspec
import psutil
import pytest

from ..stores.emulator import ENVIRONMENT, Emulator
from .gate import Gate
from .runs import MOST_SECONDS, Command, contents, locally, wait_for_end


@pytest.fixture
def session(tools: dict[str, str]) -> str:
    """The folder that every process of such a cluster names in its command."""
    return tools["RAY_TMPDIR"]


def running(session: str) -> list[str]:
    """Ray's processes of this test, that are not yet gone."""
    found = []
    for process in psutil.process_iter():
        try:
            words = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if session in words and process.status() != psutil.STATUS_ZOMBIE:
            found.append(words)
    return found


def gone(session: str) -> bool:
    """Whether all of them are, soon."""
    until = time.monotonic() + MOST_SECONDS
    while running(session) and time.monotonic() < until:
        time.sleep(0.05)
    return not running(session)


def test_a_cluster_of_its_own(tiny_fp8: Path, tmp_path: Path, gate: Gate, session: str) -> None:
    with gate.shut():
        command = Command(tiny_fp8, tmp_path / "dst")
        gate.waiting(1)
        assert running(session)
    code, out, err = command.ended()
    assert (code, err) == (0, "")
    assert out.endswith(f"done: {tmp_path / 'dst'}\n")
    assert gone(session)
    assert contents(tmp_path / "dst") == locally(tiny_fp8, tmp_path / "local")
    assert set(gate.begun().values()) == {1}


def test_the_command_killed(tiny_fp8: Path, tmp_path: Path, gate: Gate, session: str) -> None:
    with gate.shut():
        command = Command(tiny_fp8, tmp_path / "dst")
        workers = gate.waiting(2)
        command.send(signal.SIGKILL)
        assert command.ended()[0] == -signal.SIGKILL
        wait_for_end(*workers)  # nobody writes once who asked for it is gone
        assert gone(session)
    assert locally(tiny_fp8, tmp_path / "dst") == locally(tiny_fp8, tmp_path / "local")
    assert {p.name for p in tmp_path.iterdir()} == {"dst", "local"}


def test_from_folder_to_store(tiny_fp8: Path, tmp_path: Path, gate: Gate, session: str) -> None:
    s3 = Emulator()
    try:
        words = {"key": ENVIRONMENT["AWS_ACCESS_KEY_ID"], "secret": "any", "endpoint_url": s3.url}
        store = fsspec.filesystem("s3", use_listings_cache=False, **words)
        store.call_s3("create_bucket", Bucket="converted")
        command = Command(tiny_fp8, "s3://converted/dst", AWS_ENDPOINT_URL=s3.url, **ENVIRONMENT)
        assert command.ended()[0::2] == (0, "")
        names = store.find("converted/dst")
        found = {n.removeprefix("converted/dst/"): store.cat_file(n) for n in names}
    finally:
        s3.stop()
    assert found == locally(tiny_fp8, tmp_path / "local")
    assert gone(session)
