"""``against: config``: the config.json of DST describes the function that SRC's describes.

No tensor tells of a rope that is not scaled or of another epsilon, so every field is compared but
those that a conversion changes. A library that writes the file anew renames some and adds its
defaults, and says so by its version: then fields that only one side has are warnings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..configout import DTYPE_KEYS, EXPERTS_KEY, MTP_KEYS, QUANTIZATION_KEYS
from ..declared import mapping
from ..errors import listed, shown
from ..strictjson import brief
from .report import Check

NAME = "against: config"
VERSION = "transformers_version"
ROPE = "rope_parameters"  # of transformers 5; before it rope_theta, and rope_scaling beside it
CONVERTED = (*QUANTIZATION_KEYS, *DTYPE_KEYS, EXPERTS_KEY)  # other checks look at these
WRITERS = (VERSION, "_name_or_path", "auto_map", "use_cache")  # who wrote it; nothing of the model
Config = Mapping[str, Any]


@dataclass
class _Found:
    """Paths of fields, with words for those that differ."""

    fields: int = 0
    different: list[str] = field(default_factory=list)
    gone: dict[str, str] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)

    def compare(self, dst: Config, src: Config, path: str = "") -> None:
        """Two objects of the same place."""
        dst, src = _alike(dst, src)
        for key in {**src, **dst}:
            if key in CONVERTED or key in WRITERS:
                continue
            is_, want = dst.get(key), src.get(key)
            if isinstance(is_, dict) and isinstance(want, dict):
                self.compare(is_, want, f"{path}{key}.")
            else:
                self._add(path + key, is_, want, left_out=key in MTP_KEYS and not is_)

    def _add(self, path: str, is_: Any, want: Any, left_out: bool) -> None:
        """null is as good as absent; MTP layers may be left out, as their weights may."""
        self.fields += want is not None
        if is_ == want or left_out:
            return
        if want is None:
            self.new.append(path)
            return
        wanted = f"expected {brief(want)}"
        if is_ is None:
            self.gone[path] = f"config.json: {shown(path)[1:-1]} is missing, {wanted}"
        else:
            self.different.append(f"config.json: {shown(path)[1:-1]} is {brief(is_)}, {wanted}")


def check_configs(dst: Config | None, src: Config | None) -> Check:
    """Two config.json; None where there is none, as beside DeepSeek's own rank files."""
    if dst is None or src is None:
        return Check.skipped(NAME, "no config.json beside the rank files")
    found = _Found()
    found.compare(dst, src)
    problems, warnings = found.different, []
    anew = dst.get(VERSION) not in (None, src.get(VERSION))
    if found.gone and anew:
        warnings.append(
            f"config.json, written anew by transformers {brief(dst[VERSION])}, has not all of the "
            f"source's fields: {listed(found.gone)}"
        )
    elif found.gone:
        problems = [*problems, *found.gone.values()]
    if found.new:
        warnings.append(f"config.json has fields that the source's has not: {listed(found.new)}")
    detail = f"{found.fields:,} fields of the source, without those of codes and dtypes"
    return Check.of(NAME, detail, problems, warnings, fields=found.fields)


def _alike(dst: Config, src: Config) -> tuple[Config, Config]:
    """Both with their rotary settings in one form, if only one has transformers 5's."""
    if (ROPE in dst) == (ROPE in src):
        return dst, src
    flat = not any(isinstance(v, dict) for p in (dst, src) for v in mapping(p.get(ROPE)).values())
    return (_turned(dst), _turned(src)) if flat else (dst, src)


def _turned(place: Config) -> Config:
    """``place`` with its rotary settings as transformers 5 has them."""
    own = ("rope_theta", "rope_scaling", "partial_rotary_factor")
    beside = {key: place[key] for key in (own[0], own[2]) if key in place}
    said = beside | mapping(place.get("rope_scaling")) | mapping(place.get(ROPE))
    said["rope_type"] = said.get("rope_type", said.pop("type", "default"))
    rest = {key: value for key, value in place.items() if key not in (*own, ROPE)}
    return {**rest, ROPE: said}
