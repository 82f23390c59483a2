"""Trained models for use elsewhere: whole, for transformers' Auto classes, or as PEFT's adapters."""
