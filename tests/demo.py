"""``make demo``: make block-scaled samples, convert them, check every bit, run the models."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

DEMO = Path("demo")
SOURCE, TARGET = DEMO / "sample-fp8", DEMO / "sample-bf16"
V4, V4_FP8 = DEMO / "sample-v4", DEMO / "sample-v4-fp8"


def main() -> None:
    """The main job of the project, on a sample, in a screenful."""
    shutil.rmtree(DEMO, ignore_errors=True)
    DEMO.mkdir()
    run("make-sample", SOURCE, "--family", "deepseek-v3", "--size", "tiny")
    run("inspect", SOURCE)
    run("to-bf16", SOURCE, TARGET)
    check_bits()
    load_in_transformers()
    requantize()
    ranks()
    other_families()
    parity()
    print(f"\nThe checkpoints are in {DEMO}/; remove it when you like.")


def run(*arguments: object) -> None:
    """One command, shown as a user would type it."""
    words = [str(a) for a in arguments]
    print("\n$ fp8convert", *words, flush=True)
    program = Path(sys.executable).with_name("fp8convert")
    subprocess.run([program, *words], check=True)


def check_bits() -> None:
    """Every tensor against a plain loop written from the published formula."""
    from .oracle import dequantize_all, differing, load

    expected = dequantize_all(load(SOURCE))
    ours = load(TARGET)
    wrong = differing(ours, expected)
    if wrong:
        sys.exit(f"NOT bit-identical to the plain loop: {len(wrong)} tensors, first {wrong[0]}")
    elements = sum(t.numel() for t in ours.values())
    print(f"\nchecked: {len(ours)} tensors, {elements:,} elements, each bit as the plain loop's")


def load_in_transformers() -> None:
    """The output is an ordinary BF16 checkpoint: a forward pass through transformers."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    model = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.bfloat16)
    ids = tokenizer("The quick brown fox", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(ids).logits
    if not torch.isfinite(logits).all():
        sys.exit("the converted model computes NaN or infinity")
    kind = type(model).__name__
    print(f"loaded: transformers {kind}, logits {list(logits.shape)}, all finite")


def requantize() -> None:
    """Two of the ways back: V4's FP4 experts as FP8, which loses nothing; the model in NVFP4."""
    import fp8convert

    from .oracle import differing, load

    run("make-sample", V4, "--family", "deepseek-v4", "--size", "tiny")
    run("quantize", V4, V4_FP8, "--scheme", "fp8-block-ue8m0", "--require-exact")
    for folder in (V4, V4_FP8):
        fp8convert.to_bf16(folder, DEMO / f"{folder.name}-bf16")
    before, after = (load(DEMO / f"{folder.name}-bf16") for folder in (V4, V4_FP8))
    if wrong := differing(after, before):
        sys.exit(f"NOT the same weights: {len(wrong)} tensors, first {wrong[0]}")
    print(f"checked: decoded, all {len(after)} tensors are the same bits as before")
    run("quantize", TARGET, DEMO / "sample-nvfp4", "--scheme", "nvfp4")


def ranks() -> None:
    """Cut for two ranks in both layouts, and put together again: the same bytes."""
    from .oracle import differing, load

    for layout in ("deepseek", "hf"):
        cut, whole = DEMO / f"ranks-{layout}", DEMO / f"ranks-{layout}-whole"
        run("shard-for-tp", SOURCE, cut, "--tp", 2, "--layout", layout, "--mtp", "keep")
        run("unshard", cut, whole)
        if wrong := differing(load(whole), load(SOURCE)):
            sys.exit(f"NOT what was cut: {len(wrong)} tensors, first {wrong[0]}")
        print(f"checked: every tensor of {whole.name} is what it was before it was cut")


def other_families() -> None:
    """A small checkpoint of every other family, against the twin that was never quantized."""
    import fp8convert
    from fp8convert.inspection import inspect
    from fp8convert.samples import FAMILIES, make_sample

    from .oracle import differing, load

    print(f"\n{'family':<18}{'scheme':<20}{'weights decoded':>16}  against the unquantized twin")
    for family in [f for f in FAMILIES if f != "deepseek-v3"]:
        coded, twin, ours = (DEMO / f"{family}{end}" for end in ("", "-twin", "-bf16"))
        make_sample(str(coded), family)
        make_sample(str(twin), family, scheme="bf16")
        manifest = fp8convert.to_bf16(coded, ours)
        wrong = differing(load(ours), load(twin))
        if wrong:
            sys.exit(f"{family}: NOT bit-identical: {len(wrong)} tensors, first {wrong[0]}")
        scheme, decoded = inspect(coded).scheme["scheme"], manifest.data["weights_decoded"]
        print(f"{family:<18}{scheme:<20}{decoded:>16}  every bit the same", flush=True)


def parity() -> None:
    """What was made computes what the source does: logits of each, by the reference model."""
    from fp8convert.parity.compare import Options, compare
    from fp8convert.parity.tokens import Wanted

    run("verify", TARGET, "--against", SOURCE)
    print(f"\n{'parity with ' + SOURCE.name:<24}{'profile':<18}{'relative rms':>13}{'KL max':>11}")
    judged = {
        TARGET: "identical",
        DEMO / "ranks-deepseek": "reduction-order",
        DEMO / "ranks-hf": "reduction-order",
        DEMO / "sample-nvfp4": "requantized",
    }
    for candidate, profile in judged.items():
        result = compare(SOURCE, candidate, Options(Wanted(seed=0, length=32), profile=profile))
        logits = result["heads"][0]
        print(
            f"{candidate.name:<24}{profile:<18}{logits['relative_rms']:>13.2e}"
            f"{logits['kl_max']:>11.1e}  {result['verdict']}",
            flush=True,
        )
        if result["verdict"] != "pass":
            sys.exit(f"{candidate.name}: {'; '.join(result['reasons'])}")
    print("In each run a scale block was changed, too, and that was noticed.")


if __name__ == "__main__":
    main()
