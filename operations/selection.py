"""Which messages a command applies to: by id, by reason, or all; the same options wherever messages are selected."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from operations.console import printable
from operations.namespace import MessageId, Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# What a broker assigns: 64 bits, from one on.
_NUMBERS = range(1, 2**63)
SEQUENCE_NUMBER = click.IntRange(_NUMBERS[0], _NUMBERS[-1])


class MessageIdType(click.ParamType["MessageId"]):
    """A message id on the command line: 12, failed-dlq:12, won-dlq:12."""

    name = "id"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> MessageId:
        """Return the id; fails for anything else."""
        if isinstance(value, MessageId):
            return value
        try:
            return parse_message_id(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def parse_message_id(text: str) -> MessageId:
    """Return the id that a text means; raises ValueError with a sentence."""
    match = re.fullmatch(r"(failed-dlq:|won-dlq:|)(\d{1,19})", text)
    if match is None:
        raise ValueError(f"{text!r} is not an id: the form is 12, failed-dlq:12 or won-dlq:12.")
    if int(match[2]) not in _NUMBERS:
        raise ValueError(f"{match[2]} is not in the range of sequence numbers, 1 to {_NUMBERS[-1]}.")
    return MessageId(Place(match[1]), int(match[2]))


@dataclass(frozen=True)
class Selection:
    """What was asked for; raises UsageError unless it is exactly one of the three kinds."""

    ids: tuple[MessageId, ...]
    reason: str | None
    everything: bool

    def __post_init__(self) -> None:
        if sum((bool(self.ids), self.reason is not None, self.everything)) != 1:
            raise click.UsageError("Say which messages: their ids, or --reason REASON, or --all.")

    def matches(self, message_id: MessageId, reason: str) -> bool:
        """Whether a message with this id and this reason is selected."""
        return self.everything or message_id in self.ids or reason == self.reason

    def check_found(self, found: Iterable[MessageId], where: str) -> None:
        """Raise ClickException if an id that was asked for is not among those that were found."""
        absent = [str(each) for each in self.ids if each not in set(found)]
        if absent:
            raise click.ClickException(f"Not {where}: {', '.join(absent)}. Nothing was done.")


def check_reason(reason: str | None, reasons: Iterable[str]) -> None:
    """Raise ClickException for a reason that no message has, with those that exist."""
    existing = sorted(set(reasons))
    if reason is None or reason in existing:
        return
    # Neutralised one by one: a line break in a reason must not become one in the text.
    there = (
        f"The reasons are: {', '.join(map(printable, existing))}." if existing else "There are no messages."
    )
    raise click.ClickException(f"No message has the reason {printable(reason)}. {there}")


def selecting(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a Selection, and the selection itself as `selection`."""

    @click.argument("ids", type=MessageIdType(), nargs=-1)
    @click.option("--reason", help="All messages with this reason.")
    @click.option("--all", "everything", is_flag=True, help="All messages.")
    @wraps(command)
    def with_selection(
        *arguments: Any,  # noqa: ANN401 - passed on from click
        ids: tuple[MessageId, ...],
        reason: str | None,
        everything: bool,
        **options: Any,  # noqa: ANN401
    ) -> None:
        command(*arguments, selection=Selection(ids, reason, everything), **options)

    return with_selection
