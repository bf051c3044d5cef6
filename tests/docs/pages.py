"""A page's world: its folder, programs, servers; its blocks run there one after the other."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..hub import Hub
from . import s3
from .blocks import Block, blocks
from .stubs import STUBS, processes, stop_rays

DOCS = Path(__file__).parents[2] / "docs"
NAME = "DeepSeek-V3"  # of the sample, as a folder
REPOSITORY = f"deepseek-ai/{NAME}"
LONGEST = 240  # seconds of a block: beyond that it hangs


class Page:
    """One page being run. Use :func:`opened`."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.state = Path(environment["DOCS_STATE"])

    def run(self, text: str) -> int:
        """Run all blocks; how many. AssertionError names the first that ends in another way."""
        found = blocks(text)
        for block in found:
            if block.file:
                path = self.folder / block.file
                path.write_text(block.text)
                path.chmod(0o755)
            else:
                self._one(block)
        return sum(not block.file for block in found)

    def _one(self, block: Block) -> None:
        shell = ["bash", "-euo", "pipefail", "-c", block.text]
        words = shell if block.language == "sh" else [sys.executable, "-c", block.text]
        ended = subprocess.run(
            words, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LONGEST,
        )  # fmt: skip
        told = f"line {block.line}:\n{block.text}{ended.stdout}"
        assert ended.returncode == block.code, f"exit {ended.returncode}, {told}"
        for record in sorted(self.state.glob("job-*")):
            assert record.read_text() == "ok", f"{record.name} {record.read_text()}, {told}"

    def processes(self) -> list[int]:
        """Those of this page that are still there."""
        return [pid for pid, _ in processes(self.state)]

    def close(self) -> list[int]:
        """End what is still there; what of it nobody had asked for."""
        stop_rays(self.state)
        left = self.processes()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return left


@contextlib.contextmanager
def opened(folder: Path, environment: dict[str, str]) -> Iterator[Page]:
    """With the sample in its working folder; whoever leaves processes behind has failed."""
    programs = folder / "programs"
    programs.mkdir()
    for name in STUBS:
        script = f'#!/bin/sh\nexec "{sys.executable}" -m {__package__}.stubs {name} "$@"\n'
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    (folder / "state").mkdir()
    rays = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets want a short path
    root = str(Path(__file__).parents[2])
    path = [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
    whole = {
        **environment,
        "PATH": os.pathsep.join(path),
        "DOCS_STATE": str(folder / "state"),
        "PYTHONPATH": root,
        "HOME": str(folder),
        "RAY_TMPDIR": rays,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    whole.pop("RAY_ADDRESS", None)
    page = Page(folder / "work", whole)
    try:
        yield page
    finally:
        left = page.close()
        shutil.rmtree(rays, ignore_errors=True)
    assert not left, f"processes {left} were left"


@contextlib.contextmanager
def servers(folder: Path, sample: Path) -> Iterator[dict[str, str]]:
    """A hub and an S3 that have the sample; the environment in which they are found."""
    with Hub(folder / "hub") as hub, _s3(sample) as url:
        hub.add(REPOSITORY, sample)
        yield {
            **hub.env, "HF_TOKEN": "hf_docs", "AWS_ENDPOINT_URL": url, **s3.KEYS,
            "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip


@contextlib.contextmanager
def _s3(sample: Path) -> Iterator[str]:
    words = [sys.executable, "-m", s3.__name__, str(sample)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        words,
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            url = process.stdout.readline().strip()
            assert url, "no S3"
            yield url
        finally:
            process.stdin.close()
