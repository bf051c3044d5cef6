"""Options of an upload, and what the command says of it."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import click
import pytest

from fp8convert.cli import progress
from fp8convert.cli.main import cli
from fp8convert.errors import UsageError

from ..mini import CUT
from . import Hub
from .pushing import CARD, MOST_SECONDS, REPO, SENDING, files_of, on_hub
from .test_push_card import of, report

pytestmark = [SENDING, pytest.mark.usefixtures("calmed")]


def run(source: Path, target: Path | str, *options: object) -> None:
    words = ("to-bf16", source, target, "--max-shard-size", CUT, *options)
    cli.main([str(w) for w in words], standalone_mode=False)


def test_options_go_with_an_upload_only(hub: Hub, mini: Path, fast_path: Path) -> None:
    file = report(fast_path, of(fast_path / "dst"))
    for words in (
        ["--private"],
        ["--revision", "x"],
        ["--drop-uploaded"],
        ["--parity-report", file],
    ):
        with pytest.raises(click.UsageError, match="go with --push-to-hub"):
            run(mini, fast_path / "dst", *words)
    with pytest.raises(UsageError, match="expected ORG/NAME"):
        run(mini, fast_path / "dst", "--push-to-hub", "made")
    with pytest.raises(click.UsageError, match="does not exist"):
        run(mini, fast_path / "dst", "--push-to-hub", REPO, "--parity-report", fast_path / "none")
    assert hub.log == []


def test_a_dry_run_asks_nothing(hub: Hub, mini: Path, fast_path: Path) -> None:
    run(mini, fast_path / "dst", "--push-to-hub", REPO, "--dry-run")
    assert hub.log == []


@pytest.mark.parametrize(
    ("target", "words", "message"),
    [
        ("memory://dry/dst", [], "needs a folder here"),
        ("dst", ["--drop-uploaded", "--checksum", "none"], "needs checksums"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(
    hub: Hub, mini: Path, fast_path: Path, target: str, words: list[str], message: str
) -> None:
    dst = target if "://" in target else fast_path / target
    for more in ([], ["--dry-run"], ["--dry-run", "--json"]):
        with pytest.raises(UsageError, match=message):
            run(mini, dst, "--push-to-hub", REPO, *words, *more)
    assert hub.log == []


def test_a_dry_run_says_where_it_goes(
    hub: Hub, mini: Path, fast_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(mini, fast_path / "dst", "--push-to-hub", REPO, "--revision", "a/b", "--dry-run")
    assert f"upload to    {REPO}@a/b\n" in capsys.readouterr().out
    run(mini, fast_path / "dst", "--push-to-hub", REPO, "--dry-run", "--json")
    assert json.loads(capsys.readouterr().out)["push_to_hub"] == f"{REPO}@main"
    run(mini, fast_path / "dst", "--dry-run", "--json")
    assert "push_to_hub" not in json.loads(capsys.readouterr().out)


def test_a_dry_run_says_what_fits_on_the_disk(
    hub: Hub, tiny_fp8: Path, fast_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("to-bf16", tiny_fp8, fast_path / "dst", "--max-shard-size", 500_000, "--dry-run")
    needed = []
    for more in ([], ["--push-to-hub", REPO], ["--push-to-hub", REPO, "--drop-uploaded"]):
        cli.main([str(w) for w in (*words, "--json", *more)], standalone_mode=False)
        needed.append(json.loads(capsys.readouterr().out)["disk_needed"])
    assert needed[0] == needed[1] > 2 * needed[2]


def test_all_options(
    hub: Hub, mini: Path, fast_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = report(fast_path, of(fast_path / "dst"))
    run(
        mini, fast_path / "dst", "--push-to-hub", REPO, "--private", "--revision", "a/b",
        "--drop-uploaded", "--parity-report", file, "--json", "--quiet",
    )  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert found["pushed"] == {
        "repo": REPO,
        "branch": "a/b",
        "commit": hub.commits(REPO, "a/b")[0].sha,
        "url": f"{hub.endpoint}/{REPO}/tree/a/b",
        "already": False,
        "dropped": 3,
    }
    assert hub.is_private(REPO)
    assert on_hub(hub, "a/b").items() >= files_of(fast_path / "dst").items()
    assert "## Parity" in hub.read(REPO, CARD, "a/b").decode()
    run(mini, fast_path / "dst", "--push-to-hub", REPO, "--revision", "a/b", "--quiet")
    assert capsys.readouterr().out == ""


def test_what_it_says(
    hub: Hub, mini: Path, fast_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = f"{hub.endpoint}/{REPO}/tree/main, commit "
    run(mini, fast_path / "dst")
    assert where not in capsys.readouterr().out
    for target, words in (
        ("dst", [f"already done: {fast_path / 'dst'} is", f"uploaded: {where}"]),
        ("dst", [f"already done: {fast_path / 'dst'} is", f"already there: {where}"]),
        ("new", [" read, ", f"done: {fast_path / 'new'}", f"already there: {where}"]),
    ):
        run(mini, fast_path / target, "--push-to-hub", REPO)
        lines = capsys.readouterr().out.splitlines()
        assert all(any(w in line for line in lines) for w in words)
        assert lines[-1] == f"{words[-1]}{hub.commits(REPO)[0].sha}"


def test_sending_is_seen(
    hub: Hub, mini: Path, fast_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run(mini, fast_path / "dst")
    capsys.readouterr()
    said = threading.Event()
    real = progress.Meter.show

    def show(self: progress.Meter, doing: str, *args: object) -> None:
        real(self, doing, *args)  # type: ignore[arg-type]
        said.set()

    hub.on("/s3/", lambda request: said.wait(MOST_SECONDS), method="PUT")
    monkeypatch.setattr(progress.Meter, "show", show)
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    run(mini, fast_path / "dst", "--push-to-hub", REPO)
    err = capsys.readouterr().err
    assert " of 170" in err
    assert " sent, " in err
