"""``fp8convert logits``."""

from __future__ import annotations

import json
from typing import Any

import click

from .progress import LayerMeter
from .running import polite, running_options, wanted
from .sizes import human


@click.command(
    "logits",
    epilog="\b\nExamples:\n"
    "  fp8convert logits DeepSeek-V3 --seed 0 --length 32 --out logits.safetensors\n"
    "  fp8convert logits DeepSeek-V3 --prompt 'The sky is' --out sky.safetensors\n"
    "  fp8convert logits DeepSeek-V3 --tokens ids.json --layers 0,3 --out two.safetensors",
)
@click.argument("src")
@click.option("--out", required=True, metavar="FILE.safetensors", help="The new file.")
@running_options
@click.option("--json", "as_json", is_flag=True, help="What was done, as JSON on stdout.")
@click.option("--quiet", is_flag=True, help="No progress, no summary.")
def logits_command(
    src: str, out: str, compute: str, device: str, layers: tuple[int, ...] | None, as_json: bool,
    quiet: bool, **tokens: Any,
) -> None:  # fmt: skip
    """Run the checkpoint folder SRC on some tokens, a layer at a time, and write its logits.

    SRC is any checkpoint or rank set of a model that the reference forward pass has. FILE holds
    tokens I64 [b, l] and logits F32 [b, l, vocabulary]. If a logit is NaN or infinite there is no
    file, and the exit code is 1.
    """
    polite()
    asked = wanted(**tokens)
    from fp8convert.parity.logits import write_logits

    with LayerMeter(quiet) as meter:
        done = write_logits(src, asked, out, compute, device, layers, meter)
    if as_json:
        click.echo(json.dumps(done, indent=1))
    elif not quiet:
        memory = done["memory"]
        click.echo(f"{out}: logits {done['shape']} of {len(done['layers'])} layers")
        click.echo(
            f"peak RSS {human(memory['peak_rss_bytes'])}, at most "
            f"{human(memory['largest_band_bytes'])} of a weight decoded at once, "
            f"{human(memory['read_bytes'])} read in {done['seconds']:.1f} s"
        )
