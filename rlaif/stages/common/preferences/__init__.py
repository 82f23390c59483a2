"""Labelled pairs to learn from: whose labels they carry, and which part of them each is for."""
