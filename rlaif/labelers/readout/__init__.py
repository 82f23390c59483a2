"""Readouts: how a preference or a score is read from a model's answer."""
