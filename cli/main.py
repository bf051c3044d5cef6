"""``fp8convert``: the group, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import NoReturn

import click

from fp8convert.errors import EXIT_REFUSED, EXIT_RESUMABLE, Fp8ConvertError, ResumableError
from fp8convert.version import VERSION

from . import stopping

# name -> module, attribute, one line of help. Modules load when their command runs.
COMMANDS = {
    "finalize": ("finalize", "finalize_command", "End what many machines have worked on."),
    "inspect": ("inspect", "inspect_command", "Say what a checkpoint is, from its headers."),
    "logits": ("logits", "logits_command", "Run a checkpoint from disk and write its logits."),
    "make-sample": ("make_sample", "make_sample_command", "Write a sample checkpoint."),
    "parity": ("parity", "parity_command", "Compare two checkpoints by their logits."),
    "plan": ("plan", "plan_command", "Begin a conversion that many machines work on."),
    "quantize": ("quantize", "quantize_command", "Encode a checkpoint in a low-precision form."),
    "run-task": ("run_task", "run_task_command", "Do one worker's share of a plan."),
    "shard-for-tp": ("shard_for_tp", "shard_for_tp_command", "Cut it for tensor-parallel ranks."),
    "to-bf16": ("to_bf16", "to_bf16_command", "Convert a low-precision checkpoint to BF16."),
    "unshard": ("unshard", "unshard_command", "Put tensor-parallel ranks together again."),
    "verify": ("verify", "verify_command", "Check an output, alone or against its source."),
}


class _Lazy(click.Group):
    """A group that imports a command only when it is named, so that --help is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(
            importlib.import_module(f".{module}", __package__), attribute
        )
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


@click.group(
    cls=_Lazy,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExamples:\n  fp8convert inspect DeepSeek-V3\n"
    "  fp8convert to-bf16 DeepSeek-V3 DeepSeek-V3-bf16 --dry-run\n"
    "  fp8convert to-bf16 DeepSeek-V3 DeepSeek-V3-bf16\n"
    "  fp8convert quantize DeepSeek-V3-bf16 DeepSeek-V3-fp8 --scheme fp8-block\n"
    "  fp8convert shard-for-tp DeepSeek-V3 DeepSeek-V3-mp16 --tp 16\n"
    "  fp8convert verify DeepSeek-V3-bf16 --against DeepSeek-V3\n"
    "  fp8convert to-bf16 hf://deepseek-ai/DeepSeek-V3 DeepSeek-V3-bf16 --scratch-size 50GB\n"
    "  fp8convert plan to-bf16 DeepSeek-V3 DeepSeek-V3-bf16 --out plan.json",
)
@click.version_option(VERSION, prog_name="fp8convert")
def cli() -> None:
    """Convert block-scaled checkpoints at disk speed, in bounded memory, resumably.

    Exit codes: 0 done; 1 refused or failed; 2 usage; 3 what was compared or checked is not as it
    should be; 75 interrupted or out of resources, run the same command again to resume.
    """


def run(command: click.Command, prog: str) -> NoReturn:
    """Run ``command`` with the exit codes of this tool."""
    # Its warnings hold signed links, and what goes wrong is told by us. Before it is imported.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    try:
        try:
            stopping.begin()
            code = _outcome(command, prog)
        finally:
            stopping.end()
    except KeyboardInterrupt:  # the first signal, while the outcome was told; no other is raised
        code = _say(ResumableError("interrupted"))
        stopping.end()
    sys.exit(code)


def _outcome(command: click.Command, prog: str) -> int:
    """Run ``command`` and tell what went wrong; the exit code."""
    try:
        return command.main(prog_name=prog, standalone_mode=False) or 0  # ctx.exit() returns
    except click.ClickException as e:
        e.show()
        return e.exit_code
    except Fp8ConvertError as e:
        return _say(_why(e))
    except (KeyboardInterrupt, click.Abort):
        return _say(ResumableError("interrupted"))
    except BrokenPipeError:
        _silence(1)
        return EXIT_REFUSED
    except OSError as e:
        return _say(_why(ResumableError(str(e))))
    except (SystemExit, GeneratorExit):
        raise
    except BaseException:  # a bug of ours, or a library's panic, which is no Exception
        if stopping.asked():
            return _say(ResumableError("interrupted"))
        click.echo(_lines(traceback.format_exc()), err=True)
        return EXIT_REFUSED


def main() -> NoReturn:
    """Console script ``fp8convert``."""
    run(cli, "fp8convert")


def _say(error: Fp8ConvertError) -> int:
    try:
        begin = "\n" if stopping.echoed else ""
        click.echo(f"{begin}error: {_lines(error)}", err=True)
        if error.exit_code == EXIT_RESUMABLE:
            click.echo("Run the same command again to resume.", err=True)
    except OSError:  # the terminal is closed
        _silence(1, 2)
    return error.exit_code


def _why(error: Fp8ConvertError) -> Fp8ConvertError:
    """What is to be told: an interruption may come to look like damage."""
    resumable = error.exit_code == EXIT_RESUMABLE
    return error if resumable or not stopping.asked() else ResumableError("interrupted")


def _silence(*fds: int) -> None:
    """Nobody listens; without this the interpreter complains of it at its exit."""
    for fd in fds:
        os.dup2(os.open(os.devnull, os.O_WRONLY), fd)


def _lines(text: object) -> str:
    """What a terminal shows as it is; whatever else was let through is spelled out."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in str(text))
