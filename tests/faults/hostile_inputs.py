"""Hostile headers, indexes, configs, rank tables and file names, made of good ones at random."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Json = Any
Hostile = Callable[[random.Random, Path], str]
"""Spoils the copy of a source in a folder; says how."""

CONTROL = "\x1b]0;owned\x07\x1b[2J\r\ndone: all is well\x00\x9b31m\u202e\u2066\u2028\ufeff"
CONFIGS = ("config.json", "rank0/config.json")
PATTERN_LISTS = ("modules_to_not_convert", "ignored_layers", "ignore")
# Each takes exponential or cubic time on the name of a module, if it is tried.
SLOW = (
    "re:(a|a)*b", "re:(.*a){20}x", r"re:(.*).*\1.*x", "re:.*.*.*.*.*.*x", "re:^(([a-z])+.)+[A-Z]$",
    r"re:(.*)(.*)\1\2x", "*a*e*o*l*m*.*_*x", "re:(?=(.+)+x)", "[!" + "a-" * 99 + "]*", "re:((((((",
    "re:" + "(" * 999, "re:a{1,65535}{1,65535}", "re:(?i)(m|mo|mod|mode)+x",
    "re:.{0,250}.{0,250}x", "re:" + "|".join(["model.*layers"] * 60), r"re:(m.*)[^x]*\1q",
)  # fmt: skip


def number(rng: random.Random) -> Json:
    """One that no field expects."""
    return rng.choice(
        (0, -1, 1, 3, 10**9, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 + 1, 10**40, -(2**63),
         1e308, -1e308, 5e-324, 0.1, 1e9, True)
    )  # fmt: skip


def nested(rng: random.Random) -> Json:
    """As deep as some parsers go."""
    found: Json = 1
    for _ in range(rng.choice((5, 70, 900))):
        found = [found] if rng.random() < 0.5 else {"a": found}
    return found


def text(rng: random.Random) -> str:
    """Long, or not of this world."""
    length = rng.choice((1, 300, 5000, 70_000))
    word = rng.choice(("a", CONTROL, "../", "/etc/passwd", "💥", "%s%n{}", "\u0000", "re:(a+)+b"))
    return (word * length)[:length] or word


def value(rng: random.Random) -> Json:
    """Anything that JSON has, and most of it is not asked for."""
    kinds: tuple[Callable[[], Json], ...] = (
        lambda: number(rng),
        lambda: number(rng),
        lambda: text(rng),
        lambda: nested(rng),
        lambda: None,
        lambda: [number(rng) for _ in range(rng.choice((0, 1, 2, 3, 5000)))],
        lambda: {text(rng)[:40]: number(rng) for _ in range(rng.choice((0, 1, 500)))},
    )
    return rng.choice(kinds)()


def places(found: Json, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything in a value."""
    pairs = found.items() if isinstance(found, dict) else enumerate(found)
    for key, inner in pairs:
        yield (*path, key)
        if isinstance(inner, (dict, list)):
            yield from places(inner, (*path, key))


def spoil(rng: random.Random, found: Json) -> str:
    """Another value, name or absence somewhere in ``found``."""
    path = rng.choice(list(places(found)))
    holder = found
    for key in path[:-1]:
        holder = holder[key]
    how = rng.choice(("value", "value", "value", "name", "gone"))
    if how == "name" and isinstance(holder, dict):
        holder[text(rng)] = holder.pop(path[-1])
    elif how == "gone":
        del holder[path[-1]]
    else:
        holder[path[-1]] = value(rng)
    return f"{how} at {'/'.join(map(str, path))[:60]!r}"


def written(rng: random.Random, found: Json) -> bytes:
    """As JSON, at times with what the standard writer has no way to write."""
    words = json.dumps(found, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    odd = rng.random()
    if odd < 0.05 and words.endswith(b"}") and len(found):
        key = json.dumps(next(iter(found))).encode()
        return words[:-1] + b"," + key + b":1}"  # twice
    if odd < 0.08:
        return words + bytes(rng.randrange(1, 9))
    return words[: rng.randrange(len(words))] if odd < 0.11 else words


def some(rng: random.Random, folder: Path, pattern: str) -> Path:
    return rng.choice(sorted(folder.rglob(pattern)))


def header(rng: random.Random, folder: Path) -> str:
    """One shard's header says something else of the same data."""
    file = some(rng, folder, "*.safetensors")
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    found = json.loads(data[8 : 8 + length])
    what = spoil(rng, found)
    words = written(rng, found)
    said = len(words) if rng.random() < 0.9 else rng.choice((0, 2**63, 2**64 - 1, 25_000_001))
    file.write_bytes(struct.pack("<Q", said) + words + data[8 + length :])
    return f"header {what}"


def document(*names: str) -> Hostile:
    """One of the JSON files of these names says something else."""

    def hostile(rng: random.Random, folder: Path) -> str:
        files = [f for name in names for f in folder.rglob(name)]
        if not files:
            return header(rng, folder)
        file = rng.choice(sorted(files))
        found = json.loads(file.read_text())
        what = spoil(rng, found)
        file.write_bytes(written(rng, found))
        return f"{file.name} {what}"

    return hostile


def sizes(rng: random.Random, folder: Path) -> str:
    """A config that counts layers, experts, heads by the thousand million."""
    return _configured(folder, lambda config: _inflate(rng, config))


def _inflate(rng: random.Random, config: Json) -> str:
    fields = [k for k, v in config.items() if type(v) is int]
    chosen = rng.sample(fields, rng.choice((1, 1, 2, len(fields))))
    config |= {field: rng.choice((10**9, 2**31, 2**40, 2**53, 2**62, 0, -1)) for field in chosen}
    return f"config counts {', '.join(chosen)[:60]}"


def patterns(rng: random.Random, folder: Path) -> str:
    """Lists of modules with slow, many or broken patterns."""
    slow = [rng.choice(SLOW) + str(n) for n in range(rng.choice((1, 200, 20_000)))]
    key = rng.choice(PATTERN_LISTS)

    def edit(config: Json) -> str:
        config.setdefault("quantization_config", {})[key] = slow
        return f"{len(slow)} patterns in {key}"

    return _configured(folder, edit)


def groups(rng: random.Random, folder: Path) -> str:
    """compressed-tensors with targets of the same kind."""
    slow = [rng.choice(SLOW) for _ in range(rng.choice((3, 3000)))]
    weights = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128],
               "symmetric": True}  # fmt: skip
    count = rng.choice((1, 60, 2000))
    of = {f"g{n}{CONTROL}": {"weights": weights, "targets": slow} for n in range(count)}
    said = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": of}

    def edit(config: Json) -> str:
        config["quantization_config"] = said
        return f"{count} groups of {len(slow)} targets"

    return _configured(folder, edit)


def _configured(folder: Path, edit: Callable[[Json], str]) -> str:
    what = ""
    for name in CONFIGS:
        if (folder / name).exists():
            found = json.loads((folder / name).read_text())
            what = edit(found)
            (folder / name).write_text(json.dumps(found))
    return what


def names(rng: random.Random, folder: Path) -> str:
    """A tensor whose name would like to be a path, a command or a line of its own."""
    file = some(rng, folder, "*.safetensors")
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    found = json.loads(data[8 : 8 + length])
    name = rng.choice([n for n in found if n != "__metadata__"])
    new = rng.choice((CONTROL, "../" * 9 + "etc/x", name + CONTROL, CONTROL + name, "/dev/stdin"))
    found[new] = found.pop(name)
    words = json.dumps(found).encode()
    file.write_bytes(struct.pack("<Q", len(words)) + words + data[8 + length :])
    index = file.parent / "model.safetensors.index.json"
    if index.exists() and rng.random() < 0.8:
        said = json.loads(index.read_text())
        said["weight_map"][new] = said["weight_map"].pop(name)
        index.write_text(json.dumps(said))
    return "tensor with a hostile name"


def companions(rng: random.Random, folder: Path) -> str:
    """Files beside the weights whose names are hostile, and a shard of such a name."""
    plain = CONTROL.replace("\x00", "").replace("/", "")
    for n, suffix in enumerate((".json", ".py", ".txt", ".bin", ".safetensors")):
        if rng.random() < 0.6:
            (folder / f"x{n}{plain}{suffix}").write_bytes(b"import os\n")
    (folder / "\udcff\udcfe.json".encode("utf-8", "surrogateescape").decode("latin-1")).touch()
    if rng.random() < 0.5:
        file = some(rng, folder, "*.safetensors")
        file.rename(file.with_name(f"{plain}{file.name}"))
    return "hostile file names"


def declarations(rng: random.Random, folder: Path) -> str:
    """What would stand in for the config's declaration."""
    name = rng.choice(("hf_quant_config.json", "quantize_config.json"))
    said = {"quantization": value(rng), "quant_method": value(rng), "producer": value(rng),
            "bits": number(rng), "group_size": number(rng), "quant_algo": text(rng)}  # fmt: skip
    (folder / name).write_bytes(written(rng, said))
    return f"hostile {name}"


KINDS: tuple[Hostile, ...] = (
    header, document("config.json"), sizes, header, names, document("*.index.json", "tp.json"),
    patterns, document("tp.json", "*.index.json"), companions, declarations, groups,
)  # fmt: skip
