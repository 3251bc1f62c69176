"""Running a network again where a small part of its input has changed, and nowhere else."""

from .incremental_pass import IncrementalPass
from .spans import Spans, full, where_true, within

__all__ = ["IncrementalPass", "Spans", "full", "where_true", "within"]
