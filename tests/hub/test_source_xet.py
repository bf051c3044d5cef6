"""huggingface_hub's Rust half: what it is told. (The hub of these tests does not speak Xet.)"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _xet

from fp8convert.hub import xet

BUFFER = "HF_XET_RECONSTRUCTION_DOWNLOAD_BUFFER"
TAMED = (
    "import re\n"
    "from fp8convert.hub import xet\n"
    "xet.tame(2)\n"
    "from hf_xet import XetSession\n"
    "found = dict(re.findall(r'([a-z_.]+)=([0-9]+)', str(XetSession())))\n"
    "print(*(found[f'reconstruction.download_buffer_{n}'] for n in ('size', 'perfile_size', "
    "'limit')), found['chunk_cache.size_bytes'])"
)


def tamed(**env: str) -> list[int]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_XET")}
    words = [sys.executable, "-c", TAMED]
    done = subprocess.run(words, env={**kept, **env}, capture_output=True, text=True, check=True)
    return list(map(int, done.stdout.split()))


def test_its_buffers_are_bounded() -> None:
    assert tamed() == [64_000_000, 32_000_000, 128_000_000, 0]


def test_what_a_user_has_set_stays() -> None:
    assert tamed(**{f"{BUFFER}_SIZE": "1gb", xet.CHUNKS: "5"})[::3] == [10**9, 5]


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    assert xet.memory() == 64_000_000
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    assert xet.memory() == 0
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert xet.memory() == 0


def test_it_is_told_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    monkeypatch.setattr(_xet, "abort_xet_session", lambda: told.append(True))
    xet.abort()
    assert told == [True]
    monkeypatch.undo()
    xet.abort()  # it does nothing
