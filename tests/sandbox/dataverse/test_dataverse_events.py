"""From a step to a post: which messages, in which shape, when, and again after a failure."""

from __future__ import annotations

import json
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from sandbox.clock import MovableClock
from sandbox.dataverse import DataverseApp, Poster, ServiceEndpoint, seed
from sandbox.dataverse.actions import win_opportunity
from sandbox.dataverse.execution_context import CLAIMS, MAX_BODY
from sandbox.dataverse.schema import TABLES
from tests.sandbox.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.sandbox.dataverse.conftest import World

CONTRACTS = "http://schemas.microsoft.com/xrm/2011/Contracts"


def parameter(context: dict[str, Any], name: str) -> Any:  # noqa: ANN401
    (value,) = [item["value"] for item in context["InputParameters"] if item["key"] == name]
    return value


def attributes(entity: dict[str, Any]) -> dict[str, Any]:
    return {item["key"]: item["value"] for item in entity["Attributes"]}


def test_a_win_is_posted_as_a_remote_execution_context(world: World) -> None:
    world.listen()
    opportunity = world.opportunity
    world.admin.win(opportunity, actualrevenue=12.5, actualend="2026-03-01T10:00:00Z")
    (context,) = world.posted()
    (posted,) = world.outside.posted
    assert posted.endpoint == ServiceEndpoint("sb://sandbox/", "opportunity-won", "send", "secret")
    assert posted.content_type == "application/json"
    assert b'"__type": "Entity:http:\\/\\/schemas.microsoft.com\\/xrm\\/2011\\/Contracts"' in posted.body
    assert (context["MessageName"], context["PrimaryEntityName"]) == ("Win", "opportunity")
    assert context["OrganizationId"] == world.app.organization.id
    assert context["OrganizationName"].startswith("unq")
    assert (context["Depth"], context["Mode"], context["Stage"], context["ParentContext"]) == (1, 1, 40, None)
    assert context["OperationCreatedOn"] == "/Date(1772323200000)/"
    close = parameter(context, "OpportunityClose")
    assert (close["__type"], close["LogicalName"]) == (f"Entity:{CONTRACTS}", "opportunityclose")
    given = attributes(close)
    assert given["opportunityid"]["__type"] == f"EntityReference:{CONTRACTS}"
    reference = (given["opportunityid"]["LogicalName"], given["opportunityid"]["Id"])
    assert reference == ("opportunity", opportunity)
    assert given["actualrevenue"] == {"__type": f"Money:{CONTRACTS}", "Value": 12.5}
    assert given["actualend"] == "/Date(1772323200000)/"
    assert parameter(context, "Status") == {"__type": f"OptionSetValue:{CONTRACTS}", "Value": 3}


def test_the_properties_are_the_real_ones(world: World) -> None:
    world.listen()
    world.admin.win(world.opportunity)
    world.app.run_due_jobs()
    properties = world.outside.posted[0].properties
    user = world.admin.get("WhoAmI")["UserId"]
    assert properties.pop(f"{CLAIMS}Organization").startswith("unq")
    assert properties.pop(f"{CLAIMS}InitiatingUserAgent").startswith("python-requests/")
    assert properties == {
        f"{CLAIMS}User": user,
        f"{CLAIMS}InitiatingUser": user,
        f"{CLAIMS}EntityLogicalName": "opportunity",
        f"{CLAIMS}RequestName": "Win",
    }


def test_a_win_also_updates_sets_the_state_and_creates_an_activity(world: World) -> None:
    opportunity = world.opportunity
    world.listen("Update")
    world.listen("SetState")
    world.listen("Create", "opportunityclose")
    world.admin.win(opportunity)
    by_message = {context["MessageName"]: context for context in world.posted()}
    assert len(world.outside.posted) == 3
    target = parameter(by_message["Update"], "Target")
    assert target["Id"] == by_message["Update"]["PrimaryEntityId"] == opportunity
    assert attributes(target)["statecode"] == {"__type": f"OptionSetValue:{CONTRACTS}", "Value": 1}
    moniker = parameter(by_message["SetState"], "EntityMoniker")
    assert (moniker["__type"], moniker["Id"]) == (f"EntityReference:{CONTRACTS}", opportunity)
    assert parameter(by_message["SetState"], "State")["Value"] == 1
    created = parameter(by_message["Create"], "Target")
    assert created["LogicalName"] == by_message["Create"]["PrimaryEntityName"] == "opportunityclose"
    assert attributes(created)["opportunityid"]["Id"] == opportunity
    for context in by_message.values():
        assert (context["Depth"], context["ParentContext"]["MessageName"]) == (2, "Win")


def test_reopening_and_the_old_message_fire_too(world: World) -> None:
    world.admin.win(world.opportunity)
    world.listen("SetStateDynamicEntity")
    world.admin.patch(world.path, {"statecode": 0})
    (context,) = world.posted()
    assert (context["MessageName"], context["ParentContext"]) == ("SetStateDynamicEntity", None)
    assert parameter(context, "State")["Value"] == 0


def test_a_lost_opportunity_creates_the_same_activity(world: World) -> None:
    world.listen("Create", "opportunityclose")
    world.listen("Win")
    world.listen("Lose")
    world.admin.close(world.opportunity, "Lose", 4, 204)
    assert [context["MessageName"] for context in world.posted()] == ["Create", "Lose"]


def test_an_update_step_may_be_limited_to_columns(world: World) -> None:
    step = world.listen("Update")
    world.admin.patch(f"sdkmessageprocessingsteps({step})", {"filteringattributes": "statecode,name"})
    world.admin.patch(world.path, {"description": "x"})
    world.admin.patch(world.path, {"name": "x"})
    assert world.app.run_due_jobs() == 1


def test_a_disabled_step_posts_nothing(world: World) -> None:
    path = f"sdkmessageprocessingsteps({world.listen()})"
    world.admin.patch(path, {"statecode": 1, "statuscode": 2})
    world.admin.win(world.opportunity)
    assert world.app.run_due_jobs() == 0
    world.admin.patch(path, {"statecode": 0, "statuscode": 1})
    world.admin.win(world.demo.opportunities[1])
    assert world.app.run_due_jobs() == 1


def test_too_big_a_context_goes_out_without_its_parameters(world: World) -> None:
    world.listen()
    world.admin.win(world.opportunity, description="x" * MAX_BODY)
    (context,) = world.posted()
    assert context["InputParameters"] == []
    assert context["ParentContext"] is None
    assert context["PrimaryEntityId"] == world.opportunity
    assert world.outside.posted[0].properties[f"{CLAIMS}MessageMaxSizeExceeded"]


def test_a_failed_post_is_tried_again_with_growing_intervals(world: World) -> None:
    step = world.listen(auto_delete=False)
    world.outside.failure = ConnectionError("no way")
    world.admin.win(world.opportunity)
    assert world.app.run_due_jobs() == 0
    jobs = f"asyncoperations?$filter=_owningextensionid_value eq {step}&$orderby=createdon desc"
    (job,) = world.admin.rows(jobs)
    assert (job["statecode"], job["statuscode"], job["retrycount"]) == (1, 10, 1)
    assert job["message"] == "ConnectionError: no way"
    assert job["_regardingobjectid_value"] == world.opportunity
    assert job["postponeuntil"] == "2026-03-01T00:00:02Z"
    world.outside.failure = None
    assert world.app.run_due_jobs() == 0
    world.clock.advance(timedelta(seconds=2))
    assert world.app.run_due_jobs() == 1
    (job,) = world.admin.rows(jobs)
    assert (job["statecode"], job["statuscode"], job["message"]) == (3, 30, None)
    (context,) = world.posted()
    assert context["OperationId"] == job["asyncoperationid"]


def test_after_the_last_interval_the_job_has_failed(world: World) -> None:
    world.listen()
    world.outside.failure = ConnectionError()
    world.admin.win(world.opportunity)
    for _ in range(60):
        world.app.run_due_jobs()
        world.clock.advance(timedelta(hours=1))
    (job,) = world.admin.rows("asyncoperations")
    assert (job["statecode"], job["statuscode"]) == (3, 31)
    assert job["completedon"]


@pytest.mark.parametrize(("mode", "posted"), [(1, []), (0, ["Win"])])
def test_a_job_is_written_with_the_win_or_not_at_all(world: World, mode: int, posted: list[str]) -> None:
    """A synchronous step posts at once, and its post stays when the win is rolled back."""
    world.listen(mode=mode)
    client = world.admin
    close = {"opportunityid@odata.bind": f"/{world.path}"}
    win = client.operation("POST", "WinOpportunity", json.dumps({"Status": 3, "OpportunityClose": close}))
    (failed,) = client.parts(client.change_set(win, client.operation("DELETE", "accounts(x)")))
    assert [part.status for part in failed.nested] == [400]
    contexts = world.posted()
    assert [context["MessageName"] for context in contexts] == posted
    assert all(context["Mode"] == mode for context in contexts)
    assert client.get(world.path)["statecode"] == 0


def test_a_synchronous_post_that_fails_refuses_the_win(world: World) -> None:
    world.listen(mode=0)
    world.outside.failure = ConnectionError("no way")
    world.admin.win(world.opportunity, 400)
    assert world.admin.get(world.path)["statecode"] == 0


def test_a_rotated_key_is_used_for_posts_that_wait(world: World) -> None:
    step = world.admin.get(f"sdkmessageprocessingsteps({world.listen()})")
    world.admin.win(world.opportunity)
    world.admin.patch(f"serviceendpoints({step['_eventhandler_value']})", {"saskey": "rotated"})
    world.app.run_due_jobs()
    assert world.outside.posted[0].endpoint.sas_key == "rotated"


@pytest.mark.parametrize(
    ("change", "text"), [({"contract": 8}, "not to contract 8"), ({"messageformat": 1}, "not format 1")]
)
def test_an_endpoint_that_takes_no_json_from_a_queue_fails_the_job(
    world: World, change: dict[str, int], text: str
) -> None:
    step = world.admin.get(f"sdkmessageprocessingsteps({world.listen()})")
    world.admin.patch(f"serviceendpoints({step['_eventhandler_value']})", change)
    world.admin.win(world.opportunity)
    world.app.run_due_jobs()
    assert text in world.admin.rows("asyncoperations")[0]["message"]


def test_the_poster_works_in_the_background_on_its_own(tmp_path: Any) -> None:  # noqa: ANN401
    """The first posts fail; all arrive in the end, and stopping leaves no thread behind."""
    arrived, failures = threading.Semaphore(0), [ConnectionError("first"), ConnectionError("second")]

    def post(*_: object) -> None:
        if failures:
            raise failures.pop()
        arrived.release()

    never: Callable[..., Any] = lambda *_: pytest.fail("no token is asked for")  # noqa: E731
    clock = MovableClock()
    app = DataverseApp(never, clock=clock, directory=tmp_path, post=post)
    demo = seed.demo_organization(app, 10)
    seed.add_step(app, seed.add_service_endpoint(app, namespace_address="sb://sandbox/", path="q"))
    poster = Poster(app.organization.pipeline, app.database).start()
    with app.session() as session:
        for opportunity in demo.opportunities:
            close = {"opportunityid@odata.bind": f"/opportunities({opportunity})"}
            win_opportunity(session, {"OpportunityClose": close})

    def arrives() -> bool:
        clock.advance(timedelta(seconds=10))
        return arrived.acquire(timeout=0.5)

    for _ in demo.opportunities:
        wait_until(arrives, "no post arrived")
    poster.stop()
    with app.database.reading() as transaction:
        assert not transaction.rows(TABLES["asyncoperation"])
    app.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dataverse-poster")]


def test_without_a_way_to_post_jobs_wait(world: World) -> None:
    world.app.organization.pipeline.post = None
    world.listen()
    world.admin.win(world.opportunity)
    assert world.app.run_due_jobs() == 0
    assert world.admin.rows("asyncoperations?$filter=statuscode eq 10")
    world.app.organization.pipeline.post = world.outside.post
    world.clock.advance(timedelta(minutes=1))
    assert world.app.run_due_jobs() == 1
