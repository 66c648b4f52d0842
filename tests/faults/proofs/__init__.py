"""The proofs of the guarantee: histories with faults, and the checker that judges them from outside."""
