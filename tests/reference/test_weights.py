"""Weights: how they are rounded, read in bands, put on ranks; what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fp8convert import open_checkpoint, to_bf16
from fp8convert.errors import FormatError, SchemeError, UsageError
from fp8convert.reference import weights as module
from fp8convert.reference.groups import Threads
from fp8convert.reference.source import Named
from fp8convert.reference.weights import Fault, Weights, copies

from ..checkpoints import FP8_CONFIG, pair, write
from ..formats import deepseek_v4
from . import fp8
from .held import Held, random, weights

UE8M0 = {**FP8_CONFIG, "quantization_config": {
    **FP8_CONFIG["quantization_config"], "scale_fmt": "ue8m0",
}}  # fmt: skip


@pytest.fixture(params=[1 << 22, 1], ids=["one band", "bands of 128 rows"])
def bands(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BAND_ELEMENTS", request.param)


def opened(folder: Path, compute: str, **options: Any) -> Weights:
    return Weights(Named(open_checkpoint(folder)), compute, **options)


@pytest.mark.parametrize("compute", ["bf16", "fp32", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_matrix_is_rounded_as_the_mode_says(compute: str, dtype: torch.dtype) -> None:
    stored = random(6, 5).to(dtype)
    tensors = {"a": stored, "v": stored[0]} if dtype != torch.bfloat16 else {"a": stored.float()}
    found = weights(tensors, compute).get("a")
    rounded = stored.float() if compute == "fp32" else stored.bfloat16().float()
    assert found.dtype == torch.float32
    assert torch.equal(found, rounded)
    if "v" in tensors:  # norms and biases keep what they have
        assert torch.equal(weights(tensors, compute).get("v"), stored[0].float())
    assert torch.equal(weights(tensors, compute).get("a", exact=True), stored.float())


def test_what_is_coded_is_rounded_to_bf16_in_every_mode() -> None:
    stored = random(6, 5)
    for compute in ("bf16", "fp32", "fp8"):
        found = Weights(Held({"a": stored}, "a"), compute)
        assert torch.equal(found.get("a", exact=True), stored.bfloat16().float())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_integers_stay_integers(dtype: torch.dtype) -> None:
    stored = torch.tensor([[1, 0], [1, 1]]).to(dtype)
    found = weights({"a": stored, "one": stored[0, 0]}).get("a")
    assert found.dtype == torch.int64
    assert torch.equal(found, stored.long())


def test_no_graph_is_built_with_gradients_on() -> None:
    w = weights({"a.weight": random(6, 5), "a.bias": random(6)})
    with torch.enable_grad():
        x = w.linear(random(2, 3, 5), "a")
    assert not x.requires_grad
    assert x.grad_fn is None


def test_memory_is_torchs_own_and_aligned() -> None:
    """A product's bits may depend on where in memory its factors begin."""

    class Shifted(Held):
        def read(self, name: str, rows: slice | None = None) -> Any:
            return np.concatenate([np.zeros(1, np.float32), super().read(name).ravel()])[1:]

    source = Shifted({"a": random(30)})
    assert source.read("a").ctypes.data % 64
    found = Weights(source, "fp32").get("a")
    assert found.data_ptr() % 64 == 0
    assert torch.equal(found, source.tensors["a"])


@pytest.mark.usefixtures("bands")
@pytest.mark.parametrize("compute", ["bf16", "fp32"])
@pytest.mark.parametrize("shape", [(300, 96), (128, 7), (1, 200)])
def test_a_product_is_that_of_the_whole(compute: str, shape: tuple[int, int]) -> None:
    stored, bias = random(*shape), random(shape[0], seed=2)
    w = weights({"a.weight": stored, "a.bias": bias}, compute)
    x = random(2, 3, shape[1], seed=1).to(w.dtype)
    whole = stored if compute == "fp32" else stored.bfloat16()
    expected = x.double() @ whole.double().T
    torch.testing.assert_close(w.product(x, "a.weight"), expected.float(), rtol=1e-5, atol=1e-5)
    out = w.linear(x, "a")
    assert out.dtype == w.dtype
    torch.testing.assert_close(
        out, (expected + bias).to(w.dtype), rtol=2**-7 if compute == "bf16" else 1e-5, atol=1e-5
    )


@pytest.mark.usefixtures("bands")
def test_it_is_counted_what_was_read() -> None:
    source = Held({"a.weight": random(300, 96), "table": random(50, 8)})
    w = Weights(source, "bf16")
    w.product(random(2, 96), "a.weight")
    assert w.bytes_decoded == 300 * 96 * 4
    assert w.largest_band == min(module.BAND_ELEMENTS // 96 // 128 * 128 or 128, 300) * 96 * 4
    w.embed("table", torch.tensor([[3, 4, 3]]), 50)
    assert w.bytes_decoded == 300 * 96 * 4 + 2 * 8 * 4  # only the rows that are asked for
    assert w.used == {"a.weight", "table"}
    assert source.reads[-2:] == [("table", slice(3, 4)), ("table", slice(4, 5))]


CODED = {**pair("a.weight", 300, 200), **pair("b.weight", 128, 96, 1), "b.bias": random(128)}


@pytest.mark.usefixtures("bands")
@pytest.mark.parametrize("compute", ["bf16", "fp32"])
def test_fp8_and_its_bf16_copy_give_the_same_bits(compute: str, tmp_path: Path) -> None:
    write(tmp_path / "fp8", [CODED])
    to_bf16(tmp_path / "fp8", tmp_path / "bf16")
    one, other = (opened(tmp_path / folder, compute) for folder in ("fp8", "bf16"))
    for name, columns in (("a", 200), ("b", 96)):
        x = random(7, columns).to(one.dtype)
        found = one.linear(x, name)
        assert torch.equal(found, other.linear(x, name))
        assert found.abs().max() > 0


@pytest.mark.usefixtures("bands")
@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize(("name", "columns"), [("a.weight", 200), ("b.weight", 96)])
def test_fp8_is_the_published_step(
    name: str, columns: int, power_of_two: bool, tmp_path: Path
) -> None:
    w = opened(write(tmp_path / "made", [CODED]), "fp8", power_of_two=power_of_two)
    x = random(3, columns).bfloat16()
    values, scales = fp8.act_quant(x.float().numpy(), power_of_two)
    codes = CODED[name].float().numpy()
    grid = CODED[f"{name}_scale_inv"].numpy()
    expected = fp8.gemm(values, scales, codes, grid, (128, 128))
    size = fp8.gemm(np.abs(values), scales, np.abs(codes), grid, (128, 128))
    found = w.product(x, name).numpy()
    assert (np.abs(found - expected) <= 2e-6 * size).all()
    rounded = opened(tmp_path / "made", "bf16").product(x, name).numpy()
    assert np.abs(rounded - expected).max() > 1e-3 * np.abs(expected).max()  # not the same thing


@pytest.mark.usefixtures("bands")
def test_mxfp4_in_fp8_has_a_scale_for_32_channels(tmp_path: Path) -> None:
    case = deepseek_v4.flash()
    w = opened(write(tmp_path / "made", case.shards, case.config), "fp8", power_of_two=True)
    name = "layers.1.ffn.experts.0.w1.weight"  # [128, 256]
    x = random(3, 256).bfloat16()
    values, scales = fp8.act_quant(x.float().numpy(), True)
    dequantized = values * scales.repeat(128, 1)
    expected = dequantized.astype(np.float64) @ case.expected[name].double().numpy().T
    np.testing.assert_allclose(w.product(x, name).numpy(), expected, rtol=1e-4, atol=1e-6)
    assert w.bytes_decoded == 128 * 256 * 4


def test_weights_that_are_not_fp8_are_bf16_in_fp8() -> None:
    stored = {"a.weight": random(40, 96)}
    x = random(3, 96).bfloat16()
    found, expected = (weights(stored, c).product(x, "a.weight") for c in ("fp8", "bf16"))
    assert torch.equal(found, expected)


FAULT = Fault("a.weight", (128, 256), (128, 200), 4.0)


@pytest.mark.usefixtures("bands")
@pytest.mark.parametrize("compute", ["bf16", "fp32", "fp8"])
def test_a_fault_is_one_block_whose_scale_is_another(compute: str, tmp_path: Path) -> None:
    wrong = {**CODED, "a.weight_scale_inv": CODED["a.weight_scale_inv"].clone()}
    wrong["a.weight_scale_inv"][1, 1] *= 4
    right = opened(write(tmp_path / "right", [CODED]), compute)
    x = random(3, 200).to(right.dtype)
    before = right.product(x, "a.weight")
    expected = opened(write(tmp_path / "wrong", [wrong]), compute).product(x, "a.weight")
    right.fault = FAULT
    found = right.product(x, "a.weight")
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    changed = (found != before).any(0)
    assert changed.tolist() == [False] * 128 + [True] * 128 + [False] * 44
    right.fault = None
    assert torch.equal(right.product(x, "a.weight"), before)


def test_missing_and_misshapen_weights_are_named() -> None:
    w = weights({"a.weight": random(6, 5), "v": random(5), "b.weight": random(6)})
    x = random(2, 5)
    with pytest.raises(SchemeError, match="weight 'none' is missing, the model needs it"):
        w.get("none")
    assert w.maybe("none") is None
    with pytest.raises(FormatError, match=r"weight 'v' is \[5\], expected \[4\]"):
        w.get("v", (4,))
    with pytest.raises(FormatError, match=r"weight 'v' is \[5\], expected a matrix"):
        w.product(x, "v")
    with pytest.raises(FormatError, match=r"'a.weight' is \[6, 5\], expected 4 columns"):
        w.product(random(2, 4), "a.weight")
    with pytest.raises(FormatError, match=r"'a.weight' is \[6, 5\], expected 7 rows$"):
        w.linear(x, "a", rows=7)
    with pytest.raises(FormatError, match=r"'a.weight' is \[6, 5\], expected 7 rows on all ranks"):
        w.embed("a.weight", torch.tensor([[0]]), 7)
    with pytest.raises(FormatError, match=r"'a.weight' is \[6, 5\], expected 4 columns"):
        w.embed("a.weight", torch.tensor([[0]]), 6, 4)
    with pytest.raises(FormatError, match=r"'a.weight' is \[6, 5\], expected 7 rows on all ranks"):
        w.logits(x, "a.weight", 7)
    with pytest.raises(SchemeError, match=r"weight 'a.bias' is missing"):
        w.linear(x, "a", bias=True)
    with pytest.raises(UsageError, match="compute is 'int8'"):
        weights({}, "int8")
    with pytest.raises(UsageError, match="device is 'tpu'"):
        weights({}, device="tpu")


def test_a_bias_that_should_not_be_or_is_of_another_length() -> None:
    w = weights({"a.weight": random(6, 5), "a.bias": random(1)})
    with pytest.raises(SchemeError, match=r"weight 'a.bias' is there, but the model has no such"):
        w.linear(random(2, 5), "a", bias=False)
    for bias in (True, None):
        with pytest.raises(FormatError, match=r"'a.bias' is \[1\], expected \[6\]"):
            w.linear(random(2, 5), "a", bias=bias)


def on_ranks(ranks: list[dict[str, Tensor]], call: Any) -> list[Tensor]:
    """``call(weights)`` of each rank's tensors, which exchange sums."""
    group = Threads(len(ranks))
    made = [weights(held, group=group.member(n)) for n, held in enumerate(ranks)]
    return group.run(lambda rank: call(made[rank]))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_table_over_ranks_is_the_whole(ranks: int) -> None:
    """Of 10 rows: three ranks have 4 each, the last two of them padding."""
    table, ids = random(10, 6), torch.tensor([[0, 9, 3], [5, 9, 4]])
    size = -(-10 // ranks)
    padded = torch.cat([table, torch.full((size * ranks - 10, 6), 1e9)])
    held = [{"t": padded[n * size : (n + 1) * size]} for n in range(ranks)]
    for found in on_ranks(held, lambda w: w.embed("t", ids, 10)):
        assert torch.equal(found, table[ids])
    x = random(2, 3, 6, seed=1)
    for found in on_ranks(held, lambda w: w.logits(x, "t", 10)):
        torch.testing.assert_close(found, x @ table.T)


def test_inputs_over_ranks_are_summed_and_a_bias_is_added_once() -> None:
    whole, bias, x = random(6, 8), random(6), random(3, 8, seed=1)
    expected = x @ whole.T + bias
    cut = [{"o.weight": whole[:, n * 4 : n * 4 + 4], "o.bias": bias} for n in range(2)]
    group = Threads(2)
    made = [weights(held, group=group.member(n)) for n, held in enumerate(cut)]
    both = group.run(lambda n: made[n].linear(x[:, n * 4 : n * 4 + 4], "o", whole=8, rows=6))
    twice = Threads(4)  # ranks 2 and 3 have what 0 and 1 have
    four = [weights(cut[n % 2], group=twice.member(n)) for n in range(4)]
    shared = twice.run(lambda n: four[n].linear(x[:, n % 2 * 4 : n % 2 * 4 + 4], "o", whole=8))
    copied = on_ranks([{"o.weight": whole, "o.bias": bias}] * 2, lambda w: w.linear(x, "o", 8))
    for found in (*both, *shared, *copied):
        torch.testing.assert_close(found, expected)
    with pytest.raises(FormatError, match=r"'o.weight' is .*, expected 12 rows"):
        group.run(lambda n: made[n].linear(x[:, n * 4 : n * 4 + 4], "o", whole=8, rows=12))


def test_rows_over_ranks_are_at_least_a_share() -> None:
    group = Threads(2)
    x = random(1, 8)
    made = [weights({"a.weight": random(4, 8)}, group=group.member(n)) for n in range(2)]
    for rows in (4, 7, 8):
        assert made[0].linear(x, "a", rows=rows).shape == (1, 4)
    for rows in (3, 9):
        with pytest.raises(FormatError, match=f"expected {rows} rows"):
            made[0].linear(x, "a", rows=rows)


def test_copies() -> None:
    assert [copies(4, c, 8) for c in (1, 2, 4, 8)] == [1, 1, 2, 4]
