"""What runs the pages: the blocks it takes, what it takes for a failure, the programs it gives."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .blocks import Block, blocks
from .pages import Page, opened
from .stubs import STUBS, elements, options


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """Without servers."""
    (tmp_path / "work").mkdir()
    with opened(tmp_path, dict(os.environ)) as found:
        yield found


def fenced(info: str, text: str) -> str:
    return f"```{info}\n{text}\n```\n"


# --- Blocks


def test_blocks_of_a_page() -> None:
    text = "# A\n" + fenced("sh", "a b\\\n  c") + "words\n" + fenced("text", "1") + "\n"
    text += fenced("sh exit=3", "false") + fenced("sh file=x.sbatch", "#!/bin/sh\n\nls")
    text += "- in a list:\n\n  ```sh\n  a\n    b\n  ```\n" + fenced("python", "1")
    assert blocks(text) == [
        Block(3, "sh", "a b\\\n  c\n"),
        Block(12, "sh", "false\n", code=3),
        Block(15, "sh", "#!/bin/sh\n\nls\n", file="x.sbatch"),
        Block(22, "sh", "a\n  b\n"),
        Block(26, "python", "1\n"),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (fenced("", "ls"), "line 2: a block of ''"),
        (fenced("bash", "ls"), "line 2: a block of 'bash'"),
        (fenced("console", "ls"), "line 2: a block of 'console'"),
        (fenced("sh skip", "ls"), "line 2: 'skip', expected exit=CODE or file=NAME"),
        (fenced("sh exit=x", "ls"), "'exit=x', expected"),
        (fenced("sh file=../x", "ls"), "'file=../x', expected"),
        (fenced("sh", ""), "an empty block"),
        ("```sh\nls\n", "line 1: a block that does not end"),
        (fenced("text", "1\nfp8convert x"), "line 3: a command that is not run: 'fp8convert x'"),
        (fenced("text", "$ ls"), "a command that is not run"),
        ("a\n\n    fp8convert to-bf16 SRC DST\n", "line 3: a command that is not run"),
    ],
)
def test_pages_that_would_hide_a_command(text: str, words: str) -> None:
    with pytest.raises(ValueError, match="line") as e:
        blocks(text)
    assert words in str(e.value)


# --- Running them


def test_files_stay_and_variables_do_not(page: Page) -> None:
    text = fenced("sh", "x=1\necho 2 > file\ncd /") + fenced("sh", 'test -z "${x-}"\ncat file')
    text += fenced("sh file=script", "#!/bin/sh\nexit 4") + fenced("sh exit=4", "./script")
    text += fenced("python", "assert open('file').read() == '2\\n'")
    assert page.run(text) == 4


@pytest.mark.parametrize(
    "text",
    [
        fenced("sh", "false\ntrue"),
        fenced("sh", "false | true"),
        fenced("sh", "echo $unset"),
        fenced("sh exit=1", "true"),
        fenced("sh exit=1", "exit 2"),
        fenced("sh", "no-such-program"),
        fenced("sh", "fp8convert to-bf16 nowhere dst"),
        fenced("python", "assert False"),
        fenced("sh", "sbatch --wrap false"),  # its own exit code is 0
        fenced("sh", "sbatch --wrap false\nsbatch -d afterok:1 --wrap ls"),
        fenced("sh", "sbatch --array=0-3 --wrap 'test $SLURM_ARRAY_TASK_ID != 2'"),
        fenced("sh", "srun -n 3 bash -c 'test $SLURM_PROCID != 1'"),
        fenced("sh", "pip install 'fp8convert[nothing]'"),
    ],
)  # fmt: skip
def test_what_does_not_work_is_seen(text: str, page: Page) -> None:
    with pytest.raises(AssertionError, match="line 2:"):
        page.run(text)


def test_what_is_left_running_is_seen(tmp_path: Path) -> None:
    """And ended."""
    (tmp_path / "work").mkdir()
    world = opened(tmp_path, dict(os.environ))
    page = world.__enter__()
    page.run(fenced("sh", "sleep 1000 >/dev/null 2>&1 &"))
    assert len(page.processes()) == 1
    with pytest.raises(AssertionError, match="were left"):
        world.__exit__(None, None, None)
    while page.processes():  # or this hangs
        pass


# --- Programs


def test_arrays() -> None:
    assert elements("0-3%2") == [0, 1, 2, 3]
    assert elements("3") == [3]
    assert elements("1,4-5") == [1, 4, 5]
    with pytest.raises(SystemExit):
        elements("a")


def test_options_of_slurm() -> None:
    argv = ["-n", "3", "--mem=2G", "--array", "0-1", "--parsable", "x", "--mem=1"]
    found = {"ntasks": "3", "mem": "2G", "array": "0-1", "parsable": ""}
    assert options(argv) == (found, ["x", "--mem=1"])
    with pytest.raises(SystemExit):
        options(["--no-such-option"])


def test_slurm(page: Page) -> None:
    """Arrays, options of the script and of the command line, dependencies that are met."""
    script = "#!/bin/bash\n#SBATCH --array=0-4\n#SBATCH --mem=1G\n"
    script += 'echo "$SLURM_ARRAY_TASK_COUNT" > "array-$SLURM_ARRAY_TASK_ID"'
    last = "sbatch --dependency=afterok:$j --wrap 'cat array-* > all'"
    text = fenced("sh file=a.sbatch", script)
    text += fenced("sh", f"j=$(sbatch --parsable a.sbatch)\n{last} | grep 'batch job 2'")
    assert page.run(text) == 1
    assert (page.folder / "all").read_text() == "5\n" * 5
    page.run(fenced("sh", "sbatch --array=3 a.sbatch"))
    assert (page.folder / "array-3").read_text() == "1\n"  # as Slurm counts


@pytest.mark.parametrize(
    ("launcher", "rank", "size"),
    [
        ("srun -n 3", "SLURM_PROCID", "SLURM_NTASKS"),
        ("srun --ntasks=3", "SLURM_PROCID", "SLURM_NTASKS"),
        ("mpirun -n 3", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        ("mpiexec -n 3", "PMI_RANK", "PMI_SIZE"),
    ],
)
def test_ranks(launcher: str, rank: str, size: str, page: Page) -> None:
    page.run(fenced("sh", f"{launcher} bash -c 'echo ${size} > \"rank-${rank}\"'"))
    found = {p.name: p.read_text() for p in page.folder.iterdir()}
    assert found == {f"rank-{n}": "3\n" for n in range(3)}


def test_pip_knows_the_extras(page: Page) -> None:
    page.run(fenced("sh", "pip install 'fp8convert[ray]'\npip install 'fp8convert[s3]'"))


def test_stubs_refuse_what_they_do_not_know() -> None:
    """A page that asks more of them has to say so here."""
    for name, argv in (("ray", ["status"]), ("pip", ["install", "x"]), ("srun", ["-n", "2"])):
        stub = [sys.executable, "-m", f"{__package__}.stubs", name, *argv]
        assert subprocess.run(stub, capture_output=True).returncode != 0
    assert {"sbatch", "srun", "mpirun", "mpiexec", "pip", "ray"} == set(STUBS)
