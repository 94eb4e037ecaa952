"""Stochastic depth: training with residual branches dropped at random, and what the loss says of each."""

from resgrow.depth.stochastic import StochasticDepth, stochastic_depth

__all__ = ["StochasticDepth", "stochastic_depth"]
