"""stage=rl: the policy, by PPO and its relatives on rollouts, or by DPO and its relatives on pairs."""
