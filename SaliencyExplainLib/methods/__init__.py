"""The attribution methods: one file a family, each declared in one place, found by its name."""

from . import (
    attention,
    cam,
    channel_cam,
    deep_lift,
    gradient,
    gradient_shap,
    guided,
    integrated_gradients,
    lrp,
    occlusion,
    region_perturbation,
    smooth_attention_mask,
    smooth_grad,
)
from .base import Attribution, Method, describe_method, make_method, method, methods, param

__all__ = [
    "Attribution",
    "Method",
    "attention",
    "cam",
    "channel_cam",
    "deep_lift",
    "describe_method",
    "gradient",
    "gradient_shap",
    "guided",
    "integrated_gradients",
    "lrp",
    "make_method",
    "method",
    "methods",
    "occlusion",
    "param",
    "region_perturbation",
    "smooth_attention_mask",
    "smooth_grad",
]
