"""Which messages a command means: by number, by reason, or all; the same options wherever messages are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# What a broker gives out: 64 bits, from one on.
SEQUENCE_NUMBER = click.IntRange(1, 2**63 - 1)


@dataclass(frozen=True)
class Selection:
    """What was asked for; raises UsageError unless in exactly one of the three ways."""

    numbers: tuple[int, ...]
    reason: str | None
    everything: bool

    def __post_init__(self) -> None:
        if sum((bool(self.numbers), self.reason is not None, self.everything)) != 1:
            raise click.UsageError("Say which messages: their numbers, or --reason REASON, or --all.")

    def means(self, number: int, reason: object) -> bool:
        """Whether a message with this sequence number and this reason is meant."""
        return self.everything or number in self.numbers or (reason is not None and reason == self.reason)

    def check_found(self, found: Iterable[int], where: str) -> None:
        """Raise ClickException if a number that was asked for is not among those that were found."""
        absent = sorted(set(self.numbers) - set(found))
        if absent:
            raise click.ClickException(f"Not {where}: {', '.join(map(str, absent))}. Nothing was done.")


def selecting(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a Selection, and the selection itself as `selection`."""

    @click.argument("numbers", type=SEQUENCE_NUMBER, nargs=-1)
    @click.option("--reason", help="All messages with this reason.")
    @click.option("--all", "everything", is_flag=True, help="All messages.")
    @wraps(command)
    def with_selection(
        *arguments: Any,  # noqa: ANN401 - whatever click passes on
        numbers: tuple[int, ...],
        reason: str | None,
        everything: bool,
        **options: Any,  # noqa: ANN401
    ) -> None:
        command(*arguments, selection=Selection(numbers, reason, everything), **options)

    return with_selection
