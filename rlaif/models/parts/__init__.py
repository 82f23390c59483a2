"""A causal language model of transformers taken apart: layers, views that run some of them, head, attention."""
