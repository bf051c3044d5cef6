"""The small files beside the weights: which of them a converted checkpoint keeps."""

from __future__ import annotations

from .catalogue import Catalogue
from .layouts import hf
from .plan import Copy

# What a loader or a reader of the licence needs, by name; weights, quantization sidecars, model
# cards and images stay behind and are listed in the manifest.
NEVER = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf", ".h5", ".npz", ".onnx",
         ".index.json")  # fmt: skip
MAX_COMPANION = 100_000_000  # they are copied whole; the largest tokenizers have 40 MB
COPIED_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".tiktoken")
COPIED_STEMS = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY", "THIRD_PARTY")
STALE = ("config.json", "manifest.json", "hf_quant_config.json", "quant_model_description.json",
         "quantize_config.json", "quantization_config.json", "quant_config.json")  # fmt: skip


def companions(catalogue: Catalogue, copy_code: bool) -> tuple[list[Copy], list[str]]:
    """Files to copy, and the names of those that stay behind."""
    copies, not_copied = [], []
    shards = set(catalogue.shard_names)
    for name in catalogue.folder.names():
        if name in shards or name in ("config.json", hf.INDEX) or name.startswith("."):
            continue
        wanted = _is_companion(name, copy_code) and not (catalogue.folder.root / name).is_dir()
        size = catalogue.folder.size(name) if wanted else 0
        if wanted and size <= MAX_COMPANION:
            copies.append(Copy(name, size))
        else:
            not_copied.append(name)
    return copies, not_copied


def _is_companion(name: str, copy_code: bool) -> bool:
    if name in STALE or name.lower().endswith(NEVER):
        return False
    if name.endswith(".py"):
        return copy_code
    return name.endswith(COPIED_SUFFIXES) or name.upper().startswith(COPIED_STEMS)
