"""Other backward rules than the derivative: rectifiers, DeepLift, relevance."""

from .rectifiers import RectifierRule, run_as_written
from .relevance import RelevanceRule, Share

__all__ = ["RectifierRule", "RelevanceRule", "Share", "run_as_written"]
