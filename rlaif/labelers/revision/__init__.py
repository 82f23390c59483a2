"""Critique and revision of responses by principles, the supervised phase of constitutional AI."""
