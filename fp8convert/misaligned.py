"""What is written of weights that ranks cut inside their blocks of scales."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .codecs.fp8_block import Fp8Block, grid_shape
from .codecs.scales import E8M0
from .codecs.window import Window
from .configout import reblocked_config
from .cuts import Cut
from .declared import Config
from .encoding.carried import Repeated
from .encoding.encoder import Part
from .encoding.lossless import Way, encoding
from .encoding.targets import Target
from .errors import SchemeError, shown
from .plan import Item
from .quantizer import encoded
from .schemes.weight import Weight
from .writers import Kept, Writer, whole

Block = tuple[int, int]


def block_of(weight: Weight) -> Block | None:
    """Rows and columns of DeepSeek's blocks; None for every other form."""
    codec = weight.codec
    if not isinstance(codec, Fp8Block) or len(weight.parts) != 2:
        return None
    rows, columns = codec.block
    return (rows, columns) if rows is not None and columns is not None else None


class Requantized(Writer):
    """Each slice encoded anew as the whole is: blocks begin where the slice begins."""

    def __init__(self, like: Target | None, model: str, powers: bool, search: bool) -> None:
        """``like`` None: as the source has it; ``model`` is the dtype of the model."""
        self.like, self.model, self.powers, self.search = like, model, powers, search

    def step(self, weight: Weight, axis: int) -> int:
        """Anywhere."""
        return 1

    def tensors(self, weight: Weight) -> tuple[Part, ...]:
        """Those of the scheme."""
        return self._target(weight).parts(weight)

    def items(self, weight: Weight, piece: Weight) -> tuple[Item, ...]:
        """Encoded by the slice's own largest magnitudes."""
        to = self._target(weight)
        shared = f"{to.scheme} has a scale of the whole tensor" if to.shares else None
        if why := to.misfit(piece) or shared:
            raise SchemeError(
                f"weight {shown(weight.name)}: a rank's part cannot be encoded by itself: {why}"
            )
        how = Way(False, precision=to.precision(weight))
        return encoded(piece, encoding(piece, to, self.search, how, ()))

    def codes(self, weight: Weight) -> bool:
        """All are."""
        return True

    def config(self, config: Config) -> Config:
        """As it is."""
        return config

    def _target(self, weight: Weight) -> Target:
        if self.like is not None:
            return self.like
        block = block_of(weight)
        name = weight.parts[1].name if block else ""
        known = (f"{weight.name}_scale_inv", f"{weight.name.rpartition('.')[0]}.scale")
        if block is None or name not in known:
            raise SchemeError(
                f"weight {shown(weight.name)}: requantize takes FP8 in blocks, found "
                f"{weight.codec.to_dict()}"
            )
        scales = weight.parts[1].dtype
        powers = self.powers or scales in E8M0
        scheme = "fp8-block-ue8m0" if powers else "fp8-block"
        dtype = scales if scales in (*E8M0, "F32") else "F32"
        return Target(scheme, block, 128, dtype, name == known[1], self.model)


class Reblocked(Kept):
    """Codes as they are, scales repeated for smaller blocks: exact."""

    def __init__(self, block: Block) -> None:
        self.block = block

    def step(self, weight: Weight, axis: int) -> int:
        """Between the smaller blocks."""
        return self.block[axis - len(weight.shape)]

    def tensors(self, weight: Weight) -> tuple[Part, ...]:
        """As they are, with more scales."""
        codes, scales, *rest = super().tensors(weight)
        return (codes, scales._replace(shape=grid_shape(weight.shape, self.block)), *rest)

    def items(self, weight: Weight, piece: Weight) -> tuple[Item, ...]:
        """Slices of the codes, and the scales of their blocks."""
        codec = piece.codec
        phase = (codec.top, codec.left) if isinstance(codec, Window) else (0, 0)
        block = block_of(weight)
        assert block
        how = Repeated(block, self.block, phase, piece.shape)
        scales = Weight(weight.parts[1].name, how, (piece.parts[1],))
        codes, _, *rest = super().items(weight, piece)
        return (codes, whole(scales, piece.parts[1].dtype), *rest)

    def config(self, config: Config) -> Config:
        """With the smaller blocks."""
        return reblocked_config(config, self.block)


def smaller_block(weights: Iterable[Weight], cuts: Sequence[Cut], ranks: int) -> Block:
    """The largest block within all those of ``weights`` that no cut parts; SchemeError if the
    weights have none, or different ones."""
    blocks = {block_of(w) for w in weights}
    if len(blocks) != 1 or (block := blocks.pop()) is None:
        raise SchemeError("reblock takes checkpoints with one size of blocks, of FP8 weights")
    rows, columns = block
    for cut in cuts:
        if cut.share.axis == 0:
            rows = math.gcd(rows, cut.width(ranks))
        else:
            columns = math.gcd(columns, cut.width(ranks))
    return rows, columns
