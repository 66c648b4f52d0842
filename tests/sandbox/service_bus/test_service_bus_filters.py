"""Which messages a subscription takes."""

import pytest

from sandbox.service_bus import Message
from sandbox.service_bus.filters import ConstantFilter, CorrelationFilter, InvalidFilter, SqlFilter

MESSAGE = Message(
    message_id="m-1",
    subject="won",
    correlation_id="c-1",
    content_type="application/json",
    to="here",
    application_properties={
        "cloudEvents_type": "com.example.sales.invoice.created.v1",
        "amount": 100,
        "ratio": 0.5,
        "urgent": True,
        "nothing": None,
        "percent": "100%_",
        "odd name]": "odd",
        "quoted": "it's",
    },
)


@pytest.mark.parametrize(
    "expression",
    [
        "amount = 100",
        "amount <> 99 AND amount != 98",
        "amount > 99.5 AND amount >= 100 AND amount < 1e3 AND amount <= 100",
        "AMOUNT = 100",
        "ratio = .5",
        "amount = +100 AND ratio > -1",
        "user.amount = 100",
        "[amount] = 100",
        "[odd name]]] = 'odd'",
        "quoted = 'it''s'",
        "urgent",
        "urgent = TRUE",
        "NOT (amount = 99)",
        "not amount = 99 or amount = 1",
        "sys.Label = 'won' AND sys.Subject = 'won'",
        "sys.messageid = 'm-1' AND sys.CorrelationId = 'c-1' AND sys.To = 'here'",
        "sys.ContentType = 'application/json'",
        "amount IN (1, 100)",
        "amount NOT IN (1, 2)",
        "cloudEvents_type LIKE '%.invoice.created.v_'",
        "cloudEvents_type NOT LIKE 'org.%'",
        "percent LIKE '100!%!_' ESCAPE '!'",
        "nothing IS NULL",
        "missing IS NULL",
        "amount IS NOT NULL",
        "EXISTS(amount) AND NOT EXISTS(missing)",
        "amount = 1 OR amount = 100 AND urgent",
        "missing = 1 OR TRUE",
        "1 = 1",
        "notes IS NULL AND inside IS NULL AND nullable IS NULL AND trueish IS NULL AND existsnot IS NULL",
        "NOT(amount=99)and(urgent)",
    ],
)
def test_what_sql_filters_take(expression: str) -> None:
    assert SqlFilter(expression).matches(MESSAGE)


@pytest.mark.parametrize(
    "expression",
    [
        "amount = '100'",
        "urgent = 1",
        "urgent = 'TRUE'",
        "amount",
        "missing = 1",
        "missing <> 1",
        "NOT (missing = 1)",
        "NOT missing",
        "missing = NULL",
        "missing = missing",
        "missing IN (1)",
        "missing NOT IN (1)",
        "amount NOT IN (1, NULL)",
        "missing LIKE '%'",
        "missing NOT LIKE '%'",
        "amount LIKE '1%'",
        "missing = 1 AND TRUE",
        "missing = 1 OR FALSE",
        "sys.Label LIKE 'w_'",
        "cloudEvents_type = 'COM.EXAMPLE.SALES.INVOICE.CREATED.V1'",
        "FALSE",
        "sys.SessionId = ''",
    ],
)
def test_what_sql_filters_leave(expression: str) -> None:
    """Unknown is not true, and its negation is unknown as well."""
    assert not SqlFilter(expression).matches(MESSAGE)


@pytest.mark.parametrize(
    ("expression", "where"),
    [
        ("amount = ", "line 1, column 8"),
        ("amount + 1 = 2", "line 1, column 8"),
        ("newid() = 1", "line 1, column 6"),
        ("amount = @p", "line 1, column 10"),
        ("amount == 1", "column 9"),
        ("amount = 'x", "column 10"),
        ("sys.Size > 1", "no system property sys.Size"),
        ("SET x = 1", "column 5"),
        ("", "line 1, column 1"),
    ],
)
def test_what_is_beyond_sql_filters_is_refused(expression: str, where: str) -> None:
    with pytest.raises(InvalidFilter) as caught:
        SqlFilter(expression)
    assert where in str(caught.value)


@pytest.mark.parametrize(
    ("system", "application"),
    [
        ({"Label": "won"}, {}),
        ({"label": "won", "MessageId": "m-1"}, {"amount": 100}),
        ({}, {"urgent": True}),
    ],
)
def test_what_correlation_filters_take(system: dict[str, object], application: dict[str, object]) -> None:
    assert CorrelationFilter(system, application).matches(MESSAGE)


@pytest.mark.parametrize(
    ("system", "application"),
    [
        ({"Label": "lost"}, {}),
        ({"Label": "won"}, {"amount": 99}),
        ({}, {"amount": "100"}),
        ({}, {"urgent": 1}),
        ({}, {"Amount": 100}),
        ({}, {"missing": "x"}),
    ],
)
def test_what_correlation_filters_leave(system: dict[str, object], application: dict[str, object]) -> None:
    assert not CorrelationFilter(system, application).matches(MESSAGE)


def test_a_correlation_filter_must_say_something_it_can() -> None:
    with pytest.raises(InvalidFilter, match="at least one"):
        CorrelationFilter()
    with pytest.raises(InvalidFilter, match="Size"):
        CorrelationFilter({"Size": 1})


def test_true_and_false() -> None:
    for value in (True, False):
        assert ConstantFilter(value).matches(MESSAGE) is value
