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
    help="Model whose tensors, config and file names to imitate, and with them the format.",
)
@click.option(
    "--size",
    type=click.Choice(SIZES),
    default="tiny",
    show_default=True,
    help="tiny: 4 to 13 MB, runs in transformers (as bf16). small: 1 to 2 GB. full, of deepseek-v3 "
    "and deepseek-v4 only: every header of the published checkpoint with sparse data (689 and "
    "160 GB apparent, about 20 MB of disk).",
)
@click.option(
    "--scheme",
    type=click.Choice(SCHEMES),
    default="published",
    show_default=True,
    help="published: stored as the publisher does. bf16: the same weights unquantized, which is "
    "what a conversion to BF16 must give, bit for bit. fp8: the old name of published, for "
    "deepseek-v3, qwen3-fp8 and mistral-fp8.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same bytes.")
def make_sample_command(dst: str, family: str, size: str, scheme: str, seed: int) -> None:
    """Write a sample checkpoint into DST, a new or empty folder.

    The files look like a published checkpoint: shards, index and config are genuine in form, the
    weights are random. The tokenizer is a small one of DeepSeek's form. It needs no network.

    \b
    Families:
      deepseek-v3       FP8, F32 scale per 128x128
      deepseek-v4       FP8 with E8M0 scale per 128x128, experts FP4 with E8M0 per 1x32
      qwen3-fp8         FP8, BF16 scale per 128x128
      kimi-k2-thinking  experts INT4 with BF16 scale per 1x32 (compressed-tensors)
      gpt-oss           experts MXFP4, all of a layer in one tensor
      mistral-fp8       FP8, one BF16 scale per weight
      minimax-m3        MXFP8: FP8 with E8M0 scale per 1x32, stored as U8
      modelopt-nvfp4    MLPs NVFP4: FP4, E4M3 scale per 1x16, F32 scale per weight

    \b
    Examples:
      fp8convert make-sample demo/tiny-v3
      fp8convert make-sample demo/v4 --family deepseek-v4
      fp8convert make-sample demo/v4-bf16 --family deepseek-v4 --scheme bf16
      fp8convert make-sample demo/v4-full --family deepseek-v4 --size full
    """
    made = make_sample(dst, family, size, scheme, seed)
    click.echo(
        f"{dst}: {family} {size} {scheme}, {made.shards:,} shards, {made.tensors:,} tensors, "
        f"{made.nbytes:,} bytes"
    )
