"""What transformers makes of the samples: twins run, and published forms it can read are equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fp8convert.samples import make_sample

from .test_make_sample import load_json

TOKENS = torch.arange(160)[None]  # past the 128 positions that deepseek-v4 compresses into one

# family -> class that must come out, prefix of weights transformers knows it does not use
MODELS = {
    "deepseek-v4": ("DeepseekV4ForCausalLM", ()),
    "qwen3-fp8": ("Qwen3MoeForCausalLM", ()),
    "kimi-k2-thinking": ("DeepseekV3ForCausalLM", ()),
    "gpt-oss": ("GptOssForCausalLM", ()),
    "mistral-fp8": ("Ministral3ForCausalLM", ()),
    "minimax-m3": ("MiniMaxM2ForCausalLM", ()),
    "modelopt-nvfp4": ("DeepseekV3ForCausalLM", ("model.layers.3.",)),
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def made(folder: Path, family: str, scheme: str) -> Path:
    make_sample(str(folder / scheme), family, scheme=scheme)
    return folder / scheme


def loaded(folder: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The model in ``folder``, and what transformers has to say of its weights."""
    from transformers import AutoModelForCausalLM, DeepseekV3Config

    fields = load_json(folder, "config.json")
    if fields.pop("model_type") == "kimi_k2":  # by its own code it is a deepseek_v3
        del fields["auto_map"]
        options["config"] = DeepseekV3Config(**fields)
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, output_loading_info=True, **options
    )
    return model, info


@pytest.mark.parametrize("family", MODELS)
def test_transformers_runs_the_twin(family: str, tmp_path: Path) -> None:
    name, unused = MODELS[family]
    model, info = loaded(made(tmp_path, family, "bf16"))
    assert type(model).__name__ == name
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert all(key.startswith(unused) for key in info["unexpected_keys"])
    with torch.no_grad():
        logits = model(TOKENS).logits
    assert logits.shape == (1, 160, 1024)
    assert logits.isfinite().all()
    assert logits.float().std() > 0.01


@pytest.mark.parametrize("family", ["kimi-k2-thinking", "gpt-oss"])
def test_transformers_reads_the_published_form_as_the_twin(family: str, tmp_path: Path) -> None:
    """The two formats that transformers decodes on a CPU with nothing else installed."""
    from transformers import Mxfp4Config

    options = {"quantization_config": Mxfp4Config(dequantize=True)} if family == "gpt-oss" else {}
    published, info = loaded(made(tmp_path, family, "published"), **options)
    assert not any(info[key] for key in ("missing_keys", "mismatched_keys", "unexpected_keys"))
    got, want = published.state_dict(), loaded(made(tmp_path, family, "bf16"))[0].state_dict()
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor), name
