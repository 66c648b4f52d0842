"""How messages are listed and shown, those that failed and those that wait alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from operations.console import Column, Overflow, age_text, note, printable, say, say_indented, say_table
from operations.messages import body_as_text, text_properties
from operations.selection import check_reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from azure.servicebus import ServiceBusReceivedMessage

    from operations.messages import MessageInfo
    from operations.names import Names


class _Message(Protocol):
    @property
    def seen(self) -> MessageInfo: ...


Listed = TypeVar("Listed", bound=_Message)

AGE = Column("Age", "ageText", number=True)
_COLUMNS = (
    Column("Reason", "reason", overflow=Overflow.CUT),
    Column("Opportunity", "about", overflow=Overflow.CUT_INSIDE),
    Column("Text", "summary", overflow=Overflow.CUT),
)


def with_reason(messages: Iterable[Listed], reason: str | None) -> list[Listed]:
    """Return the messages with this reason, all for None; raises ClickException for a reason that no message has."""
    listed = list(messages)
    check_reason(reason, (each.seen.reason for each in listed))
    return [each for each in listed if reason in (None, each.seen.reason)]


def info_row(seen: MessageInfo, names: Names) -> dict[str, object]:
    """Return what a message says about itself, for scripts."""
    name = names.by_id.get(seen.opportunity_id or "")
    return {
        "reason": seen.reason,
        "description": seen.description,
        "opportunity": seen.opportunity_id,
        "opportunityName": name and name.name,
        "customer": name and name.customer,
        "since": seen.since,
    }


def info_cells(seen: MessageInfo, names: Names) -> dict[str, object]:
    """Return what a message says about itself, for the columns of a list."""
    about = names.by_id.get(seen.opportunity_id or "") or seen.opportunity_id or "not known"
    return {"reason": seen.reason, "about": about, "ageText": age_text(seen.age), "summary": seen.summary}


def say_messages(columns: Sequence[Column], rows: Sequence[Mapping[str, object]], names: Names) -> None:
    """Print messages in these columns and those of `info_cells`."""
    say_table([*columns, *_COLUMNS], rows)
    if names.unavailable:
        note(f"Ids instead of names: {names.unavailable}")


def say_message(fields: Mapping[str, object], message: ServiceBusReceivedMessage) -> None:
    """Print one message: these fields, its properties and its body."""
    for name, value in fields.items():
        say(f"{name + ':':<17} {printable(value)}")
    say("properties:")
    for name, value in text_properties(message).items():
        say(f"  {printable(name)} = {printable(value)}")
    say("body:")
    say_indented(body_as_text(message))
