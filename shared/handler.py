"""One message: parse → ensure the invoice → publish; then an error's own decision is carried out.

A retry is scheduled before the original is completed, which the host does when `handle` returns: completing first would
lose the message in a crash between the two.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol

from shared.clock import BrokerClock, Deadline
from shared.errors import DataverseThrottled, OpportunityStillOpen, ParkNow, RetryLater, RetryPolicy
from shared.invoice_created import invoice_created
from shared.message import Delivery, Ignored, RetryState
from shared.opportunity_won import compact_event, parse_event
from shared.text import one_line
from shared.tracing import OFF

if TYPE_CHECKING:
    from collections.abc import Callable

    from shared.clock import Clock
    from shared.invoice import Invoice
    from shared.message import Message
    from shared.opportunity_won import OpportunityWon
    from shared.service_bus import ServiceBus
    from shared.settings import RetrySettings
    from shared.tracing import InvocationSpan, Tracing

_logger = logging.getLogger(__name__)

# Beyond this the delay has long reached its maximum; it keeps the power of two small.
_MAX_BACKOFF: Final = 20
# Seconds by which the retry of a throttled message may come later than it was asked to.
_MAX_JITTER: Final = 10.0


class EnsureInvoice(Protocol):
    """What finds or generates the invoice; see `Invoicing.ensure_invoice`."""

    def __call__(self, opportunity_id: str, deadline: Deadline) -> Invoice | Ignored:
        """Return the invoice of a won opportunity, or why there is nothing to invoice."""


@dataclass(frozen=True)
class Environment:
    """The Dataverse environment: its address, and its id where events are checked against it."""

    url: str
    organization_id: str | None


class Handler:
    """Processes messages. `random` gives numbers from 0 to 1 for the jitter."""

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
        tracing: Tracing = OFF,
    ) -> None:
        self._ensure_invoice = ensure_invoice
        self._service_bus = service_bus
        self._environment = environment
        self._retry = retry
        self._invocation_deadline = invocation_deadline
        self._clock = clock
        self._broker_clock = BrokerClock(clock)
        self._random = random
        self._tracing = tracing

    def handle(
        self, message: Message, *, traceparent: str | None = None, invocation_id: str | None = None
    ) -> None:
        """Return when the message may be completed.

        `traceparent` (W3C) and `invocation_id` are those of the host's invocation. Raises ServiceBusUnavailable, and
        any exception that is a bug: then the host abandons the message.
        """
        self._broker_clock.observe(message.enqueued_at)
        deadline = Deadline.after(self._clock, self._invocation_deadline)
        # A host without tracing passes no context on; then the sender's is the closest.
        delivery = Delivery(
            message, RetryState.of(message), deadline, traceparent=traceparent or message.traceparent
        )
        with self._tracing.invocation(delivery, invocation_id) as invocation:
            self._process(delivery, invocation)

    def _process(self, delivery: Delivery, invocation: InvocationSpan) -> None:
        message = delivery.message
        try:
            event = parse_event(
                message.body,
                message.properties,
                message.content_type,
                organization_id=self._environment.organization_id,
            )
            if isinstance(event, Ignored):
                _logger.info("ignored: %s %s", event.reason, delivery)
                invocation.ignored()
                return
            delivery = replace(
                delivery, opportunity_id=event.opportunity_id, compact_body=compact_event(event)
            )
            invocation.concerns(event.opportunity_id)
            with delivery.named_in_log_lines():
                self._invoice(event, delivery, invocation)
        except RetryLater as error:
            self._retry_later(delivery, error, invocation)
        except ParkNow as error:
            self._park(delivery, error, invocation)

    def _invoice(self, event: OpportunityWon, delivery: Delivery, invocation: InvocationSpan) -> None:
        # The last quarter of the time is for scheduling a retry, should this fail.
        deadline = delivery.deadline.earlier(self._invocation_deadline / 4)
        self._service_bus.prepare_to_publish()
        outcome = self._ensure_invoice(event.opportunity_id, deadline)
        if isinstance(outcome, Ignored):
            _logger.info("ignored: %s %s", outcome.reason, delivery)
            invocation.ignored()
            return
        created = invoice_created(
            outcome,
            dataverse_url=self._environment.url,
            correlation_id=event.correlation_id,
            traceparent=delivery.traceparent,
        )
        self._service_bus.publish(created, deadline)
        _logger.info(
            "published: opportunity=%s invoice=%s event=%s %s",
            event.opportunity_id,
            outcome.id,
            created.message_id,
            delivery.state,
        )
        # By the broker's clock, as the win's time is, which it has observed.
        since = self._broker_clock.now() - delivery.state.first_seen
        invocation.published(outcome.id, since.total_seconds())

    def _retry_later(self, delivery: Delivery, error: RetryLater, invocation: InvocationSpan) -> None:
        if self._used_up(delivery.state, error.policy):
            if isinstance(error, OpportunityStillOpen):
                _logger.info("ignored: the win was withdrawn %s", delivery)
                invocation.ignored()
            else:
                self._park(delivery, error, invocation)
            return
        delay, backoff = self._delay(delivery.state, error)
        retry = delivery.state.next(error, backoff=backoff)
        self._service_bus.schedule(delivery, retry, error, self._broker_clock.now() + delay)
        _logger.warning(
            "retry: reason=%s in=%ds %s: %s",
            error.reason,
            delay.total_seconds(),
            delivery,
            one_line(str(error)),
        )
        invocation.retried(error)

    def _used_up(self, state: RetryState, policy: RetryPolicy) -> bool:
        # The outage policy also bounds the whole time of a message that changes between policies.
        bounds = self._retry.bounds
        return state.age_in(policy) >= bounds[policy] or state.age >= bounds[RetryPolicy.OUTAGE]

    def _delay(self, state: RetryState, error: RetryLater) -> tuple[timedelta, int]:
        """Return how long to wait, and the back-off of the retry."""
        if isinstance(error, DataverseThrottled) and error.retry_after is not None:
            # The time that was asked for, and little more so that not all come back at once: the host takes no more
            # than it can handle, and a late retry leaves capacity unused. It says nothing of the next failure.
            jitter = min(0.2 * error.retry_after, _MAX_JITTER) + 1
            return timedelta(seconds=error.retry_after + jitter * self._random()), state.backoff
        grown = self._retry.first_delay * 2 ** min(state.backoff, _MAX_BACKOFF)
        longest = min(grown, self._retry.longest_delay)
        return longest * (0.5 + 0.5 * self._random()), state.backoff + 1

    def _park(self, delivery: Delivery, error: RetryLater | ParkNow, invocation: InvocationSpan) -> None:
        self._service_bus.park(delivery, error)
        _logger.error("parked: reason=%s %s: %s", error.reason, delivery, one_line(str(error)))
        invocation.parked(error)
