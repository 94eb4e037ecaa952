"""Losses: values and derivatives of each with respect to the model's output; one file per kind of loss.

The mean loss over data is ``sum over batches of head.loss / sum over batches of head.total``. All that a head gives
belongs to ``head.loss``, the unnormalised sum over a batch, in which samples do not influence each other.
"""

from resgrow.curvature.heads.base import Head, LossFn
from resgrow.curvature.heads.table import head_of, reduction_of

__all__ = ["Head", "LossFn", "head_of", "reduction_of"]
