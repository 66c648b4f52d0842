"""A Functions host for Python apps of the v1 model with Service Bus queue triggers.

It does what Azure's host does between queue and function, with the worker processes that Microsoft's own runtime
library makes: peek-lock, concurrency, settlement, lock renewal, functionTimeout, dead workers. Other triggers,
bindings, sessions, batches and topics are refused by name.
"""

from sandbox.functions_host.configuration import ConfigurationError
from sandbox.functions_host.host import FunctionsHost
from sandbox.functions_host.worker_process import WorkerDiedError

__all__ = ["ConfigurationError", "FunctionsHost", "WorkerDiedError"]
