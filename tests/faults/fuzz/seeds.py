"""Writes ``benches.json`` and the first inputs: ``python -m tests.faults.fuzz.seeds``.

Needed again only where a family or a format is added. Inputs that fuzzing found stay beside them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from fp8convert import header, ranksets
from fp8convert.dtypes import DTYPES
from fp8convert.samples import FAMILIES
from fp8convert.samples.spec import store

from ...formats.catalogue import all_cases
from .benches import HERE, INDEX, Rows, bench, nbytes, rank_set
from .states import staged
from .targets import WORK

EXPERTS, LAYERS = 2, 2
FEW = 24  # tensors of an input
EXPERT_FIELDS = ("n_routed_experts", "num_experts", "num_local_experts")
FORMATS = (
    *("deepseek-v4/v41", "fp8/u8-1x32", "fp8/per-channel", "fp8/fused-experts", "mistral/native"),
    *("compressed-tensors/float-channel-kv", "compressed-tensors/float-block"),
    *("compressed-tensors/int8-group-asym", "compressed-tensors/pack-int4-actorder-asym"),
    *("compressed-tensors/nvfp4", "compressed-tensors/mixed-precision", "modelopt/fp8-sidecar"),
    *("modelopt/mixed", "awq/gemm-g32", "gptq/int4-desc-act", "gptq/int8-v2-asym"),
)
TAGS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float8_e4m3fn": "F8_E4M3",
        "float8_e8m0fnu": "F8_E8M0", "uint8": "U8", "int8": "I8", "int32": "I32", "int64": "I64",
        "float8_e5m2": "F8_E5M2"}  # fmt: skip
NAME = "model.layers.0.mlp.down_proj.weight"

Table = dict[str, Any]


def main() -> None:
    """Write them all."""
    tables = dict(_tables())
    rows = ",\n".join(f" {json.dumps(n)}: {json.dumps(t)}" for n, t in tables.items())
    (HERE / "benches.json").write_text(f"{{\n{rows}\n}}\n")
    for target, made in (
        ("header", _headers()), ("index", _indexes()), ("config", _configs(tables)),
        ("tensors", _tensors(tables)), ("model", _models(tables)), ("state", _states()),
        ("words", _words()),
    ):  # fmt: skip
        (HERE / "corpus" / target).mkdir(parents=True, exist_ok=True)
        for name, data in made:
            (HERE / "corpus" / target / name).write_bytes(data)


def _tables() -> Iterator[tuple[str, Table]]:
    for family, make in FAMILIES.items():
        yield family, _reduced(make("tiny"))
    for case in all_cases():
        if case.id in FORMATS:
            tensors = {n: [TAGS[str(t.dtype)[6:]], *t.shape] for n, t in case.stored.items()}
            files = {"files": case.sidecars} if case.sidecars else {}
            yield case.id.replace("/", "-"), {"tensors": tensors, "config": case.config, **files}
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    tensors = {}
    for name in ("model.layers.0.mlp.up_proj.weight", NAME):
        tensors |= {name: ["F8_E4M3", 256, 128], f"{name}_scale_inv": ["F32", 2, 1]}
    yield "index", {"tensors": tensors, "config": config}
    yield "state", {"tensors": tensors, "config": config}


def _reduced(sample: Any) -> Table:
    """With its first layers, its first experts and what MTP adds."""
    config = dict(sample.config)
    many = config["num_hidden_layers"]
    said = {"num_hidden_layers": LAYERS}
    if any(".experts.0." in w.name for w in sample.weights):  # else all are in one
        said |= dict.fromkeys(EXPERT_FIELDS, EXPERTS)
    said |= {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 1, "num_hash_layers": 1}
    config |= {field: n for field, n in said.items() if field in config}
    for field, found in config.items():
        if isinstance(found, list) and len(found) >= many:  # an entry for each layer
            config[field] = [*found[:LAYERS], *found[many:]]
    tensors = {}
    for t in store(sample, "published"):
        layer = re.search(r"(?<!mtp)layers\.(\d+)\.", t.name)
        expert = re.search(r"experts\.(\d+)\.", t.name)
        number = int(layer[1]) if layer else 0
        if (number < LAYERS or number >= many) and (not expert or int(expert[1]) < EXPERTS):
            name = t.name.replace(f"layers.{number}.", f"layers.{min(number, LAYERS)}.")
            tensors[name] = [t.dtype, *t.shape]
    files = {name: json.loads(text) for name, text in sample.coded_files.items()}
    return {"tensors": tensors, "config": config, **({"files": files} if files else {})}


def _headers() -> Iterator[tuple[str, bytes]]:
    rows: Rows = [("a", "F32", (2, 3)), (NAME, "F8_E4M3", (4, 5)), ("none", "BF16", (0, 4))]
    rows += [("x", "U8", ()), ('é\n"', "F4", (2, 3)), ("s", "F6_E2M3", (4,)), ("t", "I64", (1,))]
    for n in range(len(rows) + 1):
        yield f"{n}-tensors", _file(rows[:n], {"format": "pt", "é": "\0"} if n % 2 else {})
    for dtype, of in DTYPES.items():
        yield f"dtype-{dtype}", _file([("w", dtype, (8 // min(8, of.bits & -of.bits),))], {})
    yield "lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    yield "html", b"<!DOCTYPE html><html></html>"
    yield "pickle", b"\x80\x02}q\x00."


def _file(rows: Rows, metadata: dict[str, str]) -> bytes:
    padded = header.build(rows, metadata)[8:].rstrip(b" ")
    return len(padded).to_bytes(8, "little") + padded + bytes(range(sum(map(nbytes, rows))))


def _indexes() -> Iterator[tuple[str, bytes]]:
    sound = (bench("index", "-whole") / INDEX).read_bytes()
    yield "sound", sound
    yield "without-metadata", json.dumps({"weight_map": json.loads(sound)["weight_map"]}).encode()
    yield "outside", sound.replace(b"model-00001", b"../model-00001", 1)


def _configs(tables: dict[str, Table]) -> Iterator[tuple[str, bytes]]:
    """DeepSeek's for all work, other families' for the main kinds, others' in turn for some."""
    main, some = ("to-bf16", "nvfp4", "hf-bf16"), ("to-bf16", "inspect", "fp8", "int4", "nvfp4")
    for n, (name, table) in enumerate(tables.items()):
        kinds = main if name in FAMILIES else (some[n % len(some)],)
        for kind in WORK if name in ("deepseek-v3", "deepseek-v4") else kinds:
            yield f"{name}-{kind}", f"{name} {kind}\n{json.dumps(table['config'])}".encode()


def _tensors(tables: dict[str, Table]) -> Iterator[tuple[str, bytes]]:
    """As few as a kind of work can do with: all but the largest families', in turn."""
    work = list(WORK)
    for n, (name, table) in enumerate(tables.items()):
        few = dict(list(table["tensors"].items())[:FEW])
        kind = work[n % len(work)]
        yield f"{name}-{kind}", f"{name} {kind}\n{json.dumps(few)}".encode()


def _models(tables: dict[str, Table]) -> Iterator[tuple[str, bytes]]:
    for n, (name, table) in enumerate(tables.items()):
        if name in FAMILIES and name not in ("gpt-oss", "minimax-m3"):
            yield name, f"{name} model\n{json.dumps(table['config'])}".encode()
        if name not in FAMILIES or n % 2:
            yield f"{name}-verify", f"{name} verify\n{json.dumps(table['config'])}".encode()
    dense = tables["mistral-fp8"]["config"]
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    for kind in ("llama", "qwen2", "qwen3"):
        config = {**dense, "model_type": kind, "rope_scaling": scaling}
        yield kind, f"mistral-fp8 model\n{json.dumps(config)}".encode()


def _states() -> Iterator[tuple[str, bytes]]:
    for layout, head in (("hf", "tp"), ("deepseek", "tp-deepseek")):
        said = json.loads((rank_set(layout) / ranksets.TP).read_text())
        yield head, f"{head}\n{json.dumps(said)}".encode()
    yield "member", b"member\n" + ranksets.member(1, 2).encode()
    for scheme in ("", "nvfp4"):
        job, _ = staged(scheme)
        task = job.plan.tasks[0]
        errors = {i.weight.name: [0.5, 0.25, 8.0] for i in task.items if i.encoding}
        record = {"file": task.file, "size": task.size, "sha256": "0" * 64, "overflowed": {},
                  "errors": errors}  # fmt: skip
        yield f"journal-{scheme}", f"journal\n{json.dumps(record)}".encode()
    yield "job", b'job\n{"identity":"@identity","source":"@source"}'
    for name, number in (("run", "41"), ("far", "9" * 999)):
        run = f"run.{number}.0123456789abcdef0123456789abcdef"
        said = f'{{"identity":"@identity","source":"@source","run":"{run}"}}'
        yield f"job-{name}", f"job\n{said}".encode()
    sha = "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5"
    files = [{"name": n, "size": 5, "sha256": sha} for n in ("a.safetensors", "sub/b.safetensors")]
    made = {"tool": "fp8convert", "plan": "@plan", "files": files, "identity": "@identity",
            "source": "@source", "overflowed": {}}  # fmt: skip
    yield "manifest", f"manifest\n{json.dumps(made)}".encode()
    text = '{"a":[1,-2,3.5,1e-7,true,false,null,"\\u00e9\\ud83d\\ude00é"],"b":{}}'
    yield "json", f"json\n{text}".encode()


def _words() -> Iterator[tuple[str, bytes]]:
    for kind, said in (
        ("size", "keep"), ("size", "1.5GiB"), ("size", "150 kb"), ("size", "1000000"),
        ("layers", "0,3"), ("layers", " 1 , 2"), ("ranks", "0,3-5"),
        ("include", "*up_proj*\nx[a-b]?"), ("tokens", "[1,2,3]"), ("tokens", "[[1,2],[3,4]]"),
    ):  # fmt: skip
        yield f"{kind}-{re.sub('[^a-zA-Z0-9.]+', '-', said)}", f"{kind}\n{said}".encode()


if __name__ == "__main__":
    main()
