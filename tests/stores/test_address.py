"""Addresses: what they are, and what is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fsspec  # noqa: F401 (its registry is looked at)
import pytest

from fp8convert import origins, to_bf16
from fp8convert.convert import prepare
from fp8convert.errors import Fp8ConvertError, UsageError
from fp8convert.stores.address import ObjectPath, scheme_of
from fp8convert.verify import verify

from .emulator import Place


@pytest.mark.parametrize(
    ("path", "expected"),
    [("s3://b/k", "s3"), ("gs://b", "gs"), ("memory://x", "memory"), ("hf://o/n", "hf"),
     ("/s3://b", None), ("s3:/b", None), ("a/b", None), ("S3://b", None), ("", None)],
)  # fmt: skip
def test_schemes(path: str, expected: str | None) -> None:
    assert scheme_of(path) == expected


@pytest.mark.parametrize("path", ["ftp://host/x", "https://bucket.s3.amazonaws.com/x", "s3a://b/k"])
def test_other_addresses_are_refused(path: str, mini: Path) -> None:
    """Also where a folder of that name could be made."""
    for act in (lambda: origins.at(path), lambda: prepare(mini, path)):
        with pytest.raises(UsageError, match="expected a folder, or an address that begins hf://"):
            act()


@pytest.mark.parametrize(
    ("path", "text", "name"),
    [("s3://b/k/l/", "s3://b/k/l", "l"), ("s3://b//k", "s3://b/k", "k"), ("gs://b", "gs://b", "b"),
     ("memory:///x/y", "memory://x/y", "y")],
)  # fmt: skip
def test_places(path: str, text: str, name: str) -> None:
    found = ObjectPath.of(path)
    assert (str(found), found.name) == (text, name)
    assert ObjectPath.of(text) == found


@pytest.mark.parametrize("path", ["s3://", "s3:///", "s3://b/../c", "s3://b/./c", "memory://.."])
def test_no_places(path: str) -> None:
    with pytest.raises(UsageError, match=r"expected (s3|memory)://BUCKET/KEY"):
        ObjectPath.of(path)


def test_no_versions(mini: Path, bucket: Place) -> None:
    """s3fs would take the rest of the path for one, and write to what precedes it."""
    bucket.put("dst", b"mine")
    address = bucket.at("dst?versionId=1")
    for act in (lambda: origins.at(address), lambda: to_bf16(mini, address)):
        with pytest.raises(Fp8ConvertError, match=r"dst\?versionId=1': expected no"):
            act()
    assert bucket.fs.cat_file(f"{bucket.bucket}/dst") == b"mine"


@pytest.mark.parametrize("address", ["s3://bucket/model", "memory://model"])
def test_verify_says_that_it_reads_folders(address: str, mini: Path) -> None:
    for folders in ((address, None), (str(mini), address)):
        with pytest.raises(UsageError, match=f"'{address}' is an address, .* reads folders only"):
            verify(*folders)


NEEDED = {"fsspec", "s3fs", "gcsfs", "aiohttp", "botocore", "huggingface_hub", "ray"}


def test_a_local_conversion_loads_none_of_it(mini: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from fp8convert import to_bf16\n"
        f"to_bf16({str(mini)!r}, {str(tmp_path / 'dst')!r})\n"
        "print(*sorted({m.partition('.')[0] for m in sys.modules}))\n"
    )
    words = [sys.executable, "-c", code]
    found = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    assert "fp8convert" in found
    assert not NEEDED & set(found)


@pytest.mark.parametrize(
    ("scheme", "module", "extra"), [("s3", "s3fs", "s3"), ("gs", "gcsfs", "gcs")]
)
def test_what_is_not_installed(
    scheme: str, module: str, extra: str, mini: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
    words = rf"needs another package: pip install 'fp8convert\[{extra}\]'"
    with pytest.raises(UsageError, match=words):
        origins.at(f"{scheme}://bucket/model")
    with pytest.raises(UsageError, match=words):
        prepare(mini, f"{scheme}://bucket/model")
