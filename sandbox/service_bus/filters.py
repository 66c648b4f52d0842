"""Which messages a subscription takes: true, false, correlation and SQL filters.

The SQL part is the subset that filters on events need: comparisons, AND, OR, NOT, IN, LIKE with ESCAPE, IS [NOT]
NULL, EXISTS, arithmetic-free literals, and properties as `name`, `[any name]`, `user.name` or `sys.Name`. NULL is
unknown, in SQL's three-valued logic, and a filter takes a message only where it is *true*. All that is beyond it
(arithmetic, functions, parameters, rule actions) is refused when the configuration is read, never ignored.
"""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache, lru_cache
from typing import Any, Protocol

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedInput, VisitError

from sandbox.service_bus.messages import Message


class InvalidFilter(ValueError):
    """The filter is wrong, or beyond what the emulator evaluates."""


class Filter(Protocol):
    """Decides about a message."""

    def matches(self, message: Message) -> bool:
        """Return whether the subscription takes this message."""
        ...


@dataclass(frozen=True)
class ConstantFilter:
    """Takes every message, as a subscription without rules does, or none."""

    value: bool

    def matches(self, message: Message) -> bool:  # noqa: ARG002 - the protocol's
        """Return whether it takes every message."""
        return self.value


# System properties, by their lower-case names in filters. `Label` is what `Subject` was called before.
_SYSTEM: Mapping[str, Callable[[Message], Any]] = {
    "contenttype": lambda message: message.content_type,
    "correlationid": lambda message: message.correlation_id,
    "label": lambda message: message.subject,
    "subject": lambda message: message.subject,
    "messageid": lambda message: message.message_id,
    "partitionkey": lambda message: message.partition_key,
    "replyto": lambda message: message.reply_to,
    "replytosessionid": lambda message: message.reply_to_session_id,
    "sessionid": lambda message: message.session_id,
    "to": lambda message: message.to,
}
# A correlation filter knows all of these but the partition key.
_CORRELATION = _SYSTEM.keys() - {"partitionkey"}


@dataclass(frozen=True)
class CorrelationFilter:
    """Takes messages in which every named system and application property equals the given value.

    Values are compared as they are: the text "1" is not the number 1. System names are case-insensitive,
    application properties are not.
    """

    system: Mapping[str, Any] = field(default_factory=dict)
    application_properties: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = [name for name in self.system if name.lower() not in _CORRELATION]
        if unknown:
            raise InvalidFilter(f"a correlation filter has no property {', '.join(unknown)}")
        if not self.system and not self.application_properties:
            raise InvalidFilter("a correlation filter must name at least one property")

    def matches(self, message: Message) -> bool:
        """Return whether all of the properties are equal."""
        return all(
            _equal(_SYSTEM[name.lower()](message), value) for name, value in self.system.items()
        ) and all(
            _equal(message.application_properties.get(name), value)
            for name, value in self.application_properties.items()
        )


def _equal(left: object, right: object) -> bool:
    return _comparable(left, right) and left == right


def _comparable(left: object, right: object) -> bool:
    """Whether two values are of one kind: numbers with numbers, texts with texts, truth with truth."""
    if isinstance(left, bool) or isinstance(right, bool):
        return isinstance(left, bool) and isinstance(right, bool)
    numbers = (int, float, Decimal)
    if isinstance(left, numbers) and isinstance(right, numbers):
        return True
    return isinstance(left, str) and isinstance(right, str)


@dataclass(frozen=True)
class SqlFilter:
    """Takes messages for which the SQL-92-like expression is true; raises InvalidFilter if it cannot be read."""

    expression: str
    _evaluate: Callable[[Message], Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_evaluate", _compile(self.expression))

    def matches(self, message: Message) -> bool:
        """Return whether the expression is true: neither false nor unknown."""
        return self._evaluate(message) is True


_GRAMMAR = r"""
?start: disjunction
?disjunction: conjunction (_OR conjunction)*        -> any_of
?conjunction: negation (_AND negation)*             -> all_of
?negation: NOT negation                            -> negated
         | predicate
?predicate: operand
          | operand COMPARISON operand                -> comparison
          | operand NOT? _IN "(" operand ("," operand)* ")"              -> among
          | operand NOT? _LIKE operand [_ESCAPE operand]               -> like
          | operand _IS NOT? _NULL                -> is_null
          | _EXISTS "(" property ")"                -> exists
?operand: literal | property | "(" disjunction ")"
property: (SCOPE ".")? (NAME | BRACKETED)
?literal: STRING            -> string
        | INTEGER           -> integer
        | DECIMAL           -> decimal
        | _TRUE           -> true
        | _FALSE          -> false
        | _NULL           -> null

SCOPE.3: /(sys|user)(?=\s*\.)/i
_OR.2: /or\b/i
_AND.2: /and\b/i
_IN.2: /in\b/i
_LIKE.2: /like\b/i
_ESCAPE.2: /escape\b/i
_IS.2: /is\b/i
_EXISTS.2: /exists\b/i
_TRUE.2: /true\b/i
_FALSE.2: /false\b/i
_NULL.2: /null\b/i
NOT.2: /not\b/i
COMPARISON: "<=" | ">=" | "<>" | "!=" | "=" | "<" | ">"
NAME: /[A-Za-z_][A-Za-z0-9_$]*/
BRACKETED: /\[([^\]]|\]\])+\]/
STRING: /'([^']|'')*'/
DECIMAL.2: /[-+]?(\d+\.\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\d+[eE][-+]?\d+/
INTEGER: /[-+]?\d+/
%ignore /\s+/
"""

_Term = Callable[[Message], Any]
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "<>": operator.ne, "!=": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def _truth(value: object) -> bool | None:
    """Read a value as a condition: what is neither true nor false is unknown."""
    return value if isinstance(value, bool) else None


@v_args(inline=True)
class _Compiler(Transformer[Token, _Term]):
    """Turns the parse tree into one function from a message to true, false or None (unknown)."""

    def string(self, token: Token) -> _Term:
        return _constant(str(token)[1:-1].replace("''", "'"))

    def integer(self, token: Token) -> _Term:
        return _constant(int(token))

    def decimal(self, token: Token) -> _Term:
        return _constant(float(token))

    def true(self) -> _Term:
        return _constant(value=True)

    def false(self) -> _Term:
        return _constant(value=False)

    def null(self) -> _Term:
        return _constant(None)

    def property(self, *parts: Token) -> _Term:
        scope = str(parts[0]).lower() if len(parts) == 2 else "user"  # noqa: PLR2004 - with a scope
        name = str(parts[-1])
        if name.startswith("["):
            name = name[1:-1].replace("]]", "]")
        if scope == "user":
            return _application_property(name)
        read = _SYSTEM.get(name.lower())
        if read is None:
            raise InvalidFilter(f"there is no system property sys.{name}")
        return read

    def any_of(self, *terms: _Term) -> _Term:
        return _decided(terms, by=True)

    def all_of(self, *terms: _Term) -> _Term:
        return _decided(terms, by=False)

    def negated(self, _not_token: Token, term: _Term) -> _Term:
        return _not(term)

    def comparison(self, left: _Term, symbol: Token, right: _Term) -> _Term:
        compare = _COMPARE[symbol]

        def evaluate(message: Message) -> bool | None:
            one, other = left(message), right(message)
            return compare(one, other) if _comparable(one, other) else None

        return evaluate

    def among(self, operand: _Term, *rest: _Term | Token) -> _Term:
        negate, candidates = _split_not(rest)

        def evaluate(message: Message) -> bool | None:
            value, others = operand(message), [candidate(message) for candidate in candidates]
            if any(_equal(value, other) for other in others):
                return True
            return None if value is None or None in others else False

        return _not(evaluate) if negate else evaluate

    def like(self, operand: _Term, *rest: _Term | Token | None) -> _Term:
        negate, parts = _split_not(rest)
        pattern, escape = parts[0], parts[1] if len(parts) > 1 else _constant(None)

        def evaluate(message: Message) -> bool | None:
            value, text, mark = operand(message), pattern(message), escape(message)
            if not isinstance(value, str) or not isinstance(text, str):
                return None
            return _like_pattern(text, mark).fullmatch(value) is not None

        return _not(evaluate) if negate else evaluate

    def is_null(self, operand: _Term, *rest: Token) -> _Term:
        def evaluate(message: Message) -> bool:
            return (operand(message) is None) is not bool(rest)

        return evaluate

    def exists(self, operand: _Term) -> _Term:
        def evaluate(message: Message) -> bool:
            return operand(message) is not None

        return evaluate


def _constant(value: object) -> _Term:
    return lambda _message: value


def _application_property(name: str) -> _Term:
    """Read by name, which SQL filters take without regard to case."""

    def evaluate(message: Message) -> object:
        properties = message.application_properties
        if name in properties:
            return properties[name]
        return next((value for key, value in properties.items() if key.lower() == name.lower()), None)

    return evaluate


def _decided(terms: tuple[_Term, ...], *, by: bool) -> _Term:
    """Return AND (`by` false) or OR (`by` true) in SQL's three-valued logic.

    One condition that is `by` decides; otherwise one that is unknown makes the result unknown.
    """

    def evaluate(message: Message) -> bool | None:
        values = [_truth(term(message)) for term in terms]
        return by if by in values else None if None in values else not by

    return evaluate


def _not(term: _Term) -> _Term:
    def evaluate(message: Message) -> bool | None:
        value = _truth(term(message))
        return None if value is None else not value

    return evaluate


def _split_not(parts: tuple[_Term | Token | None, ...]) -> tuple[bool, list[_Term]]:
    """Tell the NOT token in front from the terms; what an optional part left out is None."""
    terms = [part for part in parts if part is not None and not isinstance(part, Token)]
    return any(isinstance(part, Token) for part in parts), terms


@lru_cache(maxsize=256)
def _like_pattern(text: str, escape: str | None) -> re.Pattern[str]:
    """Translate `%` (any characters) and `_` (one character); the escape character makes the next one plain."""
    result, plain = [], False
    for character in text:
        if character == escape and not plain:
            plain = True
            continue
        wild = {"%": ".*", "_": "."}.get(character)
        result.append(re.escape(character) if plain or wild is None else wild)
        plain = False
    return re.compile("".join(result), re.DOTALL)


@cache
def _parser() -> Lark:
    # Made at the first filter: it takes as long as importing everything else here.
    return Lark(_GRAMMAR, parser="lalr", maybe_placeholders=False)


def _compile(expression: str) -> _Term:
    try:
        compiled: _Term = _Compiler().transform(_parser().parse(expression))
    except UnexpectedInput as error:
        where = f"line {error.line}, column {error.column}" if error.line and error.line > 0 else "its end"
        raise InvalidFilter(f"the SQL filter {expression!r} is not understood at {where}") from error
    except VisitError as error:
        raise InvalidFilter(f"the SQL filter {expression!r}: {error.orig_exc}") from error
    return compiled
