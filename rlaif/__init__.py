"""A research harness for reinforcement learning from AI feedback (Lee et al. 2023, arXiv:2309.00267)."""

__version__ = "0.1.0"
