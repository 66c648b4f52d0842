"""Faults on purpose: one plan for every connection of the function, and the code that causes the faults."""

from sandbox.faults.dataverse import faulty_dataverse
from sandbox.faults.http import FaultyAdapter
from sandbox.faults.plan import Dependency, Fault, FaultKind, FaultPlan, FaultRule, Struck, When

__all__ = [
    "Dependency",
    "Fault",
    "FaultKind",
    "FaultPlan",
    "FaultRule",
    "FaultyAdapter",
    "Struck",
    "When",
    "faulty_dataverse",
]
