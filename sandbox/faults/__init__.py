"""Faults on purpose: one plan for every connection of the function, and the code that causes the faults."""

from sandbox.faults.dataverse import faulty_dataverse
from sandbox.faults.http import FaultyAdapter
from sandbox.faults.plan import Dependency, Fault, FaultPlan, Kind, Rule, Struck, When

__all__ = [
    "Dependency",
    "Fault",
    "FaultPlan",
    "FaultyAdapter",
    "Kind",
    "Rule",
    "Struck",
    "When",
    "faulty_dataverse",
]
