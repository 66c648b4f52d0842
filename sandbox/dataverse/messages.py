"""The types of messages: actions and functions of the Web API, unbound or bound to a row, and their results."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sandbox.dataverse.columns import Row, Table
from sandbox.dataverse.service import Session


@dataclass(frozen=True)
class EntityResult:
    """A row as the result of an action: these columns of it."""

    table: Table
    row: Row
    columns: tuple[str, ...]


Parameters = Mapping[str, Any]
Result = EntityResult | dict[str, object] | None


@dataclass(frozen=True)
class UnboundMessage:
    """An action (POST, may change things) or a function (GET), and the parameters that it takes."""

    run: Callable[[Session, Parameters], Result]
    parameters: frozenset[str] = frozenset()


@dataclass(frozen=True)
class BoundMessage:
    """An action or a function bound to a row of a table."""

    table: str
    run: Callable[[Session, Row, Parameters], Result]
    parameters: frozenset[str] = frozenset()
