"""Quantization error: every weight by every scheme, beside llm-compressor's own output.

The error of a weight is sqrt(sum((w - q)**2) / sum(w**2)) in float64, w the source's values and q
what the written codes and scales mean, their product unrounded. One reader reads both outputs; it
is held against others' byte by byte by ``benchmarks codecs``. First on weights that look trained,
then on trained ones. Sizes are those of the safetensors files. Nothing is timed: there is no noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

import fp8convert
from fp8convert.checkpoint import Checkpoint

from . import quantize_inputs, quantize_peer
from .children import fp8convert as command
from .common import Env, Report, clear
from .inputs import shards
from .quantize_inputs import Model
from .quantize_peer import Peer

ALONE = ("fp8-block-ue8m0", "fp8-tensor")  # schemes that the peer lacks, or cannot do unattended
SCHEMES = (*quantize_peer.SCHEMES, *ALONE)
ROWS = 1024  # read at a time
TABLE = ("scheme", "ours", "llm-compressor", "ours higher", "searched", "MB", "its MB")
Errors = dict[str, float]


class Output(NamedTuple):
    """The error of each weight that was quantized, and the bytes of all."""

    errors: Errors
    nbytes: int

    @property
    def mean(self) -> float:
        """Of the weights' errors."""
        return float(np.mean([*self.errors.values()]))


def run(env: Env, report: Report) -> None:
    """Both checkpoints."""
    peer = quantize_peer.find(report)
    _model(env, report, quantize_inputs.dense(env, quantize_inputs.FEW), peer)
    try:
        model = quantize_inputs.trained(env)
    except OSError as error:
        report.skip("trained weights", str(error))
    else:
        _model(env, report, model, peer)
    clear(env.data / "scratch" / "out")


def _model(env: Env, report: Report, model: Model, peer: Peer | None) -> None:
    size = sum(f.stat().st_size for f in shards(model.folder)) / 1e6
    print(f"\n  {model.label}, {size:.1f} MB", flush=True)
    rows = [_scheme(env, report, model, peer, scheme) for scheme in SCHEMES]
    print(f"\n  {model.label}, {size:.1f} MB: mean relative RMS error of a weight")
    for row in (TABLE, ("---",) * len(TABLE), *rows):
        print(f"  | {' | '.join(row)} |", flush=True)


def _scheme(
    env: Env, report: Report, model: Model, peer: Peer | None, scheme: str
) -> tuple[str, ...]:
    """One scheme by all sides; its row of the table."""
    plain, searched = (_ours(env, model, scheme, search) for search in ("plain", "mse"))
    what = f"{scheme}, {model.label}"
    _searched(report, what, plain, searched)
    theirs = quantize_peer.SCHEMES.get(scheme)
    figures = ("no such scheme", "-", f"{searched.mean:.6f}", f"{plain.nbytes / 1e6:.1f}", "-")
    if not peer or not theirs:
        figures = figures if not theirs else ("not run", *figures[1:])
        return scheme, f"{plain.mean:.6f}", *figures
    target = env.fresh()
    peer.quantize(model, target, theirs)
    other = _output(model, target)
    higher = _against(report, f"{what}, against {theirs}", plain, other)
    return (
        f"{scheme}, {theirs}",
        f"{plain.mean:.6f}",
        f"{other.mean:.6f}",
        f"{higher} of {len(other.errors)}",
        *figures[2:4],
        f"{other.nbytes / 1e6:.1f}",
    )


def _against(report: Report, what: str, ours: Output, theirs: Output) -> int:
    """How many of our errors are higher; which are is held to be none."""
    odd = sorted(ours.errors.keys() ^ theirs.errors.keys())
    detail = f"{len(ours.errors)} weights quantized, by one side only: {odd[:4] or 'none'}"
    report.fact(f"{what}: the same weights", not odd, detail)
    return _held(report, f"{what}: no weight's error is higher", ours.errors, theirs.errors)


def _searched(report: Report, what: str, plain: Output, searched: Output) -> None:
    title = f"{what}: --scale-search mse against plain"
    _held(report, f"{title}, no weight's error is higher", searched.errors, plain.errors)
    gain = 1 - searched.mean / plain.mean
    detail = f"mean {searched.mean:.6f} against {plain.mean:.6f}, {gain:.2%} lower"
    report.fact(f"{title}, the mean is lower", searched.mean < plain.mean, detail)


def _held(report: Report, title: str, ours: Errors, theirs: Errors) -> int:
    ratios = {name: ours[name] / theirs[name] for name in ours.keys() & theirs.keys()}
    higher = sum(ratio > 1 for ratio in ratios.values())
    equal = sum(ratio == 1 for ratio in ratios.values())
    worst, best = (pick(ratios, key=lambda n: ratios[n]) for pick in (max, min))
    detail = (
        f"higher {higher}, equal {equal} of {len(ratios)}; ratios "
        f"{ratios[best]:.6f} ({best}) to {ratios[worst]:.6f} ({worst})"
    )
    report.fact(title, not higher, detail)
    return higher


def _ours(env: Env, model: Model, scheme: str, search: str) -> Output:
    target = env.fresh()
    options = ("--scheme", scheme, "--scale-search", search, "--quiet")
    command("quantize", model.folder, target, *options)
    return _output(model, target)


def _output(model: Model, folder: Path) -> Output:
    source, found = (fp8convert.open_checkpoint(f) for f in (model.folder, folder))
    coded = [n for n in found.names() if found.spec(n).codec != source.spec(n).codec]
    errors = {name: _error(source, found, name) for name in coded}
    return Output(errors, sum(f.stat().st_size for f in shards(folder)))


def _error(source: Checkpoint, found: Checkpoint, name: str) -> float:
    rows, square, power = source.spec(name).shape[0], 0.0, 0.0
    for at in range(0, rows, ROWS):
        part = slice(at, min(at + ROWS, rows))
        w, q = (c.read(name, part).astype(np.float64).reshape(-1) for c in (source, found))
        power += float(w @ w)
        w -= q
        square += float(w @ w)
    return float(np.sqrt(square / power))
