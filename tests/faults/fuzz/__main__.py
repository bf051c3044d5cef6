"""``python -m tests.faults.fuzz TARGET --seconds N``: fuzz one target; 1 if a promise is broken.

The input that does it is written into the working folder.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

from .running import fuzz, missing
from .targets import targets


def main() -> None:
    """Parse, fuzz, say."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzz", description=__doc__)
    parser.add_argument("target", choices=list(targets()))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, help="folder for new inputs, read first as well")
    parser.add_argument("--verbose", action="store_true", help="all that the fuzzer says")
    asked = parser.parse_args()
    if why := missing():
        parser.error(why)
    if asked.corpus:
        asked.corpus.mkdir(parents=True, exist_ok=True)
    found = fuzz(asked.target, asked.seconds, asked.seed, asked.corpus and asked.corpus.absolute())
    if asked.verbose or (found.why and not found.executed):
        print(found.log)
    print(f"{asked.target}: {found.executed:,} inputs")
    if not found.why:
        return
    print(found.why)
    if found.crash is not None:
        path = Path(f"crash-{asked.target}-{hashlib.sha256(found.crash).hexdigest()[:12]}")
        path.write_bytes(found.crash)
        print(f"input: {path}")
    sys.exit(1)


if __name__ == "__main__":
    main()
