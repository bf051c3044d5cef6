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
STALE = ("config.json", "manifest.json", "tp.json", "model_args.json")
DECLARATIONS = ("hf_quant_config.json", "quant_model_description.json", "quantize_config.json",
                "quantization_config.json", "quant_config.json")  # fmt: skip


def companions(
    catalogue: Catalogue, copy_code: bool, declarations: bool = False
) -> tuple[list[Copy], list[str]]:
    """Files to copy, ``target`` being their names without folder, and names that stay behind.

    ``declarations``: weights stay as they are, and so what says how they are coded.
    """
    never = STALE if declarations else (*STALE, *DECLARATIONS)
    copies, not_copied = [], _beside_ranks(catalogue)
    shards, home = set(catalogue.shard_names), catalogue.home
    for plain in catalogue.folder.names(home.rstrip("/")):
        name = home + plain
        if name in shards or plain in ("config.json", hf.INDEX) or plain.startswith("."):
            continue
        wanted = plain not in never and _is_companion(plain, copy_code)
        wanted = wanted and not catalogue.folder.is_folder(name)
        size = catalogue.folder.size(name) if wanted else 0
        if wanted and size <= MAX_COMPANION:
            copies.append(Copy(name, size, plain))
        else:
            not_copied.append(name)
    return copies, not_copied


def _beside_ranks(catalogue: Catalogue) -> list[str]:
    """What lies beside the folders of ranks; each of these has the companions, so one is asked."""
    if not catalogue.home:
        return []
    ranks = {name.split("/")[0] for name in catalogue.shard_names}
    return [n for n in catalogue.folder.names() if n not in ranks and not n.startswith(".")]


def _is_companion(name: str, copy_code: bool) -> bool:
    if name.lower().endswith(NEVER):
        return False
    if name.endswith(".py"):
        return copy_code
    return name.endswith(COPIED_SUFFIXES) or name.upper().startswith(COPIED_STEMS)
