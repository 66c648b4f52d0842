from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from shared.clock import BrokerClock, Deadline, SystemClock
from tests.unit.conftest import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable

BOUND = 20.0


class InterruptedClock(FakeClock):
    """Lets something happen at each of the next readings of the monotonic clock."""

    def __init__(self) -> None:
        super().__init__()
        self.on_monotonic: list[Callable[[], None]] = []

    def monotonic(self) -> float:
        if self.on_monotonic:
            self.on_monotonic.pop(0)()
        return super().monotonic()


def test_the_system_clock_is_the_machines() -> None:
    clock = SystemClock()
    before = clock.monotonic()
    clock.sleep(0.05)
    assert before + 0.05 <= clock.monotonic() <= time.monotonic()
    assert clock.now().tzinfo is UTC
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(minutes=1)


def test_a_deadline_has_less_left_as_time_passes_and_never_less_than_nothing(clock: FakeClock) -> None:
    deadline = Deadline.after(clock, 10)
    assert (deadline.remaining, deadline.passed) == (10, False)
    clock.advance(9.5)
    assert (deadline.remaining, deadline.passed) == (0.5, False)
    clock.advance(0.5)
    assert (deadline.remaining, deadline.passed) == (0, True)
    clock.advance(5)
    assert (deadline.remaining, deadline.passed) == (0, True)


def test_a_part_of_the_work_ends_with_the_whole(clock: FakeClock) -> None:
    deadline = Deadline.after(clock, 10)
    assert deadline.within(4).remaining == 4
    assert deadline.within(40).remaining == 10
    assert deadline.earlier(4).remaining == 6
    assert deadline.earlier(40).passed


# ---------------------------------------------------------------------------------------------- the broker's time


def test_without_a_message_the_workers_clock_counts(clock: FakeClock) -> None:
    assert BrokerClock(clock).now() == clock.now()


def test_messages_of_the_past_say_nothing(clock: FakeClock) -> None:
    broker = BrokerClock(clock)
    for moment in (datetime.min.replace(tzinfo=UTC), clock.now() - timedelta(days=1), clock.now()):
        broker.observe(moment)
        assert broker.now() == clock.now()


def test_the_latest_message_shows_how_slow_the_clock_is(clock: FakeClock) -> None:
    broker = BrokerClock(clock)
    hour = timedelta(hours=1)
    broker.observe(clock.now() + hour)
    clock.advance(60)
    broker.observe(clock.now())
    assert broker.now() == clock.now() + hour, "an older message changes nothing"
    broker.observe(clock.now() + 2 * hour)
    clock.advance(60)
    assert broker.now() == clock.now() + 2 * hour


def test_an_earlier_moment_of_another_thread_does_not_replace_a_later_one() -> None:
    """Otherwise the duration from win to event could be negative."""
    clock = InterruptedClock()
    broker = BrokerClock(clock)
    hour = timedelta(hours=1)
    other = threading.Thread(target=broker.observe, args=(clock.now() + 2 * hour,))

    def run_other() -> None:
        other.start()
        # It ends here where nothing makes it wait for this thread.
        other.join(0.1)

    # The first reading is for the comparison, the second one for what is kept.
    clock.on_monotonic = [lambda: None, run_other]
    broker.observe(clock.now() + hour)
    other.join(BOUND)
    assert broker.now() == clock.now() + 2 * hour
