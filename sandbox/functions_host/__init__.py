"""A Functions host for Python apps of the v1 and v2 models with Service Bus triggers on queues and subscriptions.

It does what Azure's host does between Service Bus and function, with worker processes that run Microsoft's own runtime
libraries: peek-lock, concurrency, settlement, lock renewal, functionTimeout, replacing workers that die. Functions with
other triggers or bindings are left out with a warning; sessions and batches are refused by name.
"""

from sandbox.functions_host.configuration import InvalidAppConfiguration
from sandbox.functions_host.host import FunctionsHost
from sandbox.functions_host.worker_process import WorkerDied

__all__ = ["FunctionsHost", "InvalidAppConfiguration", "WorkerDied"]
