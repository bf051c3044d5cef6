"""What a shell does: leads a session on a terminal, and runs one command in the foreground.

``python -IS leader.py REPORT ORDERS COMMAND...``; standard streams are the terminal. On the
descriptor REPORT it says ``pid N``, ``stopped`` and ``exit CODE``; a line on ORDERS brings a
stopped command to the foreground. A hang-up is passed on.
"""

import fcntl
import os
import signal
import sys
import termios


def lead(report: int, orders: int, command: list[str]) -> None:
    """Run it to its end."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # it sets who is in the foreground
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        os.tcsetpgrp(0, os.getpid())
        for signum in (signal.SIGINT, signal.SIGTTOU, signal.SIGPIPE, signal.SIGHUP):
            signal.signal(signum, signal.SIG_DFL)
        os.execv(command[0], command)
    signal.signal(signal.SIGHUP, lambda signum, frame: os.killpg(pid, signum))
    os.write(report, f"pid {pid}\n".encode())
    while os.WIFSTOPPED(status := os.waitpid(pid, os.WUNTRACED)[1]):
        os.tcsetpgrp(0, os.getpid())
        os.write(1, b"\n[1]+  Stopped\n")
        os.write(report, b"stopped\n")
        os.read(orders, 1)
        os.tcsetpgrp(0, pid)
        os.killpg(pid, signal.SIGCONT)
    os.write(report, f"exit {os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    lead(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
