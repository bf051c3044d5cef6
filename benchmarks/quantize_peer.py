"""The peer of ``fp8convert quantize``: llm-compressor's ``model_free_ptq``, in a Python of its own.

It pins other versions than the tests use, so it is not installed with them: FP8CONVERT_PEER names
the interpreter that has it. Without one, what needs it is skipped and nothing is made up.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

from .children import Child, child
from .common import Report
from .quantize_inputs import Model

VARIABLE = "FP8CONVERT_PEER"
VERSIONS = {"llmcompressor": "0.14.0.1", "torch": "2.13.0"}
PINS = " ".join(f"{name}=={version}" for name, version in VERSIONS.items())
HOW = (
    f"the peer is not installed: python3 -m venv PEER && PEER/bin/pip install {PINS}, "
    f"then {VARIABLE}=PEER/bin/python"
)
SCHEMES = {
    "fp8-block": "FP8_BLOCK",
    "nvfp4": "NVFP4A16",
    "fp8-channel": "FP8_DYNAMIC",
    "int8-channel": "W8A8",
    "int4-group": "W4A16",
    "mxfp4": "MXFP4A16",
    "mxfp8": "MXFP8A16",
}
# What a user of the library would write; on a CPU it takes one shard after another.
SCRIPT = """
import json, sys, time
from llmcompressor import model_free_ptq
source, target, scheme, seconds, *ignore = sys.argv[1:]
begun = time.perf_counter()
model_free_ptq(source, target, scheme, ignore=ignore, max_workers=1, device="cpu")
with open(seconds, "w") as file:
    json.dump(time.perf_counter() - begun, file)
"""
ASK = """
import importlib.metadata, json, sys
print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))
"""


class Ran(NamedTuple):
    """One run: the whole process, and the seconds of the bare call in it, without imports."""

    whole: Child
    call: float


class Peer(NamedTuple):
    """An interpreter that has the peer."""

    python: str

    def quantize(self, model: Model, target: Path, scheme: str) -> Ran:
        """Quantize into the new folder ``target`` by a scheme of the peer's; RuntimeError."""
        seconds = target.with_name(f"{target.name}-seconds.json")
        arguments = [str(model.folder), str(target), scheme, str(seconds), *model.ignore]
        whole = child([self.python, "-c", SCRIPT, *arguments])
        return Ran(whole, json.loads(seconds.read_text()))


def find(report: Report) -> Peer | None:
    """The peer that the environment names; None, with a line in the report, without one."""
    python = os.environ.get(VARIABLE)
    if not python:
        report.skip("the peer, llm-compressor: not run", HOW)
        return None
    done = subprocess.run([python, "-c", ASK, *VERSIONS], capture_output=True, text=True)
    if done.returncode:
        report.skip(
            f"the peer of {VARIABLE}: not run", f"{done.stderr.strip().splitlines()[-1]}; {HOW}"
        )
        return None
    found = json.loads(done.stdout)
    what = ", ".join(f"{name} {version}" for name, version in found.items())
    same = all(found[name].split("+")[0] == version for name, version in VERSIONS.items())
    print(f"  (the peer: {what}{'' if same else f'; {PINS} was measured before'})", flush=True)
    return Peer(python)
