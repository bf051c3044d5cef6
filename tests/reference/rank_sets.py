"""Models cut for ranks, files of ranks that are damaged, and how far logits are apart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ..sharded import tiny
from ..sharded.runs import Runs

Tensors = dict[str, torch.Tensor]


class Models(Runs):
    """Checkpoints by name, and their cuts."""

    def model(self, name: str) -> Path:
        """One of ``tiny.MODELS``; or a sample: ``sample-`` and a family."""
        if name.startswith("sample-"):
            return self.source(name)
        folder = self.root / "tiny" / name
        if not folder.exists():
            tiny.write(name, folder)
        return folder

    def cut(self, name: str, tp: int, **options: Any) -> Path:
        """``shard_for_tp`` of it. Read only: tests share it."""
        return self.shard_folder(self.model(name), tp, **options)

    def copy(self, folder: Path) -> Path:
        """One to be damaged."""
        return Path(shutil.copytree(folder, self.new()))


def ids(vocabulary: int, length: int = 24, batch: int = 2) -> torch.Tensor:
    """Tokens [b, l]: of every part of the vocabulary."""
    generator = torch.Generator().manual_seed(11)
    return torch.randint(0, vocabulary, (batch, length), generator=generator)


def vocabulary(folder: Path) -> int:
    """Of a model."""
    found: int = json.loads((folder / "config.json").read_text())["vocab_size"]
    return found


def apart(expected: torch.Tensor, found: torch.Tensor) -> float:
    """The root mean square of the difference, by that of ``expected``."""
    assert expected.shape == found.shape
    return float((found - expected).norm() / expected.norm())


def divergence(expected: torch.Tensor, found: torch.Tensor) -> float:
    """The largest KL divergence of a position, in nats."""
    p, q = expected.double().log_softmax(-1), found.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).max())


def transformers_logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    """Those of the library's own model, in float32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        found: torch.Tensor = model.eval()(tokens, use_cache=False).logits
    return found


def files(folder: Path) -> list[Path]:
    """The one safetensors file of each rank, in order."""
    ranks = len(list(folder.glob("model*.safetensors")))
    if ranks:
        return [folder / f"model{rank}-mp{ranks}.safetensors" for rank in range(ranks)]
    ranks = len(list(folder.glob("rank*")))
    return [folder / f"rank{rank}" / "model.safetensors" for rank in range(ranks)]


def edit(folder: Path, change: Callable[[list[Tensors]], None]) -> None:
    """Change the tensors of all ranks, by name."""
    found = files(folder)
    tensors = [load_file(file) for file in found]
    change(tensors)
    for file, held in zip(found, tensors, strict=True):
        save_file({n: t.contiguous() for n, t in held.items()}, file, {"format": "pt"})
