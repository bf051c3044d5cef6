"""Right outputs to check, each made once; tests share them and change copies."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fp8convert.samples import make_sample

from ..sharded.runs import Runs

BARE = "bare "


class Made(Runs):
    """Folders of samples and of what is made of them, by name."""

    def sample(self, family: str = "deepseek-v3", scheme: str = "published") -> Path:
        """A tiny one."""
        folder = self.root / "samples" / f"{family}-{scheme}"
        if not folder.exists():
            folder.parent.mkdir(exist_ok=True)
            make_sample(str(folder), family=family, scheme=scheme)
        return folder

    def output(self, name: str) -> Path:
        """``v3``, ``bf16``, ``hf2`` ...; with "bare " before it, without a manifest."""
        name = name.removeprefix(BARE)
        v3 = self.sample()
        if name == "v3":
            return v3
        if name == "bf16":
            return self.to_bf16(v3)
        if name == "hf2":
            return self.shard_folder(v3, 2, layout="hf")
        if name == "ds2":
            return self.shard_folder(v3, 2, layout="deepseek")
        if name == "apart4":
            return self.shard_folder(v3, 4, layout="hf", misaligned="requantize")
        return self.sample(name)

    def copied(self, name: str) -> Path:
        """One to be changed: files are links, so a changed one must be written anew."""
        folder = self.new()
        shutil.copytree(self.output(name), folder, copy_function=os.link)
        if name.startswith(BARE):
            (folder / "manifest.json").unlink(missing_ok=True)
        return folder
