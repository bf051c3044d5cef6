"""Bad shard headers, one table row for every item of section A of FAULTS; and the good ones.

    empty file; 7 bytes; N = 0, N > file, N = 2**63, N over our cap (25 MB); data one byte short;
    one byte too long; a hole at the start or in the middle; overlap; two names on one range;
    end < begin; negative, float or huge shape or offset; shape x dtype != bytes; product overflow,
    also when a 0 dimension hides it; duplicate tensor key (even with equal offsets), duplicate
    __metadata__, duplicate inner field; bad UTF-8, BOM, NUL padding, trailing JSON, NaN literal,
    lone surrogate, deep nesting; non-string metadata; unknown dtype; odd-length F4; 1.25 million
    entries; a git-lfs pointer, an HTML page, a pickle or a truncated download.
    Accepted: any tensor order, unaligned header, 0-d and zero-size tensors, any name.

Each row spoils one thing of a shard that is sound otherwise, a rank's too. The 1.25 million are in
``test_bad_files.py``, and accepted headers in ``accepted.py``.
"""

from __future__ import annotations

import json
import pickle

from fp8convert.errors import shown

from .edits import entry, file, header, raw, shift, text
from .victims import Case, Entry, Facts, Head, in_order, sparse

ITEMS = (
    *("empty file", "7 bytes", "N = 0", "N > file", "N = 2**63", "N over our cap"),
    *("data one byte short", "one byte too long", "a hole at the start", "a hole in the middle"),
    *("overlap", "two names on one range", "end < begin"),
    *(f"{how} {what}" for what in ("shape", "offset") for how in ("negative", "float", "huge")),
    *("shape x dtype != bytes", "product overflow", "product overflow hidden by 0"),
    *("duplicate tensor key", "duplicate tensor key with equal offsets", "duplicate __metadata__"),
    *("duplicate inner field", "bad UTF-8", "BOM", "NUL padding", "trailing JSON", "NaN literal"),
    *("lone surrogate", "deep nesting", "non-string metadata", "unknown dtype", "odd-length F4"),
    *("1.25 million entries", "git-lfs pointer", "HTML page", "pickle", "truncated download"),
)  # fmt: skip

CAP = 25_000_000
HUGE = 2**63
INTEGERS = "expected a list of integers from 0 to 2**63-1"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%b\nsize 175240\n" % (b"0" * 64)
PAGE = b"<!DOCTYPE html>\n<html><head><title>504 Gateway Time-out</title></head></html>\n"


def _length(n: int, found: bytes) -> bytes:
    return n.to_bytes(8, "little") + found[8:]


def _quoted(f: Facts, field: str, value: object) -> list[str]:
    return [f"tensor {shown(f.a.name)}: {field} {shown(value)}"]


LENGTH = (
    Case("empty file", "", file(lambda d: b""), lambda f: ["0 bytes long", "at least 8"]),
    Case("7 bytes", "", file(lambda d: d[:7]), lambda f: ["7 bytes long", "at least 8"]),
    Case("N = 0", "", file(lambda d: _length(0, d)),
         lambda f: ["length field is 0 (bytes 0-7)", "expected 1 to 25,000,000"]),
    Case("N > file", "by one", file(lambda d: _length(len(d) - 7, d)),
         lambda f: [f"length field is {f.size - 7:,} (bytes 0-7)", f"at most {f.size - 8:,}"]),
    Case("N = 2**63", "", file(lambda d: _length(HUGE, d)),
         lambda f: [f"length field is {HUGE:,} (bytes 0-7)", "expected 1 to 25,000,000"]),
    Case("N over our cap", "in a file that has them",
         lambda v: sparse(v.path, _length(CAP + 1, v.path.read_bytes()), 2**40),
         lambda f: ["length field is 25,000,001 (bytes 0-7)", "expected 1 to 25,000,000"]),
)  # fmt: skip


def _ends(f: Facts, by: int) -> list[str]:
    return [f"the tensors end at byte {f.size - by:,}", f"the file has {f.size:,} bytes"]


def _hole(head: Head, a: Entry, b: Entry) -> None:
    shift(head, 1, b.begin)


def _overlap(head: Head, a: Entry, b: Entry) -> None:
    shift(head, -1, b.begin)


def _twin(head: Head, a: Entry, b: Entry) -> None:
    head["twin"] = dict(head[a.name])


def _inside(head: Head, a: Entry, b: Entry) -> None:
    head["inner"] = {"dtype": "U8", "shape": [0], "data_offsets": [a.begin + 1, a.begin + 1]}


def _begins(f: Facts, name: str, begin: int, after: Entry | None) -> list[str]:
    expected, where = f.start, "the header ends"
    if after:
        expected, where = f.start + after.end, f"tensor {shown(after.name)} ends"
    return [
        f"tensor {shown(name)} begins at byte {f.start + begin:,}, expected {expected:,}",
        where,
    ]


TILING = (
    Case("data one byte short", "", file(lambda d: d[:-1]),
         lambda f: ["truncated", *_ends(f, -1)]),
    Case("one byte too long", "", file(lambda d: d + b"\0"),
         lambda f: ["extra bytes at the end", *_ends(f, 1)]),
    Case("a hole at the start", "", header(lambda head, a, b: shift(head, 1), lambda d: b"\0" + d),
         lambda f: ["a hole", *_begins(f, f.a.name, 1, None)]),
    Case("a hole in the middle", "", header(_hole, lambda d: d + b"\0"),
         lambda f: ["a hole", *_begins(f, f.b.name, f.b.begin + 1, f.a)]),
    Case("overlap", "by a byte", header(_overlap, lambda d: d[:-1]),
         lambda f: ["an overlap", *_begins(f, f.b.name, f.b.begin - 1, f.a)]),
    Case("overlap", "a tensor of no bytes within another", header(_inside),
         lambda f: ["an overlap", *_begins(f, "inner", f.a.begin + 1, f.a)]),
    Case("two names on one range", "", header(_twin),
         lambda f: ["an overlap", *_begins(f, "twin", f.a.begin, f.a)]),
)  # fmt: skip


def _numbers(how: str, number: float) -> list[Case]:
    """As a size of an axis, and as an offset."""
    offsets = [0, number]
    return [
        Case(f"{how} shape", "", entry(shape=[number, 1]),
             lambda f: [*_quoted(f, "shape", [number, 1]), INTEGERS]),
        Case(f"{how} offset", "", entry(data_offsets=offsets),
             lambda f: [*_quoted(f, "data_offsets", offsets), INTEGERS]),
    ]  # fmt: skip


def _backwards(head: Head, a: Entry, b: Entry) -> None:
    head[a.name]["data_offsets"].reverse()


def _longer(head: Head, a: Entry, b: Entry) -> None:
    head[a.name]["shape"] = [*a.shape[:-1], a.shape[-1] + 1]


def _odd_f4(head: Head, a: Entry, b: Entry) -> None:
    end = in_order(head)[-1].end
    head["odd"] = {"dtype": "F4", "shape": [3, 5], "data_offsets": [end, end + 8]}


def _too_large(*shape: int) -> Case:
    item = "product overflow" + " hidden by 0" * (0 in shape)
    says = ["is too large", "2**63 bits"]
    return Case(
        item, "", entry(shape=list(shape)), lambda f: [*_quoted(f, "shape", list(shape)), *says]
    )


NUMBERS = (
    *_numbers("negative", -1), *_numbers("float", 4.0), *_numbers("huge", HUGE),
    Case("end < begin", "", header(_backwards),
         lambda f: [*_quoted(f, "data_offsets", [f.a.end, f.a.begin]),
                    "expected [begin, end] with begin <= end"]),
    Case("shape x dtype != bytes", "", header(_longer),
         lambda f: [f"tensor {shown(f.a.name)}: shape ", f" of {f.a.dtype} takes ",
                    f"[{f.a.begin}, {f.a.end}] hold {f.a.end - f.a.begin:,}"]),
    _too_large(2**32, 2**32 + 1), _too_large(2**32, 2**32, 0),
    Case("unknown dtype", "", entry(dtype="F8_E9M9"),
         lambda f: [f"tensor {shown(f.a.name)}: unknown dtype 'F8_E9M9'"]),
    Case("odd-length F4", "", header(_odd_f4, lambda d: d + bytes(8)),
         lambda f: ["tensor 'odd': shape '[3, 5]' of F4 takes 60 bits, expected whole bytes"]),
)  # fmt: skip


def _more(found: str, fields: str) -> str:
    """The header with more fields at its end."""
    return f"{found[:-1]}, {fields}}}"


def _elsewhere(found: str, one: str) -> str:
    """Twice the first tensor, in two places."""
    again = one[: one.rindex("[")] + "[0, 1]}"
    return _more(found, again)


def _twice(field: str) -> Case:
    """One field of the first tensor."""

    def again(found: str, one: str) -> str:
        value = json.dumps(json.loads(f"{{{one}}}").popitem()[1][field])
        return found.replace(one, f'{one[:-1]}, "{field}": {value}}}')

    return Case("duplicate inner field", field, text(again),
                lambda f: [f"duplicate key '{field}' in {shown(f.a.name)}"])  # fmt: skip


def _shape(value: str) -> Case:
    """JSON as the first tensor's shape, nested too deeply in one way or the other."""

    def nested(found: str, one: str) -> str:
        head, _, rest = one.partition('"shape": ')
        return found.replace(one, f'{head}"shape": {value}{rest[rest.index("]") + 1 :]}')

    deep = len(value) > 2000
    says = ["nested too deeply"] if deep else ["shape '[[[", INTEGERS]
    return Case("deep nesting", f"{len(value) // 2}", text(nested), lambda f: says)


METADATA = '"__metadata__": {"format": "pt"}'


def _metadata(value: str, *says: str) -> Case:
    def changed(found: str, one: str) -> str:
        head = json.loads(found)
        head["__metadata__"] = json.loads(value)
        return json.dumps(head)

    return Case("non-string metadata", value, text(changed), lambda f: [*says, "expected"])


JSON = (
    Case("duplicate tensor key", "", text(_elsewhere),
         lambda f: [f"duplicate key {shown(f.a.name)}"]),
    Case("duplicate tensor key with equal offsets", "", text(_more),
         lambda f: [f"duplicate key {shown(f.a.name)}"]),
    Case("duplicate __metadata__", "", text(lambda found, one: _more(found, METADATA)),
         lambda f: ["duplicate key '__metadata__'"]),
    *map(_twice, ("dtype", "shape", "data_offsets")),
    Case("bad UTF-8", "", raw(lambda h: h.replace(b"{", b'{"\xff": 1, ', 1)),
         lambda f: ["not UTF-8 at byte 10 "]),
    Case("BOM", "", raw(lambda h: b"\xef\xbb\xbf" + h),
         lambda f: ["header starts with '\u00ef\u00bb\u00bf{", "at byte 8, expected '{'"]),
    Case("NUL padding", "", raw(lambda h: h + bytes(8)),
         lambda f: [f"not valid JSON at byte {f.start - 8:,}: Extra data"]),
    Case("trailing JSON", "", raw(lambda h: h + b"{}"),
         lambda f: [f"not valid JSON at byte {f.start - 2:,}: Extra data"]),
    Case("NaN literal", "", entry(shape=[float("nan")]), lambda f: ["NaN is not JSON"]),
    Case("lone surrogate", "in a name", text(lambda found, one: _more(found, r'"tail\ud800": 1')),
         lambda f: ["a string holds a lone surrogate", r"tail\ud800"]),
    _shape("[" * 200 + "]" * 200), _shape("[" * 100_000 + "]" * 100_000),
    _metadata('{"format": 1}', "__metadata__ field 'format' is '1'"),
    _metadata('{"x": null}', "__metadata__ field 'x' is 'None'"),
    _metadata("[]", "__metadata__ is '[]'"),
)  # fmt: skip

IMPOSTERS = (
    Case("git-lfs pointer", "", file(lambda d: POINTER),
         lambda f: ["a git-lfs pointer", "never fetched", "not a safetensors file"]),
    Case("HTML page", "", file(lambda d: PAGE), lambda f: ["an HTML or XML page"]),
    Case("HTML page", "of XML", file(lambda d: b"<?xml version='1.0'?><Error>AccessDenied</Error>"),
         lambda f: ["an HTML or XML page"]),
    *(
        Case("pickle", f"protocol {n}", file(lambda d, n=n: pickle.dumps({"weight": d}, n)),
             lambda f: ["a pickle or zip archive", "torch .bin/.pt"])
        for n in (2, 3, 4, 5)
    ),
    Case("pickle", "zip", file(lambda d: b"PK\x03\x04" + d), lambda f: ["a pickle or zip archive"]),
    Case("truncated download", "in the header", file(lambda d: d[:100]),
         lambda f: ["length field is ", "expected at most 92", "truncated download?"]),
    Case("truncated download", "in the data", file(lambda d: d[: len(d) * 3 // 4]),
         lambda f: ["truncated: the tensors end at byte ", f"the file has {f.size:,} bytes"]),
    Case("truncated download", "zeros behind", file(lambda d: d[:4] + bytes(len(d) - 4)),
         lambda f: [r"header starts with '\x00\x00\x00", "at byte 8, expected '{'"]),
)  # fmt: skip

CASES = (*LENGTH, *TILING, *NUMBERS, *JSON, *IMPOSTERS)
