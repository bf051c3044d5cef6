"""Fixtures shared by the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from fp8convert.samples import make_sample


@pytest.fixture(scope="session")
def tiny_fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DeepSeek-V3 checkpoint in FP8. Read only: tests share it."""
    folder = tmp_path_factory.mktemp("samples") / "tiny-fp8"
    make_sample(str(folder), size="tiny", scheme="fp8")
    return folder


@pytest.fixture(scope="session")
def tiny_bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in BF16. Read only: tests share it."""
    folder = tmp_path_factory.mktemp("samples") / "tiny-bf16"
    make_sample(str(folder), size="tiny", scheme="bf16")
    return folder
