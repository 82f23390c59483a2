"""The difference of two runs: what they were given, what they stand on, what came out, and whether that is tested."""
