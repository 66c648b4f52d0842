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
from shared.errors import DataverseThrottled, OpportunityStillOpen, ParkNow, RetryLater, Rhythm
from shared.invoice_created import Invoice, invoice_created
from shared.message import Chain
from shared.opportunity_won import NotAWin, OpportunityWon, compact_event, parse_event

if TYPE_CHECKING:
    from collections.abc import Callable

    from shared.clock import Clock
    from shared.invoicing import NotOurs
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

    def __call__(self, opportunity_id: str, deadline: Deadline) -> Invoice | NotOurs:
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
        chain = Chain.of(message)
        deadline = Deadline.after(self._clock, self._invocation_deadline)
        won: OpportunityWon | None = None
        try:
            event = parse_event(
                message.body,
                message.properties,
                message.content_type,
                organization_id=self._environment.organization_id,
            )
            if isinstance(event, NotAWin):
                _logger.info("not ours: %s root=%s", event.why, chain.root)
                return
            won = event
            # What is left of the time is for putting the message aside, should this fail.
            self._invoice(won, chain, traceparent, deadline.earlier(self._invocation_deadline / 4))
        except RetryLater as error:
            self._try_later(message, won, chain, error, deadline)
        except ParkNow as error:
            self._park(message, won, chain, error, deadline)

    def _invoice(
        self, won: OpportunityWon, chain: Chain, traceparent: str | None, deadline: Deadline
    ) -> None:
        outcome = self._ensure_invoice(won.opportunity_id, deadline)
        if not isinstance(outcome, Invoice):
            _logger.info("not ours: %s opportunity=%s root=%s", outcome.why, won.opportunity_id, chain.root)
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
            chain.attempt,
            chain.age.total_seconds(),
            chain.root,
        )

    def _try_later(
        self,
        message: Message,
        won: OpportunityWon | None,
        chain: Chain,
        error: RetryLater,
        deadline: Deadline,
    ) -> None:
        if self._used_up(chain, error.rhythm):
            if isinstance(error, OpportunityStillOpen):
                _logger.info("not ours: the win was withdrawn %s", _about(won, chain))
                return
            self._park(message, won, chain, error, deadline)
            return
        delay, backoff = self._delay(chain, error)
        self._service_bus.schedule(
            message,
            chain.next(error, backoff=backoff),
            error,
            self._clock.now() + delay,
            compact_event(won) if won else None,
            deadline,
        )
        _logger.warning(
            "retry: reason=%s in=%ds %s: %s", error.reason, delay.total_seconds(), _about(won, chain), error
        )

    def _used_up(self, chain: Chain, rhythm: Rhythm) -> bool:
        # The longest rhythm bounds the whole, should a message wander between rhythms.
        bounds = self._retry.bounds
        return chain.age_in(rhythm) >= bounds[rhythm] or chain.age >= bounds[Rhythm.LONG]

    def _delay(self, chain: Chain, error: RetryLater) -> tuple[timedelta, int]:
        """Return how long to wait, and the back-off of the copy."""
        if isinstance(error, DataverseThrottled):
            # Its own time, and some more so that not all come back at once: only some, since the host takes no more
            # than it can handle anyway, and what comes late leaves capacity unused. It says nothing of a next failure.
            jitter = min(0.2 * error.retry_after, _MOST_JITTER) + 1
            return timedelta(seconds=error.retry_after + jitter * self._random()), chain.backoff
        grown = self._retry.first_delay * 2 ** min(chain.backoff, _MOST_BACKOFF)
        longest = min(grown, self._retry.longest_delay)
        return longest * (0.5 + 0.5 * self._random()), chain.backoff + 1

    def _park(
        self,
        message: Message,
        won: OpportunityWon | None,
        chain: Chain,
        error: RetryLater | ParkNow,
        deadline: Deadline,
    ) -> None:
        self._service_bus.park(message, chain, error, deadline)
        _logger.error("parked: reason=%s %s: %s", error.reason, _about(won, chain), error)


def _about(won: OpportunityWon | None, chain: Chain) -> str:
    opportunity = won.opportunity_id if won else "unknown"
    return f"opportunity={opportunity} attempt={chain.attempt} age={chain.age.total_seconds():.0f}s root={chain.root}"
