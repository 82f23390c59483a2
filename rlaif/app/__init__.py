"""A job: the command line, the plan, the stages asked for, and what is printed and kept of it."""
