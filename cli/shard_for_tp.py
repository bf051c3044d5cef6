"""``shard-for-tp``: reserved; it says so and writes nothing."""

from __future__ import annotations

from typing import NoReturn

import click

from fp8convert.errors import Fp8ConvertError

from .main import run


@click.command("shard-for-tp", context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def shard_for_tp_command(arguments: tuple[str, ...]) -> None:
    """Not yet: cut a checkpoint into tensor-parallel ranks."""
    raise Fp8ConvertError("shard-for-tp is not there yet; nothing was written")


def main() -> NoReturn:
    """Console script ``shard-for-tp``."""
    run(shard_for_tp_command, "shard-for-tp")
