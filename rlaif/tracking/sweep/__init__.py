"""The ledger of a sweep: what became of each of its jobs."""

from rlaif.tracking.sweep.ledger import Entry, Job, Ledger, State, find_ledgers

__all__ = ["Entry", "Job", "Ledger", "State", "find_ledgers"]
