"""Service Bus's faults: which calls are refused, lost, late, or carried out without a confirmation.

What a client sees of a broker that fails: transfers and settlements that are not confirmed, or are carried out and not
confirmed; deliveries that never arrive or arrive twice; locks that are gone; links that are refused.
"""

import threading
from collections.abc import Callable
from contextlib import suppress

from sandbox.faults.plan import Dependency, Fault, FaultKind, FaultPlan
from sandbox.service_bus.broker import Broker
from sandbox.service_bus.errors import MessageLockLost, Refusal
from sandbox.service_bus.interception import Call, Direction

Peer = tuple[str, int]

_DEPENDENCIES = {Direction.SENDS: Dependency.SERVICE_BUS_OUT, Direction.RECEIVES: Dependency.SERVICE_BUS_IN}


class PlannedFaults:
    """Lets the plan's faults strike in the calls of a ServiceBusServer's clients: its `interceptor`.

    `concerns` decides by a client's address whether faults may strike it; other clients' calls are carried out, and
    not counted.
    """

    def __init__(
        self, broker: Broker, plan: FaultPlan, concerns: Callable[[Peer], bool] = lambda _: True
    ) -> None:
        self._broker = broker
        self._plan = plan
        self._concerns = concerns

    def intercept(self, call: Call) -> None:
        """Carry out a call, with the fault of the plan."""
        fault = self._fault(call)
        if fault is None:
            call.carry_out()
            return
        self._change_message(fault, call)
        match fault.kind:
            case FaultKind.LOCK_LOST | FaultKind.DUPLICATE:
                call.carry_out()
            case FaultKind.REJECT:
                call.refuse(refusal(fault))
            case FaultKind.DELAY:
                call.client.call_later(fault.seconds, call.carry_out)
            case FaultKind.SWALLOW:
                call.client.go_silent()
            case FaultKind.SILENT:
                if fault.after:
                    call.carry_out_unconfirmed()
            case _:
                self._break(fault, call)

    def _fault(self, call: Call) -> Fault | None:
        peer = call.client.peer
        if peer is None or not self._concerns(peer):
            return None
        return self._plan.strike(
            _DEPENDENCIES[call.direction], f"{call.operation}:{call.entity}", call.subject
        )

    def _change_message(self, fault: Fault, call: Call) -> None:
        """Carry out what a fault does to the message itself."""
        if call.lock_token is None:
            return
        # A lock that is lost already cannot be lost again.
        with suppress(MessageLockLost):
            if fault.kind is FaultKind.LOCK_LOST:
                self._broker.lose_lock(call.entity, call.lock_token)
            elif fault.kind is FaultKind.DUPLICATE:
                self._broker.duplicate(call.entity, call.lock_token)

    def _break(self, fault: Fault, call: Call) -> None:
        """Cut the connection before the call is carried out or afterwards, and kill or restart what the fault names."""
        if fault.after:
            call.carry_out()
        if fault.kind is FaultKind.KILL:
            self._plan.carry_out(FaultKind.KILL)
        elif fault.kind is FaultKind.RESTART:
            # A server cannot wait for its own end.
            threading.Thread(target=self._plan.carry_out, args=(FaultKind.RESTART,), daemon=True).start()
        call.client.abort()


def refusal(fault: Fault) -> Refusal:
    """Return the error of a REJECT: a refusal with the fault's condition."""
    refused: type[Refusal] = type("Refused", (Refusal,), {"condition": fault.error_code, "status": 503})
    return refused("The sandbox refuses this on purpose.")
