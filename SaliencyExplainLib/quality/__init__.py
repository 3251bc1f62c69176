"""How far a map can be trusted: metrics, sanity checks, comparisons.

>>> import SaliencyExplainLib as sx
>>> sorted(sx.quality.metrics())[:2]
['attribution_quality', 'completeness']

Listing the metrics imports no torch; a metric that runs the network does when it is measured.
"""

from __future__ import annotations

from . import (
    attribution_quality,
    completeness,
    complexity,
    correlation,
    curves,
    localisation,
    repeatability,
    road,
    segments,
)
from .appraisal import Appraisal, appraise
from .base import Measured, Metric, Row, describe_metric, make_metric, metric, metrics, param
from .comparison import Comparison, compare
from .evaluation import USUAL, Evaluation, evaluate
from .method_ranking import Ranking, rank
from .plan import Plan, plan_work
from .randomisation import sanity_check
from .sanity_verdict import SanityCheck, Stage
from .similarity import MEASURES, available_measures, pearson, spearman, ssim, top_k_iou

__all__ = [
    "MEASURES",
    "USUAL",
    "Appraisal",
    "Comparison",
    "Evaluation",
    "Measured",
    "Metric",
    "Plan",
    "Ranking",
    "Row",
    "SanityCheck",
    "Stage",
    "appraise",
    "attribution_quality",
    "available_measures",
    "compare",
    "completeness",
    "complexity",
    "correlation",
    "curves",
    "describe_metric",
    "evaluate",
    "localisation",
    "make_metric",
    "metric",
    "metrics",
    "param",
    "pearson",
    "plan_work",
    "rank",
    "repeatability",
    "road",
    "sanity_check",
    "segments",
    "spearman",
    "ssim",
    "top_k_iou",
]
