"""What a hostile checkpoint cannot have done: docs/security.md, promise by promise."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import click
import pytest

import fp8convert
from fp8convert.cli import main as program

from ..crash import marks
from . import armed, hostile, tracing
from .armed import RANKS, WHOLE
from .hostile_inputs import CONTROL, SLOW
from .lab import Lab
from .tracing import Trace, traced

PROGRAM = Path(sys.executable).parent / "fp8convert"
SYSTEM = ("/usr", "/lib", "/lib64", "/proc", "/sys", "/dev/null", "/dev/urandom", "/dev/shm",
          "/etc/ld.so.cache", "/etc/ld.so.preload", "/etc/locale.alias", "/etc/localtime",
          "/etc/ssl/openssl.cnf", "/etc/nsswitch.conf", "/etc/host.conf")  # fmt: skip
PACKAGE = [Path(fp8convert.__file__).parent, Path(program.__file__).parent]
PYTHON = [Path(p) for p in {sys.prefix, sys.base_prefix}]

needs_strace = pytest.mark.skipif(bool(tracing.missing()), reason=tracing.missing())


class Place:
    """A source to be spoiled, a folder for targets, and what is of no concern to either."""

    def __init__(self, root: Path, source: Path) -> None:
        self.source, self.out, self.outside = root / "src", root / "out", root / "outside"
        self.mark, self.log = root / "owned", root / "log"
        shutil.copytree(source, self.source)
        self.out.mkdir()
        self.outside.mkdir()
        (self.outside / "secret.json").write_text('{"secret": 1}')

    def run(self, *words: object, program: tuple[object, ...] = (PROGRAM,)) -> Trace:
        """In the source's own folder, as one would who has just downloaded it."""
        return traced([*program, *words], self.source, self.log)

    def foul(self, trace: Trace, verifying: bool = False) -> list[str]:
        """What was opened, changed or executed that must not be."""
        readable = [self.source, self.out, self.log.with_suffix(".tmp"), *PACKAGE, *PYTHON]
        readable += map(Path, SYSTEM)
        writable = [self.out, self.log.with_suffix(".tmp"), *PACKAGE, Path("/dev"), Path("/proc")]
        found = [f"opened {p}" for p in trace.opened if not within(p, readable)]
        found += [f"changed {p}" for p in trace.changed if not within(p, writable)]
        found += [f"executed {p}" for p in trace.executed[1:]]
        own = (p for p in trace.opened if within(p, [self.source]) and not p.is_dir())
        read = [f"opened {p}" for p in own if p.name.endswith(armed.NEVER)]
        found += [] if verifying else read  # for their sums
        return found + (["owned"] if self.mark.exists() else [])


def within(path: Path, folders: list[Path]) -> bool:
    return any(path.is_relative_to(f) for f in folders)


COMMANDS: dict[str, tuple[object, ...]] = {
    "to-bf16": ("to-bf16", ".", "../out/dst"),
    "quantize": ("quantize", ".", "../out/dst", "--scheme", "nvfp4"),
    "shard-for-tp": ("shard-for-tp", ".", "../out/dst", "--tp", 2),
    "inspect": ("inspect", "."),
    "verify": ("verify", "."),
    "logits": ("logits", ".", "--seed", 1, "--length", 2, "--out", "../out/l.safetensors"),
}


@needs_strace
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_of_it_is_executed(command: str, made: Lab, tmp_path: Path) -> None:
    """Nor imported, nor unpickled, nor even opened: one runs the command in its very folder."""
    place = Place(tmp_path, made.fp8)
    armed.arm(place.source, place.mark)
    before = marks(place.source)
    trace = place.run(*COMMANDS[command])
    assert trace.code == 0, trace.err
    assert place.foul(trace, verifying=command == "verify") == []
    assert marks(place.source) == before
    assert [p for p in place.out.rglob("*") if p.name.endswith(armed.NEVER)] == []


@needs_strace
@pytest.mark.parametrize("layout", ["deepseek", "hf"])
def test_nothing_of_ranks_is_executed(layout: str, made: Lab, tmp_path: Path) -> None:
    place = Place(tmp_path, made.by_name[f"unshard-{layout}"].source)
    if layout == "hf":
        armed.arm(place.source / "rank0", place.mark)
    else:
        armed.arm(place.source, place.mark)
    trace = place.run("unshard", ".", "../out/dst")
    assert trace.code == 0, trace.err
    assert place.foul(trace) == []


@needs_strace
def test_code_that_is_asked_for_is_copied_and_not_run(made: Lab, tmp_path: Path) -> None:
    place = Place(tmp_path, made.fp8)
    armed.arm(place.source, place.mark)
    trace = place.run(*COMMANDS["to-bf16"], "--copy-code")
    assert trace.code == 0, trace.err
    assert {f.removeprefix("opened ") for f in place.foul(trace)} == {
        str(p) for p in place.source.glob("*.py")
    }
    name = "modeling_evil.py"
    assert (place.out / "dst" / name).read_bytes() == (place.source / name).read_bytes()


@needs_strace
@pytest.mark.parametrize("case", [*WHOLE, *RANKS])
def test_no_path_leads_out(case: str, made: Lab, tmp_path: Path) -> None:
    """Refused, and what is there is never opened: by a converting command and by `inspect`."""
    whole = case in WHOLE
    place = Place(tmp_path, made.fp8 if whole else made.by_name["unshard-hf"].source)
    (WHOLE if whole else RANKS)[case](place.source, place.outside)
    before = marks(place.outside)
    trace = place.run(*(COMMANDS["to-bf16"] if whole else ("unshard", ".", "../out/dst")))
    assert trace.code == 1, trace.out
    assert trace.err.startswith("error: ")
    assert place.foul(trace) == []
    assert list(place.out.iterdir()) == []
    assert marks(place.outside) == before
    for command in {"shard": ("inspect", "verify"), "map-up": ("inspect",)}.get(case, ()):
        trace = place.run(*COMMANDS[command])
        assert trace.code in (1, 3)
        assert place.foul(trace, verifying=command == "verify") == []


@needs_strace
def test_a_prompt_reads_no_tokenizer_outside(made: Lab, tmp_path: Path) -> None:
    place = Place(tmp_path, made.bf16)
    WHOLE["companion"](place.source, place.outside)
    trace = place.run("logits", ".", "--prompt", "a", "--out", "../out/l.safetensors")
    assert trace.code == 1
    assert "is a link out of" in trace.err
    assert place.foul(trace) == []


@needs_strace
def test_numba_takes_no_options_from_it(made: Lab, tmp_path: Path) -> None:
    """They may name a folder of compiled kernels, which numba unpickles."""
    place = Place(tmp_path, made.fp8)
    (place.source / ".numba_config.yaml").write_text("cache_dir: ./cache\n")
    (place.source / "cache").mkdir()
    trace = place.run(*COMMANDS["to-bf16"])
    assert trace.code == 1
    assert ".numba_config.yaml" in trace.err
    assert place.foul(trace) == []
    assert list(place.out.iterdir()) == []


BROKEN = (
    "import os, sys; from pathlib import Path; from fp8convert import folder\n"
    "folder.Folder._resolved = lambda self, n, why: Path(os.path.realpath(self.root / n))\n"
    "from fp8convert.cli.main import main; main()\n"
)


@needs_strace
def test_a_tool_that_follows_links_would_be_seen(made: Lab, tmp_path: Path) -> None:
    """The control: with the check taken out, the file outside is opened, and that is noticed."""
    place = Place(tmp_path, made.fp8)
    WHOLE["companion"](place.source, place.outside)
    trace = place.run(*COMMANDS["to-bf16"], program=(sys.executable, "-c", BROKEN))
    assert f"opened {place.outside / 'tokenizer.json'}" in place.foul(trace)


@needs_strace
def test_a_child_that_does_worse_would_be_seen(made: Lab, tmp_path: Path) -> None:
    """The control of the tracer: what is imported, written and executed, two processes down."""
    place = Place(tmp_path, made.fp8)
    armed.arm(place.source, place.mark)
    inner = f"import modeling_evil; open({str(place.outside / 'new')!r}, 'w')"
    outer = f"import subprocess, sys; subprocess.run(['env', sys.executable, '-c', {inner!r}])"
    foul = "\n".join(place.foul(place.run("-c", outer, program=(sys.executable,))))
    for word in ("modeling_evil.py", "changed", str(place.outside / "new"), "executed", "owned"):
        assert word in foul


# What is printed


@pytest.mark.parametrize("more", [(), ("--json",), ("--dry-run",), ("--dry-run", "--json")])
def test_hostile_names_are_spelled_out(more: tuple[str, ...], made: Lab, tmp_path: Path) -> None:
    """In summaries, warnings, plans; of files, of tensors, of fields."""
    source = tmp_path / "src"
    shutil.copytree(made.fp8, source)
    plain = CONTROL.replace("\x00", "").replace("/", "")
    for suffix in (".json", ".py", ".txt", ".bin", ".safetensors", ""):
        (source / f"x{plain}{suffix}").write_bytes(b"x")
    quantization = json.loads((source / "config.json").read_text())["quantization_config"]
    listed = ["model.layers.0.mlp.up_proj", CONTROL]
    quantization |= {"ignored_layers": listed, CONTROL: CONTROL}
    armed.configure(source, quantization_config=quantization, architectures=[CONTROL])
    for work in ("to-bf16", "inspect"):
        target = tmp_path / f"dst-{work}"
        words = (work, source, target, *more) if work != "inspect" else (work, source)
        ended = made.forker.run(*words)
        assert hostile.clean(ended.out + ended.err)
        assert ended.code in (0, 1)


def test_an_unexpected_error_is_spelled_out_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug of ours, or a library's panic: a traceback, but no word of it commands a terminal."""

    @click.command()
    def broken() -> None:
        raise Panic(f"tensor {CONTROL}")

    monkeypatch.setattr(sys, "argv", ["broken"])
    with pytest.raises(SystemExit) as ended:
        program.run(broken, "broken")
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "Panic" in said
    assert hostile.clean(said)


class Panic(BaseException):
    """As a panic in a library is one: no Exception."""


# Time and memory


def bounded(made: Lab, tmp_path: Path, source: Path, *words: object) -> Any:
    ended = made.forker.run(*words, tamper=("bound",))
    assert hostile.clean(ended.out + ended.err)
    assert "Traceback" not in ended.err
    assert ended.code in (0, 1), ended
    return ended


@pytest.mark.parametrize("count", [300, 500_000])
def test_lists_of_slow_patterns(count: int, made: Lab, tmp_path: Path) -> None:
    """Of modules that are not quantized: a hint, and the weights are converted."""
    source, target = tmp_path / "src", tmp_path / "dst"
    shutil.copytree(made.fp8, source)
    said = json.loads((source / "config.json").read_text())["quantization_config"]
    slow = [SLOW[n % 3] for n in range(count)] + list(SLOW)
    armed.configure(source, quantization_config={**said, "ignored_layers": slow})
    ended = bounded(made, tmp_path, source, "to-bf16", source, target, "--workers", 1)
    assert ended.code == 0
    assert hostile.right(target, source)


def long_names(source: Path, count: int) -> None:
    """Many coded weights with the longest names that patterns are tried on."""
    from ..sharded.forms import blocks
    from ..sharded.model import Source

    form, tensors = blocks(128), {}
    for n in range(count):
        tensors |= dict(form(f"model.layers.{n % 60}.{'a' * 200}{n}", 1, 1))
    Source("long", json.loads((source / "config.json").read_text()), tensors).write(
        source.parent / "long"
    )


@pytest.mark.parametrize("kind", ["fp8", "compressed-tensors"])
def test_slow_patterns_on_many_long_names(kind: str, made: Lab, tmp_path: Path) -> None:
    """A plan of 4,000 weights, with 128 patterns that each look at every pair of characters."""
    source = tmp_path / "long"
    shutil.copytree(made.fp8, tmp_path / "src")
    long_names(tmp_path / "src", 4000)
    slow = [rf"re:.*.*{n}q" for n in range(60)] + [r"re:(.*).*\1x"] * 60
    said: dict[str, Any]
    if kind == "fp8":
        said = {"quant_method": "fp8", "weight_block_size": [128, 128], "ignored_layers": slow}
    else:
        weights = {"num_bits": 8, "type": "float", "strategy": "block",
                   "block_structure": [128, 128], "symmetric": True}  # fmt: skip
        group = {"weights": weights, "targets": slow}
        said = {"quant_method": "compressed-tensors", "format": "float-quantized",
                "config_groups": {f"g{n}": group for n in range(60)}}  # fmt: skip
    armed.configure(source, quantization_config=said)
    bounded(made, tmp_path, source, "to-bf16", source, tmp_path / "dst", "--dry-run", "--quiet")


@pytest.mark.parametrize("layout", ["deepseek", "hf"])
def test_a_table_of_a_million_pieces(layout: str, made: Lab, tmp_path: Path) -> None:
    source = tmp_path / "src"
    shutil.copytree(made.by_name[f"unshard-{layout}"].source, source)
    table = json.loads((source / "tp.json").read_text())
    name, entry = next((n, e) for n, e in table["tensors"].items() if "pieces" in e)
    entry["pieces"] = [[n, n, 1] for n in range(300_000)]
    (source / "tp.json").write_text(json.dumps(table))
    ended = bounded(made, tmp_path, source, "unshard", source, tmp_path / "dst")
    assert ended.code == 1
    assert f"tp.json: tensor '{name}': pieces are" in ended.err


@pytest.mark.parametrize("field", ["num_hidden_layers", "n_routed_experts"])
def test_counts_that_no_loop_may_follow(field: str, made: Lab, tmp_path: Path) -> None:
    """`verify`, `logits` and the rest hold them against names that are there."""
    from fp8convert.reference.run import open_model
    from fp8convert.verify import verify

    source = tmp_path / "src"
    shutil.copytree(made.fp8, source)
    armed.configure(source, **{field: 2**50})
    assert verify(source, workers=1).passed is False
    if field == "num_hidden_layers":
        with pytest.raises(fp8convert.Fp8ConvertError, match="num_hidden_layers is"):
            open_model(source)
    for words in (("to-bf16", source, tmp_path / "dst"), ("inspect", source),
                  ("shard-for-tp", source, tmp_path / "tp", "--tp", 2)):  # fmt: skip
        bounded(made, tmp_path, source, *words)


def test_a_credulous_tool_would_lose(made: Lab) -> None:
    """The control of the campaign; what is sound it converts."""
    work, target = made.works[0], made.new()
    assert made.run(work, target, tamper=("hostile:credulous",)).code == 0
    assert work.ended_right(target)
    tally = hostile.run(made, 6, 0, "hostile:credulous")
    assert len(tally.losses) > 0


def test_the_bound_is_one(made: Lab, tmp_path: Path) -> None:
    """The control: a child that takes what it may not have does not end well."""
    ended = made.forker.run("inspect", made.fp8, tamper=("bound", 1 << 40, 0))
    assert ended.code < 0
    assert os.WTERMSIG(-ended.code) != 0
