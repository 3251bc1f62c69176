"""The attribution methods: one file a family, each declared in one place, found by its name."""

from . import (
    cam,
    channel_cam,
    gradient,
    gradient_shap,
    guided,
    integrated_gradients,
    occlusion,
    region_perturbation,
    smooth_grad,
)
from .base import Attribution, Method, describe_method, make_method, method, methods, param

__all__ = [
    "Attribution",
    "Method",
    "cam",
    "channel_cam",
    "describe_method",
    "gradient",
    "gradient_shap",
    "guided",
    "integrated_gradients",
    "make_method",
    "method",
    "methods",
    "occlusion",
    "param",
    "region_perturbation",
    "smooth_grad",
]
