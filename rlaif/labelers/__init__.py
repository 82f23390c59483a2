"""Labelers: prompt strategy x readout x order x self-consistency over a backend. Judges are labelers."""

from rlaif.labelers.cost import FREE, Meter, Price
from rlaif.labelers.estimate import Estimate, estimate
from rlaif.labelers.labeler import Labeler, LabelResult
from rlaif.labelers.options import LabelerOptions
from rlaif.labelers.readout.unread import Unread
from rlaif.labelers.store import LabelStore
from rlaif.labelers.templates import TemplateSet
from rlaif.options.labeling import ReadoutOptions

__all__ = [
    "FREE",
    "Estimate",
    "LabelResult",
    "LabelStore",
    "Labeler",
    "LabelerOptions",
    "Meter",
    "Price",
    "ReadoutOptions",
    "TemplateSet",
    "Unread",
    "estimate",
]
