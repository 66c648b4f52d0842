"""Faults on purpose: one plan for every connection of the function, and the code that causes the faults."""

from sandbox.faults.dataverse import faulty_dataverse
from sandbox.faults.http import FaultyAdapter
from sandbox.faults.plan import Fault, FaultPlan, Kind, Rule, Struck, When, Wire

__all__ = [
    "Fault",
    "FaultPlan",
    "FaultyAdapter",
    "Kind",
    "Rule",
    "Struck",
    "When",
    "Wire",
    "faulty_dataverse",
]
