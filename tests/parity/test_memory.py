"""Peak memory, from Linux's own count and from where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fp8convert.parity import memory
from fp8convert.parity.memory import peak_rss


def test_memory_is_counted_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_rss() > 50 << 20  # torch alone
    held = torch.ones(1 << 26)  # 256 MiB
    assert peak_rss() >= held.nbytes
    real = memory.resource.getrusage(memory.resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(memory, "STATUS", Path("/nowhere"))
    assert peak_rss() >= held.nbytes
    monkeypatch.setattr(memory.sys, "platform", "darwin")  # which counts in bytes
    assert peak_rss() == pytest.approx(real, rel=0.1)
