"""Revised responses: how they are made, and as rows to train on."""
