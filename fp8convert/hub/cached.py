"""The cache of huggingface_hub: what is there is read where it is, and stays."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import Fp8ConvertError
from ..folder import Folder, OpenFile
from .address import Address
from .errors import naming
from .held import Held, is_sha256


def in_cache(address: Address, name: str, held: Held) -> Path | None:
    """Where a file of a commit is in the cache; None if it is not there, or another one is.

    Its size must be right, and the name that the cache gives to its bytes: their sum.
    """
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(address.repo, name, revision=address.revision)
    if not isinstance(found, str):
        return None
    real = Path(os.path.realpath(found))
    with contextlib.suppress(OSError):
        state = real.stat()
        named = real.parent.name != "blobs" or real.name == held.sum
        if named and stat.S_ISREG(state.st_mode) and state.st_size == held.size:
            return real
    return None


def without_asking(address: Address) -> str:
    """What to say to whom the hub does not answer: that the cache may do; empty if it may not."""
    try:
        found = Snapshot.of(address)
        if not any(name.endswith(".safetensors") for name in found.names()):
            return ""
    except (Fp8ConvertError, OSError):
        return ""
    return (
        f"\nThe cache of huggingface_hub has files of its commit {found.commit}: with "
        "HF_HUB_OFFLINE=1 they are read, and the hub is not asked"
    )


@dataclass(frozen=True, slots=True)
class Snapshot(Folder):
    """A commit's folder in the cache, without asking the hub: see HF_HUB_OFFLINE."""

    repo: str
    commit: str
    revision: str  # that was asked for; none if it is a commit
    said: tuple[str, ...]

    @classmethod
    def of(cls, address: Address) -> Snapshot:
        """FormatError if the cache does not have it."""
        from huggingface_hub import snapshot_download

        with naming(str(address)):
            found = snapshot_download(
                address.repo, revision=address.revision, local_files_only=True
            )
        folder = Folder.at(found)
        asked = "" if address.pinned else address.revision
        said = f"HF_HUB_OFFLINE: {address} is read from the cache, {folder.root}"
        return cls(folder.root, folder.inside, address.repo, folder.root.name, asked, (said,))

    @property
    def place(self) -> str:
        """Its address, pinned."""
        return str(Address(self.repo, self.commit))

    @property
    def provenance(self) -> dict[str, str]:
        """Repository and commit."""
        return {"hub": self.repo, "commit": self.commit}

    @property
    def asked(self) -> str:
        """The revision."""
        return self.revision

    @property
    def remarks(self) -> tuple[str, ...]:
        """That it is this, and not what the hub has now."""
        return self.said

    @contextlib.contextmanager
    def peek(self, name: str) -> Iterator[OpenFile]:
        """A shard, with the sum that the cache knows it by: the hub says the same of it."""
        with Folder.peek(self, name) as found:
            blob = os.path.basename(os.path.realpath(self.root / name))
            yield replace(found, etag=blob) if is_sha256(blob) else found
