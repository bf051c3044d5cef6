"""The checks in their order, and what each needs of those before it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

from ..catalogue import CONFIG, Catalogue
from ..codecs.base import Stored
from ..errors import FormatError, shown
from ..shards import MAX_JSON
from . import config, layers
from .headers import Metadata, check_headers
from .index import check_index
from .manifest import check_manifest
from .parallel import Progress
from .report import Check
from .scales import NAME as SCALES
from .scales import Understood, View, check_scales, understood, views
from .survey import Survey
from .values import Found, Reading, check_values

NOT_UNDERSTOOD = "the ranks are not understood"
RULES: tuple[config.Rule, ...] = (
    config.declared_iff_coded, config.dtype, config.powers_of_two, config.native_fields,
    config.router_bias, layers.layers, layers.experts, layers.vocabulary, layers.head,
    config.metadata, config.tokenizer,
)  # fmt: skip


class Run:
    """One ``verify``."""

    def __init__(
        self, found: Survey, sample: float, seed: int, workers: int, progress: Progress | None
    ) -> None:
        self.survey = found
        self.sample, self.seed, self.workers, self.progress = sample, seed, workers, progress
        self._begun = 0.0

    def all(self, source: str | os.PathLike[str] | None) -> Iterator[Check]:
        """The checks of DST by itself, and against ``source`` if there is one.

        Raises Fp8ConvertError if that cannot be read, before all else is.
        """
        if source is not None:
            from .sides import opened

            opened(source)
        yield from self._alone()
        if source is not None:
            yield from self._against(source)

    def _alone(self) -> Iterator[Check]:
        found = self.survey
        self._begin()
        yield self._timed(check_manifest(found.folder, self.workers, self.progress))
        headers, metadata = check_headers(found)
        yield self._timed(headers)
        index, catalogue = check_index(found)
        yield self._timed(index)
        seen, read = self._views(catalogue)
        yield self._timed(read if isinstance(read, Check) else check_scales(read))
        known = Understood() if isinstance(read, Check) else read
        how = Reading(known.scales, self.sample, self.seed, self.workers, self.progress)
        values, met = check_values(found, how)
        yield self._timed(values)
        yield self._timed(self._config(seen, known, met, metadata))

    def _against(self, source: str | os.PathLike[str]) -> list[Check]:
        """If DST can be read."""
        from .against import against

        if why := self.survey.incomplete or self.survey.ranks_wrong:
            return [Check.skipped("against", why)]
        self._begin()
        told = self.progress
        done = None if told is None else (lambda n, of: told("weights", n, of))
        root = self.survey.folder.root
        checks = against(root, source, self.sample, self.seed, self.workers, done)
        return [*checks[:-1], self._timed(checks[-1])]  # all were made together

    def _begin(self) -> None:
        self._begun = time.monotonic()

    def _timed(self, check: Check) -> Check:
        """With the seconds since the last one."""
        before, self._begun = self._begun, time.monotonic()
        return replace(check, seconds=self._begun - before)

    def _views(self, catalogue: Catalogue | None) -> tuple[list[View], Understood | Check]:
        """What codes and scales are looked for in, and what they are; or why they are not."""
        found = self.survey
        if why := self._unfit(catalogue):
            return [], Check.skipped(SCALES, why)
        try:
            seen = views(found, catalogue)
        except FormatError as e:
            return [], Check.skipped(SCALES, str(e))
        return seen, understood(seen)

    def _unfit(self, catalogue: Catalogue | None) -> str:
        """Why it is not known what all files hold together; "" if it is."""
        found = self.survey
        joined = found.ranks is not None and not found.ranks.apart and catalogue is None
        if found.lacks_config:
            return f"no {CONFIG}"
        return found.incomplete or (NOT_UNDERSTOOD if joined or found.unrelated else "")

    def _config(
        self, seen: list[View], known: Understood, met: Found, metadata: Mapping[str, Metadata]
    ) -> Check:
        found, home = self.survey, self.survey.config_home
        if found.lacks_config:
            missing = f"{home}{CONFIG} is missing from {shown(found.folder.root)}"
            return Check.of(config.NAME, f"no {CONFIG}", [missing])
        if not found.folder.has(home + CONFIG):
            return Check.skipped(config.NAME, f"no {CONFIG} beside the rank files")
        try:
            said = found.declared(home)
        except FormatError as e:
            return Check.of(config.NAME, f"{home}{CONFIG} cannot be read", [str(e)])
        if not seen:
            return Check.skipped(config.NAME, found.incomplete or NOT_UNDERSTOOD)
        alike = [wrong for h in found.homes[1:] if (wrong := self._unlike(h.prefix, home))]
        facts = config.Facts(
            said, self._whole(seen), known.weights, known.declared_only, met.uneven,
            found.folder.names(home.rstrip("/")), metadata, home,
        )  # fmt: skip
        return config.check_config(facts, RULES, alike)

    def _unlike(self, prefix: str, home: str) -> str | None:
        """Why a rank's config.json is not that of the first."""
        folder, file = self.survey.folder, prefix + CONFIG
        try:
            same = folder.read(file, MAX_JSON, "config") == folder.read(home + CONFIG, MAX_JSON, "")
        except FormatError as e:
            return str(e)
        return None if same else f"{file} is another than {home}{CONFIG}"

    def _whole(self, seen: list[View]) -> Mapping[str, Stored]:
        """Tensors of all ranks; of those that cannot be put together, as ``tp.json`` has them."""
        if len(seen) == 1 or not self.survey.ranks:
            return {name: t for view in seen for name, t in view.tensors.items()}
        return {
            t.name: Stored(t.name, t.dtype, t.shape, 0, 0, 0) for t in self.survey.ranks.tensors
        }
