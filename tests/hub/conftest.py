"""The fixture ``hub``, and huggingface_hub of this process pointed at it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import fp8convert

from .models import contents, make_chain
from .pushing import calm
from .server import Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub of this test alone; huggingface_hub, here and wherever ``hub.env`` is, uses it."""
    from huggingface_hub import close_session

    with Hub(tmp_path / "hub") as made:
        close_session()  # of another hub, with its proxies
        point_here(made, monkeypatch)
        yield made
        close_session()


def point_here(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let huggingface_hub of this process talk to a hub, whenever it was imported."""
    from huggingface_hub import constants, hf_api

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in hub.settings.items():
        monkeypatch.setenv(name, value)
    for name, constant in {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(hub.home),
        "HF_HUB_CACHE": str(hub.home / "hub"),
        "HUGGINGFACE_HUB_CACHE": str(hub.home / "hub"),
        "HF_TOKEN_PATH": str(hub.home / "token"),
        "AGENT_HARNESSES_PATH": str(hub.home / ".agent_harnesses.json"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, constant, raising=False)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long before trying again, neither we nor huggingface_hub."""
    from huggingface_hub import file_download

    from fp8convert.hub import errors

    monkeypatch.setattr(errors, "WAITS", (0.01, 0.01))
    short = SimpleNamespace(sleep=lambda seconds: None)
    monkeypatch.setattr(file_download, "time", short)
    monkeypatch.setattr("huggingface_hub.utils._http.time", short)


@pytest.fixture
def calmed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For uploads from this process: see :func:`.pushing.calm`."""
    with calm(monkeypatch):
        yield


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six shards of 100 kB; each file of the output is made of two. Read only."""
    return make_chain(tmp_path_factory.mktemp("models") / "chain")


@pytest.fixture(scope="session")
def expected(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What its folder is converted to."""
    target = tmp_path_factory.mktemp("expected") / "dst"
    fp8convert.to_bf16(chain, target)
    return contents(target)
