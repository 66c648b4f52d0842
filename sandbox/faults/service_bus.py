"""Service Bus's faults, link by link: what is refused, lost, late, or said twice.

What a client sees of a broker in trouble: transfers and settlements that are not confirmed, or are carried out and not
confirmed; deliveries that never arrive or arrive twice; locks that are gone; links that are refused.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import UUID

from proton import Delivery, Receiver

from sandbox.faults.plan import Fault, FaultPlan, Kind, Wire
from sandbox.service_bus.authorization import Authenticator
from sandbox.service_bus.broker import ReceiveMode
from sandbox.service_bus.codec import decode_transfer
from sandbox.service_bus.connection import ClientConnection, finish
from sandbox.service_bus.dispatch import Dispatcher, Outlet
from sandbox.service_bus.errors import BrokerError, MessageLockLost
from sandbox.service_bus.messages import BrokeredMessage

Peer = tuple[str, int]


def faulty_connections(
    plan: FaultPlan, concerns: Callable[[Peer], bool] = lambda _: True
) -> Callable[[Dispatcher, Authenticator], ClientConnection]:
    """Return what makes connections in which the plan's faults strike, for a ServiceBusServer.

    `concerns` tells by a client's address whether it may be struck; others are served as ever, and not counted.
    """

    def connection(dispatcher: Dispatcher, authenticator: Authenticator) -> ClientConnection:
        return _FaultyConnection(dispatcher, authenticator, plan, concerns)

    return connection


class _FaultyConnection(ClientConnection):
    def __init__(
        self,
        dispatcher: Dispatcher,
        authenticator: Authenticator,
        plan: FaultPlan,
        concerns: Callable[[Peer], bool],
    ) -> None:
        super().__init__(dispatcher, authenticator)
        self._plan = plan
        self._concerns = concerns
        self._dead = False

    # A connection that is dead without a word: what comes is not heard, and nothing is said.

    def data_received(self, data: bytes) -> None:
        if not self._dead:
            super().data_received(data)

    def flush(self) -> None:
        if not self._dead:
            super().flush()

    # Links

    def _open_inlet(self, link: Any, path: str) -> None:  # noqa: ANN401 - Proton's objects carry no types
        self._attach(
            Wire.SERVICE_BUS_OUT, path, lambda: super(_FaultyConnection, self)._open_inlet(link, path)
        )

    def _open_outlet(self, link: Any, path: str) -> None:  # noqa: ANN401
        self._attach(
            Wire.SERVICE_BUS_IN, path, lambda: super(_FaultyConnection, self)._open_outlet(link, path)
        )

    def _attach(self, wire: Wire, path: str, attach: Callable[[], None]) -> None:
        fault = self.struck(wire, f"attach:{path}", f"a link to {path}")
        if fault is not None and fault.kind is Kind.REJECT:
            raise refusal(fault)
        self.strike(fault, attach)

    def _outlet(self, link: Any, path: str, mode: ReceiveMode) -> Outlet:  # noqa: ANN401
        return _FaultyOutlet(self, link, path, mode)

    # Messages and decisions

    def _received(self, link: Receiver, delivery: Any, encoded: bytes) -> None:  # noqa: ANN401
        path = self._nodes.get(link)
        if path is None or path.rpartition("/")[2].startswith("$"):
            super()._received(link, delivery, encoded)
            return
        messages = decode_transfer(encoded)
        what = "schedule" if any(message.scheduled_enqueue_time for message in messages) else "send"
        about = f"message {', '.join(str(message.message_id) for message in messages)}"
        fault = self.struck(Wire.SERVICE_BUS_OUT, f"{what}:{path}", about)
        if fault is not None and fault.kind is Kind.REJECT:
            finish(delivery, Delivery.REJECTED, refusal(fault))
        elif fault is not None and fault.kind is Kind.SILENT and fault.after:
            # Taken, or refused, and never confirmed.
            with suppress(BrokerError):
                self._broker.send(path, *messages, size=len(encoded))
        else:
            self.strike(fault, lambda: super(_FaultyConnection, self)._received(link, delivery, encoded))

    def _settle(self, path: str, delivery: Any) -> None:  # noqa: ANN401
        token, state = delivery.lock_token, delivery.remote_state
        if token is None or not state:
            super()._settle(path, delivery)
            return
        fault = self.struck(Wire.SERVICE_BUS_IN, f"settle:{path}", f"outcome {state}")
        if fault is not None and fault.kind is Kind.REJECT:
            finish(delivery, Delivery.REJECTED, refusal(fault))
        elif fault is not None and fault.kind is Kind.SILENT and fault.after:
            with suppress(BrokerError):
                self._decide(path, token, state, delivery.remote)
        else:
            if fault is not None:
                self.move(fault, path, token)
            self.strike(fault, lambda: super(_FaultyConnection, self)._settle(path, delivery))

    # What goes wrong

    def struck(self, wire: Wire, operation: str, about: str) -> Fault | None:
        """Return what shall go wrong with a call on this connection."""
        peer = self._wire.get_extra_info("peername")[:2] if self._wire else None
        return self._plan.strike(wire, operation, about) if peer and self._concerns(peer) else None

    def move(self, fault: Fault, path: str, token: UUID | None) -> None:
        """Carry out what a fault does to the message itself."""
        if token is None:
            return
        # A lock that is lost already needs nobody to take it away.
        with suppress(MessageLockLost):
            if fault.kind is Kind.LOCK_LOST:
                self._broker.lose_lock(path, token)
            elif fault.kind is Kind.DUPLICATE:
                self._broker.duplicate(path, token)

    def strike(self, fault: Fault | None, act: Callable[[], None]) -> None:
        """Do `act`, or not, or late, and what the fault does to the connection before or after it."""
        if fault is None or fault.kind in (Kind.LOCK_LOST, Kind.DUPLICATE):
            act()
            return
        if fault.kind is Kind.DELAY:
            self._loop.call_later(fault.seconds, self._late, act)
            return
        if fault.kind is Kind.SWALLOW:
            self._dead = True
            return
        if fault.after:
            act()
        if fault.kind is Kind.KILL:
            self._plan.carry_out(Kind.KILL)
        elif fault.kind is Kind.RESTART:
            # A server cannot wait for its own end.
            threading.Thread(target=self._plan.carry_out, args=(Kind.RESTART,), daemon=True).start()
        if fault.kind is not Kind.SILENT:
            self.abort()

    def _late(self, act: Callable[[], None]) -> None:
        if self._wire is None:
            return
        with self._aborting_on_error():
            try:
                act()
            except BrokerError:
                # The link or the lock went in the meantime, and so has whoever waited.
                self.abort()
            self.flush()


class _FaultyOutlet(Outlet):
    def __init__(
        self,
        connection: _FaultyConnection,
        link: Any,  # noqa: ANN401
        path: str,
        mode: ReceiveMode,
    ) -> None:
        super().__init__(connection, link, path, mode)
        self._faulty = connection

    def deliver(self, brokered: BrokeredMessage) -> None:
        about = f"message {brokered.message.message_id}, delivery {brokered.delivery_count + 1}"
        fault = self._faulty.struck(Wire.SERVICE_BUS_IN, f"deliver:{self.path}", about)
        if fault is not None:
            self._faulty.move(fault, self.path, brokered.lock_token)
        self._faulty.strike(fault, lambda: self._deliver(brokered))

    def _deliver(self, brokered: BrokeredMessage) -> None:
        super().deliver(brokered)
        self._faulty.flush()


def refusal(fault: Fault) -> BrokerError:
    """Return the error of a REJECT: a refusal with the fault's condition."""
    refused: type[BrokerError] = type(
        "Refused", (BrokerError,), {"condition": fault.error_code, "status": 503}
    )
    return refused("The sandbox refuses this on purpose.")
