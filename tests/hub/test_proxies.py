"""Proxies, as the environment names them: all of it goes by way of them, or passes them by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from huggingface_hub import close_session, constants, hf_api

import fp8convert
from fp8convert.errors import ResumableError

from .models import contents
from .proxy import Proxy, proxy
from .pushing import SENDING, files_of, on_hub, push
from .server import Hub

SOURCE = "org/model"
HIDDEN = "hub.invalid"  # a name that is nowhere
VARIABLES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy",
             "NO_PROXY", "no_proxy")  # fmt: skip


@pytest.fixture
def clean(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy is named."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def behind(hub: Hub, clean: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The hub has a name that only the proxy knows."""
    with proxy({HIDDEN: urlsplit(hub.endpoint).netloc}) as made:
        endpoint = f"http://{HIDDEN}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hf_api.api, "endpoint", endpoint)
        yield made


def named(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    close_session()  # it looks once


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_all_goes_by_way_of_it(
    variable: str, behind: Proxy, hub: Hub, chain: Path, expected: dict[str, bytes],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Headers and shards, the latter from the other address that the hub names."""
    hub.add(SOURCE, chain)
    named(monkeypatch, **{variable: behind.url})
    fp8convert.to_bf16(f"hf://{SOURCE}", tmp_path / "dst")
    assert contents(tmp_path / "dst") == expected
    assert set(behind.asked) > {HIDDEN}
    assert len(behind.asked) == len(hub.traffic.log())


@SENDING
@pytest.mark.usefixtures("calmed", "clean")
def test_uploads_do(hub: Hub, mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """(The hub tells its own address, which huggingface_hub wants to be the one that it knows.)"""
    with proxy({}) as made:
        named(monkeypatch, HTTP_PROXY=made.url)
        push(mini, fast_path / "dst")
        assert len(made.asked) == len(hub.traffic.log())
    assert on_hub(hub) == files_of(fast_path / "dst")


def test_some_hosts_pass_it_by(
    hub: Hub, clean: None, chain: Path, expected: dict[str, bytes], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    hub.add(SOURCE, chain)
    with proxy({}) as made:
        named(monkeypatch, HTTP_PROXY=made.url, NO_PROXY="127.0.0.1,localhost")
        fp8convert.to_bf16(f"hf://{SOURCE}", tmp_path / "dst")
        assert made.asked == []
    assert contents(tmp_path / "dst") == expected


@pytest.mark.usefixtures("hasty", "behind")
def test_one_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named(monkeypatch, HTTP_PROXY="http://127.0.0.1:9")
    with pytest.raises(ResumableError, match="the hub cannot be reached"):
        fp8convert.to_bf16(f"hf://{SOURCE}", tmp_path / "dst")
    assert not (tmp_path / "dst").exists()
