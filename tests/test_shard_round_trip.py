"""Shard and put together again, cut anew, decode, quantize on the way: always the same weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fp8convert
from fp8convert.settings import Settings

from .quantized import oracle as quantizing
from .quantized import readers
from .sharded import coding, deepseek, families, files, forms, model, oracle, rules
from .sharded.arrays import nbytes
from .sharded.model import Source
from .sharded.runs import Runs
from .sharded.runs import runs as made_runs
from .sharded.sources import source

V3 = ("v3", "v3_bf16", "v31", "v2", "v32")
V4 = ("v4", "v4_base", "v4_bf16")
HF = (
    "llama", "llama_bf16", "llama_tied", "mistral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe",
    "glm4_moe", "minimax_m2", "gpt_oss", "kimi", "v3_nvfp4", "llama_awq", "llama_gptq",
    "qwen2_gptq",
)  # fmt: skip
KEPT: list[tuple[str, int, dict[str, Any]]] = [
    *((id, 8, {"mtp": "keep"}) for id in V3),
    *((id, 4, {"layout": "hf"}) for id in (*HF, *V3, *V4)),
    ("llama", 1, {"layout": "hf"}),
    ("v3", 1, {"mtp": "keep"}),
    ("v3", 2, {"mtp": "keep"}),
    ("sample-deepseek-v3", 2, {"mtp": "keep"}),
    ("v3_modelopt", 4, {"layout": "hf"}),
    ("v3_modelopt", 2, {"layout": "hf", "experts": "cut"}),
    ("sample-mistral-fp8", 4, {"layout": "hf"}),
    ("kimi", 2, {"layout": "hf", "experts": "cut"}),
    ("qwen3_moe", 2, {"layout": "hf", "experts": "cut"}),
    ("gpt_oss-in-bf16", 2, {"layout": "hf", "experts": "cut"}),
    ("llama_tied", 8, {"layout": "hf", "pad_vocab": 128}),
    ("llama", 4, {"layout": "hf", "max_shard_size": 20_000}),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with made_runs(tmp_path_factory.mktemp("shard")) as made:
        yield made


# unshard(shard(x)) == x


@pytest.mark.parametrize(("id", "ranks", "options"), KEPT, ids=str)
def test_the_source_comes_back(id: str, ranks: int, options: dict[str, Any], runs: Runs) -> None:
    """Every tensor, in the file where it was; config, index and companions byte for byte."""
    found = source(id)
    before = runs.source(id)
    after = runs.unshard(runs.shard(id, ranks, **options))
    assert files.by_file(after) == files.by_file(before)
    assert (after / "config.json").read_bytes() == found.config_bytes
    for name, data in found.files.items():
        assert (after / name).read_bytes() == data
    own = {"config.json", "manifest.json", "model.safetensors.index.json"}
    shards = {p.name for p in before.glob("*.safetensors")}
    assert {p.name for p in after.iterdir()} == own | shards | set(found.files)
    readers.check_index(after)
    assert index_of(after) == index_of(before)


def index_of(folder: Path) -> Any:
    """The index, parsed."""
    return json.loads((folder / "model.safetensors.index.json").read_text())


@pytest.mark.parametrize("id", V4)
def test_v4_comes_back_as_it_is_run(id: str, runs: Runs) -> None:
    """Its own layout has ``wo_a`` in BF16 and no tied tables; the weights are the same."""
    found = source(id)
    after = runs.unshard(runs.shard(id, 4))
    expected = oracle._as_v4_runs(found.tensors, found.config)
    assert readers.differing(readers.stored(after), expected) == []


@pytest.mark.parametrize("id", ["v3", "v3_bf16", "v32"])
def test_without_mtp_all_else_comes_back(id: str, runs: Runs) -> None:
    found = source(id)
    after = runs.unshard(runs.shard(id, 4))
    expected = oracle.kept(found.tensors, found.config, "drop")
    assert readers.differing(readers.stored(after), expected) == []
    assert readers.config(after) == {**found.config, "num_nextn_predict_layers": 0}


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("id", ["v3", "v32", "v3_bf16", "v4_base", "v2"])
def test_published_rank_files_are_put_together(id: str, ranks: int, runs: Runs) -> None:
    """Files that the published script wrote, without tp.json: names come from the config."""
    found = source(id)
    folder = runs.new()
    folder.mkdir(parents=True)
    for rank, tensors in enumerate(oracle.deepseek_ranks(found.tensors, found.config, ranks)):
        model.write_shard(folder / f"model{rank}-mp{ranks}.safetensors", tensors)
    (folder / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(fp8convert.Fp8ConvertError, match=r"config\.json"):
        fp8convert.unshard(folder, runs.new())
    path = runs.source(id) / "config.json"
    after = runs.unshard(folder, config=str(path))
    expected = oracle.kept(found.tensors, found.config, "keep" if id in V4 else "drop")
    if id in V4:
        expected = oracle._as_v4_runs(expected, found.config)
    assert readers.differing(readers.stored(after), expected) == []
    assert (after / "tokenizer.json").read_bytes() == b"{}"
    left = 0 if id not in V4 else 1
    assert readers.config(after).get("num_nextn_predict_layers", 0) == left
    shutil.copy(path, folder)
    beside = runs.unshard(folder, max_shard_size=10**6)
    assert readers.differing(readers.stored(beside), expected) == []


def test_small_tiles(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "tile", 4096)
    for id, options in (("v3", {"mtp": "keep"}), ("kimi", {"layout": "hf", "experts": "cut"})):
        folder = runs.new()
        fp8convert.unshard(runs.shard(id, 2, **options), folder, workers=3)
        assert files.by_file(folder) == files.by_file(runs.source(id))


@pytest.mark.parametrize(("tp", "most"), [(None, 1.25), (4, 1.5)])
def test_ranks_are_read_about_once(tp: int | None, most: float, runs: Runs) -> None:
    """Every copy of what all ranks have is read, and compared; by each rank that is written."""
    found = source("sample-deepseek-v3-in-bf16")
    folder = runs.shard(found, 2, mtp="keep")
    read: list[Any] = []
    options = {} if tp is None else {"tp": tp}
    fp8convert.unshard(folder, runs.new(), progress=read.append, io="buffered", **options)
    assert read[-1].read <= most * sum(nbytes(r) for r in files.deepseek_files(folder))


# N ranks are the same weights


@pytest.mark.parametrize(
    ("id", "ranks", "options"),
    [
        ("v3", 8, {"mtp": "keep"}),
        ("v32", 4, {"mtp": "keep"}),
        ("v4", 4, {}),
        ("v4_base", 8, {"layout": "hf"}),
        *((id, 4, {"layout": "hf"}) for id in HF if source(id).config.get("quantization_config")),
        ("kimi", 2, {"layout": "hf", "experts": "cut"}),
        ("v3_modelopt", 2, {"layout": "hf", "experts": "cut"}),
    ],
    ids=str,
)
def test_ranks_decode_to_what_the_source_decodes_to(
    id: str, ranks: int, options: dict[str, Any], runs: Runs
) -> None:
    """Through the part of the package that knows nothing of sharding, and through the oracle."""
    found = source(id)
    folder = runs.shard(id, ranks, **options)
    ours = whole_names(readers.stored(runs.to_bf16(folder)), id, options)
    theirs = readers.stored(runs.to_bf16(runs.source(id)))
    assert ours.keys() <= theirs.keys()
    assert theirs.keys() - ours.keys() <= {"mtp.0.embed.weight", "mtp.0.head.weight"}
    assert readers.differing(ours, {n: theirs[n] for n in ours}) == []
    assert readers.differing(theirs, coding.decoded(found.tensors, found.config)) == []


def whole_names(tensors: readers.Stored, id: str, options: dict[str, Any]) -> readers.Stored:
    """The names in the source, whatever those of the layout are."""
    if options.get("layout") == "hf" or id in V4:
        return tensors
    found = source(id)
    names = {rules.deepseek_rule(n, found.config)[0]: n for n in found.tensors}
    return {names.get(n, n): t for n, t in tensors.items()}


# N to M


@pytest.mark.parametrize(
    ("id", "before", "after", "options"),
    [
        ("v3", 8, 2, {"layout": "deepseek", "mtp": "keep"}),
        ("v3", 2, 8, {"layout": "deepseek", "mtp": "keep"}),
        ("v3", 4, 1, {"layout": "deepseek", "mtp": "keep"}),
        ("v3_bf16", 4, 8, {"layout": "deepseek", "mtp": "keep"}),
        ("v32", 2, 4, {"layout": "deepseek", "mtp": "keep"}),
        ("v4", 4, 2, {"layout": "deepseek"}),
        ("llama", 8, 2, {"layout": "hf"}),
        ("llama", 2, 8, {"layout": "hf"}),
        ("kimi", 4, 2, {"layout": "hf"}),
        ("gpt_oss", 1, 4, {"layout": "hf"}),
        ("minimax_m2", 8, 4, {"layout": "hf"}),
        ("mistral", 4, 8, {"layout": "hf"}),
        ("v3_nvfp4", 2, 4, {"layout": "hf"}),
        ("llama_awq", 4, 8, {"layout": "hf"}),
        ("qwen2_gptq", 8, 2, {"layout": "hf"}),
    ],
    ids=str,
)
def test_ranks_are_cut_anew(
    id: str, before: int, after: int, options: dict[str, Any], runs: Runs
) -> None:
    """As if from the source: every file but the manifest."""
    ours = files.contents(runs.unshard(runs.shard(id, before, **options), tp=after))
    direct = files.contents(runs.shard(id, after, **options))
    ours.pop("manifest.json")
    direct.pop("manifest.json")
    assert ours.keys() == direct.keys()
    assert [n for n in ours if ours[n] != direct[n]] == []


@pytest.mark.parametrize(("first", "second"), [("deepseek", "hf"), ("hf", "deepseek")])
@pytest.mark.parametrize("id", ["v3", "v32", "v3_bf16"])
def test_from_one_layout_to_the_other(id: str, first: str, second: str, runs: Runs) -> None:
    folder = runs.shard(id, 4, layout=first, mtp="keep")
    ours = runs.unshard(folder, tp=2, layout=second)
    direct = runs.shard(id, 2, layout=second, mtp="keep")
    read = files.deepseek_files if second == "deepseek" else files.hf_files
    assert files.differing(read(ours), read(direct)) == {}


def test_twice_and_back(runs: Runs) -> None:
    """8, 2, 4 ranks and together: still the source."""
    folder = runs.shard("v3", 8, mtp="keep")
    for ranks in (2, 4):
        folder = runs.unshard(folder, tp=ranks)
    after = runs.unshard(folder)
    assert files.by_file(after) == files.by_file(runs.source("v3"))
    assert (after / "config.json").read_bytes() == source("v3").config_bytes


def test_ranks_are_a_source_like_any_other(runs: Runs) -> None:
    """``shard_for_tp`` and ``quantize`` of rank files."""
    folder = runs.shard("llama", 4, layout="hf")
    again = runs.shard_folder(folder, 2, layout="hf")
    direct = runs.shard("llama", 2, layout="hf")
    assert files.differing(files.hf_files(again), files.hf_files(direct)) == {}
    ours = readers.stored(runs.quantize(folder, "fp8-channel"))
    theirs = readers.stored(runs.quantize(runs.source("llama"), "fp8-channel"))
    assert readers.differing(ours, theirs) == []


# In the same pass: shard(weights=S) is shard of quantize(x, S)


def aligned() -> Source:
    """An unquantized Llama whose ranks' parts are whole blocks of any scheme."""
    made = families.dense(
        "llama", "Llama", forms.bf16, None, head_dim=128, num_attention_heads=4,
        num_key_value_heads=2, hidden_size=256, intermediate_size=512,
    )  # fmt: skip
    return Source("aligned", made.config, made.tensors)


SCHEMES: list[tuple[str, dict[str, Any]]] = [
    ("fp8-block", {}),
    ("fp8-block", {"block": (32, 64)}),
    ("fp8-block-ue8m0", {}),
    ("fp8-block-ue8m0", {"scale_dtype": "e8m0"}),
    ("fp8-tensor", {}),
    ("int4-group", {"group": 32}),
    ("int4-group", {}),
    ("nvfp4", {}),
    ("mxfp4", {}),
    ("mxfp8", {}),
]


def check_quantized(
    runs: Runs, found: Source, ranks: int, scheme: str, layout: str, options: dict[str, Any]
) -> None:
    """Tensors and configs of one pass against those of two."""
    more = {"layout": layout, "mtp": "keep"}
    one = runs.shard(found, ranks, weights=scheme, **more, **options)
    whole = runs.quantize(runs.source(found), scheme, **options)
    two = runs.shard_folder(whole, ranks, **more)
    read = files.deepseek_files if layout == "deepseek" else files.hf_files
    assert files.differing(read(one), read(two)) == {}
    first = "rank0/" if layout == "hf" else ""
    assert readers.config(one / first) == readers.config(two / first)
    back = runs.unshard(one)
    assert readers.differing(readers.stored(back), readers.stored(whole)) == []
    assert readers.config(back) == readers.config(whole)


@pytest.mark.parametrize(("scheme", "options"), SCHEMES, ids=str)
def test_quantized_in_the_same_pass(scheme: str, options: dict[str, Any], runs: Runs) -> None:
    check_quantized(runs, aligned(), 2, scheme, "hf", options)


@pytest.mark.parametrize("scheme", ["fp8-block", "fp8-block-ue8m0"])
def test_quantized_for_the_layout_deepseek(scheme: str, runs: Runs) -> None:
    check_quantized(runs, source("v3_bf16"), 8, scheme, "deepseek", {})


@pytest.mark.parametrize(
    ("id", "scheme", "options"),
    [
        ("v31", "fp8-block-ue8m0", {}),
        ("glm4_moe", "fp8-channel", {}),
        ("llama", "fp8-block", {"block": (32, 32)}),
        ("llama", "fp8-block", {"block": (16, 32)}),
        ("wide_kimi", "int4-group", {"group": 32}),
        ("v4", "fp8-block", {"block": (32, 32)}),
    ],
    ids=str,
)
def test_from_one_form_to_another(
    id: str, scheme: str, options: dict[str, Any], runs: Runs
) -> None:
    """Copied, inherited or encoded: whatever it would be of the whole."""
    found = source(id) if id != "wide_kimi" else deepseek.kimi(128)
    check_quantized(runs, found, 4, scheme, "hf", options)


@pytest.mark.parametrize("scheme", ["fp8-channel", "int8-channel"])
def test_a_scale_for_a_whole_row_is_shared_by_ranks_that_have_parts_of_it(
    scheme: str, runs: Runs
) -> None:
    """So columns are cut in two passes, which shares it; or each rank has scales of its own."""
    found = aligned()
    with pytest.raises(fp8convert.Fp8ConvertError, match="columns in blocks of"):
        runs.shard(found, 2, weights=scheme, layout="hf")
    whole = runs.quantize(runs.source(found), scheme)
    expected = oracle.hf_ranks(readers.stored(whole), readers.config(whole), 2)
    two = runs.shard_folder(whole, 2, layout="hf")
    assert files.differing(files.hf_files(two), expected) == {}
    assert readers.differing(readers.stored(runs.unshard(two)), readers.stored(whole)) == []
    one = runs.shard(found, 2, weights=scheme, layout="hf", misaligned="requantize")
    for rank, tensors in enumerate(oracle.hf_ranks(found.tensors, found.config, 2)):
        ours = files.hf_rank(one / f"rank{rank}")
        for name in ("self_attn.o_proj", "mlp.down_proj", "self_attn.q_proj"):
            weight = f"model.layers.1.{name}.weight"
            x = np.ascontiguousarray(coding.numbers(tensors[weight]))
            for leaf, part in quantizing.quantized(x, scheme, "BF16").items():
                assert ours[f"model.layers.1.{name}.{leaf}"] == part, (weight, leaf)


def test_quantized_in_small_tiles(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {
        scheme: files.contents(runs.shard(aligned(), 2, weights=scheme, layout="hf", mtp="keep"))
        for scheme in ("fp8-block", "int4-group")
    }
    least = property(lambda self: max(4096, -(-self.needs.tile // 4096) * 4096))
    monkeypatch.setattr(Settings, "tile", least)
    for scheme, contents in expected.items():
        folder = runs.new()
        fp8convert.shard_for_tp(
            runs.source(aligned()), folder, tp=2, weights=scheme, layout="hf", mtp="keep", workers=3
        )
        assert files.contents(folder) == contents
