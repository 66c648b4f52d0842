"""The Dataverse Web API on one machine: sales tables on SQLite, change sets that are transactions, events.

    app = DataverseApp(authority.verify, clock=clock, post=post)          # sandbox.identity.TokenAuthority
    demo = seed.demo_organization(app, opportunities=20)                  # customers, open opportunities
    role = seed.add_role(app)                                             # the privileges the function needs
    seed.add_application_user(app, identity.client_id, identity.object_id, roles=[role])
    seed.add_administrator(app, people.client_id)                         # may do everything: wins, set-up
    endpoint = seed.add_service_endpoint(app, namespace_address="sb://…/", path="opportunity-won", sas_key="…")
    seed.add_step(app, endpoint)                                          # Win of opportunity, asynchronous

Over the wire (posts events in the background, and tells the application its URL):

    with DataverseServer(app, ssl_context, port=0) as server:
        ...                                                               # server.url, https
    app.close()

In-process, without sockets or threads; `app.organization.url` is the host to use:

    session = requests.Session()
    session.mount(app.organization.url, WsgiAdapter(app))
    app.run_due_jobs()                                                    # posts what is due

Watching from outside: `app.requests` (every request) and `app.store.commits` (every committed change). Faults
wrap the application as WSGI middleware; raising `AnswerLost` there, before or after calling the application,
breaks the connection off. `app.organization.loser_answer` sets how a taken primary key is answered. Tables
are declared in `schema`. What is not supported is refused with 501 and a text that says so.
"""

from sandbox.dataverse.events import EventPipeline, Post, Poster, ServiceEndpoint
from sandbox.dataverse.limits import Limits, ServiceProtection
from sandbox.dataverse.organization import FailedChangeSet, LoserAnswer
from sandbox.dataverse.security import Depth
from sandbox.dataverse.server import AnswerLost, DataverseServer, WsgiAdapter
from sandbox.dataverse.store import Change, Commit, Store
from sandbox.dataverse.web_api import DataverseApp, RequestRecord, VerifyToken

__all__ = [
    "AnswerLost",
    "Change",
    "Commit",
    "DataverseApp",
    "DataverseServer",
    "Depth",
    "EventPipeline",
    "FailedChangeSet",
    "Limits",
    "LoserAnswer",
    "Post",
    "Poster",
    "RequestRecord",
    "ServiceEndpoint",
    "ServiceProtection",
    "Store",
    "VerifyToken",
    "WsgiAdapter",
]
