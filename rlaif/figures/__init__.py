"""Plots as SVG, and lines of tables as text."""
