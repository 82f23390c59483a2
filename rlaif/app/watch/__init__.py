"""stage=report watch=true: the report of runs that are still being written, served on this machine."""
