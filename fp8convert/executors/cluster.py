"""The Ray cluster that tasks run on: one that is there, or one of this machine, made for a run."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from ..errors import ResumableError, UsageError, shown

ADDRESS = "RAY_ADDRESS"  # Ray's own: where a cluster is
OBJECTS = 80 << 20  # bytes of Ray's object store: next to nothing goes through it
_HOST_PORT = re.compile(r"\[?([^\[\]/]+)\]?:(\d{1,5})")  # others Ray has to make sense of
ANSWER_S = 10.0  # Ray itself would try for minutes
SIGNALS = (signal.SIGINT, signal.SIGTERM)
QUIET = {"log_to_driver": False, "logging_level": logging.CRITICAL}
# Set where the user has not: nothing is reported to Ray's makers; no warning about GPUs; at the end
# no wait of 0.25 s for what has been sent of the states of tasks. (It arrives without, too.)
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_task_events_shutdown_flush_timeout_ms": "0",
}


@contextlib.contextmanager
def connected() -> Iterator[ModuleType]:
    """The module ``ray``, connected; to what this process is connected to, if it is."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    ray: Any = _imported()
    if ray.is_initialized():
        yield ray
        return
    try:
        with _signals_kept():
            _connect(ray)
        yield ray
    finally:
        ray.shutdown()


def _imported() -> ModuleType:
    try:
        import ray
    except ImportError as e:
        raise UsageError(
            f"the executor ray needs Ray ({e}): pip install 'fp8convert[ray]', on all nodes"
        ) from e
    return ray


def _connect(ray: Any) -> None:
    """To the cluster of RAY_ADDRESS, or the one that ``ray start`` has begun here; or a new one."""
    try:
        _check_answers(os.environ.get(ADDRESS, ""))
        try:
            ray.init(include_dashboard=False, object_store_memory=OBJECTS, **QUIET)
        except ValueError:  # a cluster that is there is not to be told how large its store is
            ray.init(**QUIET)
    except ConnectionError as e:  # the token of `ray start` is not sent unasked, and so refused
        raise ResumableError(
            f"no Ray cluster answers: {e}\nIf it asks for a token, set RAY_AUTH_MODE=token"
        ) from e
    except (RuntimeError, ValueError, ray.exceptions.RayError) as e:  # another version; no token
        raise UsageError(f"Ray refuses: {e}") from e


def _check_answers(address: str) -> None:
    if (match := _HOST_PORT.fullmatch(address)) is None:
        return
    try:
        socket.create_connection((match[1], int(match[2])), ANSWER_S).close()
    except (OSError, OverflowError) as e:
        raise ResumableError(f"no Ray cluster answers at {ADDRESS}={shown(address)}: {e}") from e


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself; whoever runs this has said what it is to do."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are none of its business
        return
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    missed: list[signal.Signals] = []
    try:
        yield
    except SystemExit as e:  # what Ray makes of SIGTERM, with its number
        missed = [signum for signum in SIGNALS if signum == e.code]
        raise
    finally:
        for signum, handler in before.items():
            if handler is not None:
                signal.signal(signum, handler)
        for signum in missed:
            signal.raise_signal(signum)
