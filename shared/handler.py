"""One message: parse → ensure the invoice → publish; then an error's own decision is carried out.

A copy for later is sent before the original is completed, which the host does when `handle` returns: completing first
would lose the message in a crash between the two.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from shared.clock import Deadline
from shared.errors import DataverseThrottled, OpportunityStillOpen, ParkNow, RetryLater, RetryPolicy
from shared.invoice import Invoice
from shared.invoice_created import invoice_created
from shared.message import Ignored, RetryState
from shared.opportunity_won import OpportunityWon, compact_event, parse_event

if TYPE_CHECKING:
    from collections.abc import Callable

    from shared.clock import Clock
    from shared.message import Message
    from shared.service_bus import ServiceBus
    from shared.settings import RetrySettings

_logger = logging.getLogger(__name__)

# Beyond this the delay has long reached its cap; it keeps the power of two small.
_MOST_BACKOFF = 20
# Seconds by which a throttled message may come later than it was told to.
_MOST_JITTER = 10.0


class EnsureInvoice(Protocol):
    """What finds or generates the invoice; see `Invoicing.ensure_invoice`."""

    def __call__(self, opportunity_id: str, deadline: Deadline) -> Invoice | Ignored:
        """Return the invoice of a won opportunity, or why there is none to make."""


@dataclass(frozen=True)
class Environment:
    """The Dataverse environment that is served: its address, and its id where events are checked against it."""

    url: str
    organization_id: str | None


class Handler:
    """Brings messages to their end. `random` gives numbers from 0 to 1 for the jitter."""

    def __init__(
        self,
        ensure_invoice: EnsureInvoice,
        service_bus: ServiceBus,
        environment: Environment,
        retry: RetrySettings,
        *,
        invocation_deadline: float,
        clock: Clock,
        random: Callable[[], float],
    ) -> None:
        self._ensure_invoice = ensure_invoice
        self._service_bus = service_bus
        self._environment = environment
        self._retry = retry
        self._invocation_deadline = invocation_deadline
        self._clock = clock
        self._random = random

    def handle(self, message: Message, *, traceparent: str | None = None) -> None:
        """Return when the message may be completed.

        Raises ServiceBusUnavailable, and whatever is a bug: then the host abandons the message.
        """
        state = RetryState.of(message)
        deadline = Deadline.after(self._clock, self._invocation_deadline)
        won: OpportunityWon | None = None
        try:
            event = parse_event(
                message.body,
                message.properties,
                message.content_type,
                organization_id=self._environment.organization_id,
            )
            if isinstance(event, Ignored):
                _logger.info("ignored: %s root=%s", event.reason, state.root)
                return
            won = event
            # What is left of the time is for putting the message aside, should this fail.
            self._invoice(won, state, traceparent, deadline.earlier(self._invocation_deadline / 4))
        except RetryLater as error:
            self._try_later(message, won, state, error, deadline)
        except ParkNow as error:
            self._park(message, won, state, error, deadline)

    def _invoice(
        self, won: OpportunityWon, state: RetryState, traceparent: str | None, deadline: Deadline
    ) -> None:
        outcome = self._ensure_invoice(won.opportunity_id, deadline)
        if not isinstance(outcome, Invoice):
            _logger.info("ignored: %s opportunity=%s root=%s", outcome.reason, won.opportunity_id, state.root)
            return
        event = invoice_created(
            outcome,
            dataverse_url=self._environment.url,
            correlation_id=won.correlation_id,
            traceparent=traceparent,
        )
        self._service_bus.publish(event, deadline)
        _logger.info(
            "published: opportunity=%s invoice=%s event=%s attempt=%d age=%ds root=%s",
            won.opportunity_id,
            outcome.id,
            event.message_id,
            state.attempt,
            state.age.total_seconds(),
            state.root,
        )

    def _try_later(
        self,
        message: Message,
        won: OpportunityWon | None,
        state: RetryState,
        error: RetryLater,
        deadline: Deadline,
    ) -> None:
        if self._used_up(state, error.policy):
            if isinstance(error, OpportunityStillOpen):
                _logger.info("ignored: the win was withdrawn %s", _about(won, state))
                return
            self._park(message, won, state, error, deadline)
            return
        delay, backoff = self._delay(state, error)
        self._service_bus.schedule(
            message,
            state.next(error, backoff=backoff),
            error,
            self._clock.now() + delay,
            compact_event(won) if won else None,
            deadline,
        )
        _logger.warning(
            "retry: reason=%s in=%ds %s: %s", error.reason, delay.total_seconds(), _about(won, state), error
        )

    def _used_up(self, state: RetryState, policy: RetryPolicy) -> bool:
        # The longest policy bounds the whole time of a message that changes between policies.
        bounds = self._retry.bounds
        return state.age_in(policy) >= bounds[policy] or state.age >= bounds[RetryPolicy.OUTAGE]

    def _delay(self, state: RetryState, error: RetryLater) -> tuple[timedelta, int]:
        """Return how long to wait, and the back-off of the copy."""
        if isinstance(error, DataverseThrottled):
            # Its own time, and some more so that not all come back at once: only some, since the host takes no more
            # than it can handle anyway, and what comes late leaves capacity unused. It says nothing of a next failure.
            jitter = min(0.2 * error.retry_after, _MOST_JITTER) + 1
            return timedelta(seconds=error.retry_after + jitter * self._random()), state.backoff
        grown = self._retry.first_delay * 2 ** min(state.backoff, _MOST_BACKOFF)
        longest = min(grown, self._retry.longest_delay)
        return longest * (0.5 + 0.5 * self._random()), state.backoff + 1

    def _park(
        self,
        message: Message,
        won: OpportunityWon | None,
        state: RetryState,
        error: RetryLater | ParkNow,
        deadline: Deadline,
    ) -> None:
        self._service_bus.park(message, state, error, deadline)
        _logger.error("parked: reason=%s %s: %s", error.reason, _about(won, state), error)


def _about(won: OpportunityWon | None, state: RetryState) -> str:
    opportunity = won.opportunity_id if won else "unknown"
    return f"opportunity={opportunity} attempt={state.attempt} age={state.age.total_seconds():.0f}s root={state.root}"
