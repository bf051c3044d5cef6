"""Files of a known SHA-256, as huggingface_hub keeps them: what rests on its insides."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, _commit_api, constants
from huggingface_hub.utils import are_progress_bars_disabled

from fp8convert.errors import FormatError
from fp8convert.hub import known
from fp8convert.hub.quiet import quiet

from . import Hub
from .pushing import REPO, SENDING, calm

pytestmark = SENDING
NAME = "sub/x.safetensors"


def facts(operation: CommitOperationAdd) -> dict[str, object]:
    """All that an operation keeps, but where its bytes are."""
    names = {f.name for f in fields(CommitOperationAdd)} - {"path_or_fileobj", "upload_info"}
    info = operation.upload_info
    kept = {name: getattr(operation, name) for name in names}
    return {**kept, "size": info.size, "sum": info.sha256.hex()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x"
    path.write_bytes(bytes(range(256)) * 5)
    return path


def sum_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 5000])
def test_a_known_file_is_as_one_that_was_hashed(file: Path, size: int, plain: bool) -> None:
    file.write_bytes(b"ab" * size)
    ours = known.addition(NAME, file, sum_of(file), lambda n: None, plain)
    theirs = CommitOperationAdd(NAME, file)
    assert facts(ours) == facts(theirs)
    assert ours.upload_info.sample == theirs.upload_info.sample
    assert (ours.path_or_fileobj == theirs.path_or_fileobj) == (not plain)
    assert ours.b64content() == theirs.b64content()


@pytest.mark.parametrize("xet", [False, True])
def test_the_sum_is_taken_for_granted(
    file: Path, monkeypatch: pytest.MonkeyPatch, xet: bool
) -> None:
    """But by Xet, which sums what it reads; a sum that it is told of it believes."""
    monkeypatch.setattr(_commit_api, "is_xet_available", lambda: xet)
    for plain in (True, False):
        info = known.addition(NAME, file, "ab" * 32, lambda n: None, plain).upload_info
        ours = plain or not xet
        assert info.is_hashed == ours
        assert info.sha256.hex() == ("ab" * 32 if ours else sum_of(file))


def test_what_was_sent_is_as_one_that_huggingface_hub_has_sent(
    hub: Hub, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with calm(monkeypatch):
        api = HfApi()
        api.create_repo(REPO)
        theirs = CommitOperationAdd(NAME, file)
        assert not known.is_sent(theirs)
        api.preupload_lfs_files(REPO, [theirs])
        ours = known.sent(NAME, file.stat().st_size, sum_of(file))
        assert facts(ours) == facts(theirs)
        assert known.is_sent(ours)
        assert known.is_sent(theirs)
        assert not known.is_ignored(theirs)
        api.create_commit(REPO, [ours], commit_message="ours")
        assert hub.read(REPO, NAME) == file.read_bytes()


def test_other_bytes_than_the_sum_says_are_not_read_to_the_end(file: Path) -> None:
    """In one go; in parts, some of them twice, as after a fault. The last one is never given."""
    for good in (True, False):
        sha256 = sum_of(file) if good else "ab" * 32
        error = contextlib.nullcontext() if good else pytest.raises(FormatError, match="changed")
        with known.addition(NAME, file, sha256, lambda n: None).as_file() as f, error:
            assert f.read() == file.read_bytes()
        with known.addition(NAME, file, sha256, lambda n: None).as_file() as f:
            for begin, nbytes in ((0, 500), (0, 700), (700, 500), (600, 200)):
                f.seek(begin)
                assert f.read(nbytes) == file.read_bytes()[begin : begin + nbytes]
            f.seek(1100)
            with error:
                assert f.read(1000) == file.read_bytes()[1100:]


def test_an_older_huggingface_hub_names_an_object_in_another_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 1.0: the sum first. (Later ones have it last, as it may be missing.)"""

    class Older(NamedTuple):
        sha256: bytes
        size: int
        sample: bytes

    monkeypatch.setattr(known, "UploadInfo", Older)
    assert known.info(7, "ab" * 32) == (b"\xab" * 32, 7, b"")


def test_reading_is_told_of_and_can_be_ended(file: Path) -> None:
    told: list[int] = []
    operation = known.addition(NAME, file, sum_of(file), told.append)
    with operation.as_file(with_tqdm=True) as f:
        assert f.read(1000) + f.read() == file.read_bytes()
        f.seek(1)
        assert f.tell() == 1
        assert f.read(None) == file.read_bytes()[1:]  # type: ignore[arg-type]
    assert told == [1000, 280, 1279]

    def end(nbytes: int) -> None:
        raise KeyError(nbytes)

    with known.addition(NAME, file, sum_of(file), end).as_file() as f, pytest.raises(KeyError):
        f.read(1)


# --- No bars, no signed links


def test_bars_are_out_meanwhile_and_as_they_were_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", None)
    assert not are_progress_bars_disabled()
    with quiet():
        assert are_progress_bars_disabled()
        with quiet():
            assert are_progress_bars_disabled()
        assert are_progress_bars_disabled()
    assert not are_progress_bars_disabled()


@pytest.mark.parametrize("wish", [True, False])
def test_a_users_wish_for_bars_is_left_alone(monkeypatch: pytest.MonkeyPatch, wish: bool) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", wish)
    before = are_progress_bars_disabled()
    with quiet():
        assert are_progress_bars_disabled() == before


def test_signed_links_are_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    from huggingface_hub.utils._http import logger

    link = "https://s3.example/a/b?X-Amz-Signature=abc&x=1"
    with quiet():
        logger.warning(f"HTTP Error 503 thrown while requesting PUT {link}")
        logger.warning("%s and %s", link, "http://hub.example/x")
    logger.warning(link)  # a thread that is late
    assert [r.getMessage() for r in caplog.records] == [
        "HTTP Error 503 thrown while requesting PUT https://s3.example/a/b?...",
        "https://s3.example/a/b?... and http://hub.example/x",
        "https://s3.example/a/b?...",
    ]
