"""RL on responses that the policy has just drawn: PPO and its relatives, and what measures the policy as it trains."""
