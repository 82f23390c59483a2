"""Prompts to rollouts: what the policy answered, with the trunk's activations of it."""

from rlaif.rollout.collect import Rollout, RolloutCollector

__all__ = ["Rollout", "RolloutCollector"]
