"""Section C: quantization data that is wrong, and what each command must say of it.

Cases are one step away from a good source of the lab. A command that decodes a weight refuses what
no correct checkpoint has. ``shard-for-tp`` and ``unshard`` move codes and scales and decode none
(docs/sharding.md: "bytes as they are"), so a value cannot be wrong to them. What they promise, and
what is tested: the output holds the source's very bytes, and whoever decodes these later, and
``verify``, finds the same fault.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ...quantized.oracle import Part
from .tensors import Spoiled, numbers

# A row-parallel weight [72, 256] in two blocks: NVFP4 encodes it, two ranks have a block each.
WEIGHT = "model.layers.0.mlp.down_proj.weight"
SCALE = f"{WEIGHT}_scale_inv"
NEW = "model.layers.0.mlp.new_proj.weight"


class Command(NamedTuple):
    """A command line: words, the work of the lab whose source it takes, options."""

    words: str
    source: str
    options: tuple[str, ...] = ()


TP = ("--tp", "2", "--layout")
COMMANDS = {
    "to-bf16": Command("to-bf16", "to-bf16"),
    "quantize": Command("quantize", "to-bf16", ("--scheme", "nvfp4")),
    "quantize-copy": Command("quantize", "to-bf16", ("--scheme", "fp8-block")),  # as it is already
    "quantize-bf16": Command("quantize", "quantize", ("--scheme", "fp8-tensor")),
    "shard": Command("shard-for-tp", "to-bf16", (*TP, "deepseek")),
    "shard-hf": Command("shard-for-tp", "to-bf16", (*TP, "hf")),
    "shard-bf16": Command("shard-for-tp", "to-bf16", (*TP, "hf", "--weights", "bf16")),
    "unshard": Command("unshard", "unshard-deepseek"),
    "unshard-hf": Command("unshard", "unshard-hf"),
}
ENCODING = ("quantize", "quantize-copy")
DECODING = ("to-bf16", "shard-bf16", *ENCODING)
SHARDING = ("shard", "shard-hf")
WHOLE = (*DECODING, *SHARDING)  # those that take a whole checkpoint
UNSHARDING = ("unshard", "unshard-hf")
EVERY = (*WHOLE, *UNSHARDING)


class Outcome(NamedTuple):
    """How a command ends.

    ``refused``: by headers and config; nothing is written. ``stopped``: while decoding; what is
    finished stays, and the message says where. ``moved``: done, the source's bytes; whoever decodes
    them is told ``words``. ``done``: done, with the right numbers; ``words`` are of the summary.
    Words may hold ``{file}``, the shard of the weight, and ``{name}``, what it calls the weight.
    """

    kind: str
    words: tuple[str, ...]


class Case(NamedTuple):
    """One fault; ``item`` is what section C calls it. ``options`` are the fault, or show it."""

    name: str
    item: str
    spoil: Callable[[Spoiled], object]
    outcomes: Mapping[str, Outcome]
    options: tuple[str, ...] = ()


# Ways to spoil


def unspoiled(copy: Spoiled) -> None:
    """The fault is in the options."""


def scale(edit: Callable[[Part], Part]) -> Callable[[Spoiled], None]:
    """Another scale."""
    return lambda copy: copy.change(SCALE, edit)


def value(number: float) -> Callable[[Spoiled], None]:
    """Another first scale."""
    return scale(lambda part: numbers(part, np.float32, number))


def code(byte: int) -> Callable[[Spoiled], None]:
    """Another first code."""
    return lambda copy: copy.change(WEIGHT, lambda part: numbers(part, np.uint8, byte))


def wider(part: Part) -> Part:
    """Twice as many rows."""
    tag, shape, data = part
    return tag, (2 * shape[0], *shape[1:]), 2 * data


def declare(**fields: Any) -> Callable[[Spoiled], None]:
    """With other fields in the declaration; it is there in the end, if it was not before."""
    return lambda copy: copy.configure(
        lambda config: config.setdefault("quantization_config", {}).update(fields)
    )


def undeclare(copy: Spoiled) -> None:
    """Without it."""
    copy.configure(lambda config: config.pop("quantization_config"))


def to_other_shard(copy: Spoiled) -> None:
    """The scale to the shard of the weight; the lab's are never there."""
    assert copy.file(SCALE) != copy.file(WEIGHT)
    copy.move(SCALE, copy.file(WEIGHT))


def all_zero(copy: Spoiled) -> None:
    """The scale 0 over codes that are all 0."""
    value(0.0)(copy)
    tag, shape, data = copy.part(WEIGHT)
    codes = np.frombuffer(data, np.uint8).reshape(shape).copy()
    codes[:, :128] = 0
    copy.change(WEIGHT, lambda _: (tag, shape, codes.tobytes()))


def unknown_name(copy: Spoiled) -> None:
    """A tensor more."""
    copy.add(NEW, ("BF16", (2, 2), bytes(8)))


def nan_of_bf16(copy: Spoiled) -> None:
    """A NaN in what is to be encoded."""
    copy.change(WEIGHT, lambda part: numbers(part, np.uint16, 0x7FC0))


# What follows


def same(commands: tuple[str, ...], kind: str, *words: str) -> dict[str, Outcome]:
    """One outcome for all of ``commands``."""
    return dict.fromkeys(commands, Outcome(kind, words))


def on_rank(*words: str) -> dict[str, Outcome]:
    """What holds the ranks against tp.json says."""
    return same(UNSHARDING, "refused", *words)


def odd_value(*words: str) -> dict[str, Outcome]:
    """A value that no correct checkpoint has: found by what decodes."""
    place = ("'{file}'", "'{name}'")
    moving = (*SHARDING, *UNSHARDING)
    return same(DECODING, "stopped", *place, *words) | same(moving, "moved", f"'{WEIGHT}'", *words)


def odd_scale(number: str) -> dict[str, Outcome]:
    """The same of a scale."""
    return odd_value(f"scale {number} at block row 0, column 0", "expected a finite number above 0")


GRID = "F32 or BF16 or F16 or F8_E8M0 or U8 [1, 2] for codes [72, 256] in blocks of [128, 128]"
SCALES = ("{file}", f"weight '{WEIGHT}'", f"scales '{SCALE}' are")
STALE = ("the config declares fp8, but no tensor is coded", "quantization_config")
UNDECLARED = "it is F8_E4M3, but no quantization_config says how it is scaled"
MANY = "and 40 more"
TP_3 = ("num_attention_heads is 4, which 3 ranks do not divide", "up to 64, expected 1, 2, 4",
        "n_routed_experts is 4")  # fmt: skip
TP_4 = (f"4 ranks cut 12 weights inside their blocks of scales: '{WEIGHT}'",
        "256 columns in blocks of 128, 64 for a rank",
        "Numbers of ranks up to 64 that cut none: 1, 2.")  # fmt: skip
TOP = ("4,946",)  # elements of the first block, with such a scale

CASES = (
    Case("scale-missing", "scale missing", lambda copy: copy.drop(SCALE),
         same(WHOLE, "refused", "{file}", f"'{WEIGHT}'", "F8_E4M3 but has no scale",
              f"expected a tensor '{SCALE}'")
         | on_rank("is missing on rank 0, tp.json lists it", "scale")),
    Case("scale-orphaned", "scale orphaned", lambda copy: copy.drop(WEIGHT),
         same(WHOLE, "refused", "model-00002-of-000003.safetensors", f"'{SCALE}'",
              f"belongs to a coded weight '{WEIGHT}'", "no such weight")
         | on_rank("is missing on rank 0, tp.json lists it", "weight")),
    Case("scale-elsewhere", "scale in another shard (fine)", to_other_shard, same(WHOLE, "done")),
    Case("scale-shape", "scale of the wrong shape", scale(wider),
         same(WHOLE, "refused", *SCALES, "F32 [2, 2], expected", GRID)
         | on_rank("'{file}'", "scale", "is F32 [2, 1], expected F32 [1, 1] on rank 0")),
    Case("scale-dtype", "scale of the wrong dtype", scale(lambda part: ("I32", *part[1:])),
         same(WHOLE, "refused", *SCALES, "I32 [1, 2], expected", GRID)
         | on_rank("'{file}'", "scale", "is I32 [1, 1], expected F32 [1, 1] on rank 0")),
    Case("block", "declared block disagrees with shapes", declare(weight_block_size=[64, 64]),
         same(WHOLE, "refused", *SCALES, "F32 [1, 2], expected", "[2, 4] for codes [72, 256] in "
              "blocks of [64, 64]", MANY)
         | same(UNSHARDING, "refused", f"'{WEIGHT}'", "in blocks of [64, 64]")),
    Case("scale-0", "scale 0", value(0.0),
         odd_value("scale 0 at block row 0, column 0", "codes are not all zero")),
    Case("scale-0-of-zeros", "scale 0 (fine where all codes are 0)", all_zero,
         same(("to-bf16", "shard-bf16"), "done")
         | same((*SHARDING, *UNSHARDING, "quantize-copy"), "moved")),
    Case("scale-negative", "scale negative", value(-1.0), odd_scale("-1.0")),
    Case("scale-nan", "scale NaN", value(np.nan), odd_scale("nan")),
    Case("scale-inf", "scale Inf", value(np.inf), odd_scale("inf")),
    Case("code-nan", "NaN codes", code(0x7F), odd_value("a NaN code at row 0, column 0")),
    Case("code-minus-nan", "NaN codes", code(0xFF), odd_value("a NaN code at row 0, column 0")),
    Case("bf16-nan", "NaN in what is to be encoded", nan_of_bf16,
         same(("quantize-bf16",), "stopped", "'{file}'", "'{name}'", "nan at row 0, column 0",
              "expected finite values")),
    Case("overflow", "a product that overflows BF16: counted", value(3e38),
         same(("to-bf16", "shard-bf16"), "done", *TOP, "products overflowed")
         | same(("quantize",), "stopped", "'{file}'", "'{name}'", *TOP, "cannot be encoded")
         | same((*SHARDING, *UNSHARDING, "quantize-copy"), "moved")),
    Case("overflow-strict", "a product that overflows BF16: --strict refuses", value(3e38),
         same(("to-bf16", "shard-bf16"), "stopped", "'{file}'", "'{name}'", *TOP,
              "elements overflow BF16 (refused by strict)"), ("--strict",)),
    Case("undeclared", "FP8 tensors without a declared scheme", undeclare,
         same(WHOLE, "refused", "{file}", f"'{WEIGHT}'", UNDECLARED, MANY)
         | same(UNSHARDING, "refused", f"'{WEIGHT}'", UNDECLARED)),
    Case("nothing-coded", "declared scheme without FP8 tensors",
         declare(quant_method="fp8", weight_block_size=[128, 128]),
         same(("quantize-bf16",), "refused", *STALE)),
    Case("unknown-method", "unknown quant_method", declare(quant_method="fp99"),
         same(EVERY, "refused", "config.json: quantization_config.quant_method is 'fp99'; known: ",
              "fp8 (blocks of weight_block_size")),
    Case("tp-3", "tensor-parallel size that does not divide", unspoiled,
         same((*SHARDING, *UNSHARDING), "refused", *TP_3), ("--tp", "3")),
    Case("tp-4", "tensor-parallel size that cuts a block", unspoiled,
         same(("shard-hf", "unshard-hf"), "refused", *TP_4), ("--tp", "4")),
    Case("unknown-name", "unknown tensor names for a layout", unknown_name,
         same((*SHARDING, "shard-bf16"), "refused", "names that layout", f"does not know: '{NEW}'")
         | on_rank(f"rank 0 has '{NEW}', which tp.json does not list")),
)  # fmt: skip
