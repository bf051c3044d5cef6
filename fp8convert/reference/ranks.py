"""Tensor-parallel ranks run as ranks: each reads its own files only, and they exchange sums.

Nothing is put together first, so a cut, an order or a name that is wrong gives wrong logits. All
ranks run in one process, a thread each (see :mod:`.ranked`), or each in a process of ``torchrun``
(:func:`join`). A rank computes with one thread in either, and sums are taken in the order of ranks:
both ways give the same bits, however many cores there are.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..catalogue import CONFIG, Catalogue, open_ranks
from ..checkpoint import Checkpoint
from ..declared import experts_in
from ..errors import FormatError, SchemeError, UsageError, listed, shown
from .groups import Alone, Gloo, Group, Threads
from .names import rename_of
from .ranked import Agreed, Ranked
from .run import Model, build, open_model, power_of_two
from .source import Named
from .weights import Weights

EXPERT = re.compile(r"(.*\.experts)\.([0-9]{1,6})\..*", re.DOTALL)


def open_any(
    path: str | os.PathLike[str],
    compute: str = "bf16",
    device: str = "cpu",
    config: dict[str, Any] | None = None,
    group: Gloo | None = None,
) -> Any:
    """The folder ``path`` as a model: a rank set as ranks, anything else as :func:`open_model`.

    ``config`` is for rank files that have no config.json beside them. With ``group`` (see
    :func:`join`) this process runs one rank of the set; UsageError if there are not as many.
    """
    ranks = open_ranks(path)
    if group is not None:
        return _of_group(path, ranks or [], compute, device, config, group)
    if ranks is None:
        return open_model(path, compute, device)
    return _ranked(ranks, compute, device, config)


def distributed() -> bool:
    """Whether this is one of several processes, as ``torchrun`` and its like start them."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))


def join() -> Gloo:
    """This process as a rank of the ``torchrun`` that started it.

    Call it once, and ``torch.distributed.destroy_process_group`` at the end.
    """
    import torch.distributed as dist

    torch.set_num_threads(1)  # see the module
    dist.init_process_group("gloo")
    return Gloo()


def _ranked(
    ranks: Sequence[Catalogue], compute: str, device: str, config: dict[str, Any] | None
) -> Ranked:
    said = _config(ranks, config)
    threads = Threads(len(ranks))
    groups = [threads.member(r) for r in range(len(ranks))] if len(ranks) > 1 else [Alone()]
    models = [_model(*each, said, compute, device) for each in zip(ranks, groups, strict=True)]
    _check_experts(ranks, said)
    return Ranked(models, threads)


def _of_group(
    path: str | os.PathLike[str], ranks: Sequence[Catalogue], compute: str, device: str,
    config: dict[str, Any] | None, group: Gloo,
) -> Agreed:  # fmt: skip
    if group.size != len(ranks):
        held = f"{shown(path)} has {len(ranks)} ranks" if ranks else f"{shown(path)} is no rank set"
        raise UsageError(
            f"{group.size} processes, but {held}: start one process for each rank, "
            "`torchrun --nproc-per-node N`, or run all in one without torchrun"
        )
    said = _config(ranks, config)
    model = _model(ranks[group.rank], group, said, compute, device)
    _check_experts(ranks, said)
    return Agreed(model)


def _model(
    rank: Catalogue, group: Group, config: dict[str, Any], compute: str, device: str
) -> Model:
    rename = rename_of(config) if rank.declared.ranks else str
    source = Named(Checkpoint(rank), rename)
    return build(config, Weights(source, compute, device, group, power_of_two(config)))


def _config(ranks: Sequence[Catalogue], other: dict[str, Any] | None) -> dict[str, Any]:
    """The one config of all ranks, which is that of the whole model."""
    first = ranks[0].config
    for number, rank in enumerate(ranks):
        fields = [f for f in {**first, **rank.config} if first.get(f) != rank.config.get(f)]
        if fields:
            raise FormatError(
                f"{CONFIG} of rank {number} and of rank 0 differ in {listed(fields)}, expected "
                "the same on every rank"
            )
    if found := first or other:
        return found
    raise SchemeError(
        f"{shown(_root(ranks))} has rank files without a {CONFIG}, which says what model they are "
        "of: put the model's own beside them"
    )


def _root(ranks: Sequence[Catalogue]) -> object:
    """The folder that was given."""
    at = Path(ranks[0].folder.place)
    return at if ranks[0].declared.ranks else at.parent


def _check_experts(ranks: Sequence[Catalogue], config: Mapping[str, Any]) -> None:
    """FormatError unless every rank has all experts of a layer, or just those that it owns."""
    _, count = experts_in(dict(config))
    for rank, catalogue in enumerate(ranks):
        own = range(rank * count // len(ranks), (rank + 1) * count // len(ranks))
        found = defaultdict(set)
        for name in catalogue.tensors:
            if match := EXPERT.fullmatch(name):
                found[match[1]].add(int(match[2]))
        for module, numbers in found.items():
            if numbers != set(own) and numbers != set(range(count)):
                raise FormatError(
                    f"rank {rank} has experts {_few(numbers)} in {shown(module)}, expected "
                    f"{own.start} to {own.stop - 1}, or all {count}"
                )


def _few(numbers: set[int]) -> str:
    return listed(map(str, sorted(numbers)), 8).replace("'", "")
