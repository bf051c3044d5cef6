"""SIGKILL and Ctrl-C at the moments of an upload, and the same command again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fp8convert.convert import to_bf16

from ..crash import Ended, Forker
from ..mini import CUT, make_mini
from . import Hub, Request
from .pushing import TOKEN, check_visible, files_of, on_hub, weights

MOMENTS: dict[str, tuple[str, str, int | None]] = {  # of the hub: method, path, bytes of the body
    "repository": ("POST", "/api/repos/create", None),
    "branch": ("GET", "/refs", None),
    "upload": ("PUT", "/s3/", None),
    "upload half": ("PUT", "/s3/", 1000),
    "uploaded": ("POST", "/objects/verify", None),
    "all uploaded": ("POST", "/validate-yaml", None),
    "commit": ("POST", "/commit/", None),
    "commit half": ("POST", "/commit/", 100),
}


class Lab:
    """A hub, and processes that upload to it."""

    def __init__(self, hub: Hub, source: Path, forker: Forker) -> None:
        self.hub, self.source, self.forker = hub, source, forker

    def run(self, target: Path, repo: str, *options: str) -> Ended:
        """``to-bf16 --push-to-hub``, into three files."""
        size = ("--max-shard-size", str(CUT))
        return self.forker.run("to-bf16", self.source, target, *size, "--push-to-hub", repo,
                               *options)  # fmt: skip

    def signal(self, signum: int, moment: str) -> None:
        """To the process that is at work, at that moment."""

        def send(request: Request) -> None:
            os.kill(self.child(), signum)

        method, path, at = MOMENTS[moment]
        self.hub.on(path, send, method=method, at=at)

    def child(self) -> int:
        """The process at work."""
        server = self.forker._server.pid
        (found,) = Path(f"/proc/{server}/task/{server}/children").read_text().split()
        return int(found)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    root = tmp_path_factory.mktemp("kills")
    with Hub(root / "hub") as hub, pytest.MonkeyPatch.context() as patch:
        for name, value in {**hub.settings, "HF_TOKEN": TOKEN}.items():
            patch.setenv(name, value)
        forker = Forker()
        yield Lab(hub, make_mini(root / "mini"), forker)
        forker.close()


@pytest.fixture(scope="module")
def whole(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What is to be on the hub."""
    target = tmp_path_factory.mktemp("whole") / "dst"
    to_bf16(lab.source, target, max_shard_size=CUT)
    return files_of(target)


def arrived(hub: Hub) -> list[int]:
    """Bytes of the objects that were sent and taken."""
    return [r.received for r in hub.log if r.path.startswith("/s3/") and r.status == 200]


@pytest.mark.parametrize(
    ("moment", "drop"),
    [
        *((m, True) for m in MOMENTS),
        *((m, False) for m in ("upload half", "commit", "commit half")),
    ],
)
def test_a_killed_upload_goes_on(
    lab: Lab, whole: dict[str, bytes], fast_path: Path, moment: str, drop: bool
) -> None:
    options = ("--drop-uploaded",) if drop else ()
    repo = f"org/{moment.replace(' ', '-')}-{drop}"
    lab.hub.traffic.clear()
    lab.signal(signal.SIGKILL, moment)
    assert lab.run(fast_path / "dst", repo, *options).code == -signal.SIGKILL
    check_visible(lab.hub, repo=repo)
    again = lab.run(fast_path / "dst", repo, *options)
    assert again.code == 0, again.err
    assert on_hub(lab.hub, repo=repo) == whole
    kept = whole.keys() - weights(whole) if drop else whole.keys()
    assert files_of(fast_path / "dst") == {name: whole[name] for name in kept}
    check_visible(lab.hub, repo=repo)
    assert len(lab.hub.commits(repo)) == 2
    assert sorted(arrived(lab.hub)) == sorted(len(whole[name]) for name in weights(whole))


@pytest.mark.parametrize("moment", ["upload half", "all uploaded"])
def test_an_interrupted_upload_says_how_to_go_on(
    lab: Lab, whole: dict[str, bytes], fast_path: Path, moment: str
) -> None:
    repo = f"org/stopped-{moment.replace(' ', '-')}"
    lab.signal(signal.SIGINT, moment)
    ended = lab.run(fast_path / "dst", repo, "--drop-uploaded")
    assert ended.code == 75
    assert f"Unfinished work is in {fast_path / '.dst.fp8convert'}" in ended.err
    assert "Run the same command again to resume." in ended.err
    assert TOKEN not in ended.out + ended.err
    check_visible(lab.hub, repo=repo)
    ended = lab.run(fast_path / "dst", repo, "--drop-uploaded")
    assert ended.code == 0
    assert f"uploaded: {lab.hub.endpoint}/{repo}/tree/main, commit " in ended.out
    assert "3 weight files are there only" in ended.out
    ended = lab.run(fast_path / "dst", repo)
    assert f"already there: {lab.hub.endpoint}/{repo}/tree/main, commit " in ended.out
    assert on_hub(lab.hub, repo=repo) == whole
