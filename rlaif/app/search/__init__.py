"""Search over continuous knobs by Optuna: the sweeper, its study, and what a trial's job tells it."""
