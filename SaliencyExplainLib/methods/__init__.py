"""The attribution methods: one file a family, each declared in one place, found by its name."""

from . import cam, gradient, guided, integrated_gradients, smooth_grad
from .base import Attribution, Method, describe_method, make_method, method, methods, param

__all__ = [
    "Attribution",
    "Method",
    "cam",
    "describe_method",
    "gradient",
    "guided",
    "integrated_gradients",
    "make_method",
    "method",
    "methods",
    "param",
    "smooth_grad",
]
