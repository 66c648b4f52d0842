"""Outages with a few dozen wins; `make faults` runs them with thousands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from proofs import outage

if TYPE_CHECKING:
    from collections.abc import Callable

    from proofs.outage import Report

_WINS = 40


def _assert_kept(report: Report) -> None:
    violations = "\n".join(str(violation) for violation in report.violations)
    assert not report.violations, (
        f"{report.title}:\n{violations}\nAll of them: python tests/faults/run_outages.py"
    )


@pytest.mark.parametrize("away", [outage.dataverse_away, outage.dataverse_silent])
def test_dataverse_is_away_for_two_hours(away: Callable[[int], Report]) -> None:
    """Twenty minutes after its end, everything is invoiced and published; nothing was parked."""
    _assert_kept(away(_WINS))


@pytest.mark.parametrize("away", [outage.service_bus_away, outage.sends_refused])
def test_service_bus_is_away_for_ten_minutes(away: Callable[[int], Report]) -> None:
    """What was being handled is left to the broker, and delivered again; nothing is dead-lettered."""
    _assert_kept(away(_WINS))


def test_429_storm_is_waited_out_and_the_backlog_drained_at_what_the_limits_permit() -> None:
    """No request before its time, then at least 95 % of what the limit permits over several windows."""
    _assert_kept(outage.throttled(100, limit=100))


def test_send_that_never_returns_does_not_hold_the_invocation() -> None:
    """The peer never responds: the message is abandoned within the invocation's deadline."""
    _assert_kept(outage.a_send_that_never_returns())


def test_what_the_limits_permit_at_least() -> None:
    """16 requests at once, each 0.15 s; the 101st waits until the first one leaves the window."""
    assert outage.shortest(16, 100) == (0.0, 0.0)
    assert outage.shortest(17, 100) == pytest.approx((0.15, 0.0))
    assert outage.shortest(101, 100) == pytest.approx((300.0, 299.1))
