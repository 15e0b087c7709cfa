"""Ready-made applications of several models: `from headrace import patterns`.

Each function takes bound deployments and returns one, to run, to bind into others, or to give to another pattern.
"""

from headrace.patterns.cascade import cascade
from headrace.patterns.combining import stacking, weighted
from headrace.patterns.ensemble import ensemble
from headrace.patterns.fallback import fallback
from headrace.patterns.member import member
from headrace.patterns.pipeline import pipeline
from headrace.patterns.switch import by_header, by_model_id, switch

__all__ = [
    "by_header",
    "by_model_id",
    "cascade",
    "ensemble",
    "fallback",
    "member",
    "pipeline",
    "stacking",
    "switch",
    "weighted",
]
