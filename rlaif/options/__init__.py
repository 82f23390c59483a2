"""What the configuration may say, and how a composed one is made ready for a job."""
