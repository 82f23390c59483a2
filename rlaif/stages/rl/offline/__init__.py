"""Preference optimisation on labelled pairs: DPO and its relatives, without a reward model or rollouts."""
