"""From a folder to logits: layers, what is refused before anything is read, memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from fp8convert.errors import SchemeError, UsageError
from fp8convert.reference.run import (
    ARCHITECTURES,
    architecture,
    check_tokens,
    logits_of,
    open_model,
    power_of_two,
    steps,
)

from . import hf


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hf.write(tmp_path_factory.mktemp("run") / "model", "qwen3", num_hidden_layers=3)


def test_the_state_goes_from_layer_to_layer(folder: Path) -> None:
    ids, model = hf.tokens(), open_model(folder)
    found = list(steps(model, ids))
    assert [(step.layer, step.kind) for step in found] == [(n, "dense") for n in range(3)]
    x = model.embed(ids)
    for step in found:
        x = model.layer(step.layer, x, ids)
        assert torch.equal(x, step.state)
        assert x.dtype == torch.bfloat16
    logits = logits_of(model, ids)
    assert torch.equal(logits, model.logits(x))
    assert (logits.dtype, logits.shape) == (torch.float32, (2, hf.LENGTH, 96))


def test_layers_may_be_chosen(folder: Path) -> None:
    ids, model = hf.tokens(), open_model(folder)
    only = [step.layer for step in steps(model, ids, [0, 2])]
    assert only == [0, 2]
    x = model.layer(2, model.layer(0, model.embed(ids), ids), ids)
    assert torch.equal(logits_of(model, ids, [0, 2]), model.logits(x))
    assert not torch.equal(logits_of(model, ids), model.logits(x))
    unread = open_model(folder)
    logits_of(unread, ids, [1])
    assert {n.split(".")[2] for n in unread.w.used if ".layers." in n} == {"1"}


@pytest.mark.parametrize("layers", [[3], [0, -1]])
def test_layers_out_of_range_are_refused(folder: Path, layers: list[int]) -> None:
    model = open_model(folder)
    with pytest.raises(UsageError, match=rf"layer {layers[-1]} is out of range: .* has 0 to 2$"):
        logits_of(model, hf.tokens(), layers)
    assert not model.w.used  # nothing was read


def test_no_layer_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="no layer to run"):
        logits_of(open_model(folder), hf.tokens(), [])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[1, 96, 3]], r"token 96 \(sequence 0, position 1\) is out of range: vocab_size is 96"),
        ([[1, 2], [0, -1]], r"token -1 \(sequence 1, position 1\) is out of range"),
        ([[]], r"tokens are float32 \[1, 0\], expected integers \[batch, length\], at least one"),
        ([1, 2], r"tokens are int64 \[2\], expected integers"),
        ([[1.0]], r"tokens are float32 \[1, 1\], expected integers"),
    ],
)
def test_tokens_are_checked(tokens: list[object], message: str, folder: Path) -> None:
    ids = torch.tensor(tokens)
    with pytest.raises(UsageError, match=message):
        check_tokens(ids, 96)
    with pytest.raises(UsageError, match=message):
        logits_of(open_model(folder), ids)
    with pytest.raises(UsageError, match=message):
        next(steps(open_model(folder), ids))


def test_the_last_token_of_the_vocabulary_is_one(folder: Path) -> None:
    check_tokens(torch.tensor([[0, 95]]), 96)
    assert logits_of(open_model(folder), torch.tensor([[0, 95]])).isfinite().all()


@pytest.mark.parametrize("found", ["gpt_oss", None, 3, ["llama"]])
def test_an_architecture_that_is_not_there_is_named(found: object) -> None:
    with pytest.raises(SchemeError) as error:
        architecture({"model_type": found})
    message = str(error.value)
    assert f"model_type is '{found}'" in message or "model_type is \"['llama']\"" in message
    assert all(re.search(rf"\b{name}\b", message) for name in ARCHITECTURES)
    assert "`fp8convert verify`" in message


def test_every_architecture_has_its_class() -> None:
    import importlib

    for place in ARCHITECTURES.values():
        name, _, kind = place.partition(":")
        module = importlib.import_module(f"fp8convert.reference.{name}")
        for method in ("kind", "embed", "layer", "logits"):
            assert callable(getattr(getattr(module, kind), method))


def test_modes_and_devices_are_checked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"device is 'cuda', but torch .* finds no CUDA device"):
        open_model(folder, device="cuda")
    with pytest.raises(UsageError, match="compute is 'fp4'"):
        open_model(folder, "fp4")


def test_no_graph_is_built_with_gradients_on(folder: Path) -> None:
    with torch.enable_grad():
        model, ids = open_model(folder), hf.tokens()
        assert not logits_of(model, ids).requires_grad
        assert not any(step.state.requires_grad for step in steps(model, ids))


def test_fp8_scales_are_powers_of_two_where_the_checkpoint_says_so() -> None:
    assert power_of_two({"quantization_config": {"scale_fmt": "ue8m0"}})
    for said in ({}, {"scale_fmt": "float"}, None):
        assert not power_of_two({"quantization_config": said})
    assert not power_of_two({})
