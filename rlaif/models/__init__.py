"""Decoders split into a trunk, tops and heads: loading, attention patterns, adapters, export."""
