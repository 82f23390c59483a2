"""Readouts: how a preference or a score is read from what a model answers."""
