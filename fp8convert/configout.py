"""config.json of the output, edited as raw JSON: every key kept but what speaks of quantization.

Also the declarations themselves. They go to the top level, for models of several parts too: there
transformers (``get_hf_quantizer``), vLLM (``get_quant_config``) and SGLang
(``_parse_quant_hf_config``) look first; not all look into ``text_config``, and none further.
Sources: the configs of DeepSeek V3 to V4.1; llm-compressor 0.14 and compressed-tensors 0.19
(``QuantizationConfig``, ``PRESET_SCHEMES``).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from .declared import KEY, Config, mapping
from .errors import SchemeError

# What a loader takes as "this checkpoint is quantized", or as the dtype to load in.
QUANTIZATION_KEYS = (KEY, "compression_config")
BLOCK_KEY = "weight_block_size"
EXPERTS_KEY = "expert_dtype"  # DeepSeek V4's, of its experts' codes
DTYPE_KEYS = ("torch_dtype", "dtype")
MTP_KEYS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules")


class Numbers(NamedTuple):
    """``QuantizationArgs`` of compressed-tensors, as far as forms differ in them.

    ``strategy`` is what shares a scale; ``observer`` names the rule for it, as llm-compressor does:
    here the largest magnitude of what shares it.
    """

    type: str
    num_bits: int
    strategy: str
    group_size: int | None = None
    block_structure: list[int] | None = None
    scale_dtype: str | None = None
    symmetric: bool = True
    dynamic: bool = False

    def to_dict(self) -> Config:
        """Every key that llm-compressor writes, in its order."""
        return {
            "actorder": None,
            "block_structure": self.block_structure,
            "dynamic": self.dynamic,
            "group_size": self.group_size,
            "num_bits": self.num_bits,
            "observer": None if self.dynamic else "memoryless_minmax",
            "observer_kwargs": {},
            "scale_dtype": self.scale_dtype,
            "strategy": self.strategy,
            "symmetric": self.symmetric,
            "type": self.type,
            "zp_dtype": None,
        }


class Form(NamedTuple):
    """What compressed-tensors calls a scheme's output. ``activations`` are None if left alone."""

    format: str
    weights: Numbers
    activations: Numbers | None = None


FP8_INPUTS = Numbers("float", 8, "token", dynamic=True)
INT8_INPUTS = Numbers("int", 8, "token", dynamic=True)
CONFIGS = {  # by scheme
    "fp8-channel": Form("float-quantized", Numbers("float", 8, "channel"), FP8_INPUTS),
    "fp8-tensor": Form("float-quantized", Numbers("float", 8, "tensor"), FP8_INPUTS),
    "int8-channel": Form("int-quantized", Numbers("int", 8, "channel"), INT8_INPUTS),
    "int4-group": Form("pack-quantized", Numbers("int", 4, "group", 128)),
    "nvfp4": Form(
        "nvfp4-pack-quantized",
        Numbers("float", 4, "tensor_group", 16, scale_dtype="torch.float8_e4m3fn"),
    ),
    "mxfp4": Form(
        "mxfp4-pack-quantized", Numbers("float", 4, "group", 32, scale_dtype="torch.uint8")
    ),
    "mxfp8": Form("mxfp8-quantized", Numbers("float", 8, "group", 32, scale_dtype="torch.uint8")),
}
VERSION = "0.19.0"  # of compressed-tensors, whose fields these are


def plain_config(config: Config, dtype: str) -> Config:
    """``config`` for a checkpoint without codecs: every other key, and their order, kept.

    Declarations go, at any depth; the dtype is set where the model or its text part states one.
    """
    out: Config = _without(copy.deepcopy(config))
    for place in _places(out):
        place.pop(EXPERTS_KEY, None)
        for key in DTYPE_KEYS:
            if key in place:
                place[key] = dtype
    _state_dtype(out, dtype)
    return out


def quantized_config(
    config: Config, quantization: Config, dtype: str, v4_experts: str | None = None
) -> Config:
    """``config`` with ``quantization`` as its only declaration; other keys and their order kept.

    A dtype that is stated stays; if there is none, ``torch_dtype`` becomes ``dtype``. DeepSeek V4's
    ``expert_dtype`` becomes ``v4_experts`` where it is, or goes. A V4 config without it gets it:
    vLLM takes its absence as ``fp4``.
    """
    plain = _without(copy.deepcopy(config))
    said = mapping(config.get(KEY))
    if v4_experts is not None and EXPERTS_KEY in said:  # V4.1 has it there
        quantization = {**quantization, EXPERTS_KEY: v4_experts}
    out = {k: quantization if k == KEY else plain[k] for k in config if k == KEY or k in plain}
    out.setdefault(KEY, quantization)
    stated = [place for place in _places(out) if EXPERTS_KEY in place]
    if v4_experts is None:
        for place in stated:
            del place[EXPERTS_KEY]
    elif EXPERTS_KEY not in said and (stated or _is_v4(config)):
        for place in stated or [out]:
            place[EXPERTS_KEY] = v4_experts
    _state_dtype(out, dtype)
    return out


IGNORED = {  # by quant_method: where loaders look for what is not quantized, the first as default
    "fp8": ("modules_to_not_convert", "ignored_layers", "ignore"),
    "compressed-tensors": ("ignore",),
}


def config_without(config: Config, modules: Sequence[str]) -> Config | None:
    """``config`` that lists ``modules`` as not quantized too; None if it has no place for it."""
    out = copy.deepcopy(config)
    for place in _places(out):
        said = mapping(place.get(KEY))
        keys = IGNORED.get(str(said.get("quant_method")))
        if keys:
            key = next((k for k in keys if isinstance(said.get(k), list)), keys[0])
            listed = said.get(key) or []
            said[key] = [*listed, *(m for m in modules if m not in set(listed))]
            return out
    return None


def reblocked_config(config: Config, block: Sequence[int]) -> Config:
    """``config`` with another ``weight_block_size``; SchemeError if that is not how it declares
    its blocks."""
    out = copy.deepcopy(config)
    declared = [p[KEY] for p in _places(out) if BLOCK_KEY in mapping(p.get(KEY))]
    if not declared:
        raise SchemeError(
            f"reblock: config.json declares no {BLOCK_KEY}, so nothing would tell of smaller blocks"
        )
    for said in declared:
        said[BLOCK_KEY] = list(block)
    return out


def config_without_mtp(config: Config) -> Config:
    """``config`` of a model without its MTP layers."""
    out = copy.deepcopy(config)
    for place in _places(out):
        for key in MTP_KEYS:
            if place.get(key):
                place[key] = 0
    return out


def native_fp8(block: Sequence[int], scale_fmt: str | None, ignored: Sequence[str]) -> Config:
    """DeepSeek's declaration: e4m3 with a scale per ``block`` [rows, columns].

    ``scale_fmt`` is ``ue8m0`` for scales that are powers of two; ``ignored`` are module names.
    """
    return {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "modules_to_not_convert": list(ignored),
        "quant_method": "fp8",
        **({"scale_fmt": scale_fmt} if scale_fmt is not None else {}),
        "weight_block_size": list(block),
    }


def compressed_tensors(
    form: str, weights: Numbers, activations: Numbers | None, ignored: Sequence[str]
) -> Config:
    """The declaration of one group, of every linear but the modules ``ignored``."""
    group = {
        "format": form,
        "input_activations": activations.to_dict() if activations is not None else None,
        "output_activations": None,
        "targets": ["Linear"],
        "weights": weights.to_dict(),
    }
    return {
        "config_groups": {"group_0": group},
        "format": form,
        "global_compression_ratio": None,
        "ignore": list(ignored),
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "transform_config": {},
        "version": VERSION,
    }


def compressed_config(scheme: str, group: int | None, ignored: Sequence[str]) -> Config:
    """The declaration of a scheme of ``CONFIGS``; ``group`` is for those that have groups."""
    form = CONFIGS[scheme]
    weights = form.weights
    if group is not None and weights.group_size is not None:
        weights = weights._replace(group_size=group)
    return compressed_tensors(form.format, weights, form.activations, ignored)


def _places(config: Config) -> Iterator[Config]:
    """Where a config speaks of dtypes."""
    yield config
    if isinstance(config.get("text_config"), dict):
        yield config["text_config"]


def _state_dtype(config: Config, dtype: str) -> None:
    if not any(key in place for place in _places(config) for key in DTYPE_KEYS):
        config["torch_dtype"] = dtype  # the name that every version of every loader reads


def _is_v4(config: Config) -> bool:
    return str(config.get("model_type")).startswith("deepseek_v4")


def _without(value: Any) -> Any:
    if isinstance(value, list):
        return [_without(v) for v in value]
    if not isinstance(value, dict):
        return value
    return {k: _without(v) for k, v in value.items() if k not in QUANTIZATION_KEYS}
