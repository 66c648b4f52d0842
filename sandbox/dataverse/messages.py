"""The types of messages: actions and functions of the Web API, unbound or bound to a row, and their results."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sandbox.dataverse.columns import Row, Table


@dataclass(frozen=True)
class EntityResult:
    """A row as the result of an action: these columns of it."""

    table: Table
    row: Row
    columns: tuple[str, ...]


Parameters = Mapping[str, Any]
Result = EntityResult | dict[str, object] | None


@dataclass(frozen=True)
class Message:
    """An action (POST, may change things) or a function (GET), and the parameters that it takes.

    `run` takes a session, the row if the message is bound to one, and the Parameters.
    """

    run: Callable[..., Result]
    parameters: frozenset[str] = frozenset()
