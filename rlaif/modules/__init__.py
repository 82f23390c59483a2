"""Thin LightningModules: forward, loss from `ops`, log. Data, generation and rewards come from outside."""

from rlaif.modules.ppo import PPOModule, PPOOptions
from rlaif.modules.reward import RewardModule
from rlaif.modules.sft import SFTModule
from rlaif.modules.tracker import Tracker, TrackOptions, rollout_kl

__all__ = [
    "PPOModule",
    "PPOOptions",
    "RewardModule",
    "SFTModule",
    "TrackOptions",
    "Tracker",
    "rollout_kl",
]
