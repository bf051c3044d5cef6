"""``fp8convert unshard``."""

from __future__ import annotations

from typing import Any

import click

from fp8convert.options import LAYOUTS

from .conversion import convert, engine_options
from .shard_for_tp import summary


@click.command(
    "unshard",
    epilog="\b\nExamples:\n"
    "  fp8convert unshard DeepSeek-V3-mp16 DeepSeek-V3\n"
    "  fp8convert unshard DeepSeek-V3-mp16 DeepSeek-V3-mp8 --tp 8\n"
    "  fp8convert unshard published-mp16 DeepSeek-V3 --config DeepSeek-V3/config.json\n"
    "  fp8convert unshard s3://models/DeepSeek-V3-mp16 s3://models/DeepSeek-V3",
)
@click.argument("src")
@click.argument("dst")
@click.option("--tp", type=click.IntRange(1, 128), help="Cut for this many ranks instead.")
@click.option("--layout", type=click.Choice(LAYOUTS), help="With --tp.  [default: as SRC has it]")
@click.option("--config", metavar="FILE",
              help="The model's own config.json, if SRC has none.")  # fmt: skip
@engine_options
def unshard_command(src: str, dst: str, **options: Any) -> None:
    """Put the files of tensor-parallel ranks in SRC together, into one checkpoint at DST.

    SRC is what shard-for-tp has written, in either layout, or DeepSeek's own
    model{i}-mp{N}.safetensors. Every tensor becomes what it was before it was cut. With --tp it is
    cut for other ranks, without a whole checkpoint on the disk in between. Both may be in an object
    store (s3://, gs://), SRC on the hub (hf://org/name[@revision]).
    """
    from fp8convert.options import Unshard

    convert(src, dst, Unshard, summary, **options)
