"""``fp8convert make-sample``: write a checkpoint with a real layout and made-up weights."""

from __future__ import annotations

import click

from fp8convert.samples import FAMILIES, SCHEMES, SIZES, make_sample


@click.command("make-sample")
@click.argument("dst", type=click.Path())
@click.option(
    "--family",
    type=click.Choice(list(FAMILIES)),
    default="deepseek-v3",
    show_default=True,
    help="Model whose tensors, config and file names to imitate.",
)
@click.option(
    "--size",
    type=click.Choice(SIZES),
    default="tiny",
    show_default=True,
    help="tiny: 13 MB, runs in transformers. small: 2 GB. full: every header of the published "
    "checkpoint with sparse data (689 GB apparent, about 20 MB of disk).",
)
@click.option(
    "--scheme",
    type=click.Choice(SCHEMES),
    default="fp8",
    show_default=True,
    help="fp8: as published. bf16: the same weights, unquantized.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same bytes.")
def make_sample_command(dst: str, family: str, size: str, scheme: str, seed: int) -> None:
    """Write a sample checkpoint into DST, a new or empty folder.

    The files look like a published checkpoint: shards, index, config and tokenizer are genuine
    in form, the weights are random. It needs no network.

    \b
    Example:
      fp8convert make-sample demo/tiny-fp8 --size tiny
    """
    made = make_sample(dst, family, size, scheme, seed)
    click.echo(
        f"{dst}: {family} {size} {scheme}, {made.shards:,} shards, {made.tensors:,} tensors, "
        f"{made.nbytes:,} bytes"
    )
