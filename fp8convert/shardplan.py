"""The plan of ``shard-for-tp``: files of each rank, and what says where everything is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from . import ranksets
from .catalogue import CONFIG, Catalogue
from .codecs.base import Codec
from .codecs.fp4_block import Fp4Block
from .codecs.fp8_block import Fp8Block
from .codecs.raw import Raw
from .companions import companions
from .configout import config_without, config_without_mtp
from .declared import KEY, Config
from .errors import SchemeError, shown
from .layouts import deepseek, hf
from .layouts.base import RankLayout
from .layouts.deepseek_models import V4, DeepSeek
from .layouts.model_args import model_args, untold
from .layouts.parallel import Parallel
from .misaligned import Reblocked
from .options import KEEP, Quantize, ShardForTp, ToBf16
from .plan import Copy, Plan, Task
from .planner import config_text, printable, read, refuse_strictly, same_config, task
from .quantizer import Encoded, dtype_of, has_powers, needs_of
from .ranksets import RankSet
from .schemes.base import Reading, Scheme
from .schemes.weight import Weight
from .sharder import Sharer, Sharing
from .shards import APART
from .spreading import Files, Ranks
from .teams import least_tile
from .writers import RAW, Decoded, Kept, Writer

MODEL_ARGS = "model_args.json"


def plan_shard(catalogue: Catalogue, scheme: Scheme, options: ShardForTp) -> Plan:
    """Plan the files of the ranks; refuse here or not at all."""
    reading = read(catalogue, scheme, options)
    writer = _writer(catalogue, reading, options)
    layout = _layout(catalogue, options)
    if isinstance(layout, DeepSeek):
        _check_form(writer, reading.weights, layout)
    model, powers = dtype_of(catalogue.config), has_powers(catalogue)
    sharing = Sharer(catalogue, layout, writer, options, model, powers).share(
        _weights(reading, writer)
    )
    output = _Output(catalogue, options, sharing, writer, layout)
    own = writer.warnings if isinstance(writer, Encoded) else ()
    warnings = (*own, *sharing.warnings, *output.warnings())
    if options.strict:
        refuse_strictly(warnings)
    ranks = Ranks(catalogue, layout, options, sharing.given)
    tasks = tuple(_tasks(ranks.files, options, bool(sharing.apart)))
    needs = needs_of([i for t in tasks for i in t.items])
    copies, not_copied = output.copies()
    return Plan(
        command="shard-for-tp",
        options=options,
        scheme=scheme.to_dict(),
        source=tuple((s.name, s.size, s.header_sha256) for s in catalogue.shards),
        tasks=tasks,
        texts=output.texts(ranks, tasks),
        copies=copies,
        not_copied=tuple(map(printable, not_copied)),
        dropped=(*sharing.dropped, *_dropped(reading, writer)),
        warnings=catalogue.warnings + reading.warnings + warnings,
        notes=(*(writer.notes if isinstance(writer, Encoded) else ()), *sharing.notes),
        copied=writer.copied if isinstance(writer, Encoded) else (),
        needs=needs._replace(tile=max(needs.tile, least_tile(tasks))),
    )


def _writer(catalogue: Catalogue, reading: Reading, options: ShardForTp) -> Writer:
    to = options.to
    if isinstance(to, Quantize):
        return Encoded(catalogue, reading.weights, to)
    return Decoded(to.dtype) if isinstance(to, ToBf16) else Kept()


def _layout(catalogue: Catalogue, options: ShardForTp) -> RankLayout:
    if not catalogue.config:
        raise SchemeError(f"{CONFIG} is missing or empty: it says what is to be cut, and how often")
    if options.layout == "deepseek":
        return DeepSeek.of(catalogue.config, catalogue.tensors)
    return Parallel.of(catalogue.config, options.experts)


def _weights(reading: Reading, writer: Writer) -> list[Weight]:
    """All weights; where bytes are kept, also what belongs to none."""
    rest = reading.dropped if isinstance(writer, Kept) else ()
    return [*reading.weights, *(Weight(t.name, RAW, (t,)) for t in rest)]


def _dropped(reading: Reading, writer: Writer) -> Iterator[str]:
    if not isinstance(writer, Kept):
        yield from (t.name for t in reading.dropped)


def _check_form(writer: Writer, weights: Sequence[Weight], layout: DeepSeek) -> None:
    """SchemeError if DeepSeek's own code could not read what is written."""
    if isinstance(writer, Encoded) and not (writer.to.native and writer.to.block == (128, 128)):
        raise SchemeError(
            f"layout deepseek holds FP8 in blocks of 128 x 128, not {writer.to.scheme}: choose "
            "fp8-block, fp8-block-ue8m0 or bf16, or --layout hf"
        )
    for w in weights if isinstance(writer, Kept) else ():
        native = _is_native(w.codec, isinstance(layout, V4)) and not w.dropped
        if not (native or layout.plain(w.name)):
            found = {**w.codec.to_dict(), "other scales": [t.name for t in w.dropped]}
            raise SchemeError(
                f"layout deepseek holds FP8 in blocks of 128 x 128, but {shown(w.name)} is "
                f"{found}: choose --weights bf16, or --layout hf"
            )


def _is_native(codec: Codec, v4: bool) -> bool:
    if isinstance(codec, Fp8Block):
        return codec.block == (128, 128)
    experts = v4 and isinstance(codec, Fp4Block) and codec.combine == "none"
    return isinstance(codec, Raw) or experts


class _Output:
    """The small files of a target."""

    def __init__(
        self, catalogue: Catalogue, options: ShardForTp, sharing: Sharing, writer: Writer,
        layout: RankLayout,
    ) -> None:  # fmt: skip
        self.catalogue, self.options, self.sharing, self.layout = (
            catalogue, options, sharing, layout,
        )  # fmt: skip
        writers = [g.writer for g in sharing.given]
        reblocked = next((w for w in writers if isinstance(w, Reblocked)), None)
        self.has_codes = any(writer.codes(g.weight) for g in sharing.given)
        self.is_coded = any(g.writer.codes(g.weight) for g in sharing.given)
        self.config = self._config(reblocked or writer)
        self.folders = [""]
        if options.layout == "hf":
            self.folders = [f"{ranksets.rank_folder(r)}/" for r in options.written]

    def _config(self, writer: Writer) -> Config:
        if self.has_codes and not self.is_coded:  # all are decoded, being cut inside blocks
            writer = Decoded(dtype_of(self.catalogue.config))
        config = writer.config(self.catalogue.config)
        decoded = [n.removesuffix(".weight") for n in self.sharing.decoded]
        if decoded and not isinstance(writer, Decoded):
            listed = config_without(config, decoded)
            if listed is None:
                raise SchemeError(
                    "some weights are to be decoded and others not, which this config's "
                    "quantization_config has no known list for"
                )
            config = listed
        return config_without_mtp(config) if self.sharing.without_mtp else config

    @property
    def _kept(self) -> bool:
        return self.options.weights == KEEP

    @property
    def _same_config(self) -> bool:
        same = self.config == self.catalogue.config
        return self._kept and same and self.catalogue.verbatim

    def copies(self) -> tuple[tuple[Copy, ...], list[str]]:
        """Companions, and an unchanged config, for every folder; and what is not copied."""
        kept = self._kept and (self.is_coded or not self.has_codes)
        found, not_copied = companions(self.catalogue, self.options.copy_code, kept)
        if self._same_config:
            found.append(same_config(self.catalogue))
        copies = [c._replace(target=f"{at}{c.target}") for at in self.folders for c in found]
        return tuple(copies), not_copied

    def texts(self, ranks: Ranks, tasks: Sequence[Task]) -> dict[str, str]:
        """Configs, indexes, and where everything is."""
        said = RankSet(
            self.options.layout, self.options.tp, tuple(ranks.spreads),
            self.catalogue.index_metadata, self.sharing.apart,
        )  # fmt: skip
        texts = {ranksets.TP: said.to_json()}
        if not self._same_config:
            texts |= {f"{at}{CONFIG}": config_text(self.config) for at in self.folders}
        if self.options.layout == "deepseek":
            args = model_args(self._said, "fp8" if self.is_coded else "bf16")
            texts[MODEL_ARGS] = config_text(args)
        else:
            texts |= self._of_ranks(tasks)
        return texts

    @property
    def _said(self) -> Config:
        """The config as written; where it declares nothing, with the source's declaration: how
        caches are kept is said there as well."""
        declared = self.catalogue.declared.quantization
        return self.config if KEY in self.config or not declared else {**self.config, KEY: declared}

    def warnings(self) -> Iterator[str]:
        """What loaders of the layout will not take."""
        if self.is_coded and (limit := self.layout.limits(self.options.tp)):
            yield limit
        if self.options.layout == "deepseek":
            yield from untold(self.config)
            if self.options.misaligned == "bf16" and self.is_coded and self.sharing.mended:
                yield (
                    "DeepSeek's own code has one precision for all linears, and does not load "
                    "some that are decoded among others that are not"
                )

    def _of_ranks(self, tasks: Sequence[Task]) -> Iterator[tuple[str, str]]:
        for rank, at in zip(self.options.written, self.folders, strict=True):
            mine = [t for t in tasks if t.file.startswith(at)]
            weight_map = {i.name: t.file.removeprefix(at) for t in mine for i in t.items}
            total = sum(i.nbytes for t in mine for i in t.items)
            index = hf.index(weight_map, total, self.catalogue.index_metadata)
            if index is not None:
                yield f"{at}{hf.INDEX}", index
            yield f"{at}{ranksets.TP}", ranksets.member(rank, self.options.tp)


def _tasks(files: Files, options: ShardForTp, apart: bool) -> Iterator[Task]:
    """A team for each part of the source: its tasks share what they read."""
    said = {APART: "scales are of this rank alone"} if apart else {}
    if options.layout == "deepseek":
        for rank in options.written:
            items = [i for part in files[rank].values() for i in part]
            yield replace(task(deepseek.rank_file(rank, options.tp), items, said), team=0)
        return
    names = {}
    for rank in options.written:
        at, parts = f"{ranksets.rank_folder(rank)}/", files[rank]
        names[rank] = dict(zip(parts, (at + n for n in hf.numbered(len(parts))), strict=True))
    order = dict.fromkeys(part for rank in options.written for part in files[rank])
    for team, part in enumerate(sorted(order)):
        for rank in options.written:
            if part in files[rank]:
                yield replace(task(names[rank][part], files[rank][part], said), team=team)
