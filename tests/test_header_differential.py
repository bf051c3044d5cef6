"""Whatever header we accept, the safetensors library accepts, with the same tensors and bytes.

The other direction need not hold: the library takes duplicate keys, among others. Files are made
by seeded mutation of sound ones, at the level of JSON and at the level of bytes.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors
from safetensors import safe_open

from fp8convert import header, strictjson
from fp8convert.dtypes import DTYPES
from fp8convert.errors import FormatError

SEEDS = 8
FILES_PER_SEED = 4_000

# Fields are lists of pairs, so that keys can repeat; text is JSON source, so that any number can
# be written: both are lost in a dict.
Pairs = list[tuple[str, Any]]


class Text(str):
    """JSON source, written as it stands."""


NAMES = (
    *("a", "w", "w_scale_inv", "model.layers.0.mlp.weight", "", "é", "\0", "a\nb", "../x", '"\\'),
    *("\U0001f600", "__metadata__", "dtype", "\x7f", "\u2028", "\ufeff"),
)
NUMBERS = (
    *(
        "-0",
        "-1",
        "0",
        "1",
        "2",
        "1.0",
        "1e3",
        "1E0",
        "0.5",
        "-0.0",
        "00",
        "01",
        "+1",
        "0x1",
        "1_0",
    ),
    *("9223372036854775807", "9223372036854775808", "18446744073709551615", "18446744073709551616"),
    *("4294967296", "4294967297", "1" * 400, '"1"', "null", "true", "false", "[]", "{}", "[1]"),
    *("NaN", "Infinity", "1e400", "-9223372036854775808", " 1 ", "\uff11"),
)
STRINGS = (
    *(r'"\ud800"', r'"\udc00x"', r'"\ud83d\ude00"', r'"\u0061"', r'"\/"', r'"\x41"', '"\t"', '""'),
    *("'a'", '"\\u00"', '"\\u0000"', '"\ufeff"', "null", "1", '["pt"]', '{"a":"b"}', '"unclosed'),
)
BLANKS = ("", " ", "  ", "\n", "\t", "\r\n", " " * 9, "\f", "\v", "\xa0", "\0", "\ufeff", "//\n")


def written(value: Any, rng: random.Random | None = None) -> str:
    """JSON source of nested pairs, lists and :class:`Text`; with ``rng``, blanks here and there."""

    def gap() -> str:
        return rng.choice(BLANKS[:7]) if rng is not None and rng.random() < 0.2 else ""

    if isinstance(value, Text):
        return str(value)
    if isinstance(value, tuple):  # one field
        return f"{gap()}{written(value[0])}{gap()}:{gap()}{written(value[1], rng)}{gap()}"
    if isinstance(value, list):
        is_object = not value or isinstance(value[0], tuple)
        inner = ",".join(written(v, rng) for v in value)
        return f"{{{inner}}}" if is_object else f"[{inner}]"
    return json.dumps(value, ensure_ascii=False)


def ints(values: list[int]) -> Text:
    return Text("[" + ",".join(map(str, values)) + "]")


def sound(rng: random.Random) -> tuple[Pairs, int]:
    """The fields of a sound header, in any order, and the number of data bytes."""
    fields: Pairs = []
    end = 0
    for name in rng.sample(NAMES[:11], rng.randrange(5)):
        dtype = rng.choice(list(DTYPES.values()))
        step = 8 // min(8, dtype.bits & -dtype.bits)  # so many values fill whole bytes
        shape = [rng.randrange(4) for _ in range(rng.randrange(3))]
        if step > 1:
            shape.append(step * rng.randrange(3))
        begin, end = end, end + header.numel(shape) * dtype.bits // 8
        fields.append(
            (name, [("dtype", dtype.tag), ("shape", shape), ("data_offsets", [begin, end])])
        )
    if rng.random() < 0.5:
        fields.append(
            ("__metadata__", [("format", "pt"), (rng.choice(NAMES), "x")][: rng.choice((1, 2))])
        )
    rng.shuffle(fields)
    for _, inner in fields:
        rng.shuffle(inner)
    fields = [
        (name, [(k, ints(v) if isinstance(v, list) else v) for k, v in inner])
        for name, inner in fields
    ]
    return fields, end


def pick(rng: random.Random, pairs: Pairs) -> int:
    return rng.randrange(len(pairs))


def inner_pairs(rng: random.Random, fields: Pairs) -> Pairs | None:
    """The fields of one entry, to be changed in place."""
    inside = [v for _, v in fields if isinstance(v, list)]
    return rng.choice(inside) if inside else None


def mutate_fields(rng: random.Random, fields: Pairs) -> None:
    """One edit of the JSON, in place."""
    level = fields if rng.random() < 0.3 else inner_pairs(rng, fields)
    if not level:
        level = fields
    if not level:
        fields.append((rng.choice(NAMES), Text(rng.choice(NUMBERS))))
        return
    i, j = pick(rng, level), pick(rng, level)
    key, value = level[i]
    match rng.randrange(12):
        case 0:
            level[i], level[j] = level[j], level[i]
        case 1:  # the value under a second place or name
            level.insert(j, (key, value) if rng.random() < 0.5 else (rng.choice(NAMES), value))
        case 2:
            del level[i]
        case 3:
            level[i] = (key, level[j][1])
        case 4:
            level[i] = (level[j][0], value)
        case 5:
            level[i] = (key, Text(rng.choice(NUMBERS + STRINGS)))
        case 6:
            level[i] = (Text(rng.choice(STRINGS)), value)
        case 7:
            level[i] = (rng.choice(NAMES), value)
        case 8:
            level[i] = (Text("".join(f"\\u{ord(c):04x}" for c in key).join('""')), value)
        case 9 | 10:
            mutate_value(rng, level, i)
        case _:
            level.append((rng.choice(NAMES), rng.choice([[], Text("[]"), "F32", value])))


def mutate_value(rng: random.Random, level: Pairs, i: int) -> None:
    """Another type, offset or size for what stands at ``level[i]``."""
    key, value = level[i]
    if isinstance(value, Text) and value.startswith("["):
        numbers = [n for n in value[1:-1].split(",") if n]
        at = rng.randrange(len(numbers) + 1)
        match rng.randrange(5):
            case 0:
                numbers.insert(at, rng.choice(NUMBERS))
            case 1 if numbers:
                del numbers[at % len(numbers)]
            case 2 if numbers:
                numbers[at % len(numbers)] = rng.choice(NUMBERS)
            case 3 if numbers:  # the same number, written otherwise
                form = rng.choice(("-{}", "{}.0", "{}e0", "0{}", "+{}", '"{}"', "{}0", "[{}]"))
                numbers[at % len(numbers)] = form.format(numbers[at % len(numbers)])
            case _ if numbers and numbers[at % len(numbers)].isdecimal():
                n = int(numbers[at % len(numbers)])
                numbers[at % len(numbers)] = str(n + rng.choice((-1, 1, 2, 8)))
        level[i] = (key, Text(f"[{','.join(numbers)}]"))
    elif isinstance(value, list):
        level[i] = (key, [*value, (rng.choice(NAMES), Text(rng.choice(STRINGS + NUMBERS)))])
    else:
        level[i] = (key, rng.choice([*DTYPES, "f32", "F8", "BF16 ", "", "U9", "F8_E3M4"]))


def mutate_bytes(rng: random.Random, raw: bytes) -> bytes:
    """One flip, insertion, removal or cut, anywhere."""
    at = rng.randrange(len(raw) + 1)
    match rng.randrange(6):
        case 0:
            changed = bytearray(raw)
            if changed:
                changed[at % len(raw)] ^= 1 << rng.randrange(8)
            return bytes(changed)
        case 1:
            return raw[:at] + rng.randbytes(rng.randrange(1, 4)) + raw[at:]
        case 2:
            return raw[:at] + rng.choice(BLANKS).encode("utf-8") + raw[at:]
        case 3:
            return raw[:at] + raw[at + rng.randrange(1, 4) :]
        case 4:
            return raw[:at]
        case _:
            return raw + rng.choice((b" ", b"\0", b"{}", b"}", b"\n", b"x"))


def files(seed: int, count: int) -> Iterator[bytes]:
    """Mutated files; a few have no mutation, or one that changes nothing."""
    rng = random.Random(seed)
    for _ in range(count):
        fields, size = sound(rng)
        edits = rng.choice((0, 1, 1, 1, 2, 3))
        level = rng.choice(("json", "json", "header bytes", "length", "data", "file"))
        for _ in range(edits if level == "json" else 0):
            mutate_fields(rng, fields)
        body = written(fields, rng if rng.random() < 0.5 else None)
        raw = body.encode("utf-8", "surrogatepass")
        if rng.random() < 0.3:
            raw += b" " * (-len(raw) % 8)
        if level == "header bytes":
            for _ in range(edits):
                raw = mutate_bytes(rng, raw)
        length = len(raw)
        if level == "length":
            nudged = length + rng.choice((-8, -1, 0, 1, 8)) * edits
            length = max(0, rng.choice((nudged, length ^ 1 << rng.randrange(64))))
        data = rng.randbytes(size)
        if level == "data" and edits:
            data = mutate_bytes(rng, data)
        file = length.to_bytes(8, "little") + raw + data
        yield mutate_bytes(rng, file) if level == "file" and edits else file


Tensors = dict[str, tuple[str, list[int], bytes]]


def ours(file: bytes) -> Tensors | None:
    """What our reader finds, or None where it refuses."""
    try:
        length = header.header_length(file[:64], len(file), "f")
        parsed = header.parse(file[8 : 8 + length], len(file), "f")
    except FormatError:
        return None
    return {e.name: (e.dtype, list(e.shape), file[e.begin : e.end]) for e in parsed.entries}


def theirs(file: bytes) -> Tensors | None:
    """What the safetensors library finds, or None where it refuses."""
    try:
        found = safetensors.deserialize(file)
    except safetensors.SafetensorError:
        return None
    return {name: (t["dtype"], t["shape"], bytes(t["data"])) for name, t in found}


def compare(file: bytes, counts: Counter[str]) -> None:
    """The property, for one file; counts what was accepted by whom."""
    mine = ours(file)
    library = theirs(file)
    if mine is None:
        counts["both refuse" if library is None else "only we refuse"] += 1
        return
    assert library is not None, f"accepted by us, refused by safetensors: {file!r}"
    assert mine == library, f"read differently by us and by safetensors: {file!r}"
    counts["both accept"] += 1
    counts["with tensors"] += bool(mine)
    counts["with data"] += any(data for _, _, data in mine.values())


@pytest.mark.parametrize("seed", range(SEEDS))
def test_what_we_accept_safetensors_reads_alike(seed: int) -> None:
    counts: Counter[str] = Counter()
    for file in files(seed, FILES_PER_SEED):
        compare(file, counts)
    assert (
        sum(counts[k] for k in ("both accept", "both refuse", "only we refuse")) == FILES_PER_SEED
    )
    # Not vacuous: each kind is a good part of the files.
    assert counts["both accept"] > FILES_PER_SEED // 6
    assert counts["with tensors"] > FILES_PER_SEED // 8
    assert counts["with data"] > FILES_PER_SEED // 10
    assert counts["both refuse"] > FILES_PER_SEED // 4
    assert counts["only we refuse"] > 0


def test_enough_files() -> None:
    assert SEEDS * FILES_PER_SEED >= 10_000
    assert list(files(1, 20)) == list(files(1, 20)) != list(files(2, 20))


def test_metadata_alike(tmp_path: Path) -> None:
    """deserialize() does not give the metadata; opening a file does."""
    path = tmp_path / "x.safetensors"
    seen = 0
    for file in files(SEEDS, 600):
        if ours(file) is None:
            continue
        length = header.header_length(file[:64], len(file), "f")
        metadata = header.parse(file[8 : 8 + length], len(file), "f").metadata
        path.write_bytes(file)
        with safe_open(path, "np") as opened:
            assert (opened.metadata() or {}) == metadata
        seen += bool(metadata)
    assert seen > 30


@contextmanager
def without(monkeypatch: pytest.MonkeyPatch, check: str) -> Iterator[None]:
    """Our reader with one of its checks left out."""

    def skip(*_: Any) -> None:
        return None

    def lax_int(digits: str) -> int:
        return int(digits)

    def lax_utf8(raw: bytes, where: str, base: int = 0, max_depth: int | None = None) -> Any:
        return json.loads(raw.decode("utf-8", "replace"))

    def lax_surrogates(raw: bytes, where: str, base: int = 0, max_depth: int | None = None) -> Any:
        try:
            return json.loads(raw.decode("utf-8"))
        except ValueError:
            raise FormatError("not JSON") from None

    def lax_length(prefix: bytes, file_size: int, where: str) -> int:
        return min(int.from_bytes(prefix[:8], "little"), max(0, file_size - 8))

    changes: dict[str, tuple[object, str, Callable[..., Any]]] = {
        "tiling": (header, "_check_tiling", skip),
        "minus zero": (strictjson, "_strict_int", lax_int),
        "integers": (header, "_check_ints", skip),
        "bad UTF-8": (strictjson, "loads", lax_utf8),
        "surrogates": (strictjson, "loads", lax_surrogates),
        "length": (header, "header_length", lax_length),
        "metadata": (header, "_metadata", lambda found, where: {}),
    }
    with monkeypatch.context() as patched:
        patched.setattr(*changes[check])
        yield


def compare_all() -> None:
    for seed in range(SEEDS):
        for file in files(seed, FILES_PER_SEED):
            try:
                compare(file, Counter())
            except (TypeError, ValueError, AttributeError, KeyError):
                continue  # a reader without its check may also crash: not what is looked for


@pytest.mark.parametrize(
    "check",
    ["tiling", "minus zero", "integers", "bad UTF-8", "surrogates", "length", "metadata"],
)
def test_the_property_fails_without_a_check(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A control: the same files and the same comparison find each check that is left out."""
    with without(monkeypatch, check), pytest.raises(AssertionError, match="by safetensors"):
        compare_all()
