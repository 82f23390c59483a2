"""A job: the command line, the plan, the requested stages, and what is printed and kept."""
