"""What the stages share: a job's context, the policies, pairs and rows that travel between them, and their measures."""
