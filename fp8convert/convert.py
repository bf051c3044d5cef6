"""``to_bf16``, ``quantize``, ``shard_for_tp``, ``unshard``: from one folder to another."""

from __future__ import annotations

import contextlib
import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from . import kernels, origins, schemes, stages
from .catalogue import Catalogue, catalogue_of, uncollected
from .engine import Engine
from .errors import SHOWN_CHARS, FormatError, ResumableError, TargetError, UsageError, shown
from .job import Job, Manifest
from .journal import Record
from .options import Options, Quantize, ShardForTp, ToBf16, Unshard
from .plan import Plan
from .planner import plan_to_bf16
from .quantizer import plan_quantize
from .report import counts, figures
from .schemes.base import Scheme
from .settings import Settings, check_kind
from .shardplan import plan_shard
from .space import check_space
from .stage import Stage
from .unsharder import plan_unshard, whole_names
from .version import VERSION

if TYPE_CHECKING:
    from .hub.push import Push
    from .hub.shipper import Shipper

__all__ = [
    "PLANS", "Job", "Manifest", "execute", "finish", "prepare", "quantize", "resumable",
    "shard_for_tp", "to_bf16", "undisturbed", "unshard",
]  # fmt: skip

PLANS: dict[type[Options], Callable[[Catalogue, Scheme, Any], Plan]] = {
    ToBf16: plan_to_bf16,
    Quantize: plan_quantize,
    ShardForTp: plan_shard,
    Unshard: plan_unshard,
}
_MEND = {
    errno.ENOSPC: "free some space (or inodes)",
    errno.EDQUOT: "free some of the quota",
    errno.EFBIG: "lift the limit on the size of files",
    errno.EROFS: "make it writable",
    errno.EACCES: "permit it",
    errno.EPERM: "permit it",
    errno.EMFILE: "allow more open files",
    errno.ENFILE: "allow more open files",
}
_SETTING_NAMES = ("workers", "memory", "io", "progress", "scratch")


def prepare(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    options: Options | None = None,
) -> Job:
    """Read headers and config, plan, refuse what can be refused. Writes nothing.

    ``options`` say which conversion it is: :class:`ToBf16` (the default), :class:`Quantize`,
    :class:`ShardForTp` or :class:`Unshard`.
    """
    options = options or ToBf16()
    kernels.check()
    with resumable(), uncollected():
        before = stages.begun(dst) if origins.is_on_hub(src) else origins.NOTHING
        catalogue = catalogue_of(origins.at(src, before))
        if isinstance(options, Unshard):
            catalogue = whole_names(catalogue, options.config)
        elif isinstance(options, ShardForTp) and catalogue.declared.ranks:
            catalogue = whole_names(catalogue, None)
        scheme = schemes.detect(catalogue.declared, catalogue.tensors)
        target = stages.resolve(dst, catalogue.folder)
        plan = PLANS[type(options)](catalogue, scheme, options)
        origin = catalogue.folder
        return Job(catalogue, replace(plan, origin=origin.provenance, asked=origin.asked), target)


def execute(job: Job, settings: Settings | None = None, push: Push | None = None) -> Manifest:
    """Run a prepared job to its end, or resume it; a finished target is left as it is.

    With ``push`` its files are uploaded as they are finished.
    """
    if push is None:
        return _executed(job, job.stage, settings, None)
    from .hub.shipper import shipping

    with resumable(), shipping(job, push) as shipper:
        return shipper.delivered(_executed(job, shipper.stage, settings, shipper))


def _executed(
    job: Job, stage: Stage, settings: Settings | None, shipper: Shipper | None
) -> Manifest:
    settings = job.fitted(settings or Settings())
    with resumable():
        source = job.catalogue.fingerprint
        manifest = stage.finished(source)
        if manifest is not None:
            stage.tidy(source)
            return Manifest(job.target, manifest, already_done=True)
        if stage.left() is None:
            check_space(job, stage, settings.scratch, shipper.most if shipper else None)
        with stage.opened(), undisturbed(stage):
            manifest = stage.finished(source)  # another run may have ended while we asked
            if manifest is None:
                return _run(job, stage, settings, shipper)
            stage.supersede(source)
            return Manifest(job.target, manifest, already_done=True)


def to_bf16(src: str | os.PathLike[str], dst: str | os.PathLike[str], **options: Any) -> Manifest:
    """Convert the block-scaled checkpoint folder ``src`` into a BF16 one at ``dst``.

    Keyword options are those of :class:`~fp8convert.options.ToBf16` (``dtype``, ``max_shard_size``
    in bytes, ``checksum``, ``copy_code``, ``strict``) and :class:`~fp8convert.settings.Settings`
    (``workers``, ``memory`` in bytes, ``io``, ``progress``, ``scratch``), and ``push``, a
    :class:`~fp8convert.hub.push.Push`, to upload ``dst`` as well. Calling again after an
    interruption resumes. Raises :class:`~fp8convert.errors.Fp8ConvertError`; then ``dst`` does not
    exist, unless only its upload has failed.
    """
    return _converted(src, dst, ToBf16, options)


def quantize(
    src: str | os.PathLike[str], dst: str | os.PathLike[str], scheme: str, **options: Any
) -> Manifest:
    """Encode the weights of the checkpoint folder ``src`` by ``scheme``, into one at ``dst``.

    ``scheme`` is one of :data:`~fp8convert.options.SCHEMES`; keyword options are those of
    :class:`~fp8convert.options.Quantize` and, as for :func:`to_bf16`, of ``Settings``.
    ``data["quantized"]`` of the manifest says of each weight whether it is exact, or the error.
    Raises :class:`~fp8convert.errors.Fp8ConvertError`; then ``dst`` does not exist.
    """
    return _converted(src, dst, Quantize, {"scheme": scheme, **options})


def shard_for_tp(
    src: str | os.PathLike[str], dst: str | os.PathLike[str], tp: int, **options: Any
) -> Manifest:
    """Cut the checkpoint folder ``src`` for ``tp`` tensor-parallel ranks, into a folder at ``dst``.

    Keyword options are those of :class:`~fp8convert.options.ShardForTp` and, as for
    :func:`to_bf16`, of ``Settings``. Raises :class:`~fp8convert.errors.Fp8ConvertError`, also where
    a cut would part a block of scales; then ``dst`` does not exist.
    """
    return _converted(src, dst, ShardForTp, {"tp": tp, **options})


def unshard(src: str | os.PathLike[str], dst: str | os.PathLike[str], **options: Any) -> Manifest:
    """Put the rank files at ``src`` together, into one checkpoint at ``dst``: every tensor as it
    was. With ``tp`` they are cut for other ranks instead.

    Keyword options are those of :class:`~fp8convert.options.Unshard` and, as for :func:`to_bf16`,
    of ``Settings``. Raises :class:`~fp8convert.errors.Fp8ConvertError`; then ``dst`` does not
    exist.
    """
    return _converted(src, dst, Unshard, options)


def _converted(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    kind: type[Options],
    options: dict[str, Any],
) -> Manifest:
    known = {f.name for f in fields(kind)}
    every = known | {*_SETTING_NAMES, "push"}
    if unknown := sorted(set(options) - every):
        raise UsageError(f"unknown options {unknown}, known: {sorted(every)}")
    settings = Settings(**{k: v for k, v in options.items() if k in _SETTING_NAMES})
    chosen = kind(**{k: v for k, v in options.items() if k in known})
    if (push := options.get("push")) is not None:
        from .hub.push import Push

        check_kind("push", push, Push)
    return execute(prepare(src, dst, chosen), settings, push)


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Whatever the system refuses can be mended, and the run resumed."""
    try:
        yield
    except OSError as e:
        where = f" ({_end(e.filename)})" if e.filename else ""
        mend = _MEND.get(e.errno or 0, "mend it")
        raise ResumableError(f"{e.strerror or e}{where}: {mend} and run the same again") from e
    except MemoryError as e:
        raise ResumableError("out of memory: free some, or use fewer workers") from e


@contextlib.contextmanager
def undisturbed(stage: Stage) -> Iterator[None]:
    """Whatever is missing when another run has taken over, that is what is told."""
    try:
        yield
    except (OSError, TargetError) as e:
        overtaken = stage.overtaken()
        if overtaken is None:
            raise
        raise overtaken from e


def _end(path: Any) -> str:
    """A path of any length for a message: its end says most."""
    text = os.fsdecode(path)
    return shown(text if len(text) <= SHOWN_CHARS else f"...{text[3 - SHOWN_CHARS :]}")


def _run(job: Job, stage: Stage, settings: Settings, shipper: Shipper | None) -> Manifest:
    stage.begin(job.catalogue.fingerprint)
    check_space(job, stage, settings.scratch, shipper.most if shipper else None)
    engine = Engine(job.catalogue, stage, settings, shipper.paced if shipper else None)
    return finish(job, stage, engine.run(job.plan.tasks))


def finish(job: Job, stage: Stage, records: list[Record]) -> Manifest:
    """Write all but the files of tasks, whose ``records`` are in order; the target appears."""
    files = [{"name": r.file, "size": r.size, "sha256": r.sha256} for r in records]
    for copy in job.plan.copies:
        data = job.catalogue.folder.read(copy.name, copy.size, "companion file")
        if len(data) != copy.size:
            raise FormatError(f"{shown(copy.name)} changed since it was planned")
        files.append(stage.put_bytes(copy.file, data))
    for name, text in job.plan.texts.items():
        files.append(stage.put_bytes(name, text.encode()))
    return Manifest(job.target, stage.commit(_manifest(job, records, files)))


def _manifest(job: Job, records: list[Record], files: list[dict[str, Any]]) -> dict[str, Any]:
    plan = job.plan
    weights = [i.weight for t in plan.tasks for i in t.items]
    overflowed: Counter[str] = Counter()
    for record in records:
        overflowed.update(record.overflowed)
    return {
        "tool": f"fp8convert {VERSION}",
        "plan": plan.id,
        "rules": dict(sorted({(w.codec.name, w.codec.rule) for w in weights})),
        **counts(plan),
        "overflowed": dict(overflowed),
        **figures(plan, records),
        "warnings": list(plan.warnings),
        "notes": list(plan.notes),
        "not_copied": list(plan.not_copied),
        "files": files,
        "identity": plan.identity,
        "source": job.catalogue.fingerprint,
    }
