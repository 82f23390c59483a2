"""Running models: packing, the trunk's cache, scoring, rollouts; decoding is a package of its own."""
