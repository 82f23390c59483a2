"""The engine of every comparison: arms, seeds, labelers and head-to-heads, with one set of tests and tables."""
