"""Labelers: prompt strategy x readout x order x self-consistency over a backend. Judges are labelers."""

from rlaif.labelers.labeler import Estimate, Labeler, LabelResult, estimate
from rlaif.labelers.options import LabelerOptions, ReadoutOptions
from rlaif.labelers.store import LabelStore
from rlaif.labelers.templates import TemplateSet

__all__ = [
    "Estimate",
    "LabelResult",
    "LabelStore",
    "Labeler",
    "LabelerOptions",
    "ReadoutOptions",
    "TemplateSet",
    "estimate",
]
