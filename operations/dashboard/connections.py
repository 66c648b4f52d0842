"""The arrows of the picture, judged by the checks of `doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from operations.dashboard.snapshot import ConnectionState, Light
from operations.diagnosis import connections, dataverse, service_bus
from operations.diagnosis.check import Inputs, State, run_checks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from operations.diagnosis.check import Check, Result

# What each arrow depends on, the most fundamental first: where several fail, the first one is the cause.
_ARROWS: dict[str, tuple[str, tuple[Check[Any], ...]]] = {
    "won": (
        "Dynamics posts wins to the queue",
        (dataverse.service_endpoint, dataverse.step, dataverse.system_jobs),
    ),
    "queue": (
        "The queue can be read",
        (
            connections.service_bus_token,
            connections.service_bus_connection,
            service_bus.queue,
            service_bus.retries,
        ),
    ),
    "dataverse": (
        "Dataverse responds and grants what is needed",
        (
            connections.dataverse_token,
            connections.dataverse_connection,
            dataverse.dataverse,
            dataverse.environment,
            dataverse.sales,
            dataverse.application_user,
            dataverse.privileges,
        ),
    ),
    "topic": ("The topic takes events", (service_bus.topic,)),
    "failed": ("The failed queue takes messages", (service_bus.failed_queue,)),
}
_SECONDS = 10.0
# The worst state first; a connection without one of these is green.
_LIGHTS = {
    State.PROBLEM: Light.RED,
    State.NOT_CHECKED: Light.UNKNOWN,
    State.ATTENTION: Light.YELLOW,
    State.REMARK: Light.YELLOW,
    State.CANNOT_SEE: Light.UNKNOWN,
}


def check_connections(environment: Mapping[str, str]) -> Iterator[ConnectionState]:
    """Run the checks that the picture needs, and yield each arrow."""
    wanted = [connections.settings, *(each for _, checks in _ARROWS.values() for each in checks)]
    results = dict(run_checks(wanted, Inputs(environment), _SECONDS))
    settings = results[connections.settings]
    for name, (sentence, checks) in _ARROWS.items():
        judged = [result for each in checks for result in results[each]]
        yield _connection(name, sentence, [*settings, *judged])


def _connection(name: str, sentence: str, results: Sequence[Result]) -> ConnectionState:
    for state, light in _LIGHTS.items():
        for result in results:
            if result.state is state:
                return ConnectionState(name, light, _explained(sentence, result))
    return ConnectionState(name, Light.GREEN, f"{sentence}.")


def _explained(sentence: str, result: Result) -> str:
    if result.finding is not None:
        return f"{result.seen}: {result.finding.meaning} {result.finding.advice}"
    if result.state is State.CANNOT_SEE:
        return f"{sentence}: your login cannot see it ({result.right or result.seen})."
    return f"{sentence}: not known, {result.seen}."
