"""``quantize`` as it runs: whatever the threads, memory, cuts and accidents, the same bytes."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import fp8convert
from fp8convert import convert, engine, header, taskrun
from fp8convert.coderun import CodeRun
from fp8convert.convert import prepare
from fp8convert.errors import (
    DataError,
    FormatError,
    Fp8ConvertError,
    ResumableError,
    SchemeError,
    UsageError,
)
from fp8convert.fileio import SourceFile
from fp8convert.header import ALIGN as PAGE
from fp8convert.options import Quantize
from fp8convert.settings import Settings
from fp8convert.tile import MIN_TILE

from .crash import CHANGES, Forker, contents, marks, nothing, trace
from .formats.case import Case
from .formats.catalogue import all_cases
from .quantized import oracle, readers, sources
from .quantized.readers import Stored

ATTENTION, MLP = "model.layers.0.self_attn", "model.layers.0.mlp"
SHAPES = {
    f"{ATTENTION}.q_proj": (512, 1024),
    f"{ATTENTION}.k_proj": (128, 1024),
    f"{ATTENTION}.v_proj": (128, 1024),
    f"{ATTENTION}.o_proj": (1000, 513),  # fits no scheme of groups
    f"{MLP}.gate_proj": (700, 1024),
    f"{MLP}.up_proj": (700, 1024),
    f"{MLP}.down_proj": (300, 736),
}
SMALL = {name: (rows // 4, columns // 4) for name, (rows, columns) in SHAPES.items()}
TAGS = {"BF16": 2, "F32": 4}
MIB = 1 << 20

Tensor = tuple[str, tuple[int, ...], bytes]


def values(name: str, dtype: str, *shape: int) -> Tensor:
    """Numbers like a weight's, the same every time."""
    rng = np.random.default_rng(len(name) * 7919 + shape[0])
    x = (rng.standard_normal(shape, np.float32) * np.float32(0.02)).view(np.uint32)
    raw = x.tobytes() if dtype == "F32" else (x >> 16).astype(np.uint16).tobytes()
    return dtype, shape, raw


def write(folder: Path, shards: list[dict[str, Tensor]]) -> Path:
    """A checkpoint of these shards."""
    folder.mkdir(parents=True)
    weight_map, total = {}, 0
    for number, tensors in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        rows = [(name, dtype, shape) for name, (dtype, shape, _) in tensors.items()]
        data = b"".join(raw for _, _, raw in tensors.values())
        (folder / file).write_bytes(header.build(rows, {"format": "pt"}) + data)
        weight_map |= dict.fromkeys(tensors, file)
        total += len(data)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {"model_type": "llama", "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def tensors_of(shapes: dict[str, tuple[int, int]], dtype: str = "BF16") -> dict[str, Tensor]:
    made = {f"{name}.weight": values(name, dtype, *shape) for name, shape in shapes.items()}
    made["model.embed_tokens.weight"] = values("embed", dtype, 60, 128)
    made["model.norm.weight"] = values("norm", "BF16", 129)
    return made


def dealt(tensors: dict[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """Names in turn: what is fused lies in different shards."""
    names = sorted(tensors)
    return [{name: tensors[name] for name in names[n::count]} for n in range(count)]


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 MB, so that the least of memory cuts it into many tiles. Read only."""
    return write(tmp_path_factory.mktemp("big") / "src", dealt(tensors_of(SHAPES), 3))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 kB. Read only."""
    return write(tmp_path_factory.mktemp("small") / "src", dealt(tensors_of(SMALL), 2))


# --- The same bytes

CASES: list[tuple[str, dict[str, Any]]] = [
    ("fp8-block", {}),
    ("fp8-block", {"block": (7, 48), "scale_search": "mse"}),
    ("fp8-block-ue8m0", {"scale_dtype": "e8m0", "scale_search": "mse"}),
    ("fp8-tensor", {}),
    ("fp8-tensor", {"scale_search": "mse"}),
    ("int8-channel", {"scale_search": "mse"}),
    ("int4-group", {"group": 32}),
    ("nvfp4", {"scale_search": "mse"}),
    ("mxfp4", {}),
]
WAYS: list[dict[str, Any]] = [  # ``spare``: MiB beyond what so many workers need at least
    {"workers": 1, "spare": 0},
    {"workers": 3, "spare": 0, "io": "buffered"},
    {"workers": 3, "spare": 20},
    {"workers": 16, "spare": 0},
    {},
]


def tight(src: Path, scheme: str, way: dict[str, Any], **options: Any) -> dict[str, Any]:
    """``way``, in the least of memory that its workers can do with."""
    if "spare" not in way:
        return way
    needs = prepare(src, src.parent / "dst", Quantize(scheme=scheme, **options)).plan.needs
    workers, spare, rest = way["workers"], way["spare"], {"io": way.get("io", "auto")}
    for mib in itertools.count(225):
        with contextlib.suppress(UsageError):
            fitted = Settings(workers=workers, memory=mib * MIB).fitted(needs)
            if fitted.threads == workers:
                return {"workers": workers, "memory": (mib + spare) * MIB, **rest}
    raise AssertionError


@pytest.mark.parametrize(("scheme", "options"), CASES, ids=str)
def test_any_way_to_run_gives_the_same_bytes(
    scheme: str, options: dict[str, Any], big: Path, fast_path: Path
) -> None:
    """All files, the manifest with its errors among them."""
    fp8convert.quantize(big, fast_path / "dst", scheme, workers=1, **options)
    expected = contents(fast_path / "dst")
    assert json.loads(expected["manifest.json"])["quantized"]
    for n, way in enumerate(WAYS):
        settings = tight(big, scheme, way, **options)
        fp8convert.quantize(big, fast_path / f"{n}", scheme, **settings, **options)
        assert contents(fast_path / f"{n}") == expected, way


def test_it_is_cut_into_many_tiles(big: Path, tmp_path: Path) -> None:
    """Else the test above says little."""
    needs = prepare(big, tmp_path / "dst", Quantize(scheme="fp8-block")).plan.needs
    sizes = [Settings(**tight(big, "fp8-block", way)).fitted(needs).tile for way in WAYS]
    assert sizes[0] < MIB
    assert len(set(sizes)) > 2
    assert sum(a * b for a, b in SHAPES.values()) > 3 * sizes[0]


def test_other_options_give_other_bytes(small: Path, fast_path: Path) -> None:
    """The control: each of the cases differs from every other."""
    found = []
    for n, (scheme, options) in enumerate(CASES):
        fp8convert.quantize(small, fast_path / f"{n}", scheme, **options)
        found.append(readers.stored(fast_path / f"{n}"))
    for a, b in itertools.combinations(found, 2):
        assert readers.differing(a, b)


@pytest.mark.parametrize(("scheme", "options"), CASES, ids=str)
def test_numpy_gives_the_same_bytes(
    scheme: str, options: dict[str, Any], small: Path, fast_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    fp8convert.quantize(small, fast_path / "numba", scheme, **options)
    monkeypatch.setenv("FP8CONVERT_KERNELS", "numpy")
    fp8convert.quantize(small, fast_path / "numpy", scheme, **options)
    assert contents(fast_path / "numpy") == contents(fast_path / "numba")


WIDE = {  # what bounds the least tile: codes, codes in a wide row, reads, reads of a wide row
    "rows of blocks": ("BF16", (130, 40_000), ("fp8-block", "fp8-tensor")),
    "one row": ("BF16", (3, 600_032), ("mxfp8", "int8-channel", "fp8-block")),
    "chunks of float32": ("F32", (2048, 1024), ("fp8-block", "fp8-tensor", "nvfp4", "mxfp4")),
    "a row of float32": ("F32", (3, 600_032), ("nvfp4", "fp8-tensor", "fp8-block")),
}


@pytest.mark.parametrize(
    ("kind", "scheme"), [(kind, scheme) for kind, row in WIDE.items() for scheme in row[2]]
)
def test_the_least_of_memory_is_enough(
    kind: str, scheme: str, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tile that the plan asks for, to the byte, and the same bytes as with plenty."""
    dtype, shape, _ = WIDE[kind]
    src = write(fast_path / "src", [tensors_of({f"{MLP}.down_proj": shape}, dtype)])
    fp8convert.quantize(src, fast_path / "dst", scheme)
    job = prepare(src, fast_path / "least", Quantize(scheme=scheme))
    least = max(-(-job.plan.needs.tile // PAGE) * PAGE, MIN_TILE)
    monkeypatch.setattr(Settings, "tile", least)
    convert.execute(job, Settings(workers=3, memory=1 << 30))
    assert contents(fast_path / "least") == contents(fast_path / "dst")


FORMS = all_cases()
KIMI = "compressed-tensors/pack-int4-kimi"  # its shapes are I32


def cases_of_forms() -> Iterator[tuple[Case, str, str]]:
    """Every published form with some of the schemes, and each in turn with the search."""
    schemes = (*oracle.SCHEMES, *oracle.SCHEMES)
    for n, case in enumerate(FORMS):
        yield case, schemes[n % 9], ("plain", "mse")[n % 2]
        yield case, schemes[n % 9 + 4], ("mse", "plain")[n % 2]
        if case.id == KIMI:
            yield case, "int4-group", "plain"


@pytest.mark.parametrize(
    ("case", "scheme", "search"), list(cases_of_forms()), ids=lambda x: getattr(x, "id", x)
)
def test_every_form_in_the_smallest_tiles(
    case: Case, scheme: str, search: str, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Down to one row of blocks a tile: phases, inherited scales, transposed codes and all."""
    options: dict[str, Any] = {"scale_search": search, "include": ("*",)}
    options |= {"group": 32} if scheme == "int4-group" else {}
    src = sources.of_case(case).write(fast_path / "src")
    for name, sidecar in case.sidecars.items():
        (src / name).write_text(json.dumps(sidecar))
    try:
        fp8convert.quantize(src, fast_path / "dst", scheme, **options)
    except (SchemeError, DataError):
        return  # nothing fits, or numbers beyond all bounds
    job = prepare(src, fast_path / "other", Quantize(scheme=scheme, **options))
    least = max(-(-job.plan.needs.tile // PAGE), 1) * PAGE
    assert least < MIN_TILE
    monkeypatch.setattr(Settings, "tile", least)
    convert.execute(job, Settings(workers=3))
    assert contents(fast_path / "other") == contents(fast_path / "dst")


def test_most_forms_can_be_encoded(fast_path: Path) -> None:
    """The test above does not end early for all."""
    done = 0
    for case, scheme, _ in cases_of_forms():
        with contextlib.suppress(SchemeError):
            src = sources.of_case(case).write(fast_path / f"{done}")
            options: dict[str, Any] = {"include": ("*",)}
            options |= {"group": 32} if scheme == "int4-group" else {}
            prepare(src, fast_path / "dst", Quantize(scheme=scheme, **options))
            done += 1
        if done == 50:
            return
    raise AssertionError(done)


@pytest.mark.parametrize("scheme", ["fp8-tensor", "nvfp4", "fp8-block"])
def test_shards_do_not_matter(scheme: str, fast_path: Path) -> None:
    """q, k and v in one file or in three, as the source has it or cut anew: the same tensors."""
    made, found = tensors_of(SMALL), []
    for count, size in ((1, None), (3, None), (9, None), (1, 40_000), (3, 100_000), (2, 1)):
        dst = fast_path / f"dst-{count}-{size}"
        src = write(fast_path / f"src-{count}-{size}", dealt(made, count))
        fp8convert.quantize(src, dst, scheme, max_shard_size=size)
        readers.check_index(dst)
        found.append(readers.stored(dst))
        if size:
            check_sizes(dst, size)
    for other in found[1:]:
        assert readers.differing(other, found[0]) == []
    if scheme != "fp8-block":
        check_partners(found[0], scheme)


def check_sizes(folder: Path, limit: int) -> None:
    """No file's tensors are more than ``limit``, unless they are those of one weight."""
    files = {file.name: readers.shard(file) for file in folder.glob("*.safetensors")}
    assert len(files) > 1
    for tensors in files.values():
        modules = {name.rpartition(".")[0] for name in tensors}
        assert sum(len(raw) for _, _, raw in tensors.values()) <= limit or len(modules) == 1


def check_partners(found: Stored, scheme: str) -> None:
    """Fused weights have one scale, others have theirs."""
    leaf = "weight_scale" if scheme == "fp8-tensor" else "weight_global_scale"
    scales = {name.split(".")[-2]: raw for name, (_, _, raw) in found.items() if leaf in name}
    assert scales["q_proj"] == scales["k_proj"] == scales["v_proj"]
    assert scales["gate_proj"] == scales["up_proj"]
    assert len(set(scales.values())) == len(scales) - 3


# --- Killed


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    made = Forker()
    yield made
    made.close()


class Run(NamedTuple):
    """One conversion of ``small``, as the library and as the command line take it."""

    scheme: str
    options: dict[str, Any]

    def argv(self, src: Path, dst: Path, *more: object) -> list[object]:
        flags = {"scale_search": "--scale-search", "max_shard_size": "--max-shard-size"}
        words = [w for key, value in self.options.items() for w in (flags[key], value)]
        return ["quantize", src, dst, "--scheme", self.scheme, "--workers", 1, *words, *more]

    def __call__(self, src: Path, dst: Path, **more: Any) -> convert.Manifest:
        settings = {"workers": 1, **more}
        return fp8convert.quantize(src, dst, self.scheme, **self.options, **settings)


TENSOR = Run("fp8-tensor", {"scale_search": "mse", "max_shard_size": 60_000})
GROUPS = Run("nvfp4", {"max_shard_size": 40_000})


@pytest.fixture(scope="module")
def undisturbed(small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Run, Any]:
    """What every run of ``small`` must end with."""
    found = {}
    for n, run in enumerate((TENSOR, GROUPS)):
        dst = tmp_path_factory.mktemp("undisturbed") / f"{n}"
        run(small, dst)
        found[run.scheme] = contents(dst)
        assert len(found[run.scheme]) > 5
    return found


def temporaries(folder: Path) -> list[Path]:
    return list(folder.rglob("*.tmp"))


def steps(run: Run, src: Path, dst: Path) -> list[str]:
    """The calls that change the disk, in order; those on a spool are named so."""
    found: list[str] = []

    def before(name: str, args: tuple[Any, ...]) -> None:
        found.append(f"{name} {'spool' if '.spool.' in str(args[0]) else ''}")

    with pytest.MonkeyPatch.context() as patch:
        trace(patch.setattr, CHANGES, before, nothing)
        run(src, dst)
    return found


@pytest.mark.parametrize("run", [TENSOR, GROUPS], ids=lambda run: run.scheme)
def test_killed_and_resumed(
    run: Run, small: Path, fast_path: Path, forker: Forker, undisturbed: dict[str, Any]
) -> None:
    """Before some of the calls that change the disk, also while a spool has a name."""
    calls = steps(run, small, fast_path / "traced" / "dst")
    named = [n for n, call in enumerate(calls, 1) if call.endswith("spool")]
    assert len(named) > 5
    left: set[str] = set()
    for n in sorted({*range(2, len(calls), 8), *named[:4], len(calls)}):
        dst = fast_path / f"{n}" / "dst"
        ended = forker.run(*run.argv(small, dst), tamper=("signal_at", n, signal.SIGKILL))
        assert ended.code == -signal.SIGKILL, ended
        assert not dst.exists() or contents(dst) == undisturbed[run.scheme]
        left |= {"spool" if ".spool." in p.name else "file" for p in temporaries(dst.parent)}
        last = forker.run(*run.argv(small, dst))
        assert last.code == 0, last
        assert contents(dst) == undisturbed[run.scheme]
        assert os.listdir(dst.parent) == ["dst"]
        shutil.rmtree(dst.parent)
    assert left == {"spool", "file"}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(
    small: Path, fast_path: Path, forker: Forker, undisturbed: dict[str, Any], signum: int
) -> None:
    codes = []
    for n in (3, 7, 9, 20, 40):
        dst = fast_path / f"{n}" / "dst"
        command = TENSOR.argv(small, dst)
        ended = forker.run(*command, tamper=("signal_at", n, signum))
        codes.append(ended.code)
        if ended.code == 75:
            assert "Run the same command again to resume." in ended.err
            assert "Traceback" not in ended.err
            assert not dst.exists()
            assert not temporaries(dst.parent)
        assert forker.run(*command).code == 0
        assert contents(dst) == undisturbed[TENSOR.scheme]
    assert set(codes) <= {0, 75}
    assert codes.count(75) >= 4


# --- Calls that fail


def open_files() -> list[str]:
    """What this process has open, as far as it is a file of a test."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [name for name in found if "fp8convert" in name]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc")
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("pwrite", errno.ENOSPC),  # to a spool
        ("pwrite", errno.EIO),
        ("pwritev", errno.ENOSPC),
        ("preadv", errno.EIO),  # from a spool, among others
        ("open", errno.EMFILE),
        ("open", errno.ENOSPC),
        ("posix_fallocate", errno.ENOSPC),
        ("fsync", errno.EIO),
    ],
)
def test_resources_run_out(
    small: Path, fast_path: Path, undisturbed: dict[str, Any], name: str, code: int
) -> None:
    """For good, from some call on; three workers meet it at once. Nothing is left behind."""
    failed = 0
    for first in (1, 2, 3, 4, 5, 6, 11, 23):
        dst = fast_path / f"{first}" / "dst"
        calls, before = itertools.count(1), open_files()

        def fail(called: str, args: tuple[Any, ...], first: int = first) -> None:
            if next(calls) >= first:  # noqa: B023 (called before the next turn)
                raise OSError(code, os.strerror(code))

        error = None
        with pytest.MonkeyPatch.context() as patch:
            trace(patch.setattr, (name,), fail, nothing)
            try:
                in_time(lambda: GROUPS(small, dst, workers=3))  # noqa: B023
            except ResumableError as e:
                error = e
        if error:
            failed += 1
            assert error.exit_code == 75
            assert os.strerror(code) in str(error)
            assert not dst.exists()
            assert temporaries(fast_path) == []
        assert open_files() == before
        GROUPS(small, dst)
        assert contents(dst) == undisturbed[GROUPS.scheme]
    assert failed > 5


def in_time(work: Callable[[], object], seconds: float = 60) -> None:
    """Run ``work`` and raise what it raises; a failure, not a hang, if it does not end."""
    errors: list[BaseException] = []

    def caught() -> None:
        try:
            work()
        except BaseException as e:
            errors.append(e)

    thread = threading.Thread(target=caught, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it hangs"
    if errors:
        raise errors[0]


class Held:
    """Has one worker fail while another waits for it, at one of the places where that can be."""

    def __init__(self, patch: pytest.MonkeyPatch, place: str) -> None:
        self.patch, self.place = patch, place
        self.waiting, self.runs = threading.Event(), set[CodeRun]()
        self._first = threading.Lock()
        waits = "encode" if place == "measure" else "read"  # they begin with it
        self._wrap(CodeRun, waits, before=lambda run: (self.runs.add(run), self.waiting.set()))
        if place == "spool":
            self._wrap(os, "pwrite", before=self._fail)
        elif place == "codes":
            self._wrap(CodeRun, "encode", before=self._fail)
        else:
            self._wrap(CodeRun, "measure", before=self._fail)

    def _wrap(self, owner: Any, name: str, before: Callable[[Any], object]) -> None:
        real = getattr(owner, name)

        def call(first: Any, *args: Any, **kwargs: Any) -> Any:
            before(first)
            return real(first, *args, **kwargs)

        self.patch.setattr(owner, name, call)

    def _fail(self, first: Any) -> None:
        if self._first.acquire(blocking=False):  # the first to come here, never given back
            assert self.waiting.wait(30), "nobody waits"
            raise OSError(errno.ENOSPC, "No space left on device")


def one_weight(folder: Path) -> Path:
    """64 kB of codes, and as many scales of four bytes if a block is one element."""
    return write(folder, [tensors_of({f"{MLP}.down_proj": (256, 256)})])


def held(src: Path, dst: Path, patch: pytest.MonkeyPatch, place: str) -> Callable[[], object]:
    """A run of several tiles of each kind, which will fail at ``place``."""
    patch.setattr(Settings, "tile", 8 * PAGE)
    scheme = "fp8-tensor" if place == "measure" else "fp8-block"
    options: dict[str, Any] = {} if place == "measure" else {"block": (1, 1)}
    return lambda: fp8convert.quantize(src, dst, scheme, workers=6, **options)


@pytest.mark.parametrize("place", ["spool", "codes", "measure"])
def test_nobody_waits_for_a_worker_that_has_failed(
    place: str, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    src, dst = one_weight(fast_path / "src"), fast_path / "dst"
    with monkeypatch.context() as patch:
        work = held(src, dst, patch, place)
        made = Held(patch, place)
        with pytest.raises(ResumableError, match="No space left on device"):
            in_time(work)
        assert made.runs
    assert not dst.exists()
    assert temporaries(fast_path) == []
    with monkeypatch.context() as patch:
        held(src, dst, patch, place)()
        held(src, fast_path / "alone", patch, place)()
    assert contents(dst) == contents(fast_path / "alone")


@pytest.mark.parametrize("place", ["spool", "codes", "measure"])
def test_somebody_would_wait(place: str, fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: unless the run is told to stop, it hangs, and the test above would say so."""
    src, real = one_weight(fast_path / "src"), CodeRun.stop
    with monkeypatch.context() as patch:
        work = held(src, fast_path / "dst", patch, place)
        made = Held(patch, place)
        patch.setattr(CodeRun, "stop", lambda run: None)
        ended = threading.Event()

        def until_released() -> None:
            with contextlib.suppress(ResumableError):
                work()
            ended.set()

        with pytest.raises(AssertionError, match="it hangs"):
            in_time(until_released, 0.5)
        for run in made.runs:
            real(run)
        assert ended.wait(30)


def test_a_spool_that_ends_too_early(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are lost are an error, not zeros or a loop."""
    src, opened = one_weight(fast_path / "src"), os.open
    spools: list[int] = []

    def noted(path: Any, *args: Any, **kwargs: Any) -> int:
        fd = opened(path, *args, **kwargs)
        spools.extend([fd] if ".spool." in str(path) else [])
        return fd

    monkeypatch.setattr(os, "open", noted)
    read = CodeRun.read

    def cut(run: CodeRun, *args: Any) -> None:
        os.ftruncate(spools[-1], 3)
        read(run, *args)

    monkeypatch.setattr(CodeRun, "read", cut)
    with pytest.raises(DataError, match="the spool of scales ended too early"):
        fp8convert.quantize(src, fast_path / "dst", "fp8-block", workers=1)


# --- Values that cannot be encoded


def spoilt(folder: Path, module: str, row: int, column: int, bits: int, count: int = 3) -> Path:
    """The big checkpoint with one number replaced."""
    tensors = tensors_of(SHAPES)
    dtype, shape, raw = tensors[f"{module}.weight"]
    array = np.frombuffer(raw, np.uint16).reshape(shape).copy()
    array[row, column] = bits
    tensors[f"{module}.weight"] = dtype, shape, array.tobytes()
    return write(folder, dealt(tensors, count))


@pytest.mark.parametrize("scheme", ["fp8-block", "fp8-tensor", "int8-channel", "nvfp4", "mxfp4"])
@pytest.mark.parametrize(
    ("module", "row", "column", "bits", "value"),
    [
        (f"{MLP}.up_proj", 699, 1023, 0x7FC1, "nan"),
        (f"{MLP}.gate_proj", 0, 0, 0xFF80, "-inf"),
        (f"{ATTENTION}.q_proj", 300, 17, 0x7F80, "inf"),
    ],
)
def test_values_that_are_not_finite(
    scheme: str, module: str, row: int, column: int, bits: int, value: str, fast_path: Path
) -> None:
    """Named by shard, weight, row and column, wherever the tiles are cut."""
    src = spoilt(fast_path / "src", module, row, column, bits)
    index = json.loads((src / "model.safetensors.index.json").read_text())["weight_map"]
    words = (
        f"'{index[f'{module}.weight']}': weight '{module}.weight': {value} at row {row}, "
        f"column {column}, expected finite values"
    )
    for way in ({"workers": 1, "spare": 0}, {"workers": 5, "spare": 9}):
        settings = tight(src, scheme, way)
        with pytest.raises(DataError) as e:
            in_time(lambda: fp8convert.quantize(src, fast_path / "dst", scheme, **settings))  # noqa: B023
        assert str(e.value) == words
        assert e.value.exit_code == 1
        assert not (fast_path / "dst").exists()
        assert temporaries(fast_path) == []


def test_a_number_in_a_row_wider_than_a_scratch(fast_path: Path) -> None:
    shape = (3, 600_032)
    array = np.zeros(shape, np.float32)
    array[1, 600_001] = np.nan
    tensor = {f"{MLP}.down_proj.weight": ("F32", shape, array.tobytes())}
    src = write(fast_path / "src", [tensor])
    with pytest.raises(DataError, match="nan at row 1, column 600001, expected finite"):
        fp8convert.quantize(src, fast_path / "dst", "mxfp4")


@pytest.mark.parametrize(
    ("leaf", "data", "words"),
    [
        ("weight", b"\x7f", "a NaN code at row 0, column 4"),
        ("weight_scale_inv", b"\0\0\xc0\x7f", "scale nan at block row 0, column 1, expected"),
        ("weight_scale_inv", b"\0\0\x80\xbf", "scale -1.0 at block row 0, column 1, expected"),
    ],
)
def test_damage_in_what_is_copied(leaf: str, data: bytes, words: str, fast_path: Path) -> None:
    """Its bytes are looked at all the same."""
    src = sources.fp8_f32().write(fast_path / "src")
    name = f"{sources.EXPERT}.0.up_proj.weight"
    poke(src, name.removesuffix("weight") + leaf, 4, data)
    with pytest.raises(DataError, match=words) as e:
        fp8convert.quantize(src, fast_path / "dst", "fp8-block")
    assert f"weight '{name}'" in str(e.value)
    assert not (fast_path / "dst").exists()


def poke(folder: Path, name: str, at: int, data: bytes) -> None:
    """Overwrite bytes of a stored tensor."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    file = folder / index[name]
    raw = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    begin = start + json.loads(raw[8:start])[name]["data_offsets"][0] + at
    raw[begin : begin + len(data)] = data
    file.write_bytes(raw)


@pytest.mark.parametrize("how", ["touched", "grown", "truncated"])
def test_a_source_that_changes(
    how: str, small: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if only partners of what is written are in that shard."""
    src = Path(shutil.copytree(small, fast_path / "src"))
    shard = src / "model-00002-of-00002.safetensors"
    real, reads = SourceFile.read, itertools.count(1)

    def change() -> None:
        state = shard.stat()
        if how != "touched":
            os.truncate(shard, state.st_size + (1 if how == "grown" else -9000))
        os.utime(shard, ns=(state.st_atime_ns, state.st_mtime_ns + 1000))

    def read(self: SourceFile, *args: Any) -> None:
        if self.name == shard.name and next(reads) == 2:  # it is open, and was as planned
            change()
        real(self, *args)

    monkeypatch.setattr(SourceFile, "read", read)
    with pytest.raises(FormatError, match=shard.name):
        in_time(lambda: fp8convert.quantize(src, fast_path / "dst", "fp8-tensor", workers=2))
    assert next(reads) > 2
    assert not (fast_path / "dst").exists()
    assert temporaries(fast_path) == []


# --- Memory


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A row of its blocks is 5 MB. Read only."""
    tensors = tensors_of({f"{MLP}.down_proj": (256, 40_000)})
    return write(tmp_path_factory.mktemp("wide") / "src", [tensors])


def test_fewer_workers_where_many_do_not_fit(
    wide: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each worker has two buffers of its own."""
    real, buffers = engine.aligned_buffer, list[int]()

    def counted(nbytes: int) -> Any:
        buffers.append(nbytes)
        return real(nbytes)

    monkeypatch.setattr(engine, "aligned_buffer", counted)
    needs = prepare(wide, fast_path / "dst", Quantize(scheme="fp8-block")).plan.needs
    assert needs.tile >= 128 * 40_000
    found = {}
    for mib in (248, 264, 400):
        buffers.clear()
        dst = fast_path / f"{mib}"
        fp8convert.quantize(wide, dst, "fp8-block", workers=6, memory=mib * MIB)
        found[mib] = len(buffers) // 2
        assert min(buffers) > 128 * 40_000
        assert 224 * MIB + sum(buffers) < mib * MIB
        assert contents(dst) == contents(fast_path / "248")
    assert found == {248: 1, 264: 2, 400: 6}


def test_where_not_even_one_worker_fits(wide: Path, fast_path: Path) -> None:
    """The message names the memory that does; nothing is written, as for any wrong option."""
    dst = fast_path / "dst"

    def run(mib: int) -> None:
        fp8convert.quantize(wide, dst, "fp8-block", workers=2, memory=mib * MIB)

    with pytest.raises(UsageError, match="too little for 1 workers, expected at least") as e:
        run(232)
    assert e.value.exit_code == 2
    assert os.listdir(fast_path) == []
    enough = int(str(e.value).split()[-2])
    with pytest.raises(UsageError, match=f"memory {enough - 1} MiB is too little"):
        run(enough - 1)
    run(enough)
    assert dst.exists()


CHILD = """
import sys, fp8convert
fp8convert.quantize(sys.argv[1], sys.argv[2], sys.argv[3], memory=int(sys.argv[4]), workers=4)
status = open("/proc/self/status").read()
print(int(status.partition("VmHWM:")[2].split()[0]) << 10)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
@pytest.mark.parametrize("scheme", ["fp8-block", "nvfp4"])
def test_memory_does_not_grow_with_a_weight(scheme: str, fast_path: Path, tmp_path: Path) -> None:
    """Of 300 MB, under the bound that is asked for; and no more than one of 38 MB takes."""
    roomy = shutil.disk_usage(fast_path).free > MIB << 10
    folder = fast_path if roomy else tmp_path
    memory, peaks = 288 * MIB, []
    for rows in (36_864, 4608):
        src, dst = repeated(folder / f"src-{rows}", rows), folder / f"dst-{rows}"
        words = [sys.executable, "-c", CHILD, src, dst, scheme, memory]
        done = subprocess.run([str(w) for w in words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
        shutil.rmtree(src)
        shutil.rmtree(dst)
    assert peaks[0] < memory
    assert peaks[0] - peaks[1] < 24 * MIB


def repeated(folder: Path, rows: int) -> Path:
    """One weight [rows, 4096] whose every 1152 rows are the same."""
    _, _, part = values("part", "BF16", 1152, 4096)
    folder.mkdir()
    name = f"{MLP}.down_proj.weight"
    with (folder / "model.safetensors").open("wb") as f:
        f.write(header.build([(name, "BF16", (rows, 4096))], {"format": "pt"}))
        for _ in range(rows // 1152):
            f.write(part)
    (folder / "config.json").write_text('{"model_type": "llama", "torch_dtype": "bfloat16"}')
    return folder


# --- The journal


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that tasks were run for."""
    found: list[str] = []
    real = taskrun.TaskRun.__init__

    def init(self: Any, task: Any, *args: Any) -> None:
        found.append(task.file)
        real(self, task, *args)

    monkeypatch.setattr(taskrun.TaskRun, "__init__", init)
    return found


def unfinished(src: Path, dst: Path) -> Path:
    """Have a run fail when all tensors are journaled; the journal it leaves."""

    def fail(self: Any, name: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert.Staging, "put_bytes", fail)
        with pytest.raises(ResumableError, match="No space left"):
            GROUPS(src, dst)
    return dst.with_name(f".{dst.name}.fp8convert") / "journal"


def test_errors_survive_a_resumption(
    small: Path, fast_path: Path, undisturbed: dict[str, Any], written: list[str]
) -> None:
    """They are in the journal, so the manifest is the same, and no file is written again."""
    journal = unfinished(small, fast_path / "dst")
    records = [json.loads(path.read_text()) for path in journal.iterdir()]
    assert sum(len(r["errors"]) for r in records) == len(SHAPES) - 1  # o_proj has odd columns
    written.clear()
    GROUPS(small, fast_path / "dst", workers=3)
    assert written == []
    assert contents(fast_path / "dst") == undisturbed[GROUPS.scheme]


BROKEN: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("none", lambda errors: None),
    ("a list", lambda errors: list(errors)),
    ("a number", lambda errors: 0.5),
    ("two numbers", lambda errors: {name: e[:2] for name, e in errors.items()}),
    ("four numbers", lambda errors: {name: [*e, 0.0] for name, e in errors.items()}),
    ("integers", lambda errors: {name: [0, 0, 0] for name in errors}),
    ("words", lambda errors: {name: [str(n) for n in e] for name, e in errors.items()}),
    ("a null", lambda errors: {name: [None, *e[1:]] for name, e in errors.items()}),
    ("one of them", lambda errors: errors | {sorted(errors)[0]: {}}),
    ("no weight", lambda errors: {}),
    ("another weight", lambda errors: {f"{name}x": e for name, e in errors.items()}),
]


@pytest.mark.parametrize("how", [how for _, how in BROKEN], ids=[name for name, _ in BROKEN])
def test_records_with_broken_errors_are_redone(
    how: Callable[[dict[str, Any]], Any],
    small: Path,
    fast_path: Path,
    undisturbed: dict[str, Any],
    written: list[str],
) -> None:
    """And no others."""
    journal = unfinished(small, fast_path / "dst")
    written.clear()
    path = next(p for p in sorted(journal.iterdir()) if json.loads(p.read_text())["errors"])
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"errors": how(record["errors"])}))
    GROUPS(small, fast_path / "dst")
    assert contents(fast_path / "dst") == undisturbed[GROUPS.scheme]
    assert written == [record["file"]]


def test_a_record_without_errors_is_redone(
    small: Path, fast_path: Path, undisturbed: dict[str, Any], written: list[str]
) -> None:
    """As a version that did not know them would have left it."""
    journal = unfinished(small, fast_path / "dst")
    written.clear()
    for path in journal.iterdir():
        record = json.loads(path.read_text())
        del record["errors"]
        path.write_text(json.dumps(record))
    GROUPS(small, fast_path / "dst")
    assert contents(fast_path / "dst") == undisturbed[GROUPS.scheme]
    assert len(written) == len(list(undisturbed[GROUPS.scheme])) - 3


def test_a_finished_target_is_left_alone(small: Path, fast_path: Path) -> None:
    GROUPS(small, fast_path / "dst")
    before = marks(fast_path)
    assert GROUPS(small, fast_path / "dst", workers=2).already_done
    assert marks(fast_path) == before
    with pytest.raises(Fp8ConvertError, match=r"options\.scheme: 'nvfp4' then, 'mxfp4' now"):
        fp8convert.quantize(small, fast_path / "dst", "mxfp4", **GROUPS.options)
    assert marks(fast_path) == before
