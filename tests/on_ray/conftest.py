"""A Ray cluster of two nodes of one CPU each, whose workers pass a gate."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .gate import SITE, VARIABLE, Gate

# Ray leaves sockets and log files to the garbage collector; its own code, not called from here.
NOISE = [
    "ignore:unclosed:ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore:subprocess .* is still running:ResourceWarning",
]
OBJECTS = 80 << 20  # bytes of a node's object store
NODE = {"num_cpus": 1, "object_store_memory": OBJECTS, "memory": 2 << 30}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All that Ray warns of is let pass, here only."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for words in NOISE:
                item.add_marker(pytest.mark.filterwarnings(words))


@pytest.fixture(scope="module")
def tools() -> Iterator[dict[str, str]]:
    """Environment of Ray's processes: a folder of their own, and the gate. It is set here, too."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets want a short path
    found = {
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join([str(SITE), *filter(None, [os.environ.get("PYTHONPATH")])]),
        VARIABLE: str(folder / "gate"),
    }
    (folder / "gate").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        for name, value in found.items():
            patch.setenv(name, value)
        yield found
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(tools: dict[str, str]) -> Iterator[Any]:
    """Two nodes."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    made.add_node(**NODE)
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def connection(cluster: Any) -> Iterator[Any]:
    """The module ``ray``, connected there: runs of this process use it, and its workers."""
    import ray

    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.CRITICAL)
    yield ray
    ray.shutdown()


@pytest.fixture
def gate(tools: dict[str, str]) -> Gate:
    """Open, and nothing noted."""
    found = Gate(Path(tools[VARIABLE]))
    found.clear()
    return found
