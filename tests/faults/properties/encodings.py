"""Random sources to quantize, plain or coded, and what quantizing by the plain rule writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st

import fp8convert
from fp8convert.options import GROUPS, Quantize

from ...quantized import readers, sources
from ...quantized.oracle import SCHEMES, over_elements, part, rounded
from ...quantized.readers import Stored
from ...quantized.sources import EXTREME, PLAIN, Source
from .checkpoints import Checkpoint, Layout, layouts, shapes
from .codings import Kinds
from .forms_float import eight_bits
from .ways import WAYS, Way, place

A, M = "model.layers.0.self_attn", "model.layers.0.mlp"
LEAVES = (f"{A}.q_proj", f"{A}.k_proj", f"{A}.v_proj", f"{A}.o_proj", f"{M}.gate_proj",
          f"{M}.up_proj", f"{M}.down_proj", f"{M}.experts.#.gate_proj",
          f"{M}.experts.#.down_proj")  # fmt: skip
BLOCKS = st.sampled_from([(128, 128), (64, 64), (32, 32), (1, 128), (128, 1)]) | st.tuples(
    st.integers(1, 150), st.integers(1, 150)
)


@dataclass(frozen=True)
class Encoding:
    """A source, how it lies in files, and how it is quantized."""

    source: Source
    layout: Layout
    scheme: str
    options: dict[str, Any]
    way: Way
    block: tuple[int, int] = (0, 0)  # of codes in the source

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def __repr__(self) -> str:
        """Without the numbers."""
        sizes = {n: x.shape for n, x in self.source.values.items()}
        return (f"<{self.source.id} {self.source.dtype} {self.block} {sizes} as {self.scheme} "
                f"{self.options} {self.way} {self.layout}>")  # fmt: skip

    def write(self, folder: Path) -> Path:
        """As files."""
        found = Checkpoint(self.source.id, self.source.config, _stored(self.source), self.layout)
        return found.write(folder)

    def run(self, folder: Path) -> Path:
        """The target, in ``folder``."""
        options = Quantize(scheme=self.scheme, **self.options)
        self.way.run(self.write(folder / "src"), folder / "dst", options)
        return folder / "dst"


def _stored(source: Source) -> Stored:
    tensors = {n: t for shard in source.shards for n, t in shard.items()}
    return {n: sources.as_part(t) for n, t in tensors.items()}


@st.composite
def _kept(draw: st.DrawFn, dtype: str) -> dict[str, Any]:
    """What no scheme touches."""
    made: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (5, 16),
        "model.norm.weight": (33,),
        f"{A}.q_proj.bias": (7,),
        "model.vision.patch.weight": (2, 3, 4, 4),
        f"{M}.gate.weight": (4, 32),
    }
    names = draw(st.lists(st.sampled_from(sorted(made)), unique=True))
    tensors = {n: sources.normal(n, 1, int(np.prod(made[n]))).reshape(made[n]) for n in names}
    return {n: t.to(PLAIN[dtype]).contiguous() for n, t in tensors.items()}


@st.composite
def _sizes(draw: st.DrawFn) -> dict[str, tuple[int, int]]:
    """Some of the weights; often of a width that groups divide."""
    step = draw(st.sampled_from([1, 16, 32, 64, 128]))
    drawn = draw(st.lists(st.sampled_from(LEAVES), min_size=1, max_size=5, unique=True))
    names = [n.replace("#", e) for n in drawn for e in ("01" if "#" in n else "0")]
    return {n: draw(shapes((1, step if draw(st.integers(0, 9)) else 1), 260)) for n in names}


@st.composite
def _how(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A scheme and its options."""
    scheme = draw(st.sampled_from(SCHEMES))
    options: dict[str, Any] = {}
    if scheme.startswith("fp8-block"):
        options["block"] = draw(BLOCKS)
    if scheme == "fp8-block-ue8m0":
        options["scale_dtype"] = draw(st.sampled_from(["f32", "e8m0"]))
    if scheme == "int4-group":
        options["group"] = draw(st.sampled_from(GROUPS))
    return scheme, options


@st.composite
def plain(draw: st.DrawFn) -> Encoding:
    """A BF16, F16 or F32 model of hard numbers."""
    dtype = draw(st.sampled_from(list(PLAIN)))
    made = {}
    for name, (rows, columns) in draw(_sizes()).items():
        grain = (draw(st.sampled_from([1, 32, 128])), draw(st.sampled_from([16, 32, 128])))
        some = draw(st.lists(st.sampled_from(EXTREME[dtype]), min_size=1, max_size=4))
        seed = f"{name} {draw(st.integers(0, 999))}"
        x = sources.patterned(seed, rows, columns, grain, some)
        made[f"{name}.weight"] = x.to(PLAIN[dtype])
    kept = draw(_kept(dtype))
    config = {"model_type": "llama", "torch_dtype": str(PLAIN[dtype]).removeprefix("torch.")}
    values = {n: t.to(sources.torch.float32).numpy() for n, t in made.items()}
    source = Source("plain", config, [made | kept], values, dtype, kept)
    scheme, options = draw(_how())
    assume(scheme != "nvfp4" or all(_has_a_global(source, name) for name in values))
    return Encoding(source, draw(layouts(list(made | kept))), scheme, options, draw(WAYS))


def _has_a_global(source: Source, name: str) -> bool:
    """Whether 2688 / amax is a number of the weight's dtype: else the rule has another answer.

    compressed-tensors takes 1, under which small numbers vanish; ours is F32's, as
    ``test_small_numbers_have_a_finite_global_scale`` has it.
    """
    amax = source.partners_amax(name)
    with np.errstate(over="ignore", under="ignore"):
        inverse = rounded(np.float32(1) / np.float32(amax or 1), source.dtype)
        return bool(np.isfinite(rounded(inverse * np.float32(2688), source.dtype)))


@st.composite
def coded(draw: st.DrawFn) -> Encoding:
    """FP8 in blocks, F32 scales of full mantissas."""
    block = draw(BLOCKS)
    parts: dict[str, Any] = {}
    values = {}
    for name, (rows, columns) in draw(_sizes()).items():
        rng = np.random.default_rng(draw(st.integers(0, 9999)))
        kinds = Kinds(draw(st.sampled_from(["all", "few", "top"])))
        one = eight_bits(name, rng, rows, columns, kinds, block=block)
        parts |= {n: _tensor(p) for n, p in one.parts.items()}
        values[one.name] = one.value
    kept = draw(_kept("BF16"))
    said = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
            "weight_block_size": list(block)}  # fmt: skip
    config = {"model_type": "llama", "torch_dtype": "bfloat16", "quantization_config": said}
    source = Source("fp8", config, [parts | kept], values, "BF16", kept, parts)
    scheme, options = draw(_how())
    return Encoding(source, draw(layouts(list(parts | kept))), scheme, options, draw(WAYS), block)


def _tensor(stored: Any) -> Any:
    tag, shape, data = stored
    dtype = {t: d for d, t in sources.TAGS.items()}[tag]
    raw = np.frombuffer(data, np.uint8).copy()
    return sources.torch.from_numpy(raw).view(dtype).reshape(shape)


def expected(case: Encoding) -> Stored:
    """By the plain rule; where blocks lie within those of the source, its codes and its scales."""
    out = case.source.expected(case.scheme, **case.options)
    if not case.source.coded:
        return out
    for name in case.source.fitting(case.scheme, case.options.get("group", 128)):
        if inherits(case, name):
            out |= inherited(case, name)
    return out


def grain(case: Encoding, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """What shares a scale in the target, where its codes are e4m3 and its scales any number."""
    if case.scheme == "fp8-block":
        block: tuple[int, int] = case.options["block"]
        return block
    return (1, shape[1]) if case.scheme == "fp8-channel" else None


def inherits(case: Encoding, name: str) -> bool:
    """Whether every block of the target lies within one of the source."""
    shape = case.source.values[name].shape
    to = grain(case, shape)
    return to is not None and all(
        begin // b == (min(begin + t, n) - 1) // b
        for n, t, b in zip(shape, to, case.block, strict=True)
        for begin in range(0, n, t)
    )


def inherited(case: Encoding, name: str) -> Stored:
    """The same codes, the scale of each block that of the source's around it."""
    shape = case.source.values[name].shape
    to = grain(case, shape)
    assert to is not None
    stored = case.source.coded[f"{name}_scale_inv"].numpy()
    wide = over_elements(stored, case.block, shape)
    leaf = "weight_scale_inv" if case.scheme == "fp8-block" else "weight_scale"
    module = name.removesuffix("weight")
    scale = part(np.ascontiguousarray(wide[:: to[0], :: to[1]]), "F32")
    return {name: sources.as_part(case.source.coded[name]), module + leaf: scale}


def encoding(case: Encoding) -> None:
    """``quantize`` writes the codes and scales of the plain rule; what it keeps is the same."""
    with place() as folder:
        fitting = case.source.fitting(case.scheme, case.options.get("group", 128))
        if not fitting:
            refused(case, folder)
            return
        target = case.run(folder)
        assert readers.differing(readers.stored(target), expected(case)) == []
        assert readers.reported(target).keys() == set(fitting)


def refused(case: Encoding, folder: Path) -> None:
    """Nothing fits: that is said, and nothing is written."""
    with pytest.raises(fp8convert.Fp8ConvertError) as caught:
        case.run(folder)
    assert caught.value.exit_code == 1
    assert [p.name for p in folder.iterdir()] == ["src"]


def encodings() -> st.SearchStrategy[Encoding]:
    """Plain ones and coded ones."""
    return plain() | coded()
