"""Running models: packing, the trunk's cache, scoring, rollouts; decoding has a room of its own."""
