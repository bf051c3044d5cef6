"""Random models cut for ranks, by the plain rule and by the package; and the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fp8convert
from fp8convert.options import ShardForTp, ToBf16, Unshard

from ...quantized import oracle as quantizing
from ...quantized import readers
from ...quantized.readers import Stored
from ...sharded import coding, files, oracle, rules
from .models import Refused, Sharding, ranks_of
from .ways import place


def expected(case: Sharding) -> list[Stored]:
    """With what ``misaligned`` says done to the weights that a cut would part."""
    source, options = case.source, case.options
    tensors, config, how = source.tensors, source.config, options["misaligned"]
    cuts = {k: options[k] for k in ("mtp", "experts") if k in options}
    kept = oracle.kept(tensors, config, options["mtp"])
    if options.get("weights", "keep") != "keep":
        return ranks_of(tensors, config, case.tp, options)
    try:
        names = oracle.misaligned(kept, config, options["layout"], case.tp, **cuts)
    except rules.Unfit as e:
        raise Refused(str(e)) from e
    if how == "error" or not names:
        return ranks_of(tensors, config, case.tp, options)
    if how == "bf16":
        alike = oracle.fused(names, kept, config)
        whole = oracle.decoded_some(kept, config, alike)
        return ranks_of(whole, config, case.tp, options)
    block = config.get("quantization_config", {}).get("weight_block_size")
    if not block:
        raise Refused("no blocks")
    if how == "reblock":
        return reblocked(kept, config, case, cuts)
    return requantized(kept, config, names, case)


def reblocked(kept: Stored, config: Any, case: Sharding, cuts: dict[str, Any]) -> list[Stored]:
    """Scales repeated for the largest blocks that no cut parts."""
    if case.options["layout"] == "deepseek":
        raise Refused("one size of blocks")
    try:
        block = oracle.common_block(kept, config, case.tp, **cuts)
    except (rules.Unfit, ValueError) as e:
        raise Refused(str(e)) from e
    return ranks_of(*oracle.reblocked(kept, config, block), case.tp, case.options)


def requantized(kept: Stored, config: Any, names: set[str], case: Sharding) -> list[Stored]:
    """Every rank's part of these by amax / 448 of its own blocks."""
    parts = coding.coded(kept, config)
    gone = {n for name in names for n in parts[name]}
    others = {n: t for n, t in kept.items() if n not in gone}
    found = ranks_of(others, config, case.tp, case.options)
    block = tuple(config["quantization_config"]["weight_block_size"])
    hf = case.options["layout"] == "hf"
    for name in sorted(names):
        x = coding.weight_of(name, parts[name], kept, config)
        if hf:
            new, rule = name, rules.hf_rule(name, config, case.options["experts"])
        else:
            new, rule = rules.deepseek_rule(name, config)
        for rank in range(case.tp):
            along = rules.span(rule, x.shape[rule.axis or 0], rank, case.tp)
            assert along is not None
            cut = x[along[0] : along[1]] if rule.axis == 0 else x[:, along[0] : along[1]]
            leaf = "weight_scale_inv" if hf else "scale"
            made = quantizing.quantized(np.ascontiguousarray(cut), "fp8-block", "BF16",
                                        block=block, scale_leaf=leaf)  # fmt: skip
            found[rank] |= {new.removesuffix("weight") + k: v for k, v in made.items()}
    return found


# The property


def sharding(case: Sharding) -> None:
    """Every rank's files are slices by the plain rule, or it is refused; and the way back."""
    with place() as folder:
        src, ranks = case.written.write(folder / "src"), folder / "ranks"
        options = ShardForTp(tp=case.tp, **case.options)
        try:
            wanted = expected(case)
        except Refused:
            check_refused(case, src, ranks, options)
            return
        case.way.run(src, ranks, options)
        read = files.hf_files if case.options["layout"] == "hf" else files.deepseek_files
        assert files.differing(read(ranks), wanted) == {}
        back(case, folder)


def check_refused(case: Sharding, src: Path, dst: Path, options: ShardForTp) -> None:
    """And nothing is left."""
    with pytest.raises(fp8convert.Fp8ConvertError) as caught:
        case.way.run(src, dst, options)
    assert caught.value.exit_code == 1
    assert [p.name for p in dst.parent.iterdir()] == ["src"]


def back(case: Sharding, folder: Path) -> None:
    """Put together again it is the source; also by way of another number of ranks."""
    source = case.source
    if case.options["misaligned"] != "error" or case.options.get("weights", "keep") != "keep":
        return
    whole = oracle.kept(source.tensors, source.config, case.options["mtp"])
    if case.options["layout"] == "hf" and "quantization_config" in source.config:
        case.way.run(folder / "ranks", folder / "plain", ToBf16())
        plain = coding.decoded(whole, source.config)
        assert readers.differing(readers.stored(folder / "plain"), plain) == []
    case.way.run(folder / "ranks", folder / "whole", Unshard())
    check_whole(case, folder / "whole", whole)
    layout = case.options["layout"]
    own = {"layout": layout, "mtp": "keep", "misaligned": "error"}
    if layout == "hf":
        own |= {"experts": "owner", "pad_vocab": None}
    options = Unshard(tp=case.again, layout=layout)
    try:
        wanted = ranks_of(whole, source.config, case.again, own)
    except Refused:
        with pytest.raises(fp8convert.Fp8ConvertError):
            case.way.run(folder / "ranks", folder / "other", options)
        return
    case.way.run(folder / "ranks", folder / "other", options)
    read = files.hf_files if layout == "hf" else files.deepseek_files
    assert files.differing(read(folder / "other"), wanted) == {}
    case.way.run(folder / "other", folder / "whole again", Unshard())
    check_whole(case, folder / "whole again", whole)


def check_whole(case: Sharding, folder: Path, whole: Stored) -> None:
    """Every tensor in the file where it was; config and companions byte for byte."""
    pairs = zip(case.layout.files, case.layout.names, strict=True)
    wanted = {file: {n: whole[n] for n in names if n in whole} for names, file in pairs}
    found = files.by_file(folder)
    assert found == {file: tensors for file, tensors in wanted.items() if tensors}
    written = folder.parent / "src"
    if len(whole) == len(case.source.tensors):
        assert (folder / "config.json").read_bytes() == (written / "config.json").read_bytes()
    for name, data in case.written.companions.items():
        assert (folder / name).read_bytes() == data
