"""What a page brings along to run in a browser: its scripts, and the policy that allows these and nothing else."""
