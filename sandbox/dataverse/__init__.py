"""The Dataverse Web API on one machine: sales tables on SQLite, change sets that are transactions, events.

    app = DataverseApp(authority.verify, clock=clock, post=post)          # sandbox.identity.TokenAuthority
    demo = seed.demo_organization(app, opportunities=20)                  # customers, open opportunities
    role = seed.add_role(app)                                             # the privileges the function needs
    seed.add_application_user(app, identity.client_id, identity.object_id, roles=[role])
    seed.add_administrator(app, people.client_id)                         # may do everything, such as win
    endpoint = seed.add_service_endpoint(app, namespace_address="sb://…/", path="opportunity-won", sas_key="…")
    seed.add_step(app, endpoint)                                          # Win of opportunity, asynchronous

Over HTTPS (the server posts events in the background and sets the URL of the application):

    with DataverseServer(app, ssl_context, port=0) as server:
        ...                                                               # server.url, https
    app.close()

In-process, without sockets or threads; `app.organization.url` is the host to use:

    session = requests.Session()
    session.mount(app.organization.url, WsgiAdapter(app))
    app.run_due_jobs()                                                    # posts the due events

`app.requests` has every request and `app.database.commits` every committed change. Faults wrap the application as WSGI
middleware; `ResponseLost`, raised before or after the application is called, breaks the connection.
`app.organization` has two switches: `duplicate_response`, for a primary key that already exists, and
`failed_change_set`, for the rest of a batch. `sales_tables` and `platform_tables` declare the tables. A request for
anything that is not supported is refused with 501 and a text that names it.
"""

from sandbox.dataverse.database import Change, Commit, Database
from sandbox.dataverse.events import Post, Poster, ServiceEndpoint
from sandbox.dataverse.limits import ServiceProtection, ServiceProtectionLimits
from sandbox.dataverse.organization import DuplicateResponse, FailedChangeSet
from sandbox.dataverse.security import Depth
from sandbox.dataverse.server import DataverseServer, ResponseLost, WsgiAdapter
from sandbox.dataverse.web_api import DataverseApp, RequestRecord, VerifyToken

__all__ = [
    "Change",
    "Commit",
    "Database",
    "DataverseApp",
    "DataverseServer",
    "Depth",
    "DuplicateResponse",
    "FailedChangeSet",
    "Post",
    "Poster",
    "RequestRecord",
    "ResponseLost",
    "ServiceEndpoint",
    "ServiceProtection",
    "ServiceProtectionLimits",
    "VerifyToken",
    "WsgiAdapter",
]
