"""Shard headers: what is refused, with which message and at what cost; what is accepted; build().

The messages are checked for the file, the tensor and the field or byte, what was expected and what
was found. The oracle for accepted bytes is the safetensors library.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import safetensors
from safetensors import safe_open

from fp8convert import header, strictjson
from fp8convert.dtypes import DTYPES
from fp8convert.errors import FormatError, shown

FILE = "model-00002-of-00003.safetensors"
A4 = '"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'  # a well-formed tensor of 4 bytes


def pack(body: str | bytes, data: int | bytes = 0) -> bytes:
    """A file: the length field, the header ``body`` and ``data`` (or so many bytes of it)."""
    raw = body.encode("utf-8") if isinstance(body, str) else body
    tail = data if isinstance(data, bytes) else bytes(i % 251 for i in range(data))
    return len(raw).to_bytes(8, "little") + raw + tail


def tensor(dtype: str, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def packed(data: int, /, **fields: Any) -> bytes:
    return pack(json.dumps(fields), data)


def one(dtype: str, shape: str, offsets: str, data: int = 4) -> bytes:
    """A file of one tensor ``w``; the arguments are JSON text."""
    return pack(f'{{"w":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}}}', data)


def read(file: bytes) -> header.Header:
    """As the catalogue reads a shard."""
    length = header.header_length(file[:64], len(file), shown(FILE))
    return header.parse(file[8 : 8 + length], len(file), shown(FILE))


def refusal(file: bytes) -> str:
    """The message of the refusal, which names the file and is one printable line."""
    with pytest.raises(FormatError) as caught:
        read(file)
    message = str(caught.value)
    assert shown(FILE) in message
    assert message.isprintable(), message
    assert len(message) < 1000
    return message


U = 8 + len("{" + A4 + "}")  # where the data of pack("{" + A4 + "}") starts

LENGTH = {
    "empty": (b"", ["0 bytes long", "at least 8"]),
    "seven-bytes": (b"\x02\0\0\0\0\0\0", ["7 bytes long", "at least 8"]),
    "n-zero": (bytes(8) + b"{}", ["length field is 0 ", "bytes 0-7", "expected 1 to 25,000,000"]),
    "n-zero-alone": (bytes(8), ["length field is 0 ", "expected 1 to"]),
    "all-nul": (bytes(4096), ["length field is 0 ", "expected 1 to"]),
    "n-over-file": (
        (11).to_bytes(8, "little") + b"{}        ",
        ["length field is 11 ", "at most 10", "18 bytes", "truncated download?"],
    ),
    "n-2**63": (
        (2**63).to_bytes(8, "little") + b"{}",
        ["length field is 9,223,372,036,854,775,808", "expected 1 to 25,000,000"],
    ),
    "n-2**64-1": (b"\xff" * 8 + b"{}", ["18,446,744,073,709,551,615", "expected 1 to"]),
    "n-over-cap": (
        (25_000_001).to_bytes(8, "little") + b"{}",
        ["length field is 25,000,001", "expected 1 to 25,000,000"],
    ),
    "big-endian": ((2).to_bytes(8, "big") + b"{}", ["length field is 144,115,188,075,855,872"]),
    "truncated-header": (pack("{" + A4 + "}")[:40], ["length field is", "truncated download?"]),
}

TILING = {
    "one-byte-short": (
        pack("{" + A4 + "}", 3),
        ["truncated", f"end at byte {U + 4}", f"file has {U + 3} bytes"],
    ),
    "one-byte-long": (
        pack("{" + A4 + "}", 5),
        ["extra bytes at the end", f"end at byte {U + 4}", f"file has {U + 5} bytes"],
    ),
    "no-data": (pack("{" + A4 + "}"), ["truncated", f"file has {U} bytes"]),
    "data-without-tensors": (pack("{}", 1), ["extra bytes", "end at byte 10", "has 11 bytes"]),
    "hole-at-start": (
        packed(5, w=tensor("U8", [4], 1, 5)),
        ["a hole", "tensor 'w' begins at byte 69", "expected 68, where the header ends"],
    ),
    "hole-in-the-middle": (
        packed(9, v=tensor("U8", [4], 0, 4), w=tensor("U8", [4], 5, 9)),
        ["a hole", "tensor 'w' begins at byte 133", "expected 132, where tensor 'v' ends"],
    ),
    "overlap": (
        packed(7, v=tensor("U8", [4], 0, 4), w=tensor("U8", [4], 3, 7)),
        ["an overlap", "tensor 'w' begins at byte 131", "expected 132, where tensor 'v' ends"],
    ),
    "two-names-on-one-range": (
        packed(4, v=tensor("U8", [4], 0, 4), w=tensor("U8", [4], 0, 4)),
        ["an overlap", "tensor 'w' begins at byte 128", "expected 132, where tensor 'v' ends"],
    ),
    "one-inside-the-other": (
        packed(8, v=tensor("U8", [8], 0, 8), w=tensor("U8", [2], 2, 4)),
        ["an overlap", "tensor 'w'", "where tensor 'v' ends"],
    ),
    "zero-size-inside-another": (
        packed(8, v=tensor("U8", [8], 0, 8), w=tensor("U8", [0], 4, 4)),
        ["an overlap", "tensor 'w'", "where tensor 'v' ends"],
    ),
    "zero-size-beyond-the-end": (
        packed(8, v=tensor("U8", [8], 0, 8), w=tensor("U8", [0], 9, 9)),
        ["a hole", "tensor 'w'", "where tensor 'v' ends"],
    ),
    "far-beyond-the-end": (
        packed(4, w=tensor("U8", [2**40], 0, 2**40)),
        ["truncated", "end at byte 1,099,511,627,", "file has 96 bytes"],
    ),
}

INTS = "expected a list of integers from 0 to 2**63-1"
SHAPES = {
    "negative": "[-4]",
    "minus-zero": None,  # refused by the JSON parser, below
    "float": "[4.0]",
    "exponent": "[4e0]",
    "huge": "[9223372036854775808]",
    "beyond-u64": "[18446744073709551620]",
    "forty-digits": f"[{'9' * 40}]",
    "bool": "[true]",
    "null": "null",
    "string": '"4"',
    "string-inside": '["4"]',
    "list-inside": "[[4]]",
    "object": '{"0":4}',
    "integer": "4",
}
NUMBERS = {
    f"{field}-{kind}": (
        one('"U8"', text, "[0,4]") if field == "shape" else one('"U8"', "[4]", pair),
        [f"tensor 'w': {field} ", INTS],
    )
    for kind, text in SHAPES.items()
    if text is not None
    for field, pair in (
        ("shape", ""),
        ("data_offsets", f"[0,{text[1:-1]}]" if text.startswith("[") else text),
    )
}
NUMBERS |= {
    "shape-shows-what-was-found": (one('"U8"', "[2,-4]", "[0,4]"), ["shape '[2, -4]'", INTS]),
    "offset-negative-begin": (one('"U8"', "[4]", "[-4,0]"), ["data_offsets '[-4, 0]'", INTS]),
    "end-before-begin": (
        one('"U8"', "[4]", "[4,0]"),
        ["tensor 'w': data_offsets '[4, 0]'", "expected [begin, end] with begin <= end"],
    ),
    "one-offset": (one('"U8"', "[4]", "[4]"), ["'[4]', expected [begin, end]"]),
    "three-offsets": (one('"U8"', "[4]", "[0,4,4]"), ["'[0, 4, 4]', expected [begin, end]"]),
    "no-offsets": (one('"U8"', "[4]", "[]"), ["'[]', expected [begin, end]"]),
    "bytes-too-few": (
        one('"BF16"', "[2,2]", "[0,4]"),
        ["tensor 'w': shape '[2, 2]' of BF16 takes 8 bytes", "[0, 4] hold 4"],
    ),
    "bytes-too-many": (one('"U8"', "[3]", "[0,4]"), ["'[3]' of U8 takes 3 bytes", "hold 4"]),
    "scalar-of-no-bytes": (one('"F32"', "[]", "[0,0]", 0), ["'[]' of F32 takes 4 bytes", "hold 0"]),
    "zero-size-with-bytes": (one('"F32"', "[0]", "[0,4]"), ["'[0]' of F32 takes 0 bytes"]),
    "product-overflow": (
        one('"U8"', "[4294967296,4294967297]", "[0,4294967296]", 0),
        ["tensor 'w': shape '[4294967296, 4294967297]' of U8 is too large", "2**63 bits"],
    ),
    "product-of-bits-overflow": (
        one('"F64"', "[144115188075855872]", "[0,0]", 0),
        ["'[144115188075855872]' of F64 is too large"],
    ),
    "product-overflow-to-zero": (  # 2**64 elements wrap to none in 64 bits
        one('"U8"', "[4294967296,4294967296]", "[0,0]", 0),
        ["'[4294967296, 4294967296]' of U8 is too large"],
    ),
    "product-overflow-hidden-by-0": (
        one('"U8"', "[4294967296,4294967296,0]", "[0,0]", 0),
        ["'[4294967296, 4294967296, 0]' of U8 is too large"],
    ),
    "too-many-dimensions": (
        one('"U8"', f"[{','.join(['1'] * 65)}]", "[0,1]", 1),
        ["tensor 'w': shape has 65 dimensions, expected at most 64"],
    ),
    "odd-f4": (one('"F4"', "[3]", "[0,2]", 2), ["'[3]' of F4 takes 12 bits", "whole bytes"]),
    "odd-f4-rounded-down": (one('"F4"', "[3]", "[0,1]", 1), ["takes 12 bits, expected whole"]),
    "odd-f6": (one('"F6_E3M2"', "[2]", "[0,1]", 1), ["'[2]' of F6_E3M2 takes 12 bits"]),
}

ENTRIES = {
    "dtype-unknown": (one('"F8_E9M9"', "[4]", "[0,4]"), ["tensor 'w': unknown dtype 'F8_E9M9'"]),
    "dtype-lower-case": (one('"u8"', "[4]", "[0,4]"), ["tensor 'w': unknown dtype 'u8'"]),
    "dtype-null": (one("null", "[4]", "[0,4]"), ["tensor 'w': unknown dtype 'None'"]),
    "dtype-list": (one('["U8"]', "[4]", "[0,4]"), ["tensor 'w': unknown dtype"]),
    "dtype-object": (one('{"U8":1}', "[4]", "[0,4]"), ["tensor 'w': unknown dtype"]),
    "field-missing": (
        pack('{"w":{"dtype":"U8","shape":[]}}', 1),
        ["tensor 'w': expected", "exactly dtype, shape and data_offsets", "'dtype', 'shape'"],
    ),
    "field-extra": (
        pack("{" + A4.replace("}", ',"x":1}') + "}", 4),
        ["tensor 'a': expected", "exactly dtype, shape and data_offsets", "'x'"],
    ),
    "entry-null": (pack('{"w":null}'), ["tensor 'w': expected an object", "found 'None'"]),
    "entry-list": (pack('{"w":["U8",[4],[0,4]]}', 4), ["tensor 'w': expected an object"]),
    "entry-string": (pack('{"w":"U8"}'), ["tensor 'w': expected an object", "found 'U8'"]),
    "entry-empty": (pack('{"w":{}}'), ["tensor 'w': expected an object", "found '[]'"]),
    "metadata-null": (
        pack('{"__metadata__":null}'),
        ["__metadata__ is 'None', expected an object"],
    ),
    "metadata-list": (pack('{"__metadata__":["a"]}'), ["__metadata__ is", "expected an object"]),
    "metadata-string": (pack('{"__metadata__":"pt"}'), ["__metadata__ is 'pt'", "an object"]),
    "metadata-integer": (
        pack('{"__metadata__":{"format":"pt","n":1}}'),
        ["__metadata__ field 'n' is '1', expected a string"],
    ),
    "metadata-null-value": (pack('{"__metadata__":{"n":null}}'), ["field 'n' is 'None'"]),
    "metadata-object": (pack('{"__metadata__":{"n":{}}}'), ["field 'n' is '{}', expected"]),
    "metadata-like-a-tensor": (
        pack("{" + A4.replace('"a"', '"__metadata__"') + "}", 4),
        ["__metadata__ field 'shape' is '[4]', expected a string"],
    ),
}

JSON = {
    "duplicate-tensor": (
        pack("{" + A4 + "," + A4.replace("0,4", "4,8") + "}", 8),
        ["duplicate key 'a'"],
    ),
    "duplicate-tensor-equal": (pack("{" + A4 + "," + A4 + "}", 4), ["duplicate key 'a'"]),
    "duplicate-tensor-escaped": (
        pack("{" + A4 + "," + A4.replace('"a"', '"\\u0061"') + "}", 4),
        ["duplicate key 'a'"],
    ),
    "duplicate-metadata": (
        pack('{"__metadata__":{"a":"1"},' + A4 + ',"__metadata__":{"a":"1"}}', 4),
        ["duplicate key '__metadata__'"],
    ),
    "duplicate-in-metadata": (
        pack('{"__metadata__":{"a":"1","a":"1"}}'),
        ["duplicate key 'a' in '__metadata__'"],
    ),
    "duplicate-dtype": (
        pack("{" + A4.replace("}", ',"dtype":"U8"}') + "}", 4),
        ["duplicate key 'dtype' in 'a'"],
    ),
    "duplicate-shape": (
        pack("{" + A4.replace("}", ',"shape":[4]}') + "}", 4),
        ["duplicate key 'shape' in 'a'"],
    ),
    "duplicate-data-offsets": (
        pack("{" + A4.replace("}", ',"data_offsets":[0,4]}') + "}", 4),
        ["duplicate key 'data_offsets' in 'a'"],
    ),
    "bad-utf8": (pack(b'{"\xff":{}}'), ["not UTF-8 at byte 10 "]),
    "overlong-utf8": (pack(b'{"\xc0\x80":{}}'), ["not UTF-8 at byte 10 "]),
    "utf8-surrogate": (pack(b'{"\xed\xa0\x80":{}}'), ["not UTF-8 at byte 10 "]),
    "utf8-cut-short": (pack(b'{"\xe2\x82'), ["not UTF-8 at byte 10 "]),
    "utf16": (pack("{}".encode("utf-16-le")), ["not valid JSON at byte 9:"]),
    "bom": (
        pack(b"\xef\xbb\xbf{}"),
        ["header starts with '\u00ef\u00bb\u00bf{}' at byte 8, expected '{'"],
    ),
    "leading-space": (pack(" {}"), ["header starts with ' {}' at byte 8, expected '{'"]),
    "a-list": (pack("[]"), ["header starts with '[]' at byte 8, expected '{'"]),
    "nul-padding": (pack("{" + A4 + "}\0\0", 4), ["not valid JSON at byte 61: Extra data"]),
    "all-nul-header": (pack(bytes(16)), [r"starts with '\x00\x00\x00", "at byte 8, expected '{'"]),
    "trailing-json": (pack("{" + A4 + "}{}", 4), ["not valid JSON at byte 61: Extra data"]),
    "trailing-comma": (pack("{" + A4 + ",}", 4), ["not valid JSON at byte"]),
    "unclosed": (pack("{" + A4, 4), ["not valid JSON at byte"]),
    "comment": (pack("{/**/}"), ["not valid JSON at byte 9:"]),
    "single-quotes": (pack("{'a':1}"), ["not valid JSON at byte 9:"]),
    "offset-counts-bytes": (pack('{"€€": nope}'), ["not valid JSON at byte 19:"]),
    "newline-in-name": (pack('{"a\nb":{}}'), ["not valid JSON at byte 11:"]),
    "unknown-escape": (pack(r'{"\x41":{}}'), ["not valid JSON at byte 10:"]),
    "leading-zero": (one('"U8"', "[04]", "[0,4]"), ["not valid JSON at byte"]),
    "plus-sign": (one('"U8"', "[+4]", "[0,4]"), ["not valid JSON at byte"]),
    "minus-zero": (one('"U8"', "[4]", "[-0,4]"), ["-0 is not an integer"]),
    "nan": (one('"U8"', "[NaN]", "[0,4]"), ["NaN is not JSON"]),
    "infinity": (one('"U8"', "[4]", "[0,Infinity]"), ["Infinity is not JSON"]),
    "minus-infinity": (one('"U8"', "[4]", "[-Infinity,4]"), ["-Infinity is not JSON"]),
    "lone-high-surrogate": (
        pack(r'{"tail\ud800":' + A4[4:] + "}", 4),
        ["a string holds a lone surrogate", r"tail\ud800"],
    ),
    "lone-low-surrogate": (
        pack(r'{"__metadata__":{"a":"\uDC00x"}}'),
        ["a string holds a lone surrogate", r"\udc00x"],
    ),
    "swapped-surrogates": (pack(r'{"\udc00\ud800":1}'), ["a string holds a lone surrogate"]),
    "thousands-of-digits": (one('"U8"', f"[{'9' * 5000}]", "[0,4]"), ["has too many digits"]),
    "minus-thousands-of-digits": (one('"U8"', f"[-{'9' * 5000}]", "[0,4]"), ["too many digits"]),
}

IMPOSTERS = {
    "git-lfs-pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n",
        ["a git-lfs pointer", "never fetched", "not a safetensors file"],
    ),
    "html": (b"<!DOCTYPE html>\n<html><body>404</body></html>", ["an HTML or XML page"]),
    "html-after-space": (b"\n\n  <HTML lang='en'>" + b" " * 64, ["an HTML or XML page"]),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", ["HTML or XML"]),
    "zip": (b"PK\x03\x04" + bytes(60), ["a pickle or zip archive", "torch .bin/.pt"]),
    "pickle-2": (b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s.", ["a pickle or zip archive"]),
    "pickle-4": (b"\x80\x04\x95\x0b\0\0\0\0\0\0\0}\x94\x8c\x01a\x94K\x01s.", ["a pickle or zip"]),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(24), ["a GGUF file"]),
    "plain-text": (b"Entry not found, sorry.", ["text beginning 'Entry not found, sorry.'"]),
    "json-error": (b'{"error":"gated repo"}', ['text beginning \'{"error":"gated repo"}\'']),
}

REFUSED = {
    f"{group}:{name}": case
    for group, cases in (
        ("length", LENGTH),
        ("tiling", TILING),
        ("numbers", NUMBERS),
        ("entries", ENTRIES),
        ("json", JSON),
        ("imposters", IMPOSTERS),
    )
    for name, case in cases.items()
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    file, expected = REFUSED[name]
    message = refusal(file)
    for part in expected:
        assert part in message


def test_the_refused_differ_from_an_accepted_file_in_one_thing() -> None:
    """The frames used by the tables are sound, so that each refusal is for the fault it plants."""
    assert len(read(pack("{" + A4 + "}", 4)).entries) == 1
    assert len(read(one('"U8"', "[4]", "[0,4]")).entries) == 1
    assert len(read(packed(8, v=tensor("U8", [4], 0, 4), w=tensor("U8", [4], 4, 8))).entries) == 2
    assert read(pack('{"__metadata__":{"a":"1"}}')).metadata == {"a": "1"}


@pytest.mark.parametrize("depth", [1, 2, 5, 63, 65, 300, 500, 900, 985, 990, 995, 1000, 100_000])
@pytest.mark.parametrize(
    "frame", ['{"w":%s}', '{"__metadata__":%s}', '{"__metadata__":{"n":%s}}', "shape", "dtype"]
)
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"k":', "}")])
def test_nesting_is_refused_at_any_depth(
    frame: str, depth: int, opening: str, closing: str
) -> None:
    """Also near the recursion limit, where parsing succeeds and printing might not."""
    if frame in ("shape", "dtype"):
        frame = A4.replace("[4]" if frame == "shape" else '"U8"', "%s").join("{}")
    refusal(pack(frame % (opening * depth + "1" + closing * depth), 4))


NAMES = (
    *("\0", "\x1b[2J", "a\nb", "\r", "\x7f", "\x9b31m", "\u2028", "\u202edcba", "\U0001f600"),
    *("../../etc/passwd", "/abs", "C:\\x", "", "'", '"', "é", "e\u0301", "__metadata__ "),
    "a" * 5000,
)


class TestAccepted:
    def test_any_order_of_tensors(self) -> None:
        file = packed(
            12, z=tensor("U8", [4], 8, 12), m=tensor("U8", [4], 0, 4), a=tensor("U8", [4], 4, 8)
        )
        found = read(file)
        assert [e.name for e in found.entries] == ["m", "a", "z"]
        assert [e.end - found.data_start for e in found.entries] == [4, 8, 12]
        assert_same(file)

    @pytest.mark.parametrize("spaces", range(9))
    def test_unaligned_header(self, spaces: int) -> None:
        file = pack("{" + A4 + "}" + " " * spaces, 4)
        assert read(file).data_start == U + spaces
        assert_same(file)

    @pytest.mark.parametrize("dtype", [d.tag for d in DTYPES.values() if d.bits >= 8])
    def test_0d(self, dtype: str) -> None:
        size = DTYPES[dtype].bits // 8
        file = packed(size, w=tensor(dtype, [], 0, size))
        (entry,) = read(file).entries
        assert entry.shape == ()
        assert entry.end - entry.begin == size
        assert_same(file)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_zero_size(self, dtype: str) -> None:
        file = packed(
            4,
            v=tensor(dtype, [0], 0, 0),
            w=tensor("U8", [4], 0, 4),
            x=tensor(dtype, [3, 0, 5], 4, 4),
            y=tensor(dtype, [0, 2**40], 4, 4),
        )
        assert {e.name for e in read(file).entries} == {"v", "w", "x", "y"}
        assert_same(file)

    def test_zero_size_after_what_begins_at_the_same_byte(self) -> None:
        """In the header; in the data it comes before."""
        file = packed(4, w=tensor("U8", [4], 0, 4), v=tensor("U8", [0], 0, 0))
        assert [e.name for e in read(file).entries] == ["v", "w"]
        assert_same(file)

    @pytest.mark.parametrize(("dtype", "count"), [("F4", 6), ("F6_E2M3", 4), ("F6_E3M2", 8)])
    def test_narrow_types(self, dtype: str, count: int) -> None:
        size = count * DTYPES[dtype].bits // 8
        assert_same(packed(size, w=tensor(dtype, [count], 0, size)))

    def test_no_tensors(self) -> None:
        assert read(pack("{}")).entries == ()
        assert_same(pack("{}"))

    def test_metadata(self) -> None:
        said = {"format": "pt", "odd \x1b\0\n\u2028\U0001f600": ""}
        assert read(pack(json.dumps({"__metadata__": said}))).metadata == said

    @pytest.mark.parametrize(
        "length", [0x280, 0x380, 0x480, 0x580, 0x4B50, 0x4B50 + 65536, 0x5047, 0x3C3C, 0x2020]
    )
    def test_lengths_that_look_like_other_files(self, length: int) -> None:
        """A length of 640 is, as bytes, the start of a pickle of protocol 2."""
        assert_same(pack(("{" + A4 + "}").ljust(length), 4))

    @pytest.mark.parametrize(
        "name",
        NAMES,
    )
    @pytest.mark.parametrize("escaped", [True, False])
    def test_any_name_is_data(self, name: str, escaped: bool) -> None:
        """And is escaped, and cut, in every message that says it."""
        body = json.dumps({name: tensor("U8", [4], 0, 4)}, ensure_ascii=escaped)
        (entry,) = read(pack(body, 4)).entries
        assert entry.name == name
        assert_same(pack(body, 4))
        for broken in (
            body.replace("[0, 4]", "[0, 5]"),
            body.replace("[0, 4]", "[1, 5]"),
            body.replace("[0, 4]", "[0]"),
            body.replace("[4]", "[-4]"),
            body.replace("U8", "U9"),
            body.replace('"shape"', '"shapes"'),
            body.replace('"shape"', '"dtype"'),
            body[:-1] + ", " + body[1:],
        ):
            assert broken != body
            assert shown(name) in refusal(pack(broken, 4))


def assert_same(file: bytes) -> None:
    """The safetensors library finds the same tensors, with the same bytes."""
    ours = {e.name: (e.dtype, list(e.shape), file[e.begin : e.end]) for e in read(file).entries}
    theirs = {
        name: (t["dtype"], t["shape"], bytes(t["data"]))
        for name, t in safetensors.deserialize(file)
    }
    assert ours == theirs


class TestCost:
    """Hostile headers: refused within bounds that do not depend on the numbers in them."""

    @pytest.mark.parametrize("length", [2**63, 2**62, 25_000_001, 24_999_999])
    def test_a_length_is_checked_before_it_is_believed(self, length: int) -> None:
        file = length.to_bytes(8, "little") + b"{}"
        tracemalloc.start()
        try:
            refusal(file)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 1_000_000

    @pytest.mark.parametrize("count", [500_003, 1_250_000])
    def test_more_entries_than_the_cap_are_never_parsed(self, count: int) -> None:
        body = b"{" + b",".join(b'"%x":{}' % i for i in range(count)) + b"}"
        assert len(body) < header.MAX_HEADER_BYTES
        file = pack(body)
        tracemalloc.start()
        try:
            assert "more than 500,000 JSON objects" in refusal(file)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 3 * len(body)  # this test's own copy, and no object per entry

    def test_full_entries_beyond_the_header_cap(self) -> None:
        """1.25 million real entries take 75 MB: refused by the length field."""
        size = 1_250_000 * len(A4)
        with pytest.raises(FormatError, match=r"length field is 6\d,\d{3},\d{3} .*25,000,000"):
            header.header_length(size.to_bytes(8, "little") + b"{", 8 + size, FILE)

    @pytest.mark.parametrize(
        ("body", "part"),
        [
            (b'{"w":' + b"[" * 1_600_001, "more than 1,600,000 JSON objects and lists"),
            (b'{"w":[' + b"0," * 4_000_000 + b"0]}", "more than 4,000,000 JSON items"),
            (b'{"w":' + b"9" * 20_000_000 + b"}", "an integer has too many digits"),
        ],
        ids=["containers", "items", "digits"],
    )
    def test_counted_before_parsed(self, body: bytes, part: str) -> None:
        file = pack(body)
        tracemalloc.start()
        try:
            assert part in refusal(file)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 4 * len(body)

    @pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and limits address space")
    @pytest.mark.parametrize(
        ("kind", "part"),
        [
            ("flat", "tensors, more than 500,000"),
            ("escaped", "tensors, more than 500,000"),
            (
                "floats",
                f"tensor 'w': shape '[1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, ...]', {INTS}",
            ),
            (
                "strings",
                "tensor 'w': shape '['ab', 'ab', 'ab', 'ab', 'ab', 'ab', 'ab', 'ab', ...]'",
            ),
            ("lists", "tensor 'w': shape '[[1], [1], [1], [1], [1], [1], [1], [1], ...]'"),
            ("dimensions", "tensor 'w': shape has 3,900,000 dimensions, expected at most 64"),
            ("wide", "characters): expected an object"),
            ("deep", "nested too deeply"),
            ("duplicates", "duplicate key 'a'"),
        ],
    )
    def test_parsed_within_600_mb(self, kind: str, part: str) -> None:
        assert part in hostile(kind)

    @pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and limits address space")
    def test_the_memory_limit_bites(self) -> None:
        assert "MemoryError" in hostile("control")


HOSTILE = """
import gc, resource, sys
from fp8convert import header
from fp8convert.errors import FormatError

def shape(items):
    return b'{"w":{"dtype":"U8","shape":[' + items + b'],"data_offsets":[0,0]}}'

kind = sys.argv[1]
if kind == "flat":
    body = b"{" + b",".join(b'"%x":0' % i for i in range(1_999_999)) + b"}"
elif kind == "escaped":
    body = b"{" + b",".join(b'"\\\\u0000%x":0' % i for i in range(1_250_000)) + b"}"
elif kind == "duplicates":
    body = b"{" + b",".join([b'"a":0'] * 1_999_999) + b"}"
elif kind == "floats":
    body = shape(b"1.5," * 3_900_000 + b"1")
elif kind == "strings":
    body = shape(b'"ab",' * 3_900_000 + b"1")
elif kind == "lists":
    body = shape(b"[1]," * 1_500_000 + b"1")
elif kind == "dimensions":
    body = shape(b"1," * 3_899_999 + b"1")
elif kind == "wide":  # one character makes every other take four bytes
    body = b'{"' + b"a" * 24_900_000 + b'\\xf0\\x9f\\x98\\x80":0}'
elif kind == "deep":
    body = b'{"w":' + b"[" * 1_500_000 + b"]" * 1_500_000 + b"}"
else:
    body = b"{}"
gc.collect()
with open("/proc/self/statm") as f:
    used = int(f.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 600_000_000,) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
try:
    if kind == "control":
        bytearray(700_000_000)
    header.parse(body, 8 + len(body), "f")
except (FormatError, MemoryError) as e:
    print(f"{type(e).__name__}: {e}")
"""


def hostile(kind: str) -> str:
    """What parsing the hostile header ``kind`` says, in a process that may take 600 MB more."""
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE, kind], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    return done.stdout


class TestBuild:
    TENSORS = (
        ("w", "F8_E4M3", (3, 5)),
        ("w_scale_inv", "F32", (1, 1)),
        ("scalar", "BF16", ()),
        ("empty", "I64", (0, 7)),
        ("packed", "F4", (2, 4)),
        ('odd/../\0\x1b\n"\\é\U0001f600', "U8", (2,)),
    )

    def test_read_back_by_safetensors_and_by_us(self, tmp_path: Path) -> None:
        head = header.build(self.TENSORS, {"format": "pt", "é": "\0"})
        data = bytes(range(1, 28))
        file = head + data
        assert len(head) % header.ALIGN == 0
        assert len(head) == 8 + int.from_bytes(head[:8], "little")
        assert_same(file)
        parsed = read(file)
        assert parsed.data_start == len(head)
        assert [(e.name, e.dtype, e.shape) for e in parsed.entries] == list(self.TENSORS)
        assert [e.end for e in parsed.entries][-1] == len(file)
        path = tmp_path / "x.safetensors"
        path.write_bytes(file)
        with safe_open(path, "np") as opened:
            assert opened.metadata() == {"format": "pt", "é": "\0"} == parsed.metadata
            assert set(opened.keys()) == {t[0] for t in self.TENSORS}

    @pytest.mark.parametrize("extra", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    def test_aligned_whatever_the_length(self, extra: int) -> None:
        """Around the page size, where padding goes from a few spaces to none to a whole page."""
        bare = len(json.dumps({"__metadata__": {"k": ""}}, separators=(",", ":")))
        fill = header.ALIGN - 8 - bare - 5 + extra
        head = header.build([], {"k": "x" * fill})
        assert len(head) == header.ALIGN * (1 if extra <= 5 else 2)
        assert_same(head)

    def test_deterministic_and_in_the_order_given(self) -> None:
        assert header.build(self.TENSORS, {}) == header.build(list(self.TENSORS), {})
        names = [e.name for e in read(header.build(self.TENSORS, {}) + bytes(27)).entries]
        assert names == [t[0] for t in self.TENSORS]

    def test_no_tensors(self) -> None:
        assert read(header.build([], {})).entries == ()


class TestStrictJson:
    """What the index and the config share with the header, and the header does not use."""

    @pytest.mark.parametrize(
        ("raw", "part"),
        [
            (b"\xef\xbb\xbf{}", "f: a byte order mark at byte 0"),
            (b'{"a":{"b":{"c":1,"c":1}}}', "f: duplicate key 'c'"),
            (b'{"a":{"c":1,"c":1}}', "f: duplicate key 'c' in 'a'"),
            (b'[{"c":1,"c":1}]', "f: duplicate key 'c'"),
            (b"[" * 65 + b"]" * 65, "f: JSON nested more than 64 deep"),
            (b'{"a":' * 65 + b"1" + b"}" * 65, "f: JSON nested more than 64 deep"),
            (b"", "f: not valid JSON at byte 0"),
            (b"1 2", "f: not valid JSON at byte 2"),
        ],
    )
    def test_refused(self, raw: bytes, part: str) -> None:
        with pytest.raises(FormatError) as caught:
            strictjson.loads(raw, "f")
        assert str(caught.value).startswith(part)

    @pytest.mark.parametrize(
        ("raw", "value"),
        [
            (b" 1 ", 1),
            (b'"\\ud83d\\ude00-"', "\U0001f600-"),
            (b"-0.0", -0.0),
            (b"[-1, -10]", [-1, -10]),
            (b'{"a":1,"b":{"a":1}}', {"a": 1, "b": {"a": 1}}),
            (b'["\\\\ud800"]', ["\\ud800"]),
        ],
    )
    def test_accepted(self, raw: bytes, value: object) -> None:
        assert strictjson.loads(raw, "f") == value

    def test_64_deep_is_accepted(self) -> None:
        assert strictjson.loads(b"[" * 64 + b"]" * 64, "f")
        assert strictjson.loads(b'{"a":' * 64 + b"1" + b"}" * 64, "f")
