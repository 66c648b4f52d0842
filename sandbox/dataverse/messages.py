"""The types of messages: actions and functions of the Web API, unbound or bound to a row, and their results."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sandbox.dataverse.columns import InvalidValue, Row, Table, guid
from sandbox.dataverse.errors import bad_request, no_property
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


def check_known_parameters(name: str, known: frozenset[str], parameters: Parameters) -> None:
    """Refuse parameters that the message does not have."""
    for parameter in parameters:
        if parameter not in known and not parameter.startswith("@odata."):
            raise no_property(parameter, name)


def guid_parameter(value: object) -> str:
    """Read an id. Raises RequestRefused (400)."""
    try:
        return guid(value)
    except InvalidValue as error:
        raise bad_request(str(error)) from error
