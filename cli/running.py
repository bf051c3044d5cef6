"""Options of the commands that run a model: its tokens, its numerics, its layers."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from fp8convert.parity.tokens import Wanted

    _LayersType = click.ParamType[tuple[int, ...]]  # generic since click 8.3 only
else:
    _LayersType = click.ParamType

COMPUTES = ("bf16", "fp32", "fp8")
DEVICES = ("cpu", "cuda")
MOST = 1 << 20  # tokens of a sequence, sequences
Command = TypeVar("Command", bound=Callable[..., Any])


class Layers(_LayersType):
    """Numbers with commas: ``0,3``."""

    name = "N,N..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """As integers; anything else is a usage error."""
        words = [word.strip() for word in str(value).split(",")]
        if not all(word.isdecimal() and len(word) < 10 for word in words):
            self.fail(f"{value!r} is not a list of layers such as 0,3", param, ctx)
        return tuple(map(int, words))


_OPTIONS = (
    click.option("--tokens", type=click.Path(exists=True, dir_okay=False), metavar="FILE.json",
                 help="A list of token ids, or a list of equally long lists."),
    click.option("--prompt", metavar="TEXT",
                 help="By the checkpoint's tokenizer.json; needs fp8convert[prompt]."),
    click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Random tokens."),
    click.option("--length", type=click.IntRange(1, MOST), metavar="L",
                 help="With --seed: of each."),
    click.option("--batch", type=click.IntRange(1, MOST), metavar="B",
                 help="With --seed: how many sequences.  [default: 1]"),
    click.option("--compute", type=click.Choice(COMPUTES), default=COMPUTES[0], show_default=True,
                 help="Of weights and activations. fp8: activations in FP8, where weights are."),
    click.option("--device", type=click.Choice(DEVICES), default=DEVICES[0], show_default=True),
    click.option("--layers", type=Layers(), help="Run these only, such as 0,3.  [default: all]"),
)  # fmt: skip


def running_options(command: Command) -> Command:
    """What a run of a model needs."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def polite() -> None:
    """To be called before torch is loaded: its threads sleep while they wait.

    They would spin, and where other programs want the cores too, as in CI, a run of seconds takes a
    minute.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def wanted(
    tokens: str | None, prompt: str | None, seed: int | None, length: int | None, batch: int | None
) -> Wanted:
    """The tokens that the options ask for; a usage error if that is none, or more than one."""
    given = [x for x in (tokens, prompt, seed) if x is not None]
    if len(given) != 1:
        raise click.UsageError("give one of --tokens FILE, --prompt TEXT, --seed N --length L")
    if (seed is None) != (length is None) or (seed is None and batch is not None):
        raise click.UsageError("--seed needs --length; --length and --batch are for --seed")
    from fp8convert.parity.tokens import Wanted

    return Wanted(tokens, prompt, seed, length, batch)
