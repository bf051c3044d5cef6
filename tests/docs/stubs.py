"""Programs that pages use and test machines do not have: Slurm's, MPI's; pip and ray, tamed.

``python -m tests.docs.stubs NAME ARGUMENTS`` is what a file called NAME on the PATH runs. They do
what the real ones are documented to do, as far as the pages use it; whatever else they are asked is
an error.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
RAY = "ray.scripts.scripts"
AT_ONCE = 2  # elements of an array
BATCH_OPTIONS = {  # with a value, as --name=value or --name value; short ones
    "array": "-a", "dependency": "-d", "wrap": "", "job-name": "-J", "cpus-per-task": "-c",
    "mem": "", "time": "-t", "output": "-o", "ntasks": "-n", "nodes": "-N", "partition": "-p",
    "ntasks-per-node": "", "error": "-e",
}  # fmt: skip
BATCH_FLAGS = ("parsable", "requeue")


def state() -> Path:
    """A folder of the page's own."""
    return Path(os.environ["DOCS_STATE"])


def options(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Slurm's options by their long names, and what follows them."""
    found: dict[str, str] = {}
    words = list(argv)
    short = {s: name for name, s in BATCH_OPTIONS.items() if s}
    while words and words[0].startswith("-"):
        word, _, value = words.pop(0).partition("=")
        name = short.get(word, word.removeprefix("--"))
        if name in BATCH_FLAGS:
            found[name] = ""
        elif name in BATCH_OPTIONS:
            found[name] = value or words.pop(0)
        else:
            raise SystemExit(f"no option {word!r} of Slurm is known here")
    return found, words


# --- Slurm


def elements(said: str) -> list[int]:
    """Of ``--array``: ``0-7``, ``0-7%2``, ``3``, ``1,5``."""
    found: list[int] = []
    for part in said.partition("%")[0].split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not match:
            raise SystemExit(f"no array: {said!r}")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return found


def sbatch(argv: Sequence[str]) -> int:
    """Runs the job at once, and tells its number when it has ended; how it ended is in a file."""
    given, words = options(argv)
    if ("wrap" in given) == bool(words):
        raise SystemExit("a script, or --wrap")
    if words:
        script = Path(words[0])
        told = [line[8:] for line in script.read_text().splitlines() if line.startswith("#SBATCH ")]
        given = options(shlex.split(" ".join(told)))[0] | given
        command = ["bash", str(script), *words[1:]]
    else:
        command = ["bash", "-c", given["wrap"]]
    job = len(list(state().glob("job-*"))) + 1
    record = state() / f"job-{job}"
    record.write_text("not run: what it depends on has failed")
    if _may_run(given.get("dependency", "")):
        codes = _run_job(job, given, command)
        record.write_text("ok" if not any(codes) else f"exit codes {codes}")
    print(job if "parsable" in given else f"Submitted batch job {job}")
    return 0


def _may_run(dependency: str) -> bool:
    if not dependency:
        return True
    how, *jobs = dependency.split(":")
    if how != "afterok" or not jobs or not all(map(str.isdecimal, jobs)):
        raise SystemExit(f"no dependency: {dependency!r}")
    return all((state() / f"job-{job}").read_text() == "ok" for job in jobs)


def _run_job(job: int, given: dict[str, str], command: list[str]) -> list[int]:
    tasks = {"SLURM_NTASKS": given["ntasks"]} if "ntasks" in given else {}
    whole = {**os.environ, "SLURM_JOB_ID": str(job), "SLURM_SUBMIT_DIR": os.getcwd(), **tasks}
    if "array" not in given:
        return _at_once([whole], command)
    numbers = elements(given["array"])
    return _at_once(
        [
            {**whole, "SLURM_ARRAY_JOB_ID": str(job), "SLURM_ARRAY_TASK_ID": str(n),
             "SLURM_ARRAY_TASK_COUNT": str(len(numbers)), "SLURM_ARRAY_TASK_MIN": str(numbers[0]),
             "SLURM_ARRAY_TASK_MAX": str(numbers[-1])}
            for n in numbers
        ],
        command, AT_ONCE,
    )  # fmt: skip


def _at_once(
    environments: Sequence[dict[str, str]], command: list[str], most: int = 1 << 20
) -> list[int]:
    """Exit codes of processes, ``most`` of them at a time; the same output as this one's."""
    codes: list[int] = []
    for n in range(0, len(environments), most):
        running = [
            subprocess.Popen(command, env=env, stdout=2) for env in environments[n : n + most]
        ]
        codes += [process.wait() for process in running]
    return codes


# --- Ranks


def ranks(rank: str, size: str) -> Callable[[Sequence[str]], int]:
    """A launcher: ``-n N COMMAND``, its processes' numbers in the environment."""

    def launch(argv: Sequence[str]) -> int:
        given, command = options(argv)
        count = int(given.get("ntasks") or os.environ.get(size) or 1)
        if not command:
            raise SystemExit("no command")
        environments = [
            {**os.environ, rank: str(n), size: str(count)} for n in range(count)
        ]  # fmt: skip
        return max(_at_once(environments, command))

    return launch


# --- pip, ray


def pip(argv: Sequence[str]) -> int:
    """``pip install 'fp8convert[EXTRA]'``: only whether there is such an extra."""
    match = re.fullmatch(r"fp8convert\[(.*)\]", argv[-1])
    if argv[:1] != ["install"] or len(argv) != 2 or not match:
        raise SystemExit(f"not what this project is installed by: pip {shlex.join(argv)}")
    project = (ROOT / "pyproject.toml").read_text()  # tomllib is new in Python 3.11
    extras = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    known = set(re.findall(r"(?m)^([a-z0-9-]+) = ", extras))
    if odd := set(match[1].split(",")) - known:
        raise SystemExit(f"no extra {odd}, there are {known}")
    return 0


def ray(argv: Sequence[str]) -> int:
    """``ray start``, small and known by its process; ``ray stop`` ends those and no others."""
    if argv[:1] == ["start"]:
        return _ray_start(list(argv[1:]))
    if argv != ["stop"]:
        raise SystemExit(f"only ray start and ray stop are known here, not {shlex.join(argv)}")
    stop_rays(state())
    return 0


def _ray_start(words: list[str]) -> int:
    """A node of one CPU, on a port that is free: the usual one may be another cluster's."""
    head, place = "--head" in words, state() / "ray-address"
    if head:
        place.write_text(f"127.0.0.1:{_free_port()}")
    elif not any(w.startswith("--address") for w in words):
        raise SystemExit("ray start: --head, or --address=HOST:PORT")
    where = place.read_text()
    mine = ["--head", f"--port={where.split(':')[1]}"] if head else [f"--address={where}"]
    mine += ["--include-dashboard=false"] * head
    log = state() / f"ray-{len(list(state().glob('ray-*.log')))}.log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", RAY, "start", "--block", *mine, "--num-cpus=1",
             f"--object-store-memory={80 << 20}", "--disable-usage-stats"],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    while b"Ray runtime started" not in log.read_bytes():
        if process.poll() is not None:
            raise SystemExit(log.read_text())
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
    return 0


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        found: int = s.getsockname()[1]
        return found


def stop_rays(folder: Path) -> None:
    """End every process of Ray's that was begun in the page whose state is in ``folder``."""
    while pids := [pid for pid, words in processes(folder) if any(map(_is_ray, words))]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _is_ray(word: bytes) -> bool:
    return word.startswith(b"ray::") or b"/site-packages/ray/" in word or word == RAY.encode()


def processes(folder: Path) -> list[tuple[int, list[bytes]]]:
    """Those of the page whose state is in ``folder``, and their command lines."""
    mark, found = f"DOCS_STATE={folder}".encode(), []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (path / "environ").read_bytes().split(b"\0"):
                found.append((int(path.name), (path / "cmdline").read_bytes().split(b"\0")))
    return found


STUBS: dict[str, Callable[[Sequence[str]], int]] = {
    "sbatch": sbatch,
    "srun": ranks("SLURM_PROCID", "SLURM_NTASKS"),
    "mpirun": ranks("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "mpiexec": ranks("PMI_RANK", "PMI_SIZE"),
    "pip": pip,
    "ray": ray,
}

if __name__ == "__main__":
    sys.exit(STUBS[sys.argv[1]](sys.argv[2:]))
