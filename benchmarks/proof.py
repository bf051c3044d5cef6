"""Proof: how long parity and verify take, and the memory of a layer at true size.

Parity is that of two tiny checkpoints, from a cold start: a new process, and in one of the figures
no compiled kernels kept from an earlier one. The layers at true size are of the ``full`` samples,
whose data is holes that read as zeros. Verify takes turns with the conversion that it verifies.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import fp8convert
from fp8convert.verify import verify

from . import inputs
from .children import Child, child
from .children import fp8convert as command
from .common import MIB, Bound, Env, Report, Values, alternate, clear, timed

COLD = Bound(at_most=10)  # seconds
LAYER = Bound(at_most=6 * 1024)  # MiB
SPEED = Bound(at_least=0.7)
PEAK = Bound(at_most=600)  # MiB
LENGTH = 32
# A layer of each kind: V3 dense, MoE; V4 window and hash, compressed by 4, compressed by 128
KINDS = {"deepseek-v3": "0,3", "deepseek-v4": "0,2,3"}


def run(env: Env, report: Report) -> None:
    """All three."""
    _parity(env, report)
    for family, layers in KINDS.items():
        _layers(env, report, family, layers)
    _verify(env, report)


def _parity(env: Env, report: Report) -> None:
    source, target = inputs.sample(env, "tiny"), env.fresh("parity")
    command("to-bf16", source, target, "--quiet")
    runs = [_uncompiled(env, "parity", source, target) for _ in range(env.repeats)]
    label = "fp8convert parity, FP8 and its BF16 output, kernels not compiled before"
    report.figure("parity of two tiny checkpoints", Values(label, [r.seconds for r in runs]), COLD)
    runs = [command("parity", source, target) for _ in range(env.repeats)]
    label = "the same, kernels compiled before"
    report.figure("parity of two tiny checkpoints", Values(label, [r.seconds for r in runs]), COLD)
    clear(target)


def _uncompiled(env: Env, *arguments: str | Path) -> Child:
    cache = env.fresh("numba")
    program = Path(sys.executable).with_name("fp8convert")
    return child(["/usr/bin/env", f"NUMBA_CACHE_DIR={cache}", str(program), *map(str, arguments)])


def _layers(env: Env, report: Report, family: str, layers: str) -> None:
    source, out = inputs.sample(env, "full", family), env.fresh("logits")
    out.mkdir()
    words = ["--seed", "0", "--length", str(LENGTH), "--layers", layers, "--out"]
    found = command("logits", source, *words, out / "logits.safetensors")
    what = f"{source.name}: layers {layers}, table and head, {LENGTH} tokens"
    label = f"fp8convert logits --layers {layers}, {found.seconds:.1f} s"
    report.figure(f"{what}: peak memory", Values(label, [found.peak / MIB], "MiB"), LAYER)
    clear(out)


def _verify(env: Env, report: Report) -> None:
    """Calls in a warm process are held to the bound; commands take torch's import on top."""
    source, target = inputs.sample(env, "small"), env.fresh("verify")
    _convert(env, source)
    fp8convert.to_bf16(source, target)
    verify(target, against=source)
    for state in (inputs.cached, inputs.evicted):
        sides = {
            "convert": lambda state=state: _convert(env, state(source)),
            "verify": lambda state=state: _verified(state(target), state(source)),
        }
        found = alternate(sides, env.repeats)
        report.ratio(
            f"{source.name}, files {state.__name__}: speed of verify --against",
            Values("fp8convert.to_bf16()", found["convert"]),
            Values("verify(target, against=source), all checks", found["verify"]),
            SPEED,
        )
    runs = [command("verify", target, "--against", source, "--quiet") for _ in range(env.repeats)]
    label = "fp8convert verify --against, the whole command"
    report.figure(f"{source.name}: wall time", Values(label, [r.seconds for r in runs]))
    report.figure(
        f"{source.name}: peak memory", Values(label, [r.peak / MIB for r in runs], "MiB"), PEAK
    )
    clear(target)


def _convert(env: Env, source: Path) -> float:
    target = env.fresh()
    seconds = timed(lambda: fp8convert.to_bf16(source, target))
    clear(target)
    return seconds


def _verified(target: Path, source: Path) -> float:
    begun = time.perf_counter()
    report = verify(target, against=source)
    seconds = time.perf_counter() - begun
    if not report.passed:
        raise RuntimeError(f"verify found a difference: {report.failed}")
    return seconds
