"""Tiny random models of every type of transformers' causal language models that builds at a small size."""

from zoo.configs import LAYERS, NAMES, VARIANTS, VOCABULARY, WINDOW, make_config
from zoo.models import build, save

__all__ = ["LAYERS", "NAMES", "VARIANTS", "VOCABULARY", "WINDOW", "build", "make_config", "save"]
