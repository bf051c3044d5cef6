"""How far logits are from transformers', by random models: ``python -m tests.reference.measure``.

The bounds that the tests hold are a little above what this prints.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from fp8convert.reference.run import open_model

from . import hf
from .test_dense import CASES
from .test_qwen3_moe import CASES as MOE_CASES
from .test_qwen3_moe import MOE

HEAD = ("model", "fp32", "bf16", "theirs to float32", "ours to float32")


def measured(folder: Path, model: str, seed: int, fields: dict[str, Any]) -> list[float]:
    """Relative RMS of logits: in float32; in BF16; of either's BF16 from float32."""
    hf.write(folder, model, seed, bf16=True, **fields)
    ids = hf.tokens(seed)
    exact, theirs = hf.theirs(folder, ids).logits, hf.theirs(folder, ids, torch.bfloat16).logits
    wide, ours = (hf.ours(open_model(folder, c), ids).logits for c in ("fp32", "bf16"))
    pairs = ((wide, exact), (ours, theirs), (theirs, exact), (ours, exact))
    return [hf.relative(found, expected) for found, expected in pairs]


def main(seeds: int = 20) -> None:
    """The largest of all seeds, a line for each model."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    cases = {case: (case.partition(" ")[0], fields) for case, fields in CASES.items()}
    cases |= {f"qwen3_moe, {case}": ("qwen3_moe", MOE | f) for case, f in MOE_CASES.items()}
    print("".join(f"{word:>20}" for word in HEAD))
    for case, (model, fields) in cases.items():
        with tempfile.TemporaryDirectory() as root:
            rows = [measured(Path(root, str(s)), model, s, fields) for s in range(seeds)]
        worst = (f"{max(column):>20.2g}" for column in zip(*rows, strict=True))
        print(f"{case:>40}" + "".join(worst))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
