"""Each corruption is found, and by whom: verify alone, verify --against, parity."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import fp8convert
from fp8convert.cli.main import cli
from fp8convert.errors import EXIT_REFUSED, Fp8ConvertError
from fp8convert.samples import make_sample

from . import corruptions as c

DIFFERENT = 3
VERIFY, AGAINST, PARITY = "verify", "against", "parity"
# Who finds it. verify without the source sees what no sound checkpoint has; with it, every bit and
# every field of the config; parity what changes the logits, and weights where that rounds away.
FOUND = {
    "experts shifted by one": {AGAINST, PARITY},
    "gate and up swapped": {AGAINST, PARITY},
    "gate and up of one expert swapped": {AGAINST, PARITY},
    "transposed": {AGAINST, PARITY},
    "rope not interleaved": {AGAINST, PARITY},
    "keys for values": {AGAINST, PARITY},
    "router bias dropped": {AGAINST, PARITY},
    "router bias rounded to BF16": {AGAINST, PARITY},
    "codes without their scale": {AGAINST, PARITY},
    "blocks by the shape of the grid": {AGAINST, PARITY},
    "cut, not rounded": {AGAINST, PARITY},
    "layers swapped": {AGAINST, PARITY},
    "norms swapped": {AGAINST, PARITY},
    "table of tokens shifted": {AGAINST, PARITY},
    "one bit": {AGAINST, PARITY},
    "MTP's halves swapped": {AGAINST, PARITY},
    "NaN": {VERIFY, AGAINST, PARITY},
    "declared as FP8 still": {VERIFY, AGAINST, PARITY},
    "another scale of experts' sum": {AGAINST, PARITY},
    "without its rope scaling": {AGAINST, PARITY},
    "a scale twice as large": {AGAINST, PARITY},
    "scales missing by one block": {VERIFY, AGAINST, PARITY},
    "scales shifted by one block": {AGAINST, PARITY},
    "last rows by the block above": {AGAINST, PARITY},
    "scales inverted": {AGAINST, PARITY},
    "scales in BF16": {AGAINST, PARITY},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("proof") / "fp8"
    make_sample(str(folder))
    return folder


@pytest.fixture(scope="module")
def outputs(source: Path) -> dict[str, Path]:
    """Right ones, without their manifests, whose sums would tell of any change."""
    made = {name: source.with_name(name) for name in ("bf16", "fp8-copy", "deepseek", "hf")}
    fp8convert.to_bf16(source, made["bf16"])
    shutil.copytree(source, made["fp8-copy"])
    for layout in ("deepseek", "hf"):
        fp8convert.shard_for_tp(source, made[layout], 2, layout=layout, mtp="keep")
    for folder in made.values():
        (folder / "manifest.json").unlink(missing_ok=True)
    return made


def code(*words: object) -> int:
    """What a command ends with."""
    try:
        return cli.main([str(w) for w in words], standalone_mode=False) or 0
    except Fp8ConvertError as e:
        return e.exit_code


def finders(folder: Path, source: Path) -> set[str]:
    """Which of the three does not end with 0."""
    codes = {
        VERIFY: code("verify", folder, "--quiet"),
        AGAINST: code("verify", folder, "--against", source, "--quiet"),
        PARITY: code("parity", source, folder, "--quiet", "--length", 48),
    }
    assert set(codes.values()) <= {0, DIFFERENT, EXIT_REFUSED}, codes
    assert codes[VERIFY] != EXIT_REFUSED, "verify refuses nothing that is there"
    return {name for name, found in codes.items() if found}


@pytest.mark.parametrize("output", ["bf16", "fp8-copy", "deepseek", "hf"])
def test_right_ones_pass(output: str, outputs: dict[str, Path], source: Path) -> None:
    assert finders(outputs[output], source) == set()


CASES = [("bf16", n, f) for n, f in c.BF16.items()] + [("fp8-copy", n, f) for n, f in c.FP8.items()]


@pytest.mark.parametrize(("output", "name", "change"), CASES, ids=[n for _, n, _ in CASES])
def test_is_found(
    output: str, name: str, change: c.Change,
    outputs: dict[str, Path], source: Path, tmp_path: Path,
) -> None:  # fmt: skip
    folder = tmp_path / "changed"
    shutil.copytree(outputs[output], folder)
    change(folder, source)
    assert finders(folder, source) == FOUND[name]


@pytest.mark.parametrize("layout", ["deepseek", "hf"])
def test_ranks_in_the_wrong_order(
    layout: str, outputs: dict[str, Path], source: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "ranks"
    shutil.copytree(outputs[layout], folder)
    c.RANKS["ranks in the wrong order"](folder, source)
    assert finders(folder, source) >= {AGAINST, PARITY}


def test_there_are_enough() -> None:
    assert set(FOUND) == {*c.BF16, *c.FP8}
    assert len(FOUND) >= 12
