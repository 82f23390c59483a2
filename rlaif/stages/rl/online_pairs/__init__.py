"""Preference optimisation on pairs of responses that the policy has just drawn, labelled as it trains."""
