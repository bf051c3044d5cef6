"""The workflow that docs/ci.md gives to users, run here on a sample: its own shell lines."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import yaml

WORKFLOW = Path(__file__).parents[1] / "docs" / "ci" / "checkpoint.yml"
STEPS = ("Convert", "Verify", "Parity")


def shell_of(step: str) -> str:
    """What a step of the workflow runs."""
    said: dict[str, Any] = yaml.safe_load(WORKFLOW.read_text())
    (found,) = [s for s in said["jobs"]["convert"]["steps"] if s.get("name") == step]
    return str(found["run"])


def run(folder: Path, **given: str) -> list[Path]:
    """Make a sample in ``folder`` and run the steps; the reports. Raises if a step fails."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "SOURCE": "source", "TARGET": "target", "REPORTS": "reports",
    } | given  # fmt: skip
    sample = ["fp8convert", "make-sample", environment["SOURCE"]]
    subprocess.run(sample, check=True, cwd=folder, env=environment)
    for step in STEPS:
        print(f"\n## {step}", flush=True)
        words = ["bash", "-euo", "pipefail", "-c", shell_of(step)]
        subprocess.run(words, check=True, cwd=folder, env=environment)
    return sorted((folder / environment["REPORTS"]).iterdir())


def main() -> None:
    """For .ci/run: in a folder of its own, which is removed when all is well."""
    folder = Path("demo") / "recipe"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    reports = run(folder)
    for report in reports:
        if report.suffix == ".xml":
            suite = ET.parse(report).getroot()
            print(f"{report.name}: {len(list(suite.iter('testcase')))} cases")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
