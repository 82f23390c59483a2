"""What RL maximises, `reward=`: each kind, its scale, and the registry that a new one enters."""
