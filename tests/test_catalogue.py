"""Checkpoint folders: index, shards and paths. What is refused, what is accepted, what is opened.

The hand-made checkpoints are small; the safetensors library writes their shards.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from fp8convert import folder, shards
from fp8convert.catalogue import CONFIG, INDEX, Catalogue, open_catalogue
from fp8convert.errors import FormatError, shown
from fp8convert.folder import Folder
from fp8convert.layouts.hf import SINGLE

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SHARDS = {ONE: ("a", "b"), TWO: ("c",)}
MAP = {"a": ONE, "b": ONE, "c": TWO}
VALUE = {name: np.full(4, ord(name), np.uint8) for name in "abcdefgh"}
HOLD = 120  # seconds after which a child that hangs is killed


def write_shard(path: Path, names: tuple[str, ...]) -> None:
    save_file({n: VALUE[n] for n in names}, path, {"format": "pt"})


def write_json(path: Path, value: Any) -> None:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def write_index(path: Path, weight_map: Any, total: Any = 12) -> None:
    write_json(path / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A sound checkpoint of two shards, an index and a config; tests spoil it."""
    made = tmp_path / "checkpoint"
    made.mkdir()
    for name, tensors in SHARDS.items():
        write_shard(made / name, tensors)
    write_index(made, MAP)
    write_json(made / CONFIG, {"model_type": "x"})
    return made


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every path opened while the test runs, by whatever name, resolved."""
    paths: list[str] = []
    real_open = os.open

    def spy(path: Any, *args: Any, **kwargs: Any) -> int:
        paths.append(os.path.realpath(path))
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", spy)
    return paths


def refusal(path: Path) -> str:
    """The message with which the folder is refused: one printable line."""
    with pytest.raises(FormatError) as caught:
        open_catalogue(path)
    message = str(caught.value)
    assert message.isprintable(), message
    return message


def names_by_shard(found: Catalogue) -> dict[str, set[str]]:
    names: dict[str, set[str]] = {s.name: set() for s in found.shards}
    for t in found.tensors.values():
        names[found.shards[t.shard].name].add(t.name)
    return names


def assert_sound(path: Path) -> Catalogue:
    """It opens, without warnings, and the offsets lead to the tensors' bytes."""
    found = open_catalogue(path)
    assert found.warnings == ()
    for name, t in found.tensors.items():
        raw = (path / found.shards[t.shard].name).read_bytes()
        assert raw[t.begin : t.end] == VALUE[name].tobytes()
    return found


class TestAccepted:
    def test_two_shards_and_an_index(self, two: Path, opened: list[str]) -> None:
        found = assert_sound(two)
        assert names_by_shard(found) == {ONE: {"a", "b"}, TWO: {"c"}}
        assert found.shard_names == [ONE, TWO]
        assert found.has_index
        assert found.index_metadata == {"total_size": 12}
        assert found.config == {"model_type": "x"}
        for shard in found.shards:
            state = (two / shard.name).stat()
            assert (shard.size, shard.mtime_ns) == (state.st_size, state.st_mtime_ns)
            assert len(shard.header_sha256) == 64
        assert set(opened) == {str(two / n) for n in (ONE, TWO, INDEX, CONFIG)}  # the spy spies

    def test_single_file(self, two: Path) -> None:
        for name in (ONE, TWO, INDEX):
            (two / name).unlink()
        write_shard(two / SINGLE, ("a",))
        found = assert_sound(two)
        assert names_by_shard(found) == {SINGLE: {"a"}}
        assert not found.has_index

    def test_index_of_a_single_file(self, two: Path) -> None:
        (two / ONE).unlink()
        (two / TWO).unlink()
        write_shard(two / SINGLE, ("a", "b"))
        write_index(two, {"a": SINGLE, "b": SINGLE}, 8)
        assert names_by_shard(assert_sound(two)) == {SINGLE: {"a", "b"}}

    def test_numbered_shards_without_an_index(self, two: Path) -> None:
        (two / INDEX).unlink()
        found = assert_sound(two)
        assert names_by_shard(found) == {ONE: {"a", "b"}, TWO: {"c"}}
        assert not found.has_index

    def test_index_without_metadata(self, two: Path) -> None:
        write_json(two / INDEX, {"weight_map": MAP})
        assert open_catalogue(two).warnings == (
            f"{INDEX}: metadata.total_size is missing, the tensors hold 12 bytes",
        )

    def test_files_of_other_kinds_are_left_alone(self, two: Path, opened: list[str]) -> None:
        for name in ("pytorch_model.bin", "x.pt", "tokenizer.json", "modeling_x.py"):
            (two / name).write_bytes(b"\x80\x04not read")
        (two / "a folder").mkdir()
        assert_sound(two)
        assert set(opened) == {str(two / n) for n in (ONE, TWO, INDEX, CONFIG)}

    def test_the_folder_may_be_named_by_a_link(self, two: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(two)
        assert open_catalogue(tmp_path / "link").folder.root == two.resolve()

    def test_a_link_to_a_file_of_the_same_folder(self, two: Path) -> None:
        (two / TWO).rename(two / "real")
        (two / TWO).symlink_to("real")
        assert_sound(two)

    def test_the_sample(self, tiny_fp8: Path) -> None:
        found = open_catalogue(tiny_fp8)
        assert found.warnings == ()
        assert len(found.tensors) > 100


# What may stand in weight_map, and must never be opened.
ELSEWHERE = (
    *("../x.safetensors", "../../x.safetensors", "a/../../x.safetensors", "a/../" + ONE),
    *("./" + TWO, "sub/x.safetensors", "/abs.safetensors", "//host/s.safetensors"),
    *("C:\\x.safetensors", "C:x.safetensors", "\\\\host\\s.safetensors", "..\\x.safetensors"),
    *("../x", "/abs", "C:\\x", "\\\\host\\s", "a/../../x", "/dev/zero", "file:///etc/passwd"),
    *("", ".", "..", "/", "\0", ONE + "\0", "\0.safetensors", "a\nb.safetensors"),
    *("\x1b[2J.safetensors", "\u202e.safetensors", "x" * 256 + ".safetensors"),
    "é" * 128 + ".safetensors",  # under 256 characters, over 255 bytes
)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_no_plain_file_name(name: str, two: Path, tmp_path: Path, opened: list[str]) -> None:
    """Refused for its form alone, before any shard is opened, though the file may well exist."""
    for path in (tmp_path / "x.safetensors", tmp_path / "x", two / "C:\\x.safetensors"):
        write_shard(path, ("c",))
    (two / "sub").mkdir()
    write_shard(two / "sub" / "x.safetensors", ("c",))
    write_index(two, {**MAP, "c": name})
    message = refusal(two)
    assert f"{shown(name)} ({INDEX}: weight_map of 'c') is not a plain file name" in message
    assert opened == [str(two / INDEX)]


def test_a_naive_join_would_have_opened_them(two: Path, tmp_path: Path) -> None:
    """A control: a naive join of some of these names does lead to a file outside the folder."""
    write_shard(tmp_path / "x.safetensors", ("c",))
    (two / "a").mkdir()
    for name in ("../x.safetensors", "a/../../x.safetensors"):
        assert (two / name).is_file()


def replace_by_folder(path: Path) -> None:
    path.mkdir()


def replace_by_fifo(path: Path) -> None:
    os.mkfifo(path)


def replace_by_socket(path: Path) -> None:
    here = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(f"/proc/self/fd/{here}/{path.name}")  # the path itself may be too long
    finally:
        os.close(here)


def replace_by_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # as /dev/zero
    except PermissionError:
        pytest.skip("may not make a device")


def replace_by_block_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(7, 255))
    except PermissionError:
        pytest.skip("may not make a device")


def replace_by_loop(path: Path) -> None:
    path.symlink_to(path.name)


def replace_by_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


def replace_by_link_through_a_file(path: Path) -> None:
    path.symlink_to("notes.txt/x")
    (path.parent / "notes.txt").write_text("a file")


def replace_by_link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def replace_by_link_outside(path: Path) -> None:
    write_shard(path.parent.parent / "outside.safetensors", ("c",))
    path.symlink_to("../outside.safetensors")


def replace_by_absolute_link_outside(path: Path) -> None:
    write_shard(path.parent.parent / "outside.safetensors", ("c",))
    path.symlink_to(path.parent.parent / "outside.safetensors")


def replace_by_link_of_link_outside(path: Path) -> None:
    replace_by_link_outside(path.parent / "inner")
    path.symlink_to("inner")


def replace_by_link_to_a_neighbour(path: Path) -> None:
    """A folder whose name begins like the checkpoint's is not inside the checkpoint."""
    other = path.parent.parent / "checkpoint-2"
    other.mkdir()
    write_shard(other / path.name, ("c",))
    path.symlink_to(other / path.name)


ODD_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a folder": (replace_by_folder, "is a folder, expected a regular file"),
    "a FIFO": (replace_by_fifo, "is a FIFO, expected a regular file"),
    "a socket": (replace_by_socket, "is a socket, expected a regular file"),
    "a device": (replace_by_device, "is a device, expected a regular file"),
    "a block device": (replace_by_block_device, "is a device, expected a regular file"),
    "a loop": (replace_by_loop, "is a loop of links, expected a regular file"),
    "a dangling link": (replace_by_dangling_link, "is missing from"),
    "a link through a file": (replace_by_link_through_a_file, "is missing from"),
    "a link to a device": (replace_by_link_to_device, "is a link out of"),
    "a link outside": (replace_by_link_outside, "is a link out of"),
    "an absolute link outside": (replace_by_absolute_link_outside, "is a link out of"),
    "a link to a link outside": (replace_by_link_of_link_outside, "is a link out of"),
    "a link to a neighbour": (replace_by_link_to_a_neighbour, "is a link out of"),
}


@pytest.mark.parametrize("kind", ODD_FILES)
@pytest.mark.parametrize(
    ("name", "why"),
    [(TWO, "shard"), (SINGLE, "shard"), (INDEX, "index"), (CONFIG, "config")],
    ids=["shard", "single", "index", "config"],
)
def test_no_regular_file_of_the_tree(
    name: str, why: str, kind: str, two: Path, opened: list[str]
) -> None:
    """Refused at once and never opened: opening a FIFO hangs, opening a device can act."""
    replace, expected = ODD_FILES[kind]
    if name == SINGLE:
        for shard in (ONE, TWO, INDEX):
            (two / shard).unlink()
    else:
        (two / name).unlink()
    replace(two / name)
    opened.clear()
    message = refusal(two)
    assert f"{shown(name)} ({why}) {expected}" in message
    allowed = {str(two / n) for n in (INDEX, CONFIG, ONE, SINGLE)} - {str(two / name)}
    assert set(opened) <= allowed


def test_a_fifo_hangs_no_process(two: Path) -> None:
    """As the test above, where a hang would stop that process and not the tests."""
    (two / TWO).unlink()
    os.mkfifo(two / TWO)
    code = (
        "import sys\nfrom fp8convert.catalogue import open_catalogue\nopen_catalogue(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(two)],
        capture_output=True, text=True, timeout=HOLD, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "is a FIFO, expected a regular file" in done.stderr


@pytest.mark.parametrize("kind", ["a FIFO", "a folder"])
def test_a_file_swapped_between_check_and_open(
    kind: str, two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is opened is looked at again; the open itself cannot hang."""
    swap, expected = ODD_FILES[kind]
    real_lstat, fds = os.lstat, len(os.listdir("/proc/self/fd"))
    target = os.path.realpath(two / TWO)

    def lstat(path: Any, **kwargs: Any) -> os.stat_result:
        state = real_lstat(path, **kwargs)
        if os.fspath(path) == target and stat.S_ISREG(state.st_mode):
            caller = sys._getframe(1).f_code.co_filename
            if caller == folder.__file__:
                os.unlink(target)
                swap(Path(target))
        return state

    monkeypatch.setattr(os, "lstat", lstat)
    assert f"{shown(TWO)} (shard) {expected}" in refusal(two)
    assert len(os.listdir("/proc/self/fd")) == fds  # and it is closed again


def test_a_shard_cut_short_while_it_is_read(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_pread = os.pread

    def cut(fd: int, n: int, at: int) -> bytes:
        """Of what begins at byte 8, a header, there are 64 bytes."""
        return b"" if at == 72 else real_pread(fd, min(n, 64) if at == 8 else n, at)

    monkeypatch.setattr(os, "pread", cut)
    assert f"{shown(ONE)}: read 64 of " in refusal(two)


def test_a_header_read_byte_by_byte(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one call brings is not the file's end."""
    expected, real_pread = open_catalogue(two), os.pread
    monkeypatch.setattr(os, "pread", lambda fd, n, at: real_pread(fd, 1, at))
    found = open_catalogue(two)
    assert found.tensors == expected.tensors
    assert found.shards == expected.shards


class TestHubCache:
    """models--org--name/snapshots/<revision> holds links into models--org--name/blobs."""

    @pytest.fixture
    def snapshot(self, two: Path, tmp_path: Path) -> Path:
        repo = tmp_path / "hub" / "models--org--name"
        made = repo / "snapshots" / ("0" * 40)
        made.mkdir(parents=True)
        (repo / "blobs").mkdir()
        for i, path in enumerate(sorted(two.iterdir())):
            path.rename(repo / "blobs" / f"{i:064x}")
            (made / path.name).symlink_to(f"../../blobs/{i:064x}")
        return made

    def test_links_into_its_own_blobs(self, snapshot: Path) -> None:
        assert all(p.is_symlink() for p in snapshot.iterdir())
        found = assert_sound(snapshot)
        assert names_by_shard(found) == {ONE: {"a", "b"}, TWO: {"c"}}

    def test_a_revision_named_by_a_link(self, snapshot: Path, tmp_path: Path) -> None:
        (tmp_path / "model").symlink_to(snapshot)
        assert_sound(tmp_path / "model")

    @pytest.mark.parametrize(
        "target", ["/etc/passwd", "../../../models--org--other/blobs/0", "../../../../checkpoint"]
    )
    def test_links_out_of_the_repository(
        self, target: str, snapshot: Path, opened: list[str]
    ) -> None:
        other = snapshot.parents[2] / "models--org--other" / "blobs"
        other.mkdir(parents=True)
        write_shard(other / "0", ("c",))
        (snapshot / TWO).unlink()
        (snapshot / TWO).symlink_to(target)
        assert f"{shown(TWO)} (shard) is a link out of" in refusal(snapshot)
        assert os.path.realpath(snapshot / TWO) not in opened

    def test_a_blob_that_is_missing(self, snapshot: Path) -> None:
        os.unlink(os.path.realpath(snapshot / TWO))
        assert f"{shown(TWO)} (shard) is missing" in refusal(snapshot)

    def test_the_layout_without_blobs_is_no_cache(self, snapshot: Path) -> None:
        repo = snapshot.parents[1]
        (repo / "blobs").rename(repo / "elsewhere")
        for path in list(snapshot.iterdir()):
            target = os.readlink(path).replace("blobs", "elsewhere")
            path.unlink()
            path.symlink_to(target)
        assert "is a link out of" in refusal(snapshot)


class TestIndex:
    @pytest.mark.parametrize(
        ("index", "expected"),
        [
            ("", f"{INDEX}: not valid JSON at byte 0"),
            ("{", f"{INDEX}: not valid JSON at byte 1"),
            ('{"weight_map":{}}x', f"{INDEX}: not valid JSON at byte 17"),
            ("\ufeff{}", f"{INDEX}: a byte order mark at byte 0"),
            ("[]", f"{INDEX} is '[]', expected an object"),
            ('"weight_map"', f"{INDEX} is 'weight_map', expected an object"),
            ("null", f"{INDEX} is 'None', expected an object"),
            ("{}", f"{INDEX}: weight_map is 'None', expected an object"),
            ({"weight_map": []}, f"{INDEX}: weight_map is '[]', expected an object"),
            ({"weight_map": ONE}, f"{INDEX}: weight_map is {shown(ONE)}, expected an object"),
            ({"weight_map": None}, f"{INDEX}: weight_map is 'None', expected an object"),
            ({"weight_map": {}}, f"{INDEX}: weight_map is empty"),
            ({"weight_map": MAP, "metadata": []}, f"{INDEX}: metadata is '[]', expected an object"),
            ({"weight_map": MAP, "metadata": None}, f"{INDEX}: metadata is 'None', expected an"),
            ({"weight_map": {**MAP, "c": 1}}, "weight_map of 'c' is '1', expected a file name"),
            ({"weight_map": {**MAP, "c": None}}, "of 'c' is 'None', expected a file name"),
            ({"weight_map": {**MAP, "c": [TWO]}}, "weight_map of 'c' is '['model-00002"),
            ({"weight_map": {**MAP, "c": {"file": TWO}}}, "weight_map of 'c' is '{'file': "),
            ({"weight_map": {**MAP, "\x1b": 1}}, r"weight_map of '\x1b' is '1', expected a file"),
            (
                f'{{"weight_map":{{"a":"{ONE}","b":"{ONE}","c":"{TWO}","c":"{TWO}"}}}}',
                f"{INDEX}: duplicate key 'c' in 'weight_map'",
            ),
            (
                f'{{"weight_map":{{"a":"{ONE}"}},"weight_map":{json.dumps(MAP)}}}',
                f"{INDEX}: duplicate key 'weight_map'",
            ),
            (f'{{"weight_map":{json.dumps(MAP)},"x":NaN}}', f"{INDEX}: NaN is not JSON"),
            (
                f'{{"weight_map":{{"\\ud800":"{ONE}"}}}}',
                f"{INDEX}: a string holds a lone surrogate",
            ),
            ("[" * 100_000, f"{INDEX}: JSON nested too deeply"),
            ('{"weight_map":' + "[" * 70 + "]" * 70 + "}", f"{INDEX}: JSON nested more than 64"),
        ],
    )
    def test_malformed(self, index: Any, expected: str, two: Path, opened: list[str]) -> None:
        write_json(two / INDEX, index)
        assert expected in refusal(two)
        assert str(two / ONE) not in opened

    def test_not_utf8(self, two: Path) -> None:
        (two / INDEX).write_bytes(b'{"weight_map":{"\xff":"x"}}')
        assert f"{INDEX}: not UTF-8 at byte 16 " in refusal(two)

    def test_oversize(self, two: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        size = (two / INDEX).stat().st_size
        monkeypatch.setattr(shards, "MAX_JSON", size)
        open_catalogue(two)
        monkeypatch.setattr(shards, "MAX_JSON", size - 1)
        message = refusal(two)
        assert f"{shown(INDEX)} has {size:,} bytes, expected at most {size - 1:,}" in message

    def test_really_oversize(self, two: Path) -> None:
        """A sparse file of a terabyte: not read."""
        os.truncate(two / INDEX, 2**40)
        assert "has 1,099,511,627,776 bytes, expected at most 100,000,000" in refusal(two)

    @pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".BIN", ".Pt"])
    def test_names_a_pickle(self, suffix: str, two: Path, opened: list[str]) -> None:
        name = f"pytorch_model{suffix}"
        (two / name).write_bytes(b"\x80\x04.")
        write_index(two, {**MAP, "c": name})
        message = refusal(two)
        assert f"{INDEX} names {shown(name)}, expected .safetensors files only" in message
        assert str(two / name) not in opened

    @pytest.mark.parametrize("name", ["model.gguf", "model.SAFETENSORS", "model.safetensors ", "x"])
    def test_names_another_kind_of_file(self, name: str, two: Path, opened: list[str]) -> None:
        write_shard(two / name, ("c",))
        write_index(two, {**MAP, "c": name})
        assert f"{INDEX} names {shown(name)}, expected .safetensors" in refusal(two)
        assert str(two / name) not in opened

    def test_tensor_not_in_its_shard(self, two: Path) -> None:
        write_index(two, {**MAP, "d": TWO})
        assert f"{INDEX} puts 'd' in {shown(TWO)}, which does not hold it" in refusal(two)

    def test_many_tensors_not_in_their_shard(self, two: Path) -> None:
        write_index(two, {**MAP, **{f"t{i}": TWO for i in range(50)}})
        assert "puts 't0', 't1', 't2' and 47 more in" in refusal(two)

    def test_tensor_not_in_the_index(self, two: Path) -> None:
        write_shard(two / TWO, ("c", "d"))
        assert f"tensor 'd' is in {shown(TWO)}, but {INDEX} does not list it" in refusal(two)

    def test_tensor_in_another_shard(self, two: Path) -> None:
        write_index(two, {**MAP, "b": TWO})
        assert f"tensor 'b' is in {shown(ONE)}, but {INDEX} says {shown(TWO)}" in refusal(two)

    @pytest.mark.parametrize("has_index", [True, False])
    def test_tensor_in_two_shards(self, has_index: bool, two: Path) -> None:
        write_shard(two / TWO, ("b", "c"))
        if not has_index:
            (two / INDEX).unlink()
        assert f"tensor 'b' is in both {shown(ONE)} and {shown(TWO)}" in refusal(two)

    def test_missing_shard(self, two: Path) -> None:
        (two / TWO).unlink()
        assert f"{shown(TWO)} (shard) is missing from {shown(two)}" in refusal(two)

    @pytest.mark.parametrize("total", [11, 13, 0, -12, "12", None, [12], 12.5, 2**70, {"a": []}])
    def test_wrong_total_size_is_a_warning(self, total: Any, two: Path) -> None:
        write_index(two, MAP, total)
        (warning,) = open_catalogue(two).warnings
        said = total if isinstance(total, str) else repr(total)
        assert f"{INDEX}: metadata.total_size is {shown(said)}, the tensors hold 12" in warning

    def test_a_single_file_that_the_index_does_not_name(self, two: Path) -> None:
        write_shard(two / SINGLE, ("a",))
        message = refusal(two)
        assert f"{INDEX} and a {SINGLE} that it does not name: two checkpoints" in message

    def test_a_shard_that_the_index_does_not_name_is_a_warning(self, two: Path) -> None:
        write_shard(two / "extra.safetensors", ("a",))
        (warning,) = open_catalogue(two).warnings
        assert warning == "'extra.safetensors' not part of the checkpoint: not converted"


class TestNoIndex:
    @pytest.fixture
    def bare(self, two: Path) -> Path:
        for name in (ONE, TWO, INDEX):
            (two / name).unlink()
        return two

    def test_nothing(self, bare: Path) -> None:
        assert refusal(bare) == f"no {INDEX} and no {SINGLE} in {shown(bare)}"

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "a.pt", "B.PTH"])
    def test_a_pickle_alone(self, name: str, bare: Path, opened: list[str]) -> None:
        (bare / name).write_bytes(b"\x80\x04.")
        message = refusal(bare)
        assert f"no {INDEX} and no {SINGLE}" in message
        assert f"{shown(name)} would have to be unpickled, which is never done" in message
        assert opened == []

    def test_a_pickle_renamed(self, bare: Path) -> None:
        (bare / SINGLE).write_bytes(b"\x80\x04\x95" + bytes(40))
        assert f"{shown(SINGLE)}: a pickle or zip archive" in refusal(bare)

    @pytest.mark.parametrize(
        ("files", "expected"),
        [
            (["weights.safetensors"], "'weights.safetensors' are not one numbered set"),
            (["a.safetensors", "b.safetensors"], "'a.safetensors', 'b.safetensors' are not one"),
            ([ONE, TWO, "extra.safetensors"], "are not one numbered set of shards"),
            ([ONE, "other-00002-of-00002.safetensors"], "are not one numbered set of shards"),
            ([ONE, "model-00002-of-00003.safetensors"], "are not one numbered set of shards"),
            (["model-1-of-1.safetensors"], "are not one numbered set of shards"),
            ([ONE], "of 2 numbered shards 1 are missing (first: number 2)"),
            ([TWO], "of 2 numbered shards 1 are missing (first: number 1)"),
            (["model-00003-of-00163.safetensors"], "of 163 numbered shards 162 are missing"),
            (["m-000001-of-999999.safetensors"], "of 999,999 numbered shards 999,998 are missing"),
            (["m-00000-of-00001.safetensors"], "of 1 numbered shards 1 are missing"),
            (["m-00001-of-00000.safetensors"], "1 shards, 'm-00001-of-00000.safetensors', claim"),
            ([ONE, TWO, "model-00000-of-00002.safetensors"], "3 shards, 'model-00000-of-00002."),
            ([ONE, TWO, "model-00003-of-00002.safetensors"], "claim to be 2"),
            ([ONE, TWO, "model-000002-of-00002.safetensors"], "claim to be 2"),
            (["model-0000\u0661-of-00001.safetensors"], "are not one numbered set of shards"),
            (["model-00001-of-0000\u0661.safetensors"], "are not one numbered set of shards"),
        ],
        ids=lambda v: "-".join(v)[:40] if isinstance(v, list) else "",
    )
    def test_not_one_numbered_set(self, files: list[str], expected: str, bare: Path) -> None:
        for i, name in enumerate(files):
            write_shard(bare / name, ("abcdefgh"[i],))
        message = refusal(bare)
        assert f"no {INDEX}, and " in message
        assert expected in message

    def test_shards_beside_a_single_file_are_a_warning(self, bare: Path) -> None:
        write_shard(bare / SINGLE, ("a",))
        write_shard(bare / "extra.safetensors", ("a",))
        found = open_catalogue(bare)
        assert names_by_shard(found) == {SINGLE: {"a"}}
        assert found.warnings == ("'extra.safetensors' not part of the checkpoint: not converted",)

    def test_an_undecodable_name(self, bare: Path) -> None:
        odd = os.fsencode(bare) + b"/\xff\x1b.safetensors"
        try:
            with open(odd, "wb") as f:
                f.write(b"x")
        except OSError:
            pytest.skip("the filesystem takes UTF-8 names only")
        assert r"'\udcff\x1b.safetensors' are not one numbered set" in refusal(bare)


class TestConfig:
    def test_missing(self, two: Path) -> None:
        (two / CONFIG).unlink()
        assert refusal(two) == f"{CONFIG} is missing from {shown(two)}"

    @pytest.mark.parametrize(
        ("config", "expected"),
        [
            ("", f"{CONFIG}: not valid JSON at byte 0"),
            ("[1]", f"{CONFIG} is '[1]', expected an object"),
            ("null", f"{CONFIG} is 'None', expected an object"),
            ('{"a":1,"a":1}', f"{CONFIG}: duplicate key 'a'"),
            ('{"q":{"fmt":"e4m3","fmt":"e5m2"}}', f"{CONFIG}: duplicate key 'fmt' in 'q'"),
            ('{"a":[{"x":{"b":1,"b":1}}]}', f"{CONFIG}: duplicate key 'b'"),
            ('{"a":Infinity}', f"{CONFIG}: Infinity is not JSON"),
            ('{"a":"\\ud800"}', f"{CONFIG}: a string holds a lone surrogate"),
            ('{"a":' * 65 + "1" + "}" * 65, f"{CONFIG}: JSON nested more than 64 deep"),
        ],
    )
    def test_malformed(self, config: str, expected: str, two: Path) -> None:
        write_json(two / CONFIG, config)
        assert expected in refusal(two)

    def test_oversize(self, two: Path) -> None:
        os.truncate(two / CONFIG, 100_000_001)
        assert f"{shown(CONFIG)} has 100,000,001 bytes, expected at most" in refusal(two)


class TestFolder:
    def test_missing(self, tmp_path: Path) -> None:
        message = refusal(tmp_path / "nowhere")
        assert (
            message == f"{shown(tmp_path / 'nowhere')} does not exist, expected a checkpoint folder"
        )

    def test_a_file(self, two: Path) -> None:
        message = refusal(two / ONE)
        assert message == f"{shown(two / ONE)} is not a folder, expected a checkpoint folder"

    def test_a_loop_of_links(self, tmp_path: Path) -> None:
        (tmp_path / "loop").symlink_to("loop")
        assert "does not exist, expected a checkpoint folder" in refusal(tmp_path / "loop")

    def test_a_fifo(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        assert "is not a folder, expected a checkpoint folder" in refusal(tmp_path / "fifo")

    @pytest.mark.parametrize("name", [n for n in ELSEWHERE if n != "sub/x.safetensors"])
    def test_no_method_opens_a_path(self, name: str, two: Path, opened: list[str]) -> None:
        """Whoever asks: a name from a listing or a config is checked as one from the index is.

        Only those who know of folders ask for a file in one: see test_folder.py.
        """
        found = Folder.at(two)
        for ask in (found.size, lambda n: found.open(n, "why"), lambda n: found.read(n, 9, "why")):
            with pytest.raises(FormatError, match="is not a plain file name"):
                ask(name)
        assert opened == []

    def test_size_and_read(self, two: Path) -> None:
        found = Folder.at(two)
        assert found.size(ONE) == (two / ONE).stat().st_size
        assert found.read(CONFIG, 100, "config") == (two / CONFIG).read_bytes()
        assert found.names() == sorted(os.listdir(two))
        with pytest.raises(FormatError, match="is missing from"):
            found.size("nothing")


class TestCode:
    """Code of the repository is data: never imported, whatever the config says."""

    @pytest.fixture
    def armed(self, two: Path, tmp_path: Path) -> Iterator[Path]:
        body = f"open({str(tmp_path / 'fired')!r}, 'w').close()\n"
        for name in ("modeling_x", "configuration_x", "sitecustomize", "__init__", "json", "numpy"):
            (two / f"{name}.py").write_text(body, encoding="utf-8")
        write_json(
            two / CONFIG,
            {"auto_map": {"AutoConfig": "configuration_x.C", "AutoModel": "modeling_x.M"}},
        )
        yield two
        assert not (tmp_path / "fired").exists()

    def test_not_imported(self, armed: Path, opened: list[str]) -> None:
        before = set(sys.modules)
        found = assert_sound(armed)
        assert "auto_map" in found.config
        assert not [p for p in opened if p.endswith(".py")]
        assert not {"modeling_x", "configuration_x"} & (set(sys.modules) - before)

    def test_not_imported_from_the_current_folder(self, armed: Path) -> None:
        """Where a careless sys.path would find it, through the console script."""
        script = shutil.which("fp8convert", path=os.path.dirname(sys.executable))
        if script is None:
            pytest.skip("the console script is not installed")
        done = subprocess.run(
            [script, "to-bf16", ".", "../out"],
            cwd=armed, capture_output=True, text=True, timeout=HOLD, check=False,
        )  # fmt: skip
        assert done.returncode == 1, done.stderr
        assert done.stderr.startswith("error: ")

    def test_the_trap_works(self, armed: Path, tmp_path: Path) -> None:
        """A control: importing it does fire."""
        subprocess.run([sys.executable, "-c", "import modeling_x"], cwd=armed, check=True)
        assert (tmp_path / "fired").exists()
        (tmp_path / "fired").unlink()


SAMPLE_FAULTS: dict[str, tuple[Callable[[Path, str], None], str]] = {
    "cut short": (lambda p, s: os.truncate(p / s, (p / s).stat().st_size - 1), "truncated"),
    "cut in the header": (lambda p, s: os.truncate(p / s, 100), "truncated download?"),
    "empty": (lambda p, s: os.truncate(p / s, 0), "0 bytes long"),
    "grown": (lambda p, s: os.truncate(p / s, (p / s).stat().st_size + 1), "extra bytes"),
    "a pointer": (
        lambda p, s: write_json(p / s, "version https://git-lfs.github.com/spec/v1\n"),
        "a git-lfs pointer",
    ),
    "an error page": (lambda p, s: write_json(p / s, "<!DOCTYPE html><p>"), "an HTML or XML page"),
    "zeros": (lambda p, s: (p / s).write_bytes(bytes(4096)), "length field is 0 "),
    "missing": (lambda p, s: os.unlink(p / s), "(shard) is missing"),
}


@pytest.mark.parametrize("fault", SAMPLE_FAULTS)
def test_a_spoiled_shard_of_the_sample(fault: str, tiny_fp8: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_fp8, copy)
    shard = open_catalogue(copy).shards[-1].name
    spoil, expected = SAMPLE_FAULTS[fault]
    spoil(copy, shard)
    message = refusal(copy)
    assert shown(shard) in message
    assert expected in message
