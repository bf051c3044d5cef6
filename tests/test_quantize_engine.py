"""``quantize`` as it runs: any threads, memory and cuts give the same bytes in bounded memory."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fp8convert
from fp8convert import convert, engine, header
from fp8convert.convert import prepare
from fp8convert.errors import (
    DataError,
    SchemeError,
    UsageError,
)
from fp8convert.header import ALIGN as PAGE
from fp8convert.options import Quantize
from fp8convert.settings import Settings
from fp8convert.tile import MIN_TILE

from .crash import contents
from .formats.case import Case
from .formats.catalogue import all_cases
from .quantized import oracle, readers, sources
from .quantized.readers import Stored
from .quantized.small import (
    MLP,
    SHAPES,
    SMALL,
    dealt,
    make_big,
    make_small,
    tensors_of,
    tight,
    values,
    write,
)

MIB = 1 << 20


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return make_big(tmp_path_factory.mktemp("big") / "src")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return make_small(tmp_path_factory.mktemp("small") / "src")


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
