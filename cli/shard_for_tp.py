"""``fp8convert shard-for-tp``, also a command of its own."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NoReturn

import click

from fp8convert.options import EXPERTS, LAYOUTS, MISALIGNED, MTP, WEIGHTS

from .conversion import convert, engine_options, one
from .encoding import encoding_options
from .main import run

if TYPE_CHECKING:
    from fp8convert.convert import Job, Manifest

    _RanksType = click.ParamType[tuple[int, ...]]
else:
    _RanksType = click.ParamType  # generic since click 8.3 only


class Ranks(_RanksType):
    """``0,3-5``: some of the ranks."""

    name = "0,3-5"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Their numbers; anything else is a usage error."""
        found: set[int] = set()
        for part in str(value).split(","):
            match = re.fullmatch(r"([0-9]{1,3})(?:-([0-9]{1,3}))?", part.strip())
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
            if first > last:
                self.fail(f"{value!r} is not a list of ranks such as 0,3-5", param, ctx)
            found.update(range(first, last + 1))
        return tuple(sorted(found))


@click.command(
    "shard-for-tp",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExamples:\n"
    "  shard-for-tp DeepSeek-V3 DeepSeek-V3-mp16 --tp 16\n"
    "  shard-for-tp Qwen3-32B-FP8 Qwen3-tp4 --tp 4 --layout hf\n"
    "  shard-for-tp DeepSeek-V3 V3-tp32 --tp 32 --layout hf --misaligned reblock\n"
    "  shard-for-tp DeepSeek-V3 V3-mp8-bf16 --tp 8 --weights bf16 --ranks 0,3-5\n"
    "  shard-for-tp --hf-ckpt-path SRC --save-path DST --n-experts 256 --model-parallel 16\n"
    "  shard-for-tp hf://deepseek-ai/DeepSeek-V3 V3-mp8 --tp 8 --scratch-size 50GB",
)
@click.argument("src", required=False)
@click.argument("dst", required=False)
@click.option("--tp", type=click.IntRange(1, 128), help="How many ranks.")
@click.option("--layout", type=click.Choice(LAYOUTS), default="deepseek", show_default=True,
              help="deepseek: model{i}-mp{N}.safetensors. hf: a folder a rank.")  # fmt: skip
@click.option("--weights", type=click.Choice(WEIGHTS), metavar="WEIGHTS", default="keep",
              show_default=True, help=f"One of {', '.join(WEIGHTS)}.")  # fmt: skip
@click.option("--misaligned", type=click.Choice(MISALIGNED), default="error", show_default=True,
              help="What becomes of weights that ranks cut inside blocks of scales.")  # fmt: skip
@click.option("--mtp", type=click.Choice(MTP),
              help="MTP layers.  [default: drop those of V3 in layout deepseek]")  # fmt: skip
@click.option("--experts", type=click.Choice(EXPERTS), default="owner", show_default=True,
              help="Of layout hf: whole on one rank each, or cut over all.")  # fmt: skip
@click.option("--ranks", type=Ranks(), help="Write these only.  [default: all]")
@click.option("--pad-vocab", type=click.IntRange(1), metavar="MULTIPLE",
              help="Of layout hf: pad the vocabulary with zeros.")  # fmt: skip
@encoding_options
@engine_options
@click.option("--hf-ckpt-path", metavar="SRC", help="SRC, as the published script has it.")
@click.option("--save-path", metavar="DST", help="DST, as the published script has it.")
@click.option("--n-experts", type=click.IntRange(1), help="Held against the config's number.")
@click.option("--model-parallel", type=click.IntRange(1, 128), metavar="N", help="As --tp.")
def shard_for_tp_command(
    src: str | None,
    dst: str | None,
    tp: int | None,
    hf_ckpt_path: str | None,
    save_path: str | None,
    model_parallel: int | None,
    **options: Any,
) -> None:
    """Cut the checkpoint SRC for N tensor-parallel ranks, into the folder DST.

    SRC is a folder, hf://org/name[@revision], s3:// or gs://; DST a folder, s3:// or gs://.

    Weights and their scales are cut together, between blocks; where N does not allow it, this is
    refused and the numbers that do are listed. DST appears whole or not at all; after an
    interruption the same command goes on where it stopped. docs/sharding.md has the cuts.
    """
    source = one("SRC", src, "--hf-ckpt-path", hf_ckpt_path)
    target = one("DST", dst, "--save-path", save_path)
    count = one("--tp N", tp, "--model-parallel", model_parallel)
    from fp8convert.options import ShardForTp

    convert(source, target, ShardForTp, summary, tp=count, **options)


def summary(job: Job, manifest: Manifest) -> None:
    """What was done, in a few lines."""
    data = manifest.data
    for note in data["notes"]:
        click.echo(note)
    words = {f"weights_{w}": w for w in ("encoded", "copied", "decoded")}
    changed = [f"{data[key]:,} {word}" for key, word in words.items() if data.get(key)]
    rest = f"{data['tensors_kept']:,} tensors kept"
    click.echo(f"{len(job.plan.tasks):,} files; weights: {', '.join([*changed, rest])}")


def main() -> NoReturn:
    """Console script ``shard-for-tp``."""
    run(shard_for_tp_command, "shard-for-tp")
