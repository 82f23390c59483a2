"""The one engine that compares: arms, seeds, labelers and head-to-heads, their tests and tables."""
