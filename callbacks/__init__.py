"""Callbacks: each file adds one behaviour to any Trainer."""

from callbacks.best_checkpoint import BestCheckpoint, LastStep
from callbacks.divergence import DivergedError, Divergence, OnNaN
from callbacks.ema import EMA
from callbacks.last_checkpoint import LastCheckpoint
from callbacks.lookahead import Lookahead
from callbacks.parameter_budget import ParameterBudget
from callbacks.random_state import RandomState
from callbacks.swa import SWA

__all__ = [
    "EMA", "SWA", "BestCheckpoint", "DivergedError", "Divergence", "LastCheckpoint", "LastStep",
    "Lookahead", "OnNaN", "ParameterBudget", "RandomState",
]  # fmt: skip
