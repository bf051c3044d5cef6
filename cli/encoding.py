"""Options of the commands that encode weights by a scheme."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fp8convert.options import GROUPS, SCALE_DTYPES, SEARCHES

if TYPE_CHECKING:
    _BlockType = click.ParamType[tuple[int, int]]
else:
    _BlockType = click.ParamType  # generic since click 8.3 only

Command = TypeVar("Command", bound=Callable[..., Any])


class Block(_BlockType):
    """``128x128``: rows and columns that share a scale."""

    name = "ROWSxCOLUMNS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Two numbers; anything else is a usage error."""
        match = re.fullmatch(r"([0-9]{1,5})[xX]([0-9]{1,5})", str(value).strip())
        if not match:
            self.fail(f"{value!r} is not a block such as 128x128", param, ctx)
        return int(match[1]), int(match[2])


_OPTIONS = (
    click.option("--block", type=Block(), help="Of the fp8-block schemes.  [default: 128x128]"),
    click.option("--group", type=click.Choice([str(g) for g in GROUPS]),
              callback=lambda ctx, param, value: None if value is None else int(value),
              help="Elements that share a scale, of int4-group.  [default: 128]"),
    click.option("--scale-dtype", type=click.Choice(list(SCALE_DTYPES)),
              help="Of fp8-block-ue8m0's scales; e8m0 is V4's form.  [default: f32]"),
    click.option("--scale-search", type=click.Choice(SEARCHES), default="plain", show_default=True,
              help="mse: of each block the scale of least squared error; slower."),
    click.option("--include", multiple=True, metavar="GLOB",
              help="Weights to encode, instead of the family's convention."),
    click.option("--exclude", multiple=True, metavar="GLOB", help="Weights to leave as they are."),
    click.option("--like", metavar="OTHER", help="Encode what is coded in the checkpoint OTHER."),
    click.option("--require-exact", is_flag=True, help="Refuse any weight that would be rounded."),
)  # fmt: skip


def encoding_options(command: Command) -> Command:
    """How weights are encoded, and which."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
