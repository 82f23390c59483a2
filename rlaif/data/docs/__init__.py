"""The embedded task: docstrings of installed packages, read without importing them."""
