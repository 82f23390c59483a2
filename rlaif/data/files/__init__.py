"""Tasks from files and hub data sets: HH, TL;DR, and a user's own columns."""
