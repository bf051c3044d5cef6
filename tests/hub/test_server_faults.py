"""The faults, hooks and the log of the hub, each kind once, and once without."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

from . import Fault, Hub, Request
from .plain import ask

REPO = "org/model"
PATH = f"/{REPO}/resolve/main/x.bin"
DATA = bytes(n % 251 for n in range(3_000_000))  # more than two pieces


@pytest.fixture(autouse=True)
def _filled(hub: Hub) -> None:
    hub.cdn = False
    hub.put(REPO, {"x.bin": DATA, "other.bin": b"other"})


def undisturbed(hub: Hub) -> bool:
    answer = ask(hub, PATH)
    return (answer.status, answer.body) == (200, DATA)


def test_a_body_is_cut_where_it_was_asked_for_and_so_often(hub: Hub) -> None:
    fault = hub.faults.add(Fault(r"x\.bin", cut=1_500_000, times=2, skip=1))
    assert undisturbed(hub)
    for begin in (0, 1000):
        answer = ask(hub, PATH, Range=f"bytes={begin}-")
        assert not answer.whole
        assert answer.body == DATA[begin : begin + 1_500_000]
        assert hub.log[-1].sent == 1_500_000
    assert undisturbed(hub)
    assert fault.struck == 2


def test_a_cut_of_which_there_is_no_end_ends_the_download(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = SimpleNamespace(sleep=lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.file_download.time", patient)
    hub.put(REPO, {"big.bin": DATA * 8})
    once = hub.faults.add(Fault(r"big\.bin", cut=15_000_000, times=1))
    path = hf_hub_download(REPO, "big.bin", local_dir=tmp_path / "l")
    assert Path(path).read_bytes() == DATA * 8
    # The library keeps what it has in whole pieces of 10 MiB.
    assert [r.range for r in hub.log if r.method == "GET"] == [None, "bytes=10485760-"]
    assert once.struck == 1
    hub.faults.add(Fault(r"x\.bin", cut=0))
    with pytest.raises(Exception, match="closed connection"):
        hf_hub_download(REPO, "x.bin", local_dir=tmp_path / "l2")


def test_statuses_with_what_comes_along(hub: Hub) -> None:
    for status in (500, 503, 401):
        fault = hub.faults.add(Fault(r"x\.bin", status=status, times=1))
        answer = ask(hub, PATH)
        assert (answer.status, answer.body != DATA) == (status, True)
        assert undisturbed(hub)
        assert fault.struck == 1
    hub.faults.add(Fault("", status=429, retry_after=7, headers={"X-More": "yes"}, times=1))
    answer = ask(hub, f"/api/models/{REPO}")
    assert (answer.status, answer.headers["retry-after"]) == (429, "7")
    assert answer.headers["x-more"] == "yes"
    hub.faults.add(Fault("x.bin", status=403, code="GatedRepo", method="HEAD"))
    with pytest.raises(GatedRepoError):
        hf_hub_download(REPO, "x.bin")
    assert undisturbed(hub)
    hub.faults.clear()
    assert ask(hub, PATH, "HEAD").status == 200


def test_an_upload_that_is_turned_down_hears_why(hub: Hub) -> None:
    hub.faults.add(Fault("/s3/", status=500, times=1))
    body = bytes(5_000_000)
    assert ask(hub, hub.cdn_endpoint + "/s3/x", "PUT", body).status == 500
    assert ask(hub, hub.cdn_endpoint + "/s3/x", "PUT", body).status == 403
    assert [r.received for r in hub.log] == [5_000_000] * 2


def test_an_upload_is_cut(hub: Hub) -> None:
    hub.faults.add(Fault("/s3/", cut=1_000_000))
    with pytest.raises(OSError):  # noqa: PT011  reset, or a broken pipe
        ask(hub, hub.cdn_endpoint + "/s3/x", "PUT", bytes(5_000_000))
    assert [(r.received, r.status) for r in hub.log] == [(1_000_000, 0)]


def test_a_connection_is_dropped(hub: Hub) -> None:
    hub.faults.add(Fault(r"x\.bin", drop=True, times=1))
    with pytest.raises(OSError, match="closed connection without response"):
        ask(hub, PATH)
    assert undisturbed(hub)


@pytest.mark.parametrize("offset", [0, 1 << 20, 2_999_999])
def test_a_byte_is_another_in_whatever_range_it_comes(hub: Hub, offset: int) -> None:
    fault = hub.faults.add(Fault(r"x\.bin", flip=offset))
    wrong = bytearray(DATA)
    wrong[offset] ^= 1
    assert ask(hub, PATH).body == wrong
    first, last = max(0, offset - 5), min(len(DATA) - 1, offset + 5)
    assert ask(hub, PATH, Range=f"bytes={first}-{last}").body == wrong[first : last + 1]
    assert fault.struck == 2
    there = f"bytes={offset + 1}-" if offset + 1 < len(DATA) else f"bytes=0-{offset - 1}"
    answer = ask(hub, PATH, Range=there)
    assert answer.body == (DATA[offset + 1 :] or DATA[:offset])
    assert fault.struck == 2
    assert hub.read(REPO, "x.bin") == DATA


def test_a_flip_once_is_gone_at_the_second_try(hub: Hub) -> None:
    hub.faults.add(Fault(r"x\.bin", flip=10, times=1))
    sums = [hashlib.sha256(ask(hub, PATH).body).hexdigest() for _ in range(2)]
    assert sums[0] != sums[1]
    assert sums[1] == hub.tree(REPO)["x.bin"].lfs


def test_head_says_what_get_does_not(hub: Hub) -> None:
    fault = hub.faults.add(Fault(r"x\.bin", etag="f" * 64, size=5))
    head, got = ask(hub, PATH, "HEAD"), ask(hub, PATH)
    assert (head.headers["x-linked-etag"], head.headers["x-linked-size"]) == (f'"{"f" * 64}"', "5")
    assert head.headers["content-length"] == "5"
    assert got.headers["x-linked-etag"] == f'"{hub.tree(REPO)["x.bin"].lfs}"'
    assert got.body == DATA
    assert fault.struck == 1
    with pytest.raises(OSError, match="should be of size 5"):
        hf_hub_download(REPO, "x.bin")


def test_delays_and_rates_hold_back_at_least_as_long_as_asked(hub: Hub) -> None:
    def seconds(path: str = PATH) -> float:
        begin = time.monotonic()
        assert ask(hub, path).status == 200
        return time.monotonic() - begin

    hub.faults.add(Fault(r"x\.bin", delay=0.3, times=1))
    assert seconds() >= 0.3
    hub.faults.add(Fault(r"x\.bin", rate=10e6, times=1))
    # All of the body but its last twentieth of a second, and one that may be caught up.
    assert seconds() >= 3 / 10 - 2 / 20
    hub.rate = 20e6
    begin = time.monotonic()
    threads = [threading.Thread(target=seconds) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - begin >= 4 * 3 / 20 - 2 / 20
    hub.rate = None
    assert undisturbed(hub)


def test_a_hub_that_is_down_refuses_and_is_up_again_where_it_was(hub: Hub) -> None:
    endpoint = hub.endpoint
    hub.on(r"x\.bin", lambda request: hub.down(), at=1_000_000)
    assert not ask(hub, PATH).whole
    with pytest.raises(ConnectionRefusedError):
        ask(hub, PATH)
    hub.up()
    assert hub.endpoint == endpoint
    assert undisturbed(hub)


def test_a_hook_sees_a_request_before_it_is_answered(hub: Hub) -> None:
    seen: list[Request] = []

    def move(request: Request) -> None:
        seen.append(request)
        hub.put(REPO, {"x.bin": b"moved"})

    hub.on(r"x\.bin", move, method="GET")
    ask(hub, PATH, "HEAD")
    assert seen == []
    assert ask(hub, PATH).body == b"moved"
    assert ask(hub, PATH).body == b"moved"
    assert seen == hub.log[1:2]
    assert (seen[0].status, seen[0].sent) == (200, 5)


def test_a_hook_kills_a_client_in_the_middle(hub: Hub, tmp_path: Path) -> None:
    program = "import huggingface_hub as h, sys; h.hf_hub_download(sys.argv[1], 'x.bin')"
    started = threading.Event()
    processes: list[subprocess.Popen[bytes]] = []

    def kill(request: Request) -> None:
        started.wait(30)
        processes[0].kill()
        processes[0].wait()

    hub.on(r"x\.bin", kill, method="GET", at=1_000_000)
    processes.append(subprocess.Popen([sys.executable, "-c", program, REPO], env=hub.env))
    started.set()
    assert processes[0].wait(60) == -9
    assert [r.sent < len(DATA) for r in hub.log if r.method == "GET"] == [True]


def test_what_goes_wrong_in_a_hook_is_not_lost(tmp_path: Path) -> None:
    def fail(request: Request) -> None:
        raise ValueError("of the test")

    hub = Hub(tmp_path / "h")
    hub.up()
    hub.on("", fail)
    with pytest.raises(OSError, match="without response"):
        ask(hub, f"/api/models/{REPO}")
    with pytest.raises(ValueError, match="of the test"):
        hub.__exit__()


def test_the_log_has_what_came_and_what_went(hub: Hub) -> None:
    HfApi(token="hf_me").repo_info(REPO, files_metadata=True)
    ask(hub, PATH, Range="bytes=5-9")
    first, second = hub.log[-2:]
    assert (first.method, first.path, first.host) == ("GET", f"/api/models/{REPO}", "hub")
    assert (first.query, first.authorization, first.range) == ("blobs=true", "Bearer hf_me", None)
    assert (
        "huggingface_hub" in first.headers["user-agent"] or "hf_hub" in first.headers["user-agent"]
    )
    assert (second.path, second.range, second.status, second.sent) == (PATH, "bytes=5-9", 206, 5)
    assert second.authorization is None
    hub.traffic.clear()
    assert hub.log == []


def test_many_at_once_are_all_logged(hub: Hub) -> None:
    threads = [threading.Thread(target=ask, args=(hub, PATH)) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [r.sent for r in hub.log] == [len(DATA)] * 30


def test_a_fault_is_of_one_kind() -> None:
    for kinds in ({}, {"cut": 1, "flip": 1}, {"status": 500, "delay": 1.0}):
        with pytest.raises(ValueError, match="of one kind"):
            Fault("", **kinds)


def test_the_library_gives_up_on_a_500(hub: Hub) -> None:
    hub.faults.add(Fault(r"x\.bin", status=500, method="GET"))
    with pytest.raises(HfHubHTTPError):
        hf_hub_download(REPO, "x.bin")
    assert len([r for r in hub.log if r.method == "GET" and "x.bin" in r.path]) == 1
