"""Options that mean nothing are refused by name, before a byte is read; those that do are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fp8convert
from fp8convert.convert import prepare
from fp8convert.errors import UsageError
from fp8convert.options import SCHEMES, Quantize, ToBf16

from .checkpoints import FP8_CONFIG, write
from .quantized.sources import normal

NINE = ("fp8-block", "fp8-block-ue8m0", "fp8-channel", "fp8-tensor", "int8-channel", "int4-group",
        "nvfp4", "mxfp4", "mxfp8")  # fmt: skip
BLOCKED = ("fp8-block", "fp8-block-ue8m0")
# What ``fp8convert.quantize`` takes, as its documentation has it.
KNOWN = ("block", "checksum", "copy_code", "exclude", "group", "include", "io", "like",
         "max_shard_size", "memory", "progress", "push", "require_exact", "scale_dtype",
         "scale_search", "scheme", "scratch", "strict", "workers")  # fmt: skip
NAMES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj")


def refused(words: str, **options: Any) -> None:
    """By the options themselves."""
    with pytest.raises(UsageError) as e:
        Quantize(**options)
    assert words in str(e.value)
    assert e.value.exit_code == 2


@pytest.mark.parametrize("scheme", ["fp8", "FP8-BLOCK", "", None, 8, ["nvfp4"]])
def test_an_unknown_scheme_is_named_with_all_nine(scheme: Any) -> None:
    assert SCHEMES == NINE
    refused("expected one of " + ", ".join(NINE), scheme=scheme)
    refused("scheme '", scheme=scheme)


@pytest.mark.parametrize("scheme", NINE)
def test_options_are_for_schemes_that_have_such_a_thing(scheme: str) -> None:
    """Each option, with a value that is fine where it belongs."""
    owners: dict[str, tuple[Any, tuple[str, ...]]] = {
        "block": ((32, 32), BLOCKED),
        "group": (32, ("int4-group",)),
        "scale_dtype": ("e8m0", ("fp8-block-ue8m0",)),
    }
    for option, (value, schemes) in owners.items():
        if scheme in schemes:
            assert getattr(Quantize(scheme=scheme, **{option: value}), option) == value
        else:
            words = f"{option} is for {' and '.join(schemes)}, not for {scheme}"
            refused(words, scheme=scheme, **{option: value})
    assert Quantize(scheme=scheme, scale_search="mse").scale_search == "mse"


@pytest.mark.parametrize("block", [(1, 1), (1, 128), (128, 1), (32, 32), (3, 5), (1024, 1024)])
def test_blocks(block: tuple[int, int]) -> None:
    for scheme in BLOCKED:
        assert Quantize(scheme=scheme, block=block).block == block


@pytest.mark.parametrize(
    "block",
    [[0, 128], (0, 128), (128, 0), (-1, 128), (1025, 1), (1, 10**9), (128,), (1, 2, 3), (), 128,
     "128x128", (128.0, 128), (True, True), ("128", "128"), (None, 1)],
)  # fmt: skip
def test_blocks_without_meaning(block: Any) -> None:
    refused("expected two integers from 1 to 1024", scheme="fp8-block", block=block)


def test_a_list_is_as_good_as_a_tuple() -> None:
    """As JSON has them: the plan is the same."""
    listed: Any = {"block": [32, 64], "include": ["*a*", "*b*"], "exclude": ["*c*"]}
    made = Quantize(scheme="fp8-block", **listed)
    assert made == Quantize(
        scheme="fp8-block", block=(32, 64), include=("*a*", "*b*"), exclude=("*c*",)
    )
    assert (made.block, made.include, made.exclude) == ((32, 64), ("*a*", "*b*"), ("*c*",))


@pytest.mark.parametrize("option", ["include", "exclude"])
@pytest.mark.parametrize("found", ["*experts*", None, 3, (3,), ["*", None], {"*": 1}])
def test_patterns_without_meaning(option: str, found: Any) -> None:
    """One string is not taken for as many patterns as it has characters."""
    refused(f"{option} ", scheme="fp8-block", **{option: found})
    refused("expected a list of patterns", scheme="fp8-block", **{option: found})


@pytest.mark.parametrize("group", [48, 0, -32, 16, 256, 1, "32", (32,), 64.0])
def test_groups_without_meaning(group: Any) -> None:
    refused("expected one of (32, 64, 128)", scheme="int4-group", group=group)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_groups(group: int) -> None:
    assert Quantize(scheme="int4-group", group=group).group == group


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scale_search": "fast"}, "scale_search 'fast', expected one of plain, mse"),
        ({"scale_search": None}, "scale_search 'None', expected one of plain, mse"),
        ({"scale_dtype": "bf16"}, "scale_dtype 'bf16', expected one of f32, e8m0"),
        ({"scale_dtype": "F32"}, "scale_dtype 'F32', expected one of f32, e8m0"),
        ({"checksum": "md5"}, "checksum 'md5', expected one of sha256, none"),
        ({"max_shard_size": 0}, "max_shard_size '0', expected a positive number of bytes"),
        ({"max_shard_size": -5}, "max_shard_size '-5', expected a positive number of bytes"),
        ({"max_shard_size": 1e9}, "max_shard_size '1000000000.0', expected a positive number"),
        ({"max_shard_size": True}, "max_shard_size 'True', expected a positive number of bytes"),
        ({"max_shard_size": "5GB"}, "max_shard_size '5GB', expected a positive number of bytes"),
    ],
)
def test_values_without_meaning(options: dict[str, Any], words: str) -> None:
    refused(words, scheme="fp8-block-ue8m0", **options)


def test_what_a_terminal_would_obey_is_escaped() -> None:
    refused(r"scheme '\x1b[2J', expected one of", scheme="\x1b[2J")


def test_unknown_options_are_named_with_the_known_ones(tmp_path: Path) -> None:
    """Before the source is looked for."""
    nowhere = tmp_path / "none"
    with pytest.raises(UsageError) as e:
        fp8convert.quantize(nowhere, tmp_path / "dst", "fp8-block", blocks=(1, 1), dtype="float16")
    assert str(e.value) == f"unknown options ['blocks', 'dtype'], known: {sorted(KNOWN)}"
    with pytest.raises(UsageError, match=r"unknown options \['scheme'\]"):
        fp8convert.to_bf16(nowhere, tmp_path / "dst", scheme="fp8-block")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = {f"model.layers.0.{name}.weight": normal(name, 64, 128) for name in NAMES}
    config = {"model_type": "llama", "torch_dtype": "float32"}
    return write(tmp_path_factory.mktemp("options") / "src", [weights], config)


def id_of(source: Path, **options: Any) -> str:
    job = prepare(
        source, source.parent / "dst", Quantize(**{"scheme": "fp8-block-ue8m0"} | options)
    )
    assert json.loads(json.dumps(job.plan.to_dict()))["id"] == job.plan.id
    return job.plan.id


def test_every_option_changes_the_plan(source: Path, tmp_path: Path) -> None:
    """Or a resumption would mix bytes of two conversions."""
    like = write(tmp_path / "like", [coded()], FP8_CONFIG)
    changes: list[dict[str, Any]] = [
        {"scheme": "fp8-block"},
        {"block": (32, 32)},
        {"scale_dtype": "e8m0"},
        {"scale_search": "mse"},
        {"include": ("*q_proj*",)},
        {"exclude": ("*q_proj*",)},
        {"like": str(like)},
        {"require_exact": True},
        {"strict": True},
        {"max_shard_size": 10**6},
        {"checksum": "none"},
        {"copy_code": True},
    ]
    ids = [id_of(source, **change) for change in changes]
    assert len({id_of(source), *ids}) == len(changes) + 1
    assert id_of(source) == id_of(source)  # the control: it is not just any number
    assert id_of(source, scheme="int4-group") != id_of(source, scheme="int4-group", group=32)


def coded() -> dict[str, Any]:
    """One FP8 weight under a name of the source."""
    from .checkpoints import pair

    return dict(pair("model.layers.0.mlp.up_proj.weight", 64, 128))


def test_like_takes_a_path_as_well(source: Path, tmp_path: Path) -> None:
    like = write(tmp_path / "like", [coded()], FP8_CONFIG)
    found = [fp8convert.quantize(source, tmp_path / f"dst{n}", "fp8-block", like=path)
             for n, path in enumerate((str(like), like))]  # fmt: skip
    assert found[0].data == found[1].data
    assert list(found[0].data["quantized"]) == ["model.layers.0.mlp.up_proj.weight"]


def test_options_of_the_other_command_are_its_own() -> None:
    with pytest.raises(TypeError, match="scheme"):
        ToBf16(scheme="fp8-block")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="dtype"):
        Quantize(scheme="fp8-block", dtype="float16")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="scheme"):
        Quantize()  # type: ignore[call-arg]
