# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Sampling policies. Importing this package registers all of them in `POLICIES`."""

from .affine import AffinePolicy, Coefficients, FlowPolicy
from .base import POLICIES, Policy, noise_option
from .dance_sde import DanceSDE
from .ddim import DDIM
from .flow_cps import FlowCPS
from .flow_sde import FlowSDE


__all__ = [
    "DDIM",
    "POLICIES",
    "AffinePolicy",
    "Coefficients",
    "DanceSDE",
    "FlowCPS",
    "FlowPolicy",
    "FlowSDE",
    "Policy",
    "noise_option",
]
