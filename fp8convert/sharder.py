"""Planning ``shard-for-tp``: what each rank gets of each weight. No tensor byte is read.

A rank's part of a weight is a weight made of slices of the stored tensors, so that it is copied,
decoded or encoded as any other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from .catalogue import CONFIG, Catalogue
from .choice import fused
from .classes import mtp_layer
from .codecs.gptq import Gptq
from .codecs.raw import Raw
from .codecs.slices import filled, sliced, stacked
from .cuts import Cut, inside_blocks, misfits, refused_by_engines
from .declared import experts_in, layers_of
from .encoding.encoder import Encoding
from .errors import Fp8ConvertError, SchemeError, listed, shown
from .layouts.base import RankLayout
from .layouts.shares import WHOLE, Share
from .misaligned import Reblocked, Requantized, block_of, smaller_block
from .options import TARGETS, ShardForTp
from .plan import Item
from .planner import refuse
from .quantizer import Encoded
from .schemes.weight import Weight
from .writers import Decoded, Kept, Writer, slice_of

VOCABULARY = "vocab_size"


class Given(NamedTuple):
    """A weight that is written, how the ranks share it, and who writes it."""

    weight: Weight
    share: Share
    size: int  # along the axis, padding included
    writer: Writer

    @property
    def is_padded(self) -> bool:
        """Whether the ranks have more than there is: a plain table, cut by rows."""
        return self.share.axis is not None and self.size > self.weight.shape[self.share.axis]

    def piece(self, rank: int, ranks: int) -> Weight | None:
        """What ``rank`` has of it."""
        found = self.share.range(self.size, rank, ranks)
        if found is None or self.share.axis is None:
            return None if found is None else self.weight
        if self.is_padded:
            return _padded(self.weight, *found)
        return slice_of(self.weight, self.share.axis, *found)


def _padded(weight: Weight, begin: int, end: int) -> Weight:
    """Rows of a table, and rows of zeros where it has no more."""
    (table,) = weight.parts
    lo, hi = min(begin, table.shape[0]), min(end, table.shape[0])
    zeros = filled(table.name, table.dtype, (end - begin - (hi - lo), *table.shape[1:]), 0)
    pieces = [p for p in (sliced(table, 0, lo, hi), zeros) if p.shape[0]]
    return weight._replace(parts=(stacked(pieces, 0),))


class Sharing(NamedTuple):
    """What is written, what is not, and what a user is told."""

    given: tuple[Given, ...]
    dropped: tuple[str, ...]
    apart: tuple[str, ...]  # weights whose ranks cannot be put together
    decoded: tuple[str, ...]  # weights that are decoded though others are not
    without_mtp: bool
    mended: bool  # whether some are cut inside blocks
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


class Sharer:
    """Decides who writes what of each weight; refuses what cannot be cut."""

    def __init__(
        self, catalogue: Catalogue, layout: RankLayout, writer: Writer, options: ShardForTp,
        model: str, powers: bool,
    ) -> None:  # fmt: skip
        """``model`` is the model's dtype, ``powers`` whether its scales are powers of two."""
        self.layout, self.writer, self.options = layout, writer, options
        self.model, self.powers = model, powers
        self.mtp = options.mtp or layout.mtp
        self.config, self.layers = catalogue.config, layers_of(catalogue.config)

    def share(self, weights: Sequence[Weight]) -> Sharing:
        """Of all ``weights``, in their order."""
        if self.mtp == "drop" and self.layers is None:
            raise SchemeError(
                "config.json: num_hidden_layers is missing: MTP layers come after them"
            )
        kept = [w for w in weights if not self._is_dropped(w.name)]
        dropped = [w.name for w in weights if self._is_dropped(w.name)]
        shares = {w.name: self._share(w) for w in kept}
        if unknown := [name for name, share in shares.items() if share is None]:
            raise SchemeError(
                f"{len(unknown):,} names that layout {self.options.layout} does not know: "
                f"{listed(unknown)}"
            )
        given = [self._given(w, share) for w in kept if (share := shares[w.name])]
        self._check_experts(given)
        cuts = {g.weight.name: self._cut(g) for g in given if g.share != WHOLE}
        refuse(misfits(cuts.values(), self.options.tp))
        missed = [cut for cut in cuts.values() if cut.misses(self.options.tp)]
        decoded = [g.weight.name for g in given if g.writer is not self.writer]
        notes = [f"left out, {len(dropped):,} tensors: {listed(dropped)}"] if dropped else []
        without = any(mtp_layer(name, self.layers) is not None for name in dropped)
        sharing = Sharing(
            tuple(given), tuple(dropped), (), tuple(decoded), without and self.mtp == "drop",
            bool(missed), tuple(self._odd_ranks(given)), tuple(notes),
        )  # fmt: skip
        if not missed:
            return sharing
        mended = self._mended(sharing, missed, list(cuts.values()))
        if left := [g.weight.name for g in mended.given if self._cut(g).misses(self.options.tp)]:
            raise Fp8ConvertError(f"internal: still cut inside blocks: {listed(left)}")
        return mended

    def _odd_ranks(self, given: Sequence[Given]) -> Iterator[str]:
        """What is right for all ranks together, but odd in one of them."""
        numbered = [
            g.weight.name for g in given
            if isinstance(g.writer, Kept) and isinstance(g.weight.codec, Gptq)
            and g.weight.codec.reordered and g.share.axis == 1
        ]  # fmt: skip
        if numbered and self.options.tp > 1:
            yield (
                f"g_idx of {len(numbered):,} weights, such as {shown(numbered[0])}, counts groups "
                "in the whole weight on every rank: a reader of one rank alone may refuse it"
            )

    def _is_dropped(self, name: str) -> bool:
        beyond = self.mtp == "drop" and mtp_layer(name, self.layers) is not None
        return beyond or self.layout.dropped(name)

    def _share(self, weight: Weight) -> Share | None:
        return self.layout.share(weight.name, weight.shape)

    def _given(self, weight: Weight, share: Share) -> Given:
        plain = self.layout.plain(weight.name) and self.writer.codes(weight)
        writer = Decoded(self.model) if plain else self.writer
        size = weight.shape[share.axis] if share.axis is not None else 1
        multiple = self.options.pad_vocab
        if multiple is None or share.of != VOCABULARY or not size % multiple:
            return Given(weight, share, size, writer)
        if not isinstance(weight.codec, Raw) or writer.codes(weight):
            raise SchemeError(f"weight {shown(weight.name)} is coded: pad_vocab takes plain tables")
        padded = -(-size // multiple) * multiple
        return Given(weight, replace(share, units=padded), padded, writer)

    def _check_experts(self, given: Sequence[Given]) -> None:
        """Every layer has as many as the config says: none is missing, and none is no rank's."""
        of, count = experts_in(self.config)
        if self.options.n_experts not in (None, count):
            held = f"{of} is {count} in {CONFIG}" if of else f"{CONFIG} speaks of none"
            raise SchemeError(f"n_experts is {self.options.n_experts}, but {held}")
        found: dict[tuple[str, str], set[int]] = {}
        for g in given:
            around, dot, rest = g.weight.name.partition(".experts.")
            number, _, leaf = rest.partition(".")
            if dot and number.isascii() and number.isdigit() and leaf.endswith("weight"):
                found.setdefault((around, leaf), set()).add(int(number))
        for (around, leaf), numbers in found.items() if of else ():
            first = next(n for n in range(len(numbers) + 1) if n not in numbers)
            if not len(numbers) == first == count:
                raise SchemeError(
                    f"{around}.experts: {leaf} of {len(numbers):,} experts, expected {count:,}: "
                    f"{of} in {CONFIG} (number {first} is not there)"
                )

    def _cut(self, g: Given) -> Cut:
        axis = g.share.axis
        step = 1 if axis is None else g.writer.step(g.weight, axis)
        return Cut(g.weight.name, g.share, g.size, step)

    def _mended(self, sharing: Sharing, missed: Sequence[Cut], cuts: Sequence[Cut]) -> Sharing:
        """With other writers for the weights that are cut inside blocks."""
        ranks, how = self.options.tp, self.options.misaligned
        in_fp8 = self._in_fp8(sharing)
        quotes = refused_by_engines([c for c in missed if c.name in in_fp8], ranks)
        if how == "error":
            said = [inside_blocks(missed, cuts, ranks), *quotes]
            if isinstance(self.writer, Encoded) and any(c.step >= c.size for c in missed):
                scheme = self.writer.to.scheme
                said.append(f"A scale of {scheme} is of all ranks: quantize first, then shard.")
            raise SchemeError(
                "\n".join([*said, "Or choose another --misaligned of shard-for-tp than error."])
            )
        sharing = sharing._replace(warnings=(*sharing.warnings, *quotes))
        if how == "reblock":
            return self._reblocked(sharing, missed)
        if how == "bf16":
            return self._decoded(sharing, {cut.name for cut in missed})
        return self._requantized(sharing, {cut.name for cut in missed})

    def _in_fp8(self, sharing: Sharing) -> Collection[str]:
        """Weights written in FP8 blocks, of whose sizes engines are known to speak."""
        if isinstance(self.writer, Encoded):
            return self.writer.choice.chosen if self.writer.to.native else ()
        return {g.weight.name for g in sharing.given if block_of(g.weight)}

    def _decoded(self, sharing: Sharing, names: set[str]) -> Sharing:
        """With them what engines read in one precision with them."""
        keys = {fused(name) or name for name in names}
        coded = [g.weight.name for g in sharing.given if g.writer.codes(g.weight)]
        found = tuple(name for name in coded if (fused(name) or name) in keys)
        sharing = sharing._replace(decoded=(*sharing.decoded, *found))
        note = f"decoded, as ranks cut inside blocks: {len(found):,} weights, {listed(found)}"
        return _by(sharing, Decoded(self.model), set(found), note)

    def _requantized(self, sharing: Sharing, names: set[str]) -> Sharing:
        """Each rank's part by itself."""
        search = self.options.scale_search == "mse"
        like = self.writer.to if isinstance(self.writer, Encoded) else None
        writer = Requantized(like, TARGETS[self.model], self.powers, search)
        found = tuple(sorted(names))
        note = (
            f"encoded anew for each rank, as it is cut inside blocks: {len(found):,} weights, "
            f"{listed(found)}"
        )
        return _by(sharing._replace(apart=found), writer, names, note)

    def _reblocked(self, sharing: Sharing, missed: Sequence[Cut]) -> Sharing:
        """All coded weights on smaller blocks: the config can say but one size."""
        if self.options.layout == "deepseek":
            raise SchemeError("reblock: layout deepseek knows blocks of 128 x 128 only")
        if not isinstance(self.writer, Kept):
            raise SchemeError("reblock goes with weights that are kept; else choose --block")
        coded = [g.weight for g in sharing.given if g.weight.codec.coded]
        writer = Reblocked(smaller_block(coded, missed, self.options.tp))
        rows, columns = writer.block
        note = f"scales repeated for blocks of {rows} x {columns}, in {len(coded):,} weights"
        return _by(sharing, writer, {w.name for w in coded}, note)


def _by(sharing: Sharing, writer: Writer, names: set[str], note: str) -> Sharing:
    """With ``names`` written by another writer."""
    given = (g._replace(writer=writer) if g.weight.name in names else g for g in sharing.given)
    return sharing._replace(given=tuple(given), notes=(*sharing.notes, note))


def renamed(items: Sequence[Item], layout: RankLayout) -> tuple[Item, ...]:
    """``items`` as ``layout`` calls them."""
    if not layout.renames:
        return tuple(items)
    encoding = items[0].encoding
    if encoding:
        parts = tuple(p._replace(name=layout.renamed(p.name)) for p in encoding.parts)
        encoding = replace(encoding, parts=parts)
    return tuple(_renamed(i, layout, encoding) for i in items)


def _renamed(item: Item, layout: RankLayout, encoding: Encoding | None) -> Item:
    """With another dtype for the same bytes, if the layout wants one."""
    weight, name, kept = item.weight, layout.renamed(item.weight.name), item.dtype
    dtype, shape = (kept, ()) if encoding else layout.stored_as(name, kept, item.shape)
    parts = weight.parts
    if dtype != kept:
        parts = (parts[0]._replace(dtype=dtype, shape=shape),)
    weight = Weight(name, weight.codec, parts, weight.dropped)
    return Item(weight, dtype, 0, item.nbytes, encoding, item.part)
