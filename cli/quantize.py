"""``fp8convert quantize``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fp8convert.options import SCHEMES

from .conversion import convert, engine_options
from .encoding import encoding_options

if TYPE_CHECKING:
    from fp8convert.convert import Job, Manifest


@click.command(
    "quantize",
    epilog="\b\nExamples:\n"
    "  fp8convert quantize my-finetune-bf16 my-finetune --scheme fp8-block\n"
    "  fp8convert quantize DeepSeek-V3 DeepSeek-V3-nvfp4 --scheme nvfp4 --scale-search mse\n"
    "  fp8convert quantize V4-Flash V4-Flash-fp8 --scheme fp8-block-ue8m0 --require-exact\n"
    "  fp8convert quantize SRC DST --scheme int4-group --group 32 --include '*.experts.*'\n"
    "  fp8convert quantize hf://org/name DST --scheme nvfp4 --push-to-hub my-org/name-nvfp4",
)
@click.argument("src")
@click.argument("dst")
@click.option("--scheme", required=True, type=click.Choice(SCHEMES), metavar="SCHEME",
              help=f"One of {', '.join(SCHEMES)}.")  # fmt: skip
@encoding_options
@click.option("--report", metavar="FILE.json", help="Write each weight's error there.")
@engine_options
def quantize_command(src: str, dst: str, report: str | None, **options: Any) -> None:
    """Encode the checkpoint SRC, in any format, into a low-precision one at DST.

    SRC is a folder, hf://org/name[@revision], s3:// or gs://; DST a folder, s3:// or gs://.

    The linears of attention and MLPs are encoded; embeddings, heads, norms and routers are kept.
    What the source holds losslessly in the new form is carried over exactly, and the manifest says
    of every weight whether it is exact, or its error. DST appears whole or not at all; after an
    interruption the same command goes on where it stopped.
    """
    from fp8convert.options import Quantize

    if report is not None:
        _check_report(Path(report), Path(dst))
    manifest = convert(src, dst, Quantize, summary, **options)
    if report is not None and manifest is not None:
        _write_report(Path(report), manifest)


def _check_report(report: Path, target: Path) -> None:
    """Before hours of work, whether its outcome can be written."""
    folder = report.absolute().parent
    if not report.name or report.is_dir() or not folder.is_dir():
        raise click.UsageError(f"--report: {report} is not a file in a folder that is there")
    if report.resolve().is_relative_to(target.resolve()):
        raise click.UsageError("--report: not inside DST, which holds the checkpoint alone")


def _write_report(report: Path, manifest: Manifest) -> None:
    keys = ("tool", "scheme", "encoders", "weights_encoded", "weights_copied", "by_class",
            "quantized", "warnings", "notes")  # fmt: skip
    data = {"target": str(manifest.path), **{k: manifest.data[k] for k in keys}}
    temporary = report.with_name(f".{report.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(data, indent=1) + "\n")
        os.replace(temporary, report)
    finally:
        temporary.unlink(missing_ok=True)


def summary(job: Job, manifest: Manifest) -> None:
    """What was done, in a few lines."""
    data = manifest.data
    for note in data["notes"]:
        click.echo(note)
    rows = [("class", "weights", "exact", "max abs", "relative RMS", "SNR dB")]
    for of, found in data["by_class"].items():
        errors = [found.get(k) for k in ("max_abs", "relative_rms", "snr_db")]
        words = ["-" if e is None else f"{e:g}" for e in errors]
        rows.append((of, f"{found['weights']:,}", f"{found['exact_weights']:,}", *words))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first, *rest = (
            w.rjust(n) if k else w.ljust(n)
            for k, (w, n) in enumerate(zip(row, widths, strict=True))
        )
        click.echo("  ".join([first, *rest]))
    click.echo(
        f"{data['weights_encoded']:,} weights encoded as {data['scheme']}, "
        f"{data['weights_copied']:,} copied, {data['weights_decoded']:,} decoded, "
        f"{data['tensors_kept']:,} tensors kept"
    )
