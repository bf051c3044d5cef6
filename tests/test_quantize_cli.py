"""``fp8convert quantize`` as a user types it: what it prints, writes and refuses; exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fp8convert.cli.main import main

from .checkpoints import write
from .crash import Forker
from .quantized import oracle, readers, sources
from .quantized.oracle import SCHEMES

BIN = Path(sys.executable).parent
LAYER = "model.layers.0"
WEIGHTS = len(sources.plain("BF16").values)


class Ended(NamedTuple):
    """How a run ended, and what it printed."""

    code: int
    out: str
    err: str


Cli = Callable[..., Ended]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Cli]:
    """The console script, in this process: a hundred runs cost no hundred starts."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["fp8convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as e:
            main()
        return Ended(int(e.value.code or 0), *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BF16 model. Read only."""
    return sources.plain("BF16").write(tmp_path_factory.mktemp("cli") / "plain")


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DeepSeek's FP8. Read only."""
    return sources.fp8_f32().write(tmp_path_factory.mktemp("cli") / "fp8")


@pytest.fixture(scope="module")
def v4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mixed FP8 and FP4. Read only."""
    return sources.v4().write(tmp_path_factory.mktemp("cli") / "v4")


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


# --- What it prints


@pytest.mark.parametrize("scheme", ["fp8-block", "nvfp4"])
def test_the_summary_is_the_manifests(scheme: str, cli: Cli, plain: Path, fast_path: Path) -> None:
    """A table of classes on stdout; misfits as warnings on stderr."""
    dst = fast_path / "dst"
    done = cli("quantize", plain, dst, "--scheme", scheme)
    assert done.code == 0
    data = manifest_of(dst)
    head, *lines = done.out.splitlines()
    assert re.split(r" {2,}", head) == [
        "class", "weights", "exact", "max abs", "relative RMS", "SNR dB"
    ]  # fmt: skip
    table, (counts, rate, last) = lines[:-3], lines[-3:]
    assert {len(line) for line in (head, *table)} == {len(head)}
    rows = {fields[0]: fields[1:] for fields in (re.split(r" {2,}", line) for line in table)}
    assert rows.keys() == data["by_class"].keys()
    for of, (weights, exact, *errors) in rows.items():
        found = data["by_class"][of]
        assert (int(weights), int(exact)) == (found["weights"], found["exact_weights"])
        expected = [found[key] for key in ("max_abs", "relative_rms", "snr_db")]
        assert [float(e) for e in errors] == pytest.approx(expected, rel=1e-5)
    misfits = WEIGHTS - len(sources.plain("BF16").fitting(scheme))
    assert counts == (
        f"{WEIGHTS - misfits} weights encoded as {scheme}, 0 copied, 0 decoded, "
        f"{8 + misfits} tensors kept"
    )
    assert re.fullmatch(r"\S+ \w+ read, \S+ \w+ written in \S+ s \(.*/s\)", rate)
    assert last == f"done: {dst}"
    assert done.err.splitlines() == [f"warning: {w}" for w in data["warnings"]]
    assert bool(data["warnings"]) == bool(misfits)


def test_exact_classes_have_no_errors_to_show(cli: Cli, fp8: Path, fast_path: Path) -> None:
    done = cli("quantize", fp8, fast_path / "dst", "--scheme", "fp8-block")
    assert done.code == 0
    note, _, *table = done.out.splitlines()[:-3]
    assert note == "already fp8-block in the source, bytes copied: 7 of 7 weights"
    assert table
    assert all(line.split()[-3:] == ["-", "-", "-"] for line in table)
    assert "0 weights encoded as fp8-block, 7 copied, 0 decoded" in done.out
    before, after = readers.stored(fp8), readers.stored(fast_path / "dst")
    assert readers.differing(after, before) == []


def test_some_of_them_are_copied(cli: Cli, v4: Path, fast_path: Path) -> None:
    done = cli("quantize", v4, fast_path / "dst", "--scheme", "mxfp4")
    note = "already mxfp4 in the source, bytes copied: 4 of 6 weights"
    assert done.out.splitlines()[0] == note
    assert manifest_of(fast_path / "dst")["notes"] == [note]
    dry = cli("quantize", v4, fast_path / "dry", "--scheme", "mxfp4", "--dry-run")
    assert f"note         {note}" in dry.out.splitlines()


def test_warnings_are_on_stderr(cli: Cli, plain: Path, fast_path: Path) -> None:
    """One line for each class and reason; stdout has none of it."""
    source = sources.plain("BF16")
    done = cli("quantize", plain, fast_path / "dst", "--scheme", "int4-group")
    misfits = source.values.keys() - set(source.fitting("int4-group"))
    lines = done.err.splitlines()
    assert lines
    assert all(line.startswith("warning: not quantized") for line in lines)
    assert any("do not divide into groups of 128" in line for line in lines)
    assert "not quantized" not in done.out
    quantized = manifest_of(fast_path / "dst")["quantized"]
    assert not misfits & quantized.keys()


def test_strict_refuses_misfits(cli: Cli, plain: Path, fast_path: Path) -> None:
    done = cli("quantize", plain, fast_path / "dst", "--scheme", "nvfp4", "--strict")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: not quantized: ")
    assert "kv_b_proj" in done.err
    assert os.listdir(fast_path) == []
    fits = cli("quantize", plain, fast_path / "dst", "--scheme", "fp8-channel", "--strict")
    assert fits.code == 0


def test_quiet_says_nothing(cli: Cli, plain: Path, fast_path: Path) -> None:
    done = cli("quantize", plain, fast_path / "dst", "--scheme", "nvfp4", "--quiet")
    assert done == (0, "", "")
    assert manifest_of(fast_path / "dst")["warnings"]  # there was something to say


def test_json_is_one_document(cli: Cli, plain: Path, fast_path: Path) -> None:
    words = ("quantize", plain, fast_path / "dst", "--scheme", "mxfp8", "--json")
    facts = json.loads(cli(*words).out)
    assert not facts["already_done"]
    assert facts["seconds"] > 0
    assert {k: facts[k] for k in manifest_of(fast_path / "dst")} == manifest_of(fast_path / "dst")
    again = json.loads(cli(*words).out)
    assert again["already_done"]
    assert again["seconds"] is None
    assert again["quantized"] == facts["quantized"]


def test_the_console_script(plain: Path, fast_path: Path) -> None:
    """Installed, in a process of its own."""

    def run(*more: object) -> subprocess.CompletedProcess[str]:
        words = [BIN / "fp8convert", "quantize", plain, fast_path / "dst", *more]
        return subprocess.run([str(w) for w in words], capture_output=True, text=True)

    done = run("--scheme", "fp8-tensor")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"done: {fast_path / 'dst'}\n")
    refused = run("--scheme", "mxfp8")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "options.scheme: 'fp8-tensor' then, 'mxfp8' now" in refused.stderr


def test_help_is_instant_and_complete() -> None:
    """It loads neither NumPy nor the engine, and names every scheme and option."""
    done = subprocess.run(
        [str(BIN / "fp8convert"), "quantize", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "Examples:" in done.stdout
    flat = " ".join(done.stdout.split())
    assert f"One of {', '.join(SCHEMES)}." in flat
    for option in ("--block ROWSxCOLUMNS", "--group [32|64|128]", "--scale-dtype [f32|e8m0]",
                   "--scale-search [plain|mse]", "--include GLOB", "--exclude GLOB",
                   "--like OTHER", "--require-exact", "--report FILE.json", "--strict",
                   "--memory SIZE", "--dry-run", "--json", "--quiet"):  # fmt: skip
        assert option.lower() in flat.lower(), option
    code = (
        "import sys\nfrom fp8convert.cli.main import cli\n"
        "cli.main(['quantize', '--help'], standalone_mode=False)\n"
        "heavy = {'numpy', 'numba', 'torch', 'tqdm', 'fp8convert.engine', 'fp8convert.convert'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_group_lists_it(cli: Cli) -> None:
    done = cli("--help")
    assert done.code == 0
    assert re.search(r"^  quantize +Encode a checkpoint", done.out, re.MULTILINE)


# --- What it refuses


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing option '--scheme'"),
        (["--scheme", "fp9"], "'fp9' is not one of " + ", ".join(f"'{s}'" for s in SCHEMES)),
        (["--scheme", "fp8-block", "--block", "128"], "'128' is not a block such as 128x128"),
        (["--scheme", "fp8-block", "--block", "128x"], "is not a block such as 128x128"),
        (["--scheme", "fp8-block", "--block", "-1x128"], "is not a block such as 128x128"),
        (["--scheme", "fp8-block", "--block", "1.5x2"], "is not a block such as 128x128"),
        (["--scheme", "fp8-block", "--block", "0x128"], "two integers from 1 to 1024"),
        (["--scheme", "fp8-block", "--block", "128x1025"], "two integers from 1 to 1024"),
        (["--scheme", "nvfp4", "--block", "16x16"],
         "block is for fp8-block and fp8-block-ue8m0, not for nvfp4"),
        (["--scheme", "int4-group", "--group", "48"], "'48' is not one of '32', '64', '128'"),
        (["--scheme", "mxfp4", "--group", "32"], "group is for int4-group, not for mxfp4"),
        (["--scheme", "fp8-block", "--scale-dtype", "e8m0"],
         "scale_dtype is for fp8-block-ue8m0, not for fp8-block"),
        (["--scheme", "fp8-block-ue8m0", "--scale-dtype", "bf16"], "'bf16' is not one of"),
        (["--scheme", "fp8-block", "--scale-search", "best"], "'best' is not one of"),
        (["--scheme", "fp8-block", "--max-shard-size", "0"], "expected a positive number"),
        (["--scheme", "fp8-block", "--memory", "10MiB"], "memory 10 MiB is too little for"),
        (["--scheme", "fp8-block", "--workers", "0"], "--workers"),
        (["--scheme", "fp8-block", "--include", "*.nothing.*"],
         "--include '*.nothing.*' matches none of "),
        (["--scheme", "fp8-block", "--exclude", "lm_haed"], "--exclude 'lm_haed' matches none of "),
        (["--scheme", "fp8-block", "--include", "*", "--like", "SRC"],
         "give --like or --include, not both"),
        (["--scheme", "fp8-block", "--report", "no-folder/report.json"], "--report: no-folder"),
        (["--scheme", "fp8-block", "--report", "dst/report.json"], "--report: "),
        (["--scheme", "fp8-block", "--no-such-option"], "No such option"),
    ],
)  # fmt: skip
def test_usage_errors_exit_2(
    arguments: list[str], words: str, cli: Cli, plain: Path, fp8: Path, fast_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One message on stderr, nothing on stdout or disk."""
    monkeypatch.chdir(fast_path)
    named = [str(fp8) if word == "SRC" else word for word in arguments]
    done = cli("quantize", plain, "dst", *named)
    assert (done.code, done.out) == (2, "")
    assert words in " ".join(done.err.split())
    assert "Traceback" not in done.err
    assert os.listdir(fast_path) == []


def test_a_report_that_cannot_be_written_is_refused_first(
    cli: Cli, plain: Path, fast_path: Path
) -> None:
    """Before hours of work: a folder, the target itself, nothing."""
    (fast_path / "folder").mkdir()
    before = os.listdir(fast_path)
    for report in (fast_path / "folder", fast_path / "dst", ""):
        done = cli("quantize", plain, fast_path / "dst", "--scheme", "mxfp8", "--report", report)
        assert (done.code, done.out) == (2, ""), report
        assert "--report" in done.err
        assert os.listdir(fast_path) == before


@pytest.mark.parametrize("place", [".", "sub", ".."])
def test_source_and_target_must_not_overlap(
    place: str, cli: Cli, plain: Path, fast_path: Path
) -> None:
    src = Path(shutil.copytree(plain, fast_path / "src"))
    before = sorted(os.listdir(src))
    done = cli("quantize", src, src / place, "--scheme", "fp8-block")
    assert (done.code, done.out) == (1, "")
    assert "must not contain each other" in done.err
    assert sorted(os.listdir(src)) == before


def test_a_source_that_is_not_there(cli: Cli, fast_path: Path) -> None:
    done = cli("quantize", fast_path / "src", fast_path / "dst", "--scheme", "fp8-block")
    expected = f"error: '{fast_path}/src' does not exist, expected a checkpoint folder\n"
    assert done == (1, "", expected)


def test_a_model_without_matrices(cli: Cli, fast_path: Path) -> None:
    tensors = {"norm.weight": sources.normal("n", 1, 8)[0]}
    src = write(fast_path / "src", [tensors], {"model_type": "llama"})
    done = cli("quantize", src, fast_path / "dst", "--scheme", "fp8-block")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: no weight to quantize")


def test_values_that_are_not_finite(cli: Cli, fast_path: Path) -> None:
    weights = {f"{LAYER}.mlp.up_proj.weight": sources.normal("w", 300, 64)}
    weights[f"{LAYER}.mlp.up_proj.weight"][299, 63] = float("nan")
    src = write(fast_path / "src", [weights], {"model_type": "llama", "torch_dtype": "float32"})
    done = cli("quantize", src, fast_path / "dst", "--scheme", "fp8-block")
    assert (done.code, done.out) == (1, "")
    first, second = done.err.splitlines()
    assert first == (
        f"error: 'model-00001-of-000001.safetensors': weight '{LAYER}.mlp.up_proj.weight': "
        "nan at row 299, column 63, expected finite values"
    )
    assert second == (
        f"Unfinished work is in {fast_path / '.dst.fp8convert'} (remove it to give up)."
    )
    assert not (fast_path / "dst").exists()


def test_interrupted_exits_75(plain: Path, fast_path: Path) -> None:
    forker = Forker()
    try:
        words = ("quantize", plain, fast_path / "dst", "--scheme", "fp8-tensor")
        ended = forker.run(*words, tamper=("signal_at", 12, signal.SIGINT))
        assert ended.code == 75
        assert "interrupted" in ended.err
        assert "Run the same command again to resume." in ended.err
        assert not (fast_path / "dst").exists()
        assert forker.run(*words).code == 0
    finally:
        forker.close()


# --- Dry runs


def test_a_dry_run_writes_nothing(cli: Cli, plain: Path, fast_path: Path) -> None:
    words = ("quantize", plain, fast_path / "dst", "--scheme", "nvfp4", "--dry-run")
    done = cli(*words, "--report", fast_path / "report.json")
    assert done.code == 0
    for label in (
        "plan  ",
        "bytes in",
        "bytes out",
        "disk needed",
        "peak memory",
        "tasks        3",
    ):
        assert label in done.out
    assert "warning: not quantized" in done.err
    assert os.listdir(fast_path) == []
    wrong = cli(*words, "--memory", "226MiB")
    assert (wrong.code, wrong.out) == (2, "")  # as the run would


def test_a_plan_says_how_each_weight_is_encoded(cli: Cli, plain: Path, fast_path: Path) -> None:
    words = ("quantize", plain, fast_path / "dst", "--scheme", "nvfp4")
    plan = json.loads(cli(*words, "--dry-run", "--json").out)
    assert plan["command"] == "quantize"
    assert plan["options"]["scheme"] == "nvfp4"
    tensors = {t["name"]: t for task in plan["tasks"] for t in task["tensors"]}
    q = tensors[f"{LAYER}.self_attn.q_proj.weight_packed"]
    assert (q["dtype"], q["shape"]) == ("U8", [256, 128])
    assert q["encoded"]["members"] == [
        f"{LAYER}.self_attn.{leaf}.weight" for leaf in ("q_proj", "k_proj", "v_proj")
    ]
    assert "2688 / amax" in q["encoded"]["rule"]
    assert [p["name"] for p in q["parts"]] == [f"{LAYER}.self_attn.q_proj.weight"]
    scale = tensors[f"{LAYER}.self_attn.q_proj.weight_scale"]
    assert (scale["dtype"], scale["shape"]) == ("F8_E4M3", [256, 16])
    assert "encoded" not in tensors["lm_head.weight"]
    cli(*words)
    after = readers.stored(fast_path / "dst")
    assert {n: (t["dtype"], tuple(t["shape"])) for n, t in tensors.items()} == {
        n: (dtype, shape) for n, (dtype, shape, _) in after.items()
    }
    assert plan["bytes_out"] == sum(
        p.stat().st_size for p in (fast_path / "dst").iterdir() if p.name != "manifest.json"
    )
    assert manifest_of(fast_path / "dst")["plan"] == plan["id"]


def test_a_wide_weight_takes_fewer_workers(cli: Cli, fast_path: Path) -> None:
    """Said by a dry run; and how much is too little for one."""
    weights = {f"{LAYER}.mlp.up_proj.weight": sources.normal("w", 128, 80_000)}
    src = write(fast_path / "src", [weights], {"model_type": "llama", "torch_dtype": "float32"})
    words = ("quantize", src, fast_path / "dst", "--scheme", "fp8-block", "--dry-run")
    found = {}
    for memory in ("252MiB", "288MiB", "1GiB"):
        plan = json.loads(cli(*words, "--json", "--workers", 8, "--memory", memory).out)
        found[memory] = plan["workers"]
        assert plan["peak_memory"] <= {"252MiB": 252, "288MiB": 288, "1GiB": 1024}[memory] << 20
    assert found == {"252MiB": 1, "288MiB": 2, "1GiB": 8}
    wrong = cli(*words, "--workers", 8, "--memory", "240MiB")
    assert (wrong.code, wrong.out) == (2, "")
    assert re.search(r"memory 240 MiB is too little for 1 workers, expected at least \d+ MiB",
                     wrong.err)  # fmt: skip


# --- Which weights


def ignored(folder: Path) -> set[str]:
    declared = readers.config(folder)["quantization_config"]
    return set(declared.get("ignore", declared.get("modules_to_not_convert")))


@pytest.mark.parametrize("scheme", ["fp8-block", "mxfp8"])
def test_include_and_exclude(scheme: str, cli: Cli, plain: Path, fast_path: Path) -> None:
    """Seen in the files, in the config's list and in the manifest."""
    dst = fast_path / "dst"
    flags = ("--include", f"{LAYER}.*", "--include", "lm_head", "--exclude", "*o_proj*")
    assert cli("quantize", plain, dst, "--scheme", scheme, *flags).code == 0
    data, after = manifest_of(dst), readers.stored(dst)
    options = data["identity"]["options"]
    assert options["include"] == [f"{LAYER}.*", "lm_head"]
    assert options["exclude"] == ["*o_proj*"]
    chosen = {n for n in sources.plain("BF16").values if n.startswith(LAYER) and "o_proj" not in n}
    assert data["quantized"].keys() == chosen | {"lm_head.weight"}
    assert {n for n, (dtype, _, _) in after.items() if dtype == "F8_E4M3"} == {*data["quantized"]}
    modules = {n.removesuffix(".weight") for n in sources.plain("BF16").values}
    kept = modules - {n.removesuffix(".weight") for n in chosen}
    assert ignored(dst) == kept | {"model.layers.1.mlp.gate"}
    by_default = fast_path / "default"
    assert cli("quantize", plain, by_default, "--scheme", scheme).code == 0
    assert ignored(by_default) != ignored(dst)  # the control
    assert manifest_of(by_default)["identity"]["options"]["include"] == []


def test_like(cli: Cli, plain: Path, fast_path: Path) -> None:
    """What is coded there is encoded here, and nothing else."""
    x = sources.plain("BF16").values
    names = [f"{LAYER}.self_attn.o_proj.weight", "model.layers.1.self_attn.o_proj.weight"]
    coded = {}
    for name in names:
        parts = oracle.quantized(x[name], "fp8-block", "BF16")
        module = name.removesuffix("weight")
        coded |= {module + leaf: sources_tensor(part) for leaf, part in parts.items()}
    other = write(fast_path / "other", [coded])
    done = cli("quantize", plain, fast_path / "dst", "--scheme", "mxfp8", "--like", other)
    assert done.code == 0
    assert "model.layers.1.self_attn.o_proj" in done.err  # 200 columns: a misfit
    assert list(manifest_of(fast_path / "dst")["quantized"]) == names[:1]
    wrong = cli("quantize", plain, fast_path / "x", "--scheme", "mxfp8", "--like", plain)
    assert (wrong.code, wrong.out) == (1, "")
    assert "no weight is coded there" in wrong.err


def sources_tensor(part: oracle.Part) -> Any:
    """A stored part as a tensor that the safetensors library writes."""
    import torch

    kinds = {tag: dtype for dtype, tag in sources.TAGS.items()}
    tag, shape, raw = part
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(kinds[tag]).reshape(shape)


# --- Exactness and reports


def test_require_exact(cli: Cli, v4: Path, fast_path: Path) -> None:
    """Nothing under the final name; where all are exact it is as if it was not asked for."""
    words = ("--scheme", "fp8-block-ue8m0", "--require-exact")
    done = cli("quantize", v4, fast_path / "dst", *words)
    assert (done.code, done.out) == (1, "")
    assert f"weight '{sources.FAR}.weight': not exact in rows " in done.err
    assert "(refused by require_exact)" in done.err
    assert not (fast_path / "dst").exists()
    assert not list(fast_path.rglob("*.tmp"))
    near = cli("quantize", v4, fast_path / "near", *words, "--exclude", f"*{sources.FAR}*")
    assert near.code == 0
    quantized = manifest_of(fast_path / "near")["quantized"]
    assert quantized
    assert all(found["exact"] for found in quantized.values())


def test_a_report_is_the_manifests(cli: Cli, v4: Path, fast_path: Path) -> None:
    """Beside the target, whole; the same again from a finished target."""
    dst, report = fast_path / "dst", fast_path / "report.json"
    report.write_text("an older one")
    words = ("quantize", v4, dst, "--scheme", "mxfp4", "--report", report)
    assert cli(*words).code == 0
    found, data = json.loads(report.read_text()), manifest_of(dst)
    assert found.pop("target") == str(dst)
    assert found == {key: data[key] for key in found}
    assert {"tool", "scheme", "encoders", "weights_encoded", "weights_copied", "by_class",
            "quantized", "warnings", "notes"} == found.keys()  # fmt: skip
    assert found["quantized"].keys() == sources.v4().values.keys()
    assert sorted(os.listdir(fast_path)) == ["dst", "report.json"]
    assert "report.json" not in os.listdir(dst)
    before = report.read_bytes()
    report.unlink()
    again = cli(*words)
    assert again.out == f"already done: {dst} is finished, by this very plan\n"
    assert report.read_bytes() == before


def test_no_report_of_what_has_failed(cli: Cli, v4: Path, fast_path: Path) -> None:
    report = fast_path / "report.json"
    words = ("--scheme", "mxfp4", "--require-exact", "--report", report)
    assert cli("quantize", v4, fast_path / "dst", *words).code == 1
    assert not report.exists()


# --- Once more


def test_a_second_run_has_nothing_to_do(cli: Cli, plain: Path, fast_path: Path) -> None:
    words = ("quantize", plain, fast_path / "dst", "--scheme", "fp8-channel")
    assert cli(*words).code == 0
    done = cli(*words, "--workers", 3, "--io", "buffered")
    expected = f"already done: {fast_path / 'dst'} is finished, by this very plan\n"
    assert done == (0, expected, "")


CHANGED = [
    (("--scheme", "mxfp8"), "options.scheme: 'mxfp4' then, 'mxfp8' now"),
    (("--scheme", "mxfp4", "--scale-search", "mse"),
     "options.scale_search: 'plain' then, 'mse' now"),
    (("--scheme", "mxfp4", "--require-exact"),
     "options.require_exact: 'False' then, 'True' now"),
    (("--scheme", "mxfp4", "--exclude", "*.w2"), "options.exclude: "),
]  # fmt: skip


@pytest.mark.parametrize(("other", "words"), CHANGED, ids=[w for _, w in CHANGED])
@pytest.mark.parametrize("finished", [False, True])
def test_other_options_are_refused_by_name(
    other: tuple[str, ...], words: str, finished: bool, cli: Cli, v4: Path, fast_path: Path
) -> None:
    """Whether the first run has ended or not."""
    first = ("quantize", v4, fast_path / "dst", "--scheme", "mxfp4")
    if finished:
        assert cli(*first).code == 0
    else:
        unfinished(cli, *first)
    done = cli("quantize", v4, fast_path / "dst", *other)
    assert (done.code, done.out) == (1, "")
    assert words in done.err
    assert ("is not this one" in done.err) is not finished
    assert ("it was made by another plan" in done.err) is finished
    assert cli(*first).code == 0


def unfinished(cli: Cli, *words: object) -> None:
    """Have a run fail when all tensors are journaled."""
    from fp8convert.publish import Staging

    def fail(self: Any, name: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Staging, "put_bytes", fail)
        done = cli(*words)
    assert done.code == 75
    assert "No space left on device" in done.err
    assert "Run the same command again to resume." in done.err
