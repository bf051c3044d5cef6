"""The model card of a target on the hub: where it comes from, by which rules, and its sums.

Pure: from the manifest and what the source says of itself. Ours is what stands between two
comments; what a user has written around them stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .results import Parity

NAME = "README.md"
BEGIN, END = "<!-- fp8convert -->", "<!-- /fp8convert -->"
MOST_FILES = 50  # of more the sums are in manifest.json alone
_INDEXES = ("model.safetensors.index.json", "model.safetensors")  # what transformers looks for
_PARITY = "## Parity\n"  # the last of our part
_CODE = re.compile(r"[\w./@:+, -]*", re.ASCII)
_FIELD = re.compile(r"(license|license_name|license_link): *[\"']?([\w.:/+-]{1,200})[\"']? *")


class Facts(NamedTuple):
    """What a card says. ``origin``: repository and commit of the source if it is on the hub;
    ``folder``: the source's own name; ``licence``: fields of its card."""

    repo: str
    branch: str
    manifest: Mapping[str, Any]
    origin: Mapping[str, str]
    folder: str
    licence: Mapping[str, str]
    parity: Parity | None


def licence(card: str) -> dict[str, str]:
    """Of the source's card, the fields of its front matter that say its licence."""
    front = _front(card)
    found = [_FIELD.fullmatch(line) for line in front.splitlines()]
    return {m[1]: m[2] for m in found if m}


def merged(before: str | None, facts: Facts) -> str:
    """The card that was there with our part in it, new or in place of the last one; else ours."""
    body = f"{BEGIN}\n{_body(facts)}"
    if before is None:
        title = _plain(facts.repo.split("/")[1])
        return f"{_ours(facts)}\n# {title}\n\n{body}{END}\n"
    end = before.find(END, before.find(BEGIN))
    begin = before.rfind(BEGIN, 0, max(end, 0))  # one without an end is nothing of ours
    if begin >= 0:
        kept = "" if facts.parity else _parity_of(before[begin:end])
        return before[:begin] + body + kept + before[end:]
    front = "" if _front(before) else f"{_ours(facts)}\n"
    return f"{front}{before.rstrip()}\n\n{body}{END}\n"


def _parity_of(part: str) -> str:
    """What an earlier part says of parity: it is of the same weights, or we were refused."""
    found = part.find(f"\n{_PARITY}")
    return part[found:] if found >= 0 else ""


def _front(card: str) -> str:
    """The front matter; empty if there is none."""
    match = re.match(r"---\r?\n(.*?)\r?\n---(?:\r?\n|\Z)", card, re.DOTALL)
    return match[1] if match else ""


def _ours(facts: Facts) -> str:
    lines = [f"{key}: {value}" for key, value in facts.licence.items()]
    if hub := facts.origin.get("hub"):
        lines.append(f"base_model: {hub}")
        if "scheme" in facts.manifest:
            lines.append("base_model_relation: quantized")
    if any(f["name"] in _INDEXES for f in facts.manifest["files"]):
        lines.append("library_name: transformers")
    lines += ["tags:", "- fp8convert", f"- {_form(facts.manifest)}"]
    return "".join(f"{line}\n" for line in ("---", *lines, "---"))


def _form(manifest: Mapping[str, Any]) -> str:
    """How the weights are stored: encoded by a scheme, decoded, or as they were."""
    options = manifest["identity"]["options"]
    weights = options.get("weights", "keep")
    kept = manifest["identity"]["scheme"]["scheme"] if weights == "keep" else weights
    return str(manifest.get("scheme") or options.get("dtype") or kept)


def _body(facts: Facts) -> str:
    manifest, local = facts.manifest, facts.repo.split("/")[1]
    branch = "" if facts.branch == "main" else f" --revision {facts.branch}"
    parts = [
        "## Provenance\n",
        _table(("", ""), [(f"**{key}**", value) for key, value in _provenance(facts)]),
        _files(manifest),
        "## Check\n",
        f"```sh\nhf download {facts.repo}{branch} --local-dir {local}\n"
        f"fp8convert verify {local}\n```\n",
    ]
    if facts.parity:
        parts += [_PARITY, *_parity(facts.parity)]
    return "\n".join(parts)


def _provenance(facts: Facts) -> Iterable[tuple[str, str]]:
    manifest = facts.manifest
    identity = manifest["identity"]
    if facts.origin:
        yield "source", f"{_said(facts.origin['hub'])} at commit {_said(facts.origin['commit'])}"
    else:
        yield "source", f"a folder {_said(facts.folder)}"
    yield "stored there as", _said(identity["scheme"]["scheme"])
    yield "conversion", f"{_said(identity['command'])} to {_said(_form(manifest))}"
    for codec, rule in manifest["rules"].items():
        yield f"rule for {codec}", _said(rule)
    if "by_class" in manifest:
        every = manifest["by_class"].values()
        exact, weights = (sum(c[key] for c in every) for key in ("exact_weights", "weights"))
        yield "exact", f"{exact:,} of {weights:,} weights; errors of the rest are in manifest.json"
    yield "tool", _said(manifest["tool"])
    yield "plan", _said(manifest["plan"])


def _files(manifest: Mapping[str, Any]) -> str:
    files = manifest["files"]
    total = sum(f["size"] for f in files)
    head = f"## Files\n\n{len(files):,} files, {total:,} bytes"
    if len(files) > MOST_FILES:
        return f"{head}; their SHA-256 sums are in manifest.json.\n"
    rows = [(_said(f["name"]), f"{f['size']:,}", _said(f["sha256"] or "-")) for f in files]
    return f"{head}.\n\n" + _table(("name", "bytes", "SHA-256"), rows)


def _parity(parity: Parity) -> Iterable[str]:
    verdict = "PASS" if parity.passed else "FAIL"
    yield f"Logits against the source: **{verdict}** ({_plain(parity.profile)}), computed in "
    yield f"{_plain(parity.computed)}.\n"
    rows = [tuple(map(_plain, row)) for row in parity.rows]
    yield _table(("head", "measure", "measured", "limit", ""), rows)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _said(text: object) -> str:
    """Text from anywhere: as code if nothing in it means anything to Markdown."""
    words = str(text)
    return f"`{words}`" if words.strip() and _CODE.fullmatch(words) else _plain(words)


def _plain(text: object) -> str:
    """Text from anywhere, without a meaning to Markdown or HTML, on one line."""
    return "".join(c if c.isalnum() or c in " .,:;()-+/" else f"&#{ord(c)};" for c in str(text))
