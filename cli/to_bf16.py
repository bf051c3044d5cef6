"""``fp8convert to-bf16``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .conversion import convert, engine_options, one

if TYPE_CHECKING:
    from fp8convert.convert import Job, Manifest


@click.command(
    "to-bf16",
    epilog="\b\nExamples:\n  fp8convert to-bf16 DeepSeek-V3 DeepSeek-V3-bf16\n"
    "  fp8convert to-bf16 DeepSeek-V3 DeepSeek-V3-bf16 --dry-run\n"
    "  fp8convert to-bf16 SRC DST --max-shard-size 5GB --dtype float16\n"
    "  fp8convert to-bf16 hf://org/name DST --scratch-size 50GB\n"
    "  fp8convert to-bf16 SRC DST --push-to-hub my-org/name --private\n"
    "  fp8convert to-bf16 s3://models/SRC s3://models/DST\n"
    "  fp8convert to-bf16 SRC DST --executor ray",
)
@click.argument("src", required=False)
@click.argument("dst", required=False)
@click.option("--dtype", type=click.Choice(["bfloat16", "float16", "float32"]),
              default="bfloat16", show_default=True, help="Of the decoded weights.")  # fmt: skip
@engine_options
@click.option("--input-fp8-hf-path", metavar="SRC", help="SRC, as the published script has it.")
@click.option("--output-bf16-hf-path", metavar="DST", help="DST, as the published script has it.")
def to_bf16_command(
    src: str | None,
    dst: str | None,
    input_fp8_hf_path: str | None,
    output_bf16_hf_path: str | None,
    **options: Any,
) -> None:
    """Convert the low-precision checkpoint SRC into a BF16 one at DST.

    SRC is a folder, hf://org/name[@revision], s3:// or gs://; DST a folder, s3:// or gs://.

    DST appears whole or not at all. After an interruption the same command goes on where it
    stopped; on a finished DST it says so.
    """
    source = one("SRC", src, "--input-fp8-hf-path", input_fp8_hf_path)
    target = one("DST", dst, "--output-bf16-hf-path", output_bf16_hf_path)
    from fp8convert.options import ToBf16

    convert(source, target, ToBf16, summary, **options)


def summary(job: Job, manifest: Manifest) -> None:
    """What was done, in a few lines."""
    data = manifest.data
    click.echo(
        f"{data['weights_decoded']:,} weights decoded to {data['identity']['options']['dtype']}, "
        f"{data['tensors_kept']:,} tensors kept, {data['parts_dropped']:,} scales dropped"
    )
