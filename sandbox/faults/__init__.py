"""What can go wrong, on purpose: one plan for every wire of the sandbox, and the means to bring it about."""

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
