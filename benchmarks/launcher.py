"""Run one command and say its time, its CPU time and its peak memory, as JSON on stdout.

Linux counts the memory a process had before its exec in ``ru_maxrss``: a child of a Python that
has torch loaded seems to need as much itself. So this script, a bare interpreter, starts it.
Usage: ``python -I -S launcher.py COMMAND [ARGUMENTS...]``; what the command prints is dropped.
"""

import json
import os
import sys
import time


def main() -> None:
    """Start, wait, report."""
    null = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
    begun = time.perf_counter()
    pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[null])
    _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - begun
    unit = 1 if sys.platform == "darwin" else 1024
    found = {
        "code": os.waitstatus_to_exitcode(status),
        "seconds": seconds,
        "cpu": usage.ru_utime + usage.ru_stime,
        "peak": usage.ru_maxrss * unit,
    }
    print(json.dumps(found))


main()
