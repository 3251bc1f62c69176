"""Attention weights as they were used, and where their tokens lie."""

from .recorder import AttentionRecorder, recorded_attention
from .tokens import AttentionCall, TokenGrid, TokenMerge, TokenTable

__all__ = [
    "AttentionCall",
    "AttentionRecorder",
    "TokenGrid",
    "TokenMerge",
    "TokenTable",
    "recorded_attention",
]
