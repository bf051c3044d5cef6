"""Sources that are odd but sound, through the real command line of all four commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fp8convert.catalogue import open_catalogue
from fp8convert.errors import shown

from ...crash import marks
from ...quantized import readers
from ..lab import Files, Lab, tree
from . import accepted
from .accepted import ODD, Good, armed, code_in
from .runs import base, check, convert, in_turn, pairs, place, refused
from .victims import INDEX, TP, WORKS, Case, Victim, put, tensors, write_shard

__all__ = ["base", "place"]  # fixtures


@pytest.mark.parametrize(("case", "work"), pairs(accepted.CASES))
def test_accepted(case: Good, work: str, place: Lab, base: Path) -> None:
    """The output has the same tensors as that of the source as it was, or those expected."""
    v = Victim(place.by_name[work], base)
    case.change(v)
    before = marks(v.root)
    ended = convert(place, v)
    assert ended.code == 0, ended
    assert case.says in ended.err
    assert (ended.out + ended.err).replace("\n", "").isprintable()
    assert sorted(p.name for p in (base / "out").iterdir()) == ["dst", "notes.txt"]
    assert marks(v.root) == before
    assert not (base / "fired").exists()
    as_expected(base / "out" / "dst", v.work.expected, case)


ABOUT = (INDEX, TP, "manifest.json")  # files that name tensors or describe the source


def as_expected(target: Path, usual: Files, case: Good) -> None:
    """Its tensors are those expected, its index is right, other files are as they always are."""
    found = tree(target)
    assert tensors(found) == case.expect(tensors(usual))
    for path in target.rglob(INDEX):
        readers.check_index(path.parent)

    assert others(found) == others(usual)
    assert case.says in "\n".join(json.loads(found["manifest.json"])["warnings"])


def others(files: Files) -> dict[str, object]:
    """Files beside those; what is a list of names in a config is in the order of the tensors."""

    def unordered(value: object) -> object:
        return sorted(value, key=str) if isinstance(value, list) else value

    found: dict[str, object] = {}
    for path, data in files.items():
        if path.endswith("config.json"):
            said = json.loads(data)
            coding = said.pop("quantization_config", {})
            found[path] = [said, {k: unordered(v) for k, v in coding.items()}]
        elif not path.endswith((".safetensors", *ABOUT)):
            found[path] = data
    return found


@pytest.mark.parametrize("work", WORKS)
def test_a_hub_cache_gives_the_very_same(work: str, place: Lab, base: Path) -> None:
    v = Victim(place.by_name[work], base)
    accepted.hub_cache(v)
    assert all(p.is_symlink() for p in v.shards)
    assert convert(place, v).code == 0
    assert v.work.ended_right(base / "out" / "dst")


@pytest.mark.parametrize("work", WORKS)
def test_code_is_copied_on_request(work: str, place: Lab, base: Path) -> None:
    """And not run then, either; without being asked for it is not even copied."""
    v = Victim(place.by_name[work], base)
    armed(v)
    assert convert(place, v).code == 0
    assert not code_in(tree(base / "out" / "dst"))
    shutil.rmtree(base / "out" / "dst")
    assert convert(place, v, "--copy-code").code == 0
    assert code_in(tree(base / "out" / "dst")) == set(accepted.TRAPS)
    assert not (base / "fired").exists()


@pytest.mark.parametrize(("case", "work"), in_turn(accepted.ESCAPED))
def test_a_name_is_escaped(case: Case, work: str, place: Lab, base: Path) -> None:
    check(place, base, case, work)


@pytest.mark.parametrize("work", ["shard-deepseek", "shard-hf"])
def test_odd_names_in_a_layout(work: str, place: Lab, base: Path) -> None:
    """No layout for ranks knows them: refused, and escaped."""
    v = Victim(place.by_name[work], base)
    accepted._named(v)
    message = refused(place, v)
    assert f"{len(ODD)} names that layout {work.removeprefix('shard-')} does not know" in message
    assert shown("\0") in message


def test_ranks_that_an_index_names_are_in_order(tmp_path: Path) -> None:
    """By number: by name, rank 10 would come before rank 2, and its rows before those of rank 2."""
    table: dict[str, str] = {}
    for rank in range(12):
        path = tmp_path / f"model{rank}-mp12.safetensors"
        name = f"layers.0.ffn.experts.{rank}.w1.weight"
        write_shard(path, {n: ("BF16", (2, 2), bytes(8)) for n in ("embed.weight", name)})
        table |= {"embed.weight": "model0-mp12.safetensors", name: path.name}
    put(tmp_path / INDEX, json.dumps({"weight_map": table}).encode())
    found = open_catalogue(tmp_path)
    files = [found.shard_names[piece.shard] for piece in found.tensors["embed.weight"].pieces]
    assert files == [f"model{rank}-mp12.safetensors" for rank in range(12)]
