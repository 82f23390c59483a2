"""Labelers: prompt strategy x readout x order x self-consistency over a backend. Judges are labelers."""

from rlaif.labelers.cost import FREE, Meter, Price
from rlaif.labelers.estimate import Estimate, estimate, estimate_harm
from rlaif.labelers.labeler import Labeler, LabelResult
from rlaif.labelers.options import LabelerOptions
from rlaif.labelers.readout.harm import Response
from rlaif.labelers.readout.unread import Unread
from rlaif.labelers.revision.reviser import FirstResponse, Revised, Reviser, ReviserOptions
from rlaif.labelers.store import LabelStore
from rlaif.labelers.templates import TemplateSet
from rlaif.options.labeling import ReadoutOptions

__all__ = [
    "FREE",
    "Estimate",
    "FirstResponse",
    "LabelResult",
    "LabelStore",
    "Labeler",
    "LabelerOptions",
    "Meter",
    "Price",
    "ReadoutOptions",
    "Response",
    "Revised",
    "Reviser",
    "ReviserOptions",
    "TemplateSet",
    "Unread",
    "estimate",
    "estimate_harm",
]
