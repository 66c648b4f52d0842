"""`$filter` and `$orderby`: OData expressions → SQL conditions with parameters.

Supports columns, and columns of single-valued navigation properties (`customerid_account/name`). Everything else is
refused with an error that names it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any

from lark import Lark, Token, Transformer
from lark.exceptions import UnexpectedInput, VisitError

from sandbox.dataverse.columns import Column, ColumnKind, Table
from sandbox.dataverse.errors import RequestRefused, bad_request, no_property, not_supported
from sandbox.dataverse.schema import TABLES

_GRAMMAR = r"""
?start: disjunction
?disjunction: conjunction ("or" conjunction)+ -> either
            | conjunction
?conjunction: negation ("and" negation)+ -> both
            | negation
?negation: NOT negation -> negated | atom
?atom: "(" disjunction ")" -> grouped
     | PATH OPERATOR literal -> comparison
     | TEXT_FUNCTION "(" PATH "," STRING ")" -> text_match
?literal: GUID -> guid | DATETIME -> text | STRING -> string | NUMBER -> number
        | TRUE -> true | FALSE -> false | NULL -> null
NOT.3: /not\b/
OPERATOR.3: /(eq|ne|gt|ge|lt|le)\b/
TEXT_FUNCTION.3: /(startswith|endswith|contains)(?=\()/
TRUE.3: /true\b/
FALSE.3: /false\b/
NULL.3: /null\b/
GUID.2: /[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}/
DATETIME.1: /\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)?)?/
NUMBER: /-?\d+(\.\d+)?/
STRING: /'([^']|'')*'/
PATH: /[a-zA-Z_]\w*(\/[a-zA-Z_]\w*)*/
%ignore /\s+/
"""
_SQL_OPERATORS = {"eq": "=", "ne": "IS NOT", "gt": ">", "ge": ">=", "lt": "<", "le": "<="}
_MAX_CONDITIONS = 500
_UNSUPPORTED = (
    (re.compile(r"/(any|all)\("), "lambda operators"),
    (re.compile(r"\bMicrosoft\.Dynamics\.CRM\.\w+\("), "query functions"),
    (re.compile(r"\b(add|sub|mul|div|mod)\b"), "arithmetic"),
)


@dataclass(frozen=True)
class Condition:
    """An SQL condition on a row `t`, and the values of its placeholders."""

    sql: str
    parameters: tuple[object, ...] = ()


@lru_cache(maxsize=1)
def _parser() -> Lark:
    return Lark(_GRAMMAR, parser="lalr")


def parse_filter(text: str, table: Table) -> Condition:
    """Translate `$filter`. Raises RequestRefused if it is not valid or not supported."""
    outside_of_texts = re.sub(r"'([^']|'')*'", "''", text)
    for pattern, name in _UNSUPPORTED:
        if pattern.search(outside_of_texts):
            raise not_supported(f"{name} in $filter")
    try:
        condition = _ToSql(table).transform(_parser().parse(text))
    except UnexpectedInput as error:
        raise bad_request(
            f"Syntax error at position {error.pos_in_stream} in the $filter. (The sandbox's Dataverse knows "
            "eq, ne, gt, ge, lt, le, and, or, not, startswith, endswith, contains and parentheses.)"
        ) from error
    except RecursionError as error:
        raise bad_request("The $filter is nested too deeply.") from error
    except VisitError as error:
        if isinstance(error.orig_exc, RequestRefused):
            raise error.orig_exc from error
        raise
    if not isinstance(condition, Condition):
        raise bad_request("The $filter must be a condition.")
    if len(condition.parameters) > _MAX_CONDITIONS:
        raise bad_request("Number of conditions in query exceeded maximum limit.", "0x8004430d")
    return condition


def parse_orderby(text: str, table: Table) -> Sequence[str]:
    """Translate `$orderby` into terms of ORDER BY; the primary key always comes last."""
    terms = []
    for term in text.split(","):
        words = term.split()
        if not words or len(words) > 2 or words[1:] not in ([], ["asc"], ["desc"]):  # noqa: PLR2004
            raise bad_request(f"The $orderby cannot be understood at '{term.strip()}'.")
        sql, _ = _column_sql(words[0], table)
        terms.append(f"{sql} {words[1] if words[1:] else 'asc'}")
    return terms


def _column_sql(path: str, table: Table) -> tuple[str, Column]:
    """Return the SQL of a column; the path may contain single-valued navigation properties."""
    *steps, name = path.split("/")
    current, key, wrap = table, "t", "{}"
    for depth, step in enumerate(steps):
        if step not in current.navigation:
            raise no_property(step, current.name)
        lookup, targets = current.navigation[step]
        if len(targets) > 1:
            raise not_supported(f"conditions behind '{step}', which leads to several tables")
        target, alias = TABLES[targets[0]], f"n{depth}"
        # A scalar subquery for each step of the path: without a target it yields NULL, as an outer join does.
        wrap = wrap.format(
            f'(SELECT {{}} FROM "{target.name}" {alias}'  # noqa: S608 - names of the schema
            f' WHERE {alias}."{target.key}" = {key}."{lookup.name}")'
        )
        current, key = target, alias
    column = current.by_property.get(name)
    if column is None:
        if name in current.navigation:
            raise not_supported(f"comparing the navigation property '{name}': use _{name}_value")
        raise no_property(name, current.name)
    if column.base_of is not None:
        raise not_supported(f"conditions on '{name}', which is calculated: use {column.base_of}")
    return wrap.format(f'{key}."{column.name}"'), column


class _ToSql(Transformer[Token, Any]):
    """Bottom-up: literals → values, comparisons → conditions."""

    def __init__(self, table: Table) -> None:
        super().__init__()
        self._table = table

    def either(self, parts: list[Condition]) -> Condition:
        return _joined("OR", parts)

    def both(self, parts: list[Condition]) -> Condition:
        return _joined("AND", parts)

    def negated(self, parts: list[Any]) -> Condition:
        return Condition(f"NOT ({parts[1].sql})", parts[1].parameters)

    def grouped(self, parts: list[Condition]) -> Condition:
        return Condition(f"({parts[0].sql})", parts[0].parameters)

    def comparison(self, parts: list[Any]) -> Condition:
        path, operator, literal = parts
        sql, column = _column_sql(str(path), self._table)
        if literal is None:
            if operator not in ("eq", "ne"):
                raise bad_request(f"null can be compared with eq and ne only, not with {operator}.")
            return Condition(f"{sql} IS {'NOT ' if operator == 'ne' else ''}NULL")
        return Condition(f"{sql} {_SQL_OPERATORS[operator]} ?", (column.to_sql(column.parse(literal)),))

    def text_match(self, parts: list[Token]) -> Condition:
        function, path, literal = parts
        sql, column = _column_sql(str(path), self._table)
        if column.kind is not ColumnKind.TEXT:
            raise bad_request(f"{function} works on text, which '{path}' is not.")
        text = self.string([literal])
        for special in "\\%_":
            text = text.replace(special, f"\\{special}")
        pattern = {"startswith": f"{text}%", "endswith": f"%{text}", "contains": f"%{text}%"}[function]
        return Condition(f"{sql} LIKE ? ESCAPE '\\'", (pattern,))

    def guid(self, parts: list[Token]) -> str:
        return str(parts[0])

    text = guid

    def string(self, parts: list[Token]) -> str:
        return parts[0][1:-1].replace("''", "'")

    def number(self, parts: list[Token]) -> int | Decimal:
        return Decimal(parts[0]) if "." in parts[0] else int(parts[0])

    def true(self, _: list[Token]) -> bool:
        return True

    def false(self, _: list[Token]) -> bool:
        return False

    def null(self, _: list[Token]) -> None:
        return None


def _joined(operator: str, parts: list[Condition]) -> Condition:
    return Condition(
        f" {operator} ".join(f"({part.sql})" for part in parts),
        tuple(value for part in parts for value in part.parameters),
    )
