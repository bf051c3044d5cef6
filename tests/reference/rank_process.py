"""One rank of a set, as ``torchrun`` starts it: ``python -m ... FOLDER OUT COMPUTE...``."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from fp8convert.reference.ranks import distributed, join, open_any
from fp8convert.reference.run import logits_of

from .rank_sets import ids


def main(folder: str, out: str, *computes: str) -> None:
    """The logits of each way to compute, by its name; every rank has them, rank 0 writes them."""
    assert distributed()
    group = join()
    found: dict[str, torch.Tensor] = {}
    for compute in computes:
        model = open_any(folder, compute, group=group)
        tokens = ids(model.vocabulary)
        found[compute] = logits_of(model, tokens).contiguous()
    if group.rank == 0:
        save_file(found, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
