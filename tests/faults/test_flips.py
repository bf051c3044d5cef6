"""The manifest's sum of itself; what ``verify`` and a finished target make of damage; controls."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fp8convert.errors import FormatError
from fp8convert.seal import LENGTH, sealed, unsealed
from fp8convert.verify import Report, manifest, verify

from .flips import MANIFEST, Change, Draw, applied, flips, told
from .lab import Lab, share


@pytest.fixture
def output(made: Lab, tmp_path: Path) -> Path:
    """A finished output of one's own."""
    return Path(shutil.copytree(made.root / "expected-shard-hf", tmp_path / "dst"))


def check(report: Report) -> tuple[str, str]:
    """Result of the check of the manifest, and its words."""
    (found,) = [c for c in report.checks if c.name == "manifest"]
    return found.result, "\n".join([found.detail, *found.problems, *found.warnings])


def old(folder: Path) -> None:
    """Have its manifest be one of a version that took no sum of it."""
    data = json.loads((folder / MANIFEST).read_bytes())
    del data["sha256"]
    (folder / MANIFEST).write_text(json.dumps({**data, "format": 1}, indent=1) + "\n")


# --- The sum


def test_the_sum_is_of_all_bytes_before_the_last_line(made: Lab) -> None:
    """As docs/verify.md has it: without this package, by the end of the file alone."""
    for work in made.works:
        raw = work.expected[MANIFEST]
        body, last = raw[:-82], raw[-82:]
        assert last == b',\n "sha256": "%s"\n}\n' % hashlib.sha256(body).hexdigest().encode()
        data = json.loads(raw)
        assert (data["format"], list(data)[-1]) == (2, "sha256")
        assert list(data) == ["format", *list(data)[1:]]
        assert sealed(data) == raw
    assert LENGTH == 82


def test_any_bit_of_a_manifest(made: Lab) -> None:
    """Each byte, one bit of it; each of its ends; each byte gone."""
    raw, rng = made.by_name["quantize"].expected[MANIFEST], random.Random(1)
    assert unsealed(raw, MANIFEST)[1]
    for at in range(len(raw)):
        flipped = bytearray(raw)
        flipped[at] ^= 1 << rng.randrange(8)
        for wrong in (bytes(flipped), raw[:at], raw[:at] + raw[at + 1 :]):
            with pytest.raises(FormatError, match=MANIFEST):
                unsealed(wrong, MANIFEST)


@pytest.mark.parametrize("change", [
    lambda raw: raw + b"\n",
    lambda raw: raw[:-1],
    lambda raw: json.dumps(json.loads(raw)).encode(),
    lambda raw: json.dumps(json.loads(raw), indent=1).encode(),
    lambda raw: json.dumps({k: v for k, v in json.loads(raw).items() if k != "sha256"}).encode(),
    lambda raw: raw.replace(b'"plan"', b'"pl\\u0061n"'),
    lambda raw: raw[:-70] + raw[-70:].upper(),
])  # fmt: skip
def test_the_same_in_other_bytes(made: Lab, change: Callable[[bytes], bytes]) -> None:
    """JSON that means the same is not what was written."""
    raw = made.by_name["to-bf16"].expected[MANIFEST]
    assert change(raw) != raw
    with pytest.raises(FormatError, match="changed after it was written"):
        unsealed(change(raw), MANIFEST)


@pytest.mark.parametrize("text", [b"[]", b"{}", b'{"format": 1, "files": []}', b'{"format": "2"}'])
def test_what_has_no_sum(text: bytes) -> None:
    """Other tools' files, and those of older versions."""
    assert unsealed(text, MANIFEST) == (json.loads(text), False)


# --- verify


def test_a_manifest_of_an_older_version(output: Path) -> None:
    old(output)
    report = verify(output)
    assert report.passed
    assert check(report)[1].endswith("has no sum of itself, as an older version wrote it")
    (output / "tp.json").write_text("{}")
    assert check(verify(output))[0] == "FAIL"


def test_a_manifest_that_is_gone_or_misplaced(output: Path) -> None:
    """Gone it cannot be missed, and that is said; under another name it is known by its sum."""
    raw = (output / MANIFEST).read_bytes()
    (output / MANIFEST).unlink()
    assert check(verify(output)) == (
        "not checked", "no manifest.json: another tool's output has none",
    )  # fmt: skip
    file = output / "rank1" / "tokenizer.json"
    other = file.read_bytes()
    file.write_bytes(raw)
    (output / MANIFEST).write_bytes(other)
    result, words = check(verify(output))
    assert result == "FAIL"
    assert "'rank1/tokenizer.json' is a manifest.json of fp8convert by another name" in words


def test_a_manifest_of_another_checkpoint_in_a_folder(output: Path, tmp_path: Path) -> None:
    """Its files are beside it, so it is where it belongs; without them it is misplaced."""
    whole = shutil.copytree(output / "rank0", tmp_path / "whole")
    shutil.copytree(output, whole / "ranks")
    (whole / "tp.json").unlink()
    assert check(verify(whole))[0] == "not checked"
    (whole / "ranks" / "tp.json").unlink()
    result, words = check(verify(whole))
    assert result == "FAIL"
    assert "'ranks/manifest.json' is a manifest.json of fp8convert by another name" in words


def test_two_versions_of_a_file(output: Path) -> None:
    """Whole, and of the right size, but not the one that was written."""
    one, other = (next((output / rank).glob("*.safetensors")) for rank in ("rank0", "rank1"))
    assert one.stat().st_size == other.stat().st_size
    shutil.copy(one, other)
    result, words = check(verify(output))
    assert result == "FAIL"
    assert f"'rank1/{other.name}'" in words


# --- A finished target


@pytest.mark.parametrize("damage", [
    lambda raw: raw.replace(b"  ", b" \t", 1),
    lambda raw: raw[:-20],
    lambda raw: b"",
    lambda raw: b"\0" + raw[1:],
])  # fmt: skip
def test_already_done_by_a_damaged_manifest(
    made: Lab, output: Path, damage: Callable[[bytes], bytes]
) -> None:
    """Refused, and nothing touched: it cannot be told what made it."""
    (output / MANIFEST).write_bytes(damage((output / MANIFEST).read_bytes()))
    ended = made.run(made.by_name["shard-hf"], output)
    assert (ended.code, ended.out) == (1, "")
    assert f"{output}' exists and is not empty: manifest.json" in ended.err
    assert "Traceback" not in ended.err
    assert [p.name for p in output.parent.iterdir()] == ["dst"]


def test_already_done_by_an_older_version(made: Lab, output: Path) -> None:
    old(output)
    ended = made.run(made.by_name["shard-hf"], output)
    assert (ended.code, ended.out.split(":")[0]) == (0, "already done"), ended


# --- Controls: broken ones lose


def test_a_verify_that_takes_no_sums(made: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_compare", lambda *args: None)
    assert flips(made, 30, 0).losses


def test_a_verify_that_believes_the_manifest(made: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the sum of itself, hardly a change of it would be noticed."""

    def believed(raw: bytes, where: str) -> Any:
        return json.loads(raw), True

    work = made.by_name["to-bf16"]
    monkeypatch.setattr(manifest, "unsealed", believed)
    raw = work.expected[MANIFEST]
    at = raw.index(b'"mtime_ns": ') + len(b'"mtime_ns": ')
    change = Change(MANIFEST, {MANIFEST: raw[:at] + b"5" + raw[at + 1 :]})
    with applied(made.root / "expected-to-bf16", change) as copy:
        assert verify(copy).passed
        monkeypatch.undo()
        assert check(verify(copy))[0] == "FAIL"


def test_a_tool_that_names_no_file(made: Lab) -> None:
    """Code 3 alone does not count."""
    assert flips(made, 3, 0, lambda folder: (3, "something is wrong")).survived == 0
    assert not told(3, "Traceback of config.json", Change("", {"config.json": b""}))


def test_every_kind_of_change_is_drawn_in_every_kind_of_file(made: Lab) -> None:
    rng = share(0, "draws")
    draw = Draw(made.by_name["shard-hf"].expected, rng)
    changes = [draw.change() for _ in range(600)]
    assert {file for change in changes for file in change.files} == set(draw.files)
    for words in ("bit ", "cut to", "bytes more", "gone", "exchanged"):
        assert any(words in change.words for change in changes)
    assert all(change.after[f] != draw.files[f] for change in changes for f in change.files)
