"""Sweeps: their identity, the ledger of their jobs, and how Hydra starts them."""
