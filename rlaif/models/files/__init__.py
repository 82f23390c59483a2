"""A model's files: where they are, what they hold, what identifies them, and how they become a module."""
