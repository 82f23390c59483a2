"""stage=rl: the policy, by PPO and its relatives, with what watches it train."""
