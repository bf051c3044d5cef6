"""Planning ``quantize``: which weights are encoded, copied or kept. No tensor byte is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from . import schemes
from .catalogue import Catalogue, open_catalogue
from .choice import Choice, choose
from .classes import experts_of, partners
from .codetiles import grid_bytes, least_tile
from .configout import quantized_config
from .declared import Config, mapping
from .encoding.band import CHUNK
from .encoding.encoder import Encoding, Part
from .encoding.lossless import Way, copied, decodable, encoding, way
from .encoding.targets import Target, target
from .errors import SchemeError, listed
from .options import TARGETS, Quantize
from .plan import Item, Needs, Plan
from .planner import Placed, assembled, read, refuse, refuse_strictly
from .schemes.base import Scheme
from .schemes.weight import Weight
from .writers import Writer, whole

# transformers' GPT-2 and its kin keep these linears transposed, in a class of their own.
CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
CONV1D = ("c_attn", "c_proj", "c_fc", "q_attn")


def plan_quantize(catalogue: Catalogue, scheme: Scheme, options: Quantize) -> Plan:
    """Plan the encoding of the chosen weights; refuse here or not at all."""
    reading = read(catalogue, scheme, options)
    writer = Encoded(catalogue, reading.weights, options)
    placed = [Placed(catalogue.place(w.parts[0]), writer.items(w, w)) for w in reading.weights]
    _refuse_clashes(placed)
    config = writer.config(catalogue.config)
    plan = assembled("quantize", catalogue, scheme, options, reading, placed, config)
    return replace(
        plan,
        warnings=(*plan.warnings, *writer.warnings),
        notes=writer.notes,
        copied=writer.copied,
        needs=needs_of([i for t in plan.tasks for i in t.items]),
    )


class Encoded(Writer):
    """The chosen weights encoded by a scheme, or copied where the source has just these bytes; the
    others decoded to the model's own dtype."""

    def __init__(self, catalogue: Catalogue, weights: Sequence[Weight], options: Quantize) -> None:
        """SchemeError where the choice cannot be; with ``options.strict`` also for warnings."""
        if not catalogue.config:
            raise SchemeError("config.json is missing or empty: the scheme is to be declared there")
        self.dtype = dtype_of(catalogue.config)
        self.tag = TARGETS[self.dtype]
        self.to = to = target(options, _has_siblings(weights, catalogue.config), self.tag)
        like = _coded_in(options.like) if options.like is not None else None
        misfit = _misfit(to, catalogue.config)
        self.choice = choose(weights, options.include, options.exclude, like, misfit)
        absent = (like or frozenset()) - {w.name for w in weights}
        of, choice = _unloadable(to, self.choice), self.choice
        self.warnings = (*choice.notes, *choice.warnings, *of, *_absent(absent))
        if options.strict:
            refuse_strictly(self.warnings)
        self.search, self.powers = options.scale_search == "mse", has_powers(catalogue)
        self._chosen = {w.name: w for w in weights if w.name in choice.chosen}
        self._ways: dict[str, tuple[Way, tuple[Weight, ...]]] = {}  # by the first who shares
        self._copied: dict[str, None] = {}

    def step(self, weight: Weight, axis: int) -> int:
        """Between blocks; a scale of the whole tensor is measured over all of it."""
        if weight.name not in self._chosen or self.to.scheme == "fp8-tensor":
            return 1
        if self._way(weight)[0].copied:
            return weight.codec.step(weight.parts, axis)
        return self.to.codec.block_of(weight.shape)[axis]

    def tensors(self, weight: Weight) -> tuple[Part, ...]:
        """Those of the scheme, or one."""
        if weight.name in self._chosen:
            return self.to.parts(weight)
        return (Part(weight.name, weight.out_dtype(self.tag), weight.shape),)

    def items(self, weight: Weight, piece: Weight) -> tuple[Item, ...]:
        """Copied where the source has just these bytes, else encoded."""
        if weight.name not in self._chosen:
            return (whole(piece, piece.out_dtype(self.tag)),)
        how, members = self._way(weight)
        if how.copied:
            self._copied[weight.name] = None
            return tuple(whole(w, dtype) for w, dtype in copied(weight, piece, self.to))
        return encoded(piece, encoding(piece, self.to, self.search, how, members))

    def codes(self, weight: Weight) -> bool:
        """The chosen ones."""
        return weight.name in self._chosen

    def config(self, config: Config) -> Config:
        """With the scheme's declaration."""
        experts = "fp8" if self.to.native else None
        said = self.to.config(self.choice.ignored)
        return quantized_config(config, said, self.dtype, experts)

    @property
    def copied(self) -> tuple[str, ...]:
        """Weights whose bytes are copied."""
        return tuple(self._copied)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was found to be done already."""
        if not self._copied:
            return ()
        count = f"{len(self._copied):,} of {len(self._chosen):,} weights"
        return (f"already {self.to.scheme} in the source, bytes copied: {count}",)

    def _way(self, weight: Weight) -> tuple[Way, tuple[Weight, ...]]:
        """How, together with the weights that share a scale of the whole tensor with it."""
        if not self.to.shares:
            return way((weight,), self.to, self.powers), ()
        names = partners(weight.name) or (weight.name,)
        first = next(n for n in names if n in self._chosen)
        if first not in self._ways:
            members = [self._chosen[n] for n in names if n in self._chosen]
            how = way(members, self.to, self.powers)
            self._ways[first] = how, tuple(map(decodable, members))
        return self._ways[first]


def encoded(piece: Weight, found: Encoding) -> tuple[Item, ...]:
    """The tensors of ``piece`` that come of its encoding."""
    plain = decodable(piece)
    parts = enumerate(found.parts)
    return tuple(Item(plain, p.dtype, 0, p.nbytes, found, k) for k, p in parts)


def _unloadable(to: Target, choice: Choice) -> Iterator[str]:
    """What an engine is known to refuse."""
    experts = [n for n in choice.chosen if experts_of(n)]
    if to.scheme == "fp8-tensor" and experts:
        yield (
            f"{len(experts):,} weights of routed experts get one scale each, which vLLM does not "
            "take with activations quantized by token; it takes fp8-channel"
        )


def _absent(names: Collection[str]) -> Iterator[str]:
    if names:
        yield f"--like: of the weights coded there, {listed(sorted(names))} are not here"


def _misfit(to: Target, config: Config) -> Callable[[Weight], str | None]:
    """Why a weight cannot be what engines load as ``to``."""
    if config.get("model_type") not in CONV1D_MODELS:
        return to.misfit

    def found(weight: Weight) -> str | None:
        turned = weight.name.removesuffix(".weight").rpartition(".")[2] in CONV1D
        return "a Conv1D of its model, stored [in, out]" if turned else to.misfit(weight)

    return found


def needs_of(items: Sequence[Item]) -> Needs:
    """What they ask of memory; looked up once for equal weights."""
    needs = Needs(items=len(items))
    known: set[tuple[object, ...]] = set()
    for item in items:
        if item.encoding is None or item.part:
            continue
        weights = (item.weight, *item.encoding.members)
        facts = [(w.codec, [(p.dtype, p.shape, len(p.pieces)) for p in w.parts]) for w in weights]
        key = (item.encoding.encoder, repr(facts))
        if key not in known:
            known.add(key)
            needs = Needs(
                max(needs.tile, least_tile(item)),
                max(needs.scratch, CHUNK, item.weight.shape[1]),
                max(needs.grids, grid_bytes(item)),
                needs.items,
            )
    return needs


def _has_siblings(weights: Sequence[Weight], config: Config) -> bool:
    """Whether scales are to be named ``X.scale``: as the source's are, or as V4's always are."""
    if str(config.get("model_type")).startswith("deepseek_v4"):
        return any(w.name.startswith("layers.") for w in weights)  # its own names
    scales = Counter(w.parts[1].name.rpartition(".")[2] for w in weights if len(w.parts) > 1)
    return bool(scales) and scales.most_common(1)[0][0] == "scale"


def has_powers(catalogue: Catalogue) -> bool:
    return mapping(catalogue.declared.quantization).get("scale_fmt") == "ue8m0"


def dtype_of(config: Config) -> str:
    """The model's own dtype, for coded weights that are not encoded."""
    for place in (config, mapping(config.get("text_config"))):
        for key in ("torch_dtype", "dtype"):
            if isinstance(place.get(key), str) and place[key] in TARGETS:
                return str(place[key])
    return "bfloat16"


def _coded_in(path: str) -> frozenset[str]:
    """Names of the weights that are coded in the checkpoint at ``path``."""
    other = open_catalogue(path)
    scheme = schemes.detect(other.declared, other.tensors)
    found = scheme.read(other.tensors, other.shard_names)
    refuse([f"--like {path}: {problem}" for problem in found.problems])
    coded = frozenset(w.name for w in found.weights if w.codec.coded)
    if not coded:
        raise SchemeError(f"--like {path}: no weight is coded there")
    return coded


def _refuse_clashes(placed: Sequence[Placed]) -> None:
    names = [i.name for p in placed for i in p.items]
    if len(set(names)) == len(names):
        return
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise SchemeError(f"tensors that would be written twice: {listed(twice)}")
